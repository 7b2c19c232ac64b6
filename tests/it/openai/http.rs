//! A client of HTTP/1.1 small enough to be read: what goes over the wire is what a test wrote.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::grpc::soon;

/// An answer whose head has come.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
}

/// Sends bytes as they are and reads the head of the answer.
pub(crate) async fn send(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses a body early may close before it has all of it.
    let _ = stream.write_all(bytes).await;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    soon("a status line", stream.read_line(&mut line)).await.unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        soon("a header", stream.read_line(&mut line)).await.unwrap();
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => return Answer { status, headers, stream },
        }
    }
}

/// A request with a JSON body.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    post_with(address, path, "content-type: application/json\r\n", body).await
}

/// A request with a body and these headers, each ended with its line break.
pub(crate) async fn post_with(address: SocketAddr, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{headers}\r\n");
    send(address, (head + body).as_bytes()).await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The next chunk of a body that comes in chunks; none at its end.
    pub(crate) async fn chunk_bytes(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        soon("the size of a chunk", self.stream.read_line(&mut size)).await.unwrap();
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        soon("a chunk", self.stream.read_exact(&mut chunk)).await.unwrap();
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    pub(crate) async fn text(self) -> String {
        String::from_utf8(self.bytes().await).unwrap()
    }

    pub(crate) async fn bytes(mut self) -> Vec<u8> {
        if let Some(length) = self.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            soon("the body", self.stream.read_exact(&mut body)).await.unwrap();
            return body;
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk_bytes().await {
            body.extend(chunk);
        }
        body
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// The body as server-sent events: each one's name and data. Fails on anything else.
    pub(crate) async fn events(self) -> Vec<(Option<String>, String)> {
        assert!(self.header("content-type").unwrap().starts_with("text/event-stream"));
        let text = self.text().await;
        let blocks = text.strip_suffix("\n\n").unwrap_or_else(|| panic!("cut off: {text:?}")).split("\n\n");
        let event = |block: &str| {
            let (mut name, mut data) = (None, None);
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("event", value)) => assert!(name.replace(value.to_owned()).is_none(), "{block:?}"),
                    Some(("data", value)) => assert!(data.replace(value.to_owned()).is_none(), "{block:?}"),
                    _ => panic!("no field of an event: {line:?}"),
                }
            }
            (name, data.unwrap_or_else(|| panic!("no data in {block:?}")))
        };
        blocks.map(event).collect()
    }

    /// The chunks of one of OpenAI's streams, which must end as they should.
    pub(crate) async fn chunks(self) -> Vec<Value> {
        let mut events = self.events().await;
        assert_eq!(events.pop(), Some((None, "[DONE]".to_owned())));
        let chunk = |(name, data): (Option<String>, String)| {
            assert_eq!(name, None);
            serde_json::from_str(&data).unwrap()
        };
        events.into_iter().map(chunk).collect()
    }
}
