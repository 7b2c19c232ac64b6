//! The part of the hub's interface that a download asks for, and what goes wrong with it. On sockets of its own, because no server
//! that is any good cuts a response after so many bytes.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use candlewick::config::Secret;
use candlewick::weights::hub::HubOptions;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const PULL_REQUEST: &str = "76543210fedcba9876543210fedcba9876543210";
pub(super) const TOKEN: &str = "hf_secret";

/// `printf '{}' | git hash-object --stdin`.
const EMPTY_OBJECT: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

/// What goes wrong.
#[derive(Default)]
pub(super) struct Faults {
    /// After how many bytes the next responses with a file are cut.
    pub(super) cuts: VecDeque<usize>,
    /// What is sent in place of a file.
    pub(super) sent: BTreeMap<String, Vec<u8>>,
    /// What the next questions for files are answered with instead.
    pub(super) refusals: VecDeque<&'static str>,
    /// Whether ranges are answered with whole files.
    pub(super) ignores_ranges: bool,
    /// A server that has the large files.
    pub(super) store: Option<SocketAddr>,
    /// Whether `main` has moved on, to the commit of the pull request.
    pub(super) is_merged: bool,
    /// A file is sent once this many have asked for its tag.
    pub(super) heads_before_files: usize,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<Asked>>,
    heads: watch::Sender<usize>,
}

/// A hub with one repository, org/name, which serves until it is dropped.
pub(super) struct FakeHub {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    _runtime: Runtime,
}

struct Reply {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Reply {
    fn new(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    fn json(value: &serde_json::Value) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { headers, body: value.to_string().into_bytes(), ..Self::new("200 OK") }
    }
}

/// The tag of a file as the hub makes it: of large ones the SHA-256. Here `.json` files are small.
pub(super) fn etag(path: &str, bytes: &[u8]) -> String {
    match path {
        _ if !path.ends_with(".json") => Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        _ if bytes == b"{}" => EMPTY_OBJECT.to_owned(),
        // As a mirror may have it.
        _ => format!("etag-{}", path.replace('/', "-")),
    }
}

impl FakeHub {
    pub(super) fn start(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|&(path, bytes)| (path.to_owned(), bytes.to_vec())).collect();
        let state =
            Arc::new(State { files, faults: Mutex::default(), asked: Mutex::default(), heads: watch::Sender::new(0) });
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = state.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(shared.clone(), stream));
            }
        });
        Self { address, state, _runtime: runtime }
    }

    pub(super) fn options(&self, cache: &tempfile::TempDir) -> HubOptions {
        HubOptions {
            endpoint: Some(format!("http://{}", self.address)),
            token: Some(TOKEN.parse::<Secret>().expect("a token")),
            cache_dir: Some(cache.path().to_owned()),
            retry_delay: std::time::Duration::ZERO,
            ..HubOptions::default()
        }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.state.faults.lock().expect("no poison")
    }

    /// All that was asked.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().expect("no poison").clone()
    }

    /// The downloads of files: where each began.
    pub(super) fn downloads(&self) -> Vec<(String, Option<String>)> {
        let gets = self.asked().into_iter().filter(|asked| asked.method == "GET" && !asked.path.starts_with("/api/"));
        gets.map(|asked| (asked.path.rsplit('/').next().unwrap_or_default().to_owned(), asked.range)).collect()
    }
}

/// Answers one request, and closes the connection.
async fn answer(state: Arc<State>, mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut request = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, target) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default().replace("%2F", "/");
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let header = |name: &str| headers.get(name).cloned();
    let asked = Asked { method, path, range: header("range"), authorization: header("authorization") };
    state.asked.lock().expect("no poison").push(asked.clone());
    if asked.method == "HEAD" {
        state.heads.send_modify(|heads| *heads += 1);
    } else if !asked.path.starts_with("/api/") {
        let enough = state.faults.lock().expect("no poison").heads_before_files;
        let _ = state.heads.subscribe().wait_for(|&heads| heads >= enough).await;
    }
    let Reply { status, headers, body, cut } = reply(&state, &asked);
    let mut out = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| out.push_str(&format!("{name}: {value}\r\n")));
    out.push_str("\r\n");
    stream.write_all(out.as_bytes()).await?;
    if asked.method == "GET" {
        stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]).await?;
    }
    stream.shutdown().await
}

