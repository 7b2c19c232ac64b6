//! What the face costs: server CPU (user and system) a streamed token, and memory an idle session.
//!
//! `cargo bench --bench serve [-- --streams 256 --connections 16 --step-ms 10 --seconds 5 --wire grpc|sse] [--bare]`
//! `cargo bench --bench serve -- --sessions 1024 [--connections 16 --turn-tokens 64 --turns 1 --unacknowledged]`
//!
//! The model is one that takes as long as it is told to and computes nothing; tokenizer and chat template are the built-in
//! model's. Clients are another process, over loopback, and read without a pause. Counted is what the kernel says that each
//! thread of the server was on a processor (`/proc/self/task/*/schedstat`), but for the engine's own thread, and only while all
//! streams are under way. Loopback makes the sender pay for what the receiving half of TCP costs, so the server's share is
//! rather more than over a wire.

#[path = "serve/bare.rs"]
mod bare;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use candlewick::{
    config::{EngineConfig, ModelArgs, StreamArgs, resident_bytes},
    engine::{
        Engine,
        executor::{Executor, SampledToken, SequenceOutput, StepOutput, StepPlan},
        load::load_planned,
    },
    ids::TokenId,
    proto::candlewick::v1::{
        Ack, GenerateStreamRequest, Prompt, RequestOptions, SamplingParams, SessionOpen, SessionRequest, TokenIds,
        UserTurn, chat_client::ChatClient, generate_stream_response::Event as Told,
        generation_client::GenerationClient, prompt, session_request::Event as Say, session_response::Event as Heard,
    },
    server::{ServeOptions, serve},
    telemetry::Telemetry,
};
use clap::Parser;
use futures::channel::mpsc;
use smallvec::smallvec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinSet,
};
use tonic::transport::{Channel, Endpoint};

use self::bare::Bare;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PROMPT_TOKENS: usize = 16;

/// What is measured.
#[derive(Clone, Debug, Parser)]
#[command(args_override_self = true)]
struct Args {
    /// Streams that are read at once.
    #[arg(long, default_value_t = 256)]
    streams: usize,
    /// Connections that share them; over HTTP/1.1 each stream has its own.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// What a step of the model takes; 0 for as little as it can.
    #[arg(long, default_value_t = 10)]
    step_ms: u64,
    /// How long it is measured, after a second in which it is not.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// `grpc`, or `sse` for OpenAI's completions over HTTP/1.1.
    #[arg(long, default_value = "grpc")]
    wire: String,
    /// Measure tonic's own server with ready messages instead: what the wire itself takes.
    #[arg(long)]
    bare: bool,
    /// Times that it is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sessions whose memory is measured, instead of streams.
    #[arg(long, default_value_t = 0)]
    sessions: usize,
    /// Turns that each session has had.
    #[arg(long, default_value_t = 1)]
    turns: usize,
    /// Tokens of each of their answers.
    #[arg(long, default_value_t = 64)]
    turn_tokens: usize,
    /// Have sessions not say what they have read, which the packages in `clients/` do at the end of each turn: then the server
    /// keeps it for them.
    #[arg(long)]
    unacknowledged: bool,
    /// Be the clients of the server at this address.
    #[arg(long)]
    client: Option<String>,
    /// Given by cargo.
    #[arg(long)]
    bench: bool,
}

/// Gives each sequence that samples a token, and takes its time.
struct Paced {
    step: Duration,
    next: Instant,
    vocab_size: usize,
    output: StepOutput,
}

impl Executor for Paced {
    fn submit(&mut self, plan: &StepPlan) -> candlewick::error::Result<()> {
        let sampling = plan.rows.iter().filter(|row| row.samples);
        self.output.sequences = sampling
            .map(|row| {
                let id = (row.id.0 * 131 + u64::from(row.num_output_tokens) * 7919) % self.vocab_size as u64;
                let token = SampledToken { id: TokenId(id as u32), logprobs: None };
                SequenceOutput { id: row.id, tokens: smallvec![token], num_written: 0, complete: false }
            })
            .collect();
        Ok(())
    }

