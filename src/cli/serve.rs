//! `candlewick serve`: loads a model, listens, and drains when asked to stop.

use std::{
    io::{self, Write},
    net::SocketAddr,
    pin::pin,
};

use serde_json::json;
use tokio::{
    net::{TcpListener, TcpSocket, lookup_host},
    sync::mpsc,
};

use super::{SetLog, Stop, block_on, reload::Reload, say, start::start_models};
use crate::{
    config::{ClientCertificates, Effective, ServeArgs},
    engine::{Engine, load::ModelSource},
    error::{Code, Error, Result},
    server::{self, ModelOptions, ServeOptions, access::Access, tls::Tls},
    telemetry::spans::{QUEUE_SPANS, Spans},
};

/// Connections that the kernel keeps for us until we take them.
const BACKLOG: u32 = 1024;
/// Exit code of a program that a signal ends before it has drained; a shell's for Ctrl-C.
const INTERRUPTED: u8 = 130;

pub(super) fn run(args: ServeArgs, effective: Effective, log: SetLog) -> Result<(), Stop> {
    if args.file.print_config {
        let told = if args.json { format!("{}\n", effective.to_json()) } else { effective.to_toml() };
        io::stdout().write_all(told.as_bytes())?;
        return Ok(());
    }
    block_on(async move {
        let mut signals = Signals::listen()?;
        let (access, tls) = (Access::of(args.access.tenants()?), Tls::load(&args.tls)?);
        // Taken before the model is loaded, so that a port in use is said at once; nobody is let in before it is.
        let address = address(&args.listen).await?;
        args.access.check_listen(address, tls.is_some())?;
        warn(&args, address, tls.is_some());
        let socket = bind(&args.listen, address)?;
        // From here on a signal to read files again is heeded, and not the end.
        let reload = Reload { effective, access: access.clone(), tls: tls.clone(), log };
        let reloading = tokio::spawn(reload.run(Signals::hangups()?));
        let source = ModelSource {
            model: args.model.clone(),
            engine: args.engine.clone(),
            lora: args.lora.clone(),
            served_model_name: args.served_model_name.clone(),
            panic_after: args.engine_panic_after,
        };
        let (first, others) = {
            let mut starting = pin!(start_models(&source, &args.models.models));
            tokio::select! {
                models = &mut starting => models?,
                () = signals.next() => return Err(Stop::Signal(INTERRUPTED)),
            }
        };
        let engine = &first.engine;
        if let Some(endpoint) = &args.otlp_traces_endpoint {
            engine.telemetry().trace_to(Spans::to_collector(endpoint, QUEUE_SPANS)?);
        }
        let listener = socket.listen(BACKLOG).map_err(|error| cannot_listen(&args.listen, &error))?;
        announce(engine, &listener, args.json)?;
        let telemetry = engine.telemetry().clone();
        let shutdown = async move {
            signals.next().await;
            say("Draining: streams under way may finish; a second signal ends at once.");
            tokio::spawn(async move {
                signals.next().await;
                std::process::exit(INTERRUPTED.into());
            });
        };
        let models = ModelOptions {
            others,
            max_models: args.models.max_models(),
            idle_timeout: args.models.model_idle_timeout,
            evict_after: Some(args.models.model_evict_after),
            settings: Some(source),
            memory_bandwidth: args.memory_bandwidth.map(|bytes| bytes as f64),
            ..ModelOptions::default()
        };
        server::serve(
            first,
            listener,
            ServeOptions {
                drain_timeout: args.drain_timeout,
                allowed_origins: args.browsers.allowed_origins,
                access,
                tls,
                streams: args.streams,
                models,
                ..ServeOptions::default()
            },
            shutdown,
        )
        .await?;
        reloading.abort();
        // Waits for the collector, on a thread that may.
        let last = tokio::task::spawn_blocking(move || telemetry.spans().map(Spans::shut_down)).await;
        last.map(drop).map_err(|error| Error::internal(format!("sending the last spans panicked: {error}")).into())
    })
}

/// Says what an operator may have meant otherwise.
fn warn(args: &ServeArgs, address: SocketAddr, has_tls: bool) {
    let is_public = !address.ip().to_canonical().is_loopback();
    let has_keys = !args.access.api_key.is_empty() || args.access.api_keys_file.is_some();
    if is_public && has_keys && !has_tls {
        tracing::warn!("keys are asked for, but they come over the network in plain text: see --ssl-certfile");
    }
    let checks_clients = args.tls.clients() == ClientCertificates::Required;
    if is_public && has_tls && !has_keys && !checks_clients {
        tracing::warn!("connections are encrypted, but everybody may call: see --api-keys-file and --ssl-cert-reqs");
    }
    if args.tls.ssl_ca_certs.is_some() && args.tls.clients() == ClientCertificates::None {
        tracing::warn!("--ssl-ca-certs changes nothing without --ssl-cert-reqs: no client is asked for a certificate");
    }
}

/// One line, once requests can be sent.
fn announce(engine: &Engine, listener: &TcpListener, json: bool) -> Result<(), Stop> {
    let address = listener.local_addr()?;
    let (model, config) = (&engine.info().name, engine.config());
    let (blocks, size, context) = (config.num_blocks, config.block_size, config.max_model_len);
    let line = if json {
        json!({
            "model": model, "address": address.to_string(), "num_blocks": blocks, "block_size": size,
            "max_model_len": context,
        })
        .to_string()
    } else {
        format!("candlewick serves {model} on {address}: {blocks} blocks of {size} tokens, context {context} tokens")
    };
    match writeln!(io::stdout(), "{line}") {
        // Nobody reads it; the server is for others.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The first address of that name.
async fn address(listen: &str) -> Result<SocketAddr> {
    let mut addresses = lookup_host(listen).await.map_err(|error| cannot_listen(listen, &error))?;
    addresses.next().ok_or_else(|| Error::invalid("--listen", format!("{listen} has no address")))
}

/// A socket that has the address but does not listen yet.
fn bind(listen: &str, address: SocketAddr) -> Result<TcpSocket> {
    let fails = |error: &io::Error| cannot_listen(listen, error);
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

    /// Those that ask for files to be read again.
    #[cfg(unix)]
    fn hangups() -> Result<mpsc::Receiver<()>> {
        use tokio::signal::unix::{SignalKind, signal};
        let listening = signal(SignalKind::hangup());
        let mut hangup = listening.map_err(|error| Error::internal(format!("cannot listen for signals: {error}")))?;
        let (heard, hangups) = mpsc::channel(1);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                // Several that come together are one.
                let _one_waits = heard.try_send(());
            }
        });
        Ok(hangups)
    }

    #[cfg(not(unix))]
    fn hangups() -> Result<mpsc::Receiver<()>> {
        // Nobody sends any.
        Ok(mpsc::channel(1).1)
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
        let address = taken.local_addr().unwrap();
        let error = bind(&address.to_string(), address).unwrap_err();
        assert!(error.message.contains(&format!("--listen {address}")), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_address_is_said_by_its_flag() {
        for listen in ["nonsense", "127.0.0.1", "127.0.0.1:99999", ""] {
            let error = address(listen).await.unwrap_err();
            assert!(error.message.contains("--listen"), "{listen}: {error}");
        }
    }

    #[tokio::test]
    async fn an_address_is_held_before_anybody_is_let_in() {
        let socket = bind("", address("127.0.0.1:0").await.unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
        let listener = socket.listen(8).unwrap();
        tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    }
}
