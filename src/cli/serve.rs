//! `candlewick serve`: loads a model, listens, and drains when asked to stop.

use std::{
    io::{self, Write},
    net::SocketAddr,
    pin::pin,
};

use tokio::net::{TcpListener, TcpSocket, lookup_host};

use super::{Stop, block_on, say, start::start_engine};
use crate::{
    config::ServeArgs,
    engine::Engine,
    error::{Code, Error, Result},
    server::{self, ServeOptions},
};

/// Connections that the kernel keeps for us until we take them.
const BACKLOG: u32 = 1024;
/// Exit code of a program that a signal ends before it has drained; a shell's for Ctrl-C.
const INTERRUPTED: u8 = 130;

pub(super) fn run(args: ServeArgs) -> Result<(), Stop> {
    block_on(async move {
        let mut signals = Signals::listen()?;
        // Taken before the model is loaded, so that a port in use is said at once; nobody is let in before it is.
        let socket = bind(&args.listen).await?;
        let engine = {
            let mut starting =
                pin!(start_engine(&args.model, &args.engine, &args.lora, args.served_model_name.as_deref()));
            tokio::select! {
                engine = &mut starting => engine?,
                () = signals.next() => return Err(Stop::Signal(INTERRUPTED)),
            }
        };
        let listener = socket.listen(BACKLOG).map_err(|error| cannot_listen(&args.listen, &error))?;
        announce(&engine, &listener)?;
        let shutdown = async move {
            signals.next().await;
            say("Draining: streams under way may finish; a second signal ends at once.");
            tokio::spawn(async move {
                signals.next().await;
                std::process::exit(INTERRUPTED.into());
            });
        };
        server::serve(
            engine,
            listener,
            ServeOptions {
                drain_timeout: args.drain_timeout,
                allowed_origins: args.browsers.allowed_origins,
                streams: args.streams,
                ..ServeOptions::default()
            },
            shutdown,
        )
        .await?;
        Ok(())
    })
}

/// One line, once requests can be sent.
fn announce(engine: &Engine, listener: &TcpListener) -> Result<(), Stop> {
    let address = listener.local_addr()?;
    let (model, config) = (&engine.info().name, engine.config());
    let line = format!(
        "candlewick serves {model} on {address}: {} blocks of {} tokens, context {} tokens",
        config.num_blocks, config.block_size, config.max_model_len
    );
    match writeln!(io::stdout(), "{line}") {
        // Nobody reads it; the server is for others.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// A socket that has the address but does not listen yet.
async fn bind(listen: &str) -> Result<TcpSocket> {
    let fails = |error: &io::Error| cannot_listen(listen, error);
    let address: SocketAddr = lookup_host(listen)
        .await
        .map_err(|error| fails(&error))?
        .next()
        .ok_or_else(|| Error::invalid("--listen", format!("{listen} has no address")))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(|e| fails(&e))?;
    // So that a restart need not wait for connections of the last run to time out.
    #[cfg(unix)]
    socket.set_reuseaddr(true).map_err(|error| fails(&error))?;
    socket.bind(address).map_err(|error| fails(&error))?;
    Ok(socket)
}

fn cannot_listen(listen: &str, error: &io::Error) -> Error {
    let code =
        if error.kind() == io::ErrorKind::InvalidInput { Code::InvalidArgument } else { Code::FailedPrecondition };
    Error::new(code, format!("--listen {listen}: {error}"))
}

/// Ctrl-C and, where there is one, SIGTERM.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let on = |kind| signal(kind).map_err(|error| Error::internal(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn listen() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_said_by_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = bind(&address).await.unwrap_err();
        assert!(error.message.contains(&format!("--listen {address}")), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_address_is_said_by_its_flag() {
        for listen in ["nonsense", "127.0.0.1", "127.0.0.1:99999", ""] {
            let error = bind(listen).await.unwrap_err();
            assert!(error.message.contains("--listen"), "{listen}: {error}");
        }
    }

    #[tokio::test]
    async fn an_address_is_held_before_anybody_is_let_in() {
        let socket = bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
        let listener = socket.listen(8).unwrap();
        tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    }
}