    fn collect(&mut self) -> candlewick::error::Result<StepOutput> {
        let now = Instant::now();
        // A step begins when the one before it has ended, and where nobody asked for one meanwhile, now.
        thread::sleep(self.next.saturating_duration_since(now));
        self.next = self.next.max(now) + self.step;
        Ok(std::mem::take(&mut self.output))
    }
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    // As the server's own.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if args.client.is_some() {
        // Clients end with who started them.
        thread::spawn(|| {
            let _ended = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
    }
    match (&args.client, args.sessions) {
        (Some(address), 0) => runtime.block_on(read_streams(address, &args)),
        (Some(address), _) => runtime.block_on(hold_sessions(address, &args)),
        (None, 0) => measure_streams(&runtime, &args),
        (None, _) => measure_sessions(&runtime, &args),
    }
}

/// A server in this process, and its address.
async fn start(args: &Args) -> Outcome<(Engine, String)> {
    let (loaded, ()) = load_planned(&ModelArgs::default(), None, |_| Ok(()), &mut |_| ())?;
    let (streams, tokens) = match args.sessions {
        // A turn's prompt is all turns before it, each with what the template puts around it.
        0 => (args.streams, tokens_of_a_stream(args)),
        sessions => (sessions, args.turns * (args.turn_tokens + 64)),
    };
    let max_model_len = PROMPT_TOKENS + tokens + 64;
    let config = EngineConfig {
        num_blocks: streams * max_model_len.div_ceil(16),
        max_num_seqs: streams,
        max_num_batched_tokens: 16 * streams.max(512),
        max_model_len,
        leased_kv_percent: 100,
        ..EngineConfig::default()
    };
    let (step, vocab_size) = (Duration::from_millis(args.step_ms), loaded.info.vocab_size);
    let factory = move || {
        let (next, output) = (Instant::now(), StepOutput::default());
        Ok(Box::new(Paced { step, next, vocab_size, output }) as Box<dyn Executor + Send>)
    };
    let telemetry = Arc::new(Telemetry::new(&loaded.info.name));
    let engine = Engine::start(loaded.info, loaded.text, config, telemetry, Arc::new(factory)).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    // Those that are not counted wait for their clients for a while.
    let streams = StreamArgs { max_sessions: args.sessions + args.connections, ..StreamArgs::default() };
    let options = ServeOptions { streams, ..ServeOptions::default() };
    tokio::spawn(serve(engine.clone(), listener, options, std::future::pending()));
    Ok((engine, address))
}

/// More than it can get while it is measured.
fn tokens_of_a_stream(args: &Args) -> usize {
    let seconds = (args.seconds + 1) * args.rounds as u64 + 20;
    (seconds * 1000 / args.step_ms.max(1)).min(60_000) as usize
}

/// The clients, once they say that all is under way; with other numbers where `others` says so.
fn clients(address: &str, others: &[&str]) -> Outcome<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args().skip(1)).args(others).args(["--client", address]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    if line.trim() != "ready" {
        return Err(format!("the clients failed: {line}").into());
    }
    Ok(child)
}

/// A server whose cost is measured.
enum Server {
    Ours(Box<Engine>),
    Bare(Bare),
}

impl Server {
    fn told(&self) -> u64 {
        match self {
            Self::Ours(engine) => engine.telemetry().generated_tokens(),
            Self::Bare(bare) => bare.told(),
        }
    }

    fn live(&self) -> u64 {
        match self {
            Self::Ours(engine) => engine.telemetry().state().num_running,
            Self::Bare(bare) => bare.live(),
        }
    }
}

fn measure_streams(runtime: &Runtime, args: &Args) -> Outcome<()> {
    let (server, address) = if args.bare {
        let (bare, address) = runtime.block_on(Bare::start(Duration::from_millis(args.step_ms)))?;
        (Server::Bare(bare), address)
    } else {
        let (engine, address) = runtime.block_on(start(args))?;
        (Server::Ours(Box::new(engine)), address)
    };
    let mut child = clients(&address, &[])?;
    println!(
        "{} streams on {} connections, {}{}, a step of {} ms",
        args.streams,
        args.connections,
        args.wire,
        if args.bare { " by tonic alone" } else { "" },
        args.step_ms
    );
    println!(
        "{:>10} {:>10} {:>12} {:>12} {:>12} {:>12}",
        "tokens/s", "µs/token", "user+system", "switches", "engine µs", "threads"
    );
    let mut costs = Vec::new();
    for _ in 0..args.rounds {
        thread::sleep(Duration::from_secs(1));
        let (before, tokens, began) = (Threads::now()?, server.told(), Instant::now());
        thread::sleep(Duration::from_secs(args.seconds));
        let (spent, took) = (Threads::now()?.since(&before), began.elapsed().as_secs_f64());
        let tokens = (server.told() - tokens) as f64;
        if server.live() < args.streams as u64 {
            return Err(format!("only {} streams are left", server.live()).into());
        }
        let us = |ns: u64| ns as f64 / 1e3 / tokens;
        println!(
            "{:>10.0} {:>10.2} {:>10.2} s {:>12.3} {:>12.2} {:>12}",
            tokens / took,
            us(spent.face_ns),
            spent.face_ns as f64 / 1e9,
            spent.switches as f64 / tokens,
            us(spent.engine_ns),
            before.0.len(),
        );
        costs.push(us(spent.face_ns));
    }
    costs.sort_by(f64::total_cmp);
    println!("median {:.2} µs of server CPU a streamed token, the engine's thread apart", costs[costs.len() / 2]);
    child.kill()?;
    child.wait()?;
    std::process::exit(0);
}

