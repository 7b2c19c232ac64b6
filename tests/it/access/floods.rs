//! What one connection may ask of the server for its own sake.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::grpc::{Server, soon};

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// A connection of HTTP/2, by hand.
async fn begun(server: &Server) -> (OwnedReadHalf, OwnedWriteHalf) {
    let (read, mut write) = TcpStream::connect(server.address).await.unwrap().into_split();
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    write.write_all(&SETTINGS).await.unwrap();
    (read, write)
}

/// Reads answers to pings: as many as there should be, or to the end of the connection; how many there were.
async fn answers(read: &mut OwnedReadHalf, most: usize) -> usize {
    let mut answered = 0;
    let mut header = [0; 9];
    while answered < most && read.read_exact(&mut header).await.is_ok() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        if read.read_exact(&mut vec![0; length as usize]).await.is_err() {
            break;
        }
        answered += usize::from(header[3] == 6 && header[4] == 1);
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_ping_while_it_is_idle() {
    let server = Server::well().await;
    let (mut read, mut write) = begun(&server).await;
    for round in 0..8 {
        write.write_all(&PING.repeat(100)).await.unwrap();
        assert_eq!(soon("answers", answers(&mut read, 100)).await, 100, "{round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_flooded_is_closed_and_others_are_served() {
    for flood in [PING.repeat(100), SETTINGS.repeat(100)] {
        let server = Server::well().await;
        let (mut read, mut write) = begun(&server).await;
        let reading = tokio::spawn(async move { answers(&mut read, usize::MAX).await });
        let flooding = async { while write.write_all(&flood).await.is_ok() {} };
        soon("the connection is closed", flooding).await;
        soon("its end", reading).await.unwrap();
        assert_eq!(server.get("/health").await.1, "serving\n");
    }
}