fn reply(state: &State, asked: &Asked) -> Reply {
    let parts: Vec<_> = asked.path.splitn(6, '/').collect();
    match parts.as_slice() {
        ["", "api", "models", "org", "closed", _] => {
            Reply { body: b"who are you?".to_vec(), ..Reply::new("401 Unauthorized") }
        }
        ["", "api", "models", "org", "name", rest] => match rest.split_once('/') {
            Some(("revision", "main")) if state.faults.lock().expect("no poison").is_merged => {
                Reply::json(&serde_json::json!({"id": "org/name", "sha": PULL_REQUEST}))
            }
            Some(("revision", "main" | COMMIT)) => Reply::json(&serde_json::json!({"id": "org/name", "sha": COMMIT})),
            Some(("revision", "refs/pr/1")) => Reply::json(&serde_json::json!({"id": "org/name", "sha": PULL_REQUEST})),
            Some(("tree", COMMIT | PULL_REQUEST)) => {
                let entry = |(path, bytes): (&String, &Vec<u8>)| serde_json::json!({"type": "file", "oid": "x", "size": bytes.len(), "path": path});
                Reply::json(&state.files.iter().map(entry).collect())
            }
            _ => Reply::new("404 Not Found"),
        },
        ["", "org", "name", "resolve", COMMIT | PULL_REQUEST, path] => {
            let store = state.faults.lock().expect("no poison").store.filter(|_| !path.ends_with(".json"));
            match store {
                Some(store) => redirect(state, path, store),
                None => file(state, path, asked),
            }
        }
        ["", "store", rest @ ..] => file(state, &rest.join("/"), asked),
        _ => Reply::new("404 Not Found"),
    }
}

/// Sends the asker on, as the hub does with large files: what they are stands in its own headers.
fn redirect(state: &State, path: &str, store: SocketAddr) -> Reply {
    let Some(bytes) = state.files.get(path) else { return Reply::new("404 Not Found") };
    let headers = vec![
        ("location", format!("http://{store}/store/{path}?signature=x")),
        ("etag", "\"of-the-redirect\"".to_owned()),
        ("x-linked-etag", format!("\"{}\"", etag(path, bytes))),
        ("x-linked-size", bytes.len().to_string()),
        ("x-repo-commit", COMMIT.to_owned()),
    ];
    Reply { headers, ..Reply::new("302 Found") }
}

fn file(state: &State, path: &str, asked: &Asked) -> Reply {
    let Some(bytes) = state.files.get(path) else { return Reply::new("404 Not Found") };
    let mut faults = state.faults.lock().expect("no poison");
    let is_get = asked.method == "GET";
    if let Some(status) = is_get.then(|| faults.refusals.pop_front()).flatten() {
        return Reply::new(status);
    }
    let body = faults.sent.get(path).unwrap_or(bytes).clone();
    let cut = is_get.then(|| faults.cuts.pop_front()).flatten();
    let headers = vec![("etag", format!("\"{}\"", etag(path, bytes))), ("x-repo-commit", COMMIT.to_owned())];
    let range = asked.range.as_ref().filter(|_| !faults.ignores_ranges);
    let start = range.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a start"));
    match start {
        None => Reply { headers, body, cut, ..Reply::new("200 OK") },
        Some(start) if start >= body.len() => Reply::new("416 Range Not Satisfiable"),
        Some(start) => {
            let range = ("content-range", format!("bytes {start}-{}/{}", body.len() - 1, body.len()));
            let headers = [headers, vec![range]].concat();
            Reply { headers, body: body[start..].to_vec(), cut, ..Reply::new("206 Partial Content") }
        }
    }
}