fn measure_sessions(runtime: &Runtime, args: &Args) -> Outcome<()> {
    let (engine, address) = runtime.block_on(start(args))?;
    let kib = || Ok::<_, Box<dyn std::error::Error + Send + Sync>>(resident_bytes().ok_or("no /proc")? as f64 / 1024.0);
    // Connections, threads and what is allocated once are there before anything is counted.
    let mut warm = clients(&address, &["--sessions", &args.connections.to_string()])?;
    warm.kill()?;
    warm.wait()?;
    thread::sleep(Duration::from_millis(500));
    let before = kib()?;
    let mut child = clients(&address, &[])?;
    thread::sleep(Duration::from_millis(500));
    let each = (kib()? - before) / args.sessions as f64;
    let leased = engine.telemetry().state().blocks.leases;
    println!(
        "{} idle sessions on {} connections, {} turns of {} tokens each ({leased} blocks leased): {each:.1} KiB resident each",
        args.sessions, args.connections, args.turns, args.turn_tokens
    );
    child.kill()?;
    child.wait()?;
    std::process::exit(0);
}

/// What each thread has spent: nanoseconds on a processor, and times that it was put on one.
struct Threads(BTreeMap<String, (bool, u64, u64)>);

/// The difference.
struct Spent {
    face_ns: u64,
    engine_ns: u64,
    switches: u64,
}

impl Threads {
    fn now() -> Outcome<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/task")? {
            let folder = entry?.path();
            let is_engine = fs::read_to_string(folder.join("comm"))?.trim() == "engine";
            let schedstat = fs::read_to_string(folder.join("schedstat"))?;
            let mut numbers = schedstat.split_whitespace().map(str::parse);
            let (ran, _waited, switches) = (numbers.next(), numbers.next(), numbers.next());
            let (Some(ran), Some(switches)) = (ran, switches) else { return Err("no schedstat".into()) };
            threads.insert(folder.display().to_string(), (is_engine, ran?, switches?));
        }
        Ok(Self(threads))
    }

    fn since(&self, before: &Self) -> Spent {
        let mut spent = Spent { face_ns: 0, engine_ns: 0, switches: 0 };
        for (thread, &(is_engine, ran, switches)) in &self.0 {
            let &(_, ran_before, switches_before) = before.0.get(thread).unwrap_or(&(is_engine, 0, 0));
            if is_engine {
                spent.engine_ns += ran - ran_before;
            } else {
                spent.face_ns += ran - ran_before;
                spent.switches += switches - switches_before;
            }
        }
        spent
    }
}

/// Says when so many are under way, and waits to be ended.
async fn ready(mut tasks: JoinSet<Outcome<()>>, begins: &mut Begins, number: usize) -> Outcome<()> {
    let mut begun = 0;
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => ended??,
            Some(()) = begins.recv() => begun += 1,
            else => return std::future::pending().await,
        }
        if begun == number {
            begun += 1;
            println!("ready");
            std::io::stdout().flush()?;
        }
    }
}

async fn connect(address: &str) -> Outcome<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect().await?)
}

