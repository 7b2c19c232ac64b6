//! Downloading a model from a hub, against a hub of our own on the loopback interface.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use candlewick::{
    error::Code,
    weights::{
        files::{ModelFiles, model_files},
        hub::{DownloadProgress, HubOptions, resolve},
    },
};
use tokio::{net::TcpListener, runtime::Runtime};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The part of the hub's interface that a download asks for.
struct FakeHub {
    files: BTreeMap<&'static str, Vec<u8>>,
    downloads: AtomicUsize,
}

fn json(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn revision(Path((org, name, revision)): Path<(String, String, String)>) -> Response {
    match (org.as_str(), name.as_str(), revision.as_str()) {
        ("org", "closed", _) => (StatusCode::UNAUTHORIZED, "who are you?").into_response(),
        ("org", "name", "main" | COMMIT) => json(&serde_json::json!({ "sha": COMMIT })),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn tree(State(hub): State<Arc<FakeHub>>) -> Response {
    let entry = |(path, bytes): (&&str, &Vec<u8>)| serde_json::json!({ "type": "file", "oid": format!("oid-{path}"), "size": bytes.len(), "path": path });
    json(&hub.files.iter().map(entry).collect())
}

/// Answers GET, and HEAD, for which axum leaves the body out.
async fn file(
    State(hub): State<Arc<FakeHub>>,
    method: axum::http::Method,
    Path((_, _, _, path)): Path<(String, String, String, String)>,
) -> Response {
    let Some(bytes) = hub.files.get(path.as_str()) else {
        return (StatusCode::NOT_FOUND, [("x-repo-commit", COMMIT)]).into_response();
    };
    if method == axum::http::Method::GET {
        hub.downloads.fetch_add(1, Ordering::Relaxed);
    }
    let mut headers = HeaderMap::new();
    let etag = format!("\"etag-{}\"", path.replace('/', "-"));
    headers.insert(header::ETAG, etag.parse().expect("a header"));
    headers.insert("x-repo-commit", COMMIT.parse().expect("a header"));
    (headers, bytes.clone()).into_response()
}

/// A hub that serves until its runtime is dropped.
fn start(files: &[(&'static str, &[u8])]) -> (Runtime, SocketAddr, Arc<FakeHub>) {
    let files = files.iter().map(|&(path, bytes)| (path, bytes.to_vec())).collect();
    let hub = Arc::new(FakeHub { files, downloads: AtomicUsize::new(0) });
    let router = Router::new()
        .route("/api/models/{org}/{name}/revision/{revision}", get(revision))
        .route("/api/models/{org}/{name}/tree/{revision}", get(tree))
        .route("/{org}/{name}/resolve/{revision}/{*path}", get(file))
        .with_state(Arc::clone(&hub));
    let runtime = Runtime::new().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("an address");
    runtime.spawn(async move { axum::serve(listener, router).await });
    (runtime, address, hub)
}

fn options(address: SocketAddr, cache: &tempfile::TempDir) -> HubOptions {
    let cache_dir = Some(cache.path().to_owned());
    HubOptions { endpoint: Some(format!("http://{address}")), cache_dir, ..HubOptions::default() }
}

const MODEL: [(&str, &[u8]); 7] = [
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"t\":1}"),
    ("model.safetensors", &[7; 4096]),
    ("consolidated.safetensors", &[8; 4096]),
    ("original/model.safetensors", &[9; 4096]),
    ("tiny.gguf", b"GGUF"),
    ("README.md", b"read me"),
];

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let (runtime, address, hub) = start(&MODEL);
    let cache = tempfile::tempdir().expect("a temporary directory");
    let mut options = options(address, &cache);
    let mut last = DownloadProgress::default();
    let path = resolve("org/name", &options, &mut |progress| last = progress).expect("is downloaded");
    assert_eq!(last, DownloadProgress { bytes: 2 + 7 + 4096, total_bytes: 2 + 7 + 4096 });
    let Ok(ModelFiles::Directory(files)) = model_files(&path) else { panic!("is a model") };
    assert_eq!(std::fs::read(files.safetensors.expect("weights")).expect("is readable"), [7; 4096]);
    assert!(files.path.join("tokenizer.json").is_file() && files.chat_template.is_none());
    assert_eq!(hub.downloads.load(Ordering::Relaxed), 3, "neither other formats nor other files are taken");

    assert_eq!(resolve("org/name", &options, &mut |_| {}).expect("is there"), path);
    assert_eq!(hub.downloads.load(Ordering::Relaxed), 3, "nothing is taken twice");

    drop(runtime);
    assert_eq!(resolve("org/name", &options, &mut |_| {}).expect("the cache serves where the hub does not"), path);
    options.offline = true;
    assert_eq!(resolve("org/name", &options, &mut |_| {}).expect("is in the cache"), path);
    let error = resolve("org/other", &options, &mut |_| {}).expect_err("is not in the cache");
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("run once without offline mode"), "{error}");
}

#[test]
fn one_gguf_file_can_be_named() {
    let (_runtime, address, hub) = start(&MODEL);
    let cache = tempfile::tempdir().expect("a temporary directory");
    let path = resolve("org/name:tiny.gguf", &options(address, &cache), &mut |_| {}).expect("is downloaded");
    assert_eq!(model_files(&path).expect("a model"), ModelFiles::Gguf(path.clone()));
    assert_eq!(hub.downloads.load(Ordering::Relaxed), 1);
    let error = resolve("org/name:none.gguf", &options(address, &cache), &mut |_| {}).expect_err("is not there");
    assert_eq!(error.code, Code::NotFound, "{error}");
}

#[test]
fn a_hub_that_says_no_is_quoted_with_advice() {
    let (_runtime, address, _hub) = start(&[("tiny.gguf", b"GGUF")]);
    let cache = tempfile::tempdir().expect("a temporary directory");
    let options = options(address, &cache);
    for (model, code, advice) in [
        ("org/closed", Code::Unauthenticated, "HF_TOKEN"),
        ("org/none", Code::NotFound, "check the name"),
        ("org/name", Code::FailedPrecondition, "org/name:file.gguf"),
    ] {
        let error = resolve(model, &options, &mut |_| {}).expect_err("says no");
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(advice), "{error}");
    }
}

#[test]
fn a_model_can_be_resolved_inside_a_runtime() {
    let (_runtime, address, _hub) = start(&MODEL);
    let cache = tempfile::tempdir().expect("a temporary directory");
    let options = options(address, &cache);
    let inside = Runtime::new().expect("a runtime");
    inside.block_on(async { resolve("org/name", &options, &mut |_| {}).map(drop) }).expect("does not panic");
}