async fn read_streams(address: &str, args: &Args) -> Outcome<()> {
    let (begun, mut begins) = tokio::sync::mpsc::channel(args.streams);
    let mut tasks = JoinSet::new();
    let max_tokens = tokens_of_a_stream(args);
    let mut channels = Vec::new();
    if args.wire == "grpc" {
        for _ in 0..args.connections {
            channels.push(connect(address).await?);
        }
    }
    for stream in 0..args.streams {
        let begun = begun.clone();
        let ids = (0..PROMPT_TOKENS).map(|k| (stream * 31 + k) as u32 % 1000 + 10).collect::<Vec<_>>();
        match channels.get(stream % args.connections.max(1)) {
            Some(channel) => {
                let channel = channel.clone();
                tasks.spawn(async move { read_grpc(channel, ids, max_tokens, begun).await });
            }
            None => {
                let address = address.to_owned();
                tasks.spawn(async move { read_sse(&address, &ids, max_tokens, begun).await });
            }
        }
    }
    ready(tasks, &mut begins, args.streams).await
}

type Begun = tokio::sync::mpsc::Sender<()>;
type Begins = tokio::sync::mpsc::Receiver<()>;

async fn read_grpc(channel: Channel, ids: Vec<u32>, max_tokens: usize, begun: Begun) -> Outcome<()> {
    let sampling = SamplingParams {
        max_tokens: Some(u32::try_from(max_tokens)?),
        ignore_eos: Some(true),
        ..SamplingParams::default()
    };
    let options = RequestOptions { sampling: Some(sampling), ..RequestOptions::default() };
    let prompt = Some(Prompt { prompt: Some(prompt::Prompt::TokenIds(TokenIds { ids })) });
    let request = GenerateStreamRequest { prompt, options: Some(options) };
    let mut events = GenerationClient::new(channel).generate_stream(request).await?.into_inner();
    let mut first = true;
    while let Some(response) = events.message().await? {
        if matches!(response.event, Some(Told::Delta(_))) && std::mem::take(&mut first) {
            begun.send(()).await?;
        }
    }
    Ok(())
}

async fn read_sse(address: &str, ids: &[u32], max_tokens: usize, begun: Begun) -> Outcome<()> {
    let body = format!(r#"{{"prompt":{ids:?},"max_tokens":{max_tokens},"ignore_eos":true,"stream":true}}"#);
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    let mut buffer = vec![0; 16 << 10];
    let mut first = true;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n if first && !buffer[..n].starts_with(b"HTTP/1.1 200") => {
                return Err(String::from_utf8_lossy(&buffer[..n]).into_owned().into());
            }
            _ if std::mem::take(&mut first) => begun.send(()).await?,
            _ => {}
        }
    }
}

async fn hold_sessions(address: &str, args: &Args) -> Outcome<()> {
    let number = args.sessions;
    let mut channels = Vec::new();
    for _ in 0..args.connections {
        channels.push(connect(address).await?);
    }
    let (begun, mut begins) = tokio::sync::mpsc::channel(number);
    let mut tasks = JoinSet::new();
    for session in 0..number {
        let (channel, begun) = (channels[session % channels.len()].clone(), begun.clone());
        let (turns, max_tokens, unacknowledged) = (args.turns, args.turn_tokens, args.unacknowledged);
        tasks.spawn(async move {
            let sampling = SamplingParams {
                max_tokens: Some(u32::try_from(max_tokens)?),
                ignore_eos: Some(true),
                ..SamplingParams::default()
            };
            let options = RequestOptions { sampling: Some(sampling), ..RequestOptions::default() };
            let open = SessionOpen { options: Some(options), ..SessionOpen::default() };
            let (say, said) = mpsc::unbounded();
            say.unbounded_send(SessionRequest { event: Some(Say::Open(open)), id: None })?;
            let mut events = ChatClient::new(channel).session(said).await?.into_inner();
            for turn in 0..turns {
                let user = UserTurn { content: format!("{session} {turn}"), ..UserTurn::default() };
                say.unbounded_send(SessionRequest { event: Some(Say::User(user)), id: None })?;
                let seq = loop {
                    let response = events.message().await?.ok_or("a session ended")?;
                    match response.event {
                        Some(Heard::TurnDone(_)) => break response.seq,
                        Some(Heard::Error(error)) => return Err(error.message.into()),
                        _ => {}
                    }
                };
                if !unacknowledged {
                    say.unbounded_send(SessionRequest { event: Some(Say::Ack(Ack { seq })), id: None })?;
                }
            }
            if turns == 0 {
                events.message().await?;
            }
            begun.send(()).await?;
            events.message().await?;
            drop(say);
            Ok(())
        });
    }
    ready(tasks, &mut begins, number).await
}
