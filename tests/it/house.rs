//! The house rules that a machine can hold: which layer may import which, where a library may be named, and that every
//! file says what it is for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::place::repository;

/// A place in `src/`, and the places that it may import. The longest prefix of a file's path decides which row is its
/// own; a module may always import itself and what stands beside it in the same row.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", BASE),
    ("ids", BASE),
    ("params", BASE),
    ("config", &["base", "kernels/machine"]),
    ("telemetry", BASE),
    ("proto", &[]),
    ("kernels", BASE),
    ("weights", &["base", "kernels"]),
    ("layers", &["base", "kernels", "weights"]),
    ("arch", &["base", "kernels", "weights", "layers"]),
    ("sampling", &["base", "kernels"]),
    ("text", BASE),
    ("convert", &["base", "kernels", "weights", "layers", "arch", "text"]),
    ("engine/executor", &["base", "sampling/grammar", "layers/lora"]),
    ("engine/sequence", POLICY),
    ("engine/block_manager", POLICY),
    ("engine/scheduler", POLICY),
    ("engine/fake", POLICY),
    ("engine/runner", &["base", "kernels", "layers", "arch", "sampling", "engine/executor"]),
    ("engine", &["base", "kernels", "weights", "layers", "arch", "sampling", "text", "engine"]),
    ("server/backend", SERVED),
    ("server/models", SERVED),
    ("server/throughput", SERVED),
    ("server/events", SERVED),
    ("server/http", JSON_FACE),
    ("server/openai", JSON_FACE),
    ("server/anthropic", JSON_FACE),
    ("server/ollama", JSON_FACE),
    ("server", &["base", "engine", "text", "proto"]),
    ("cli", &["base", "engine", "text", "proto", "server", "weights", "kernels", "layers/keep", "arch", "convert"]),
    ("main", &["cli"]),
];
const BASE: &[&str] = &["base"];
/// What all faces share knows none of them.
const SERVED: &[&str] = &[
    "base",
    "engine",
    "text",
    "server/access",
    "server/backend",
    "server/models",
    "server/events",
    "server/bodies",
    "server/closing",
    "server/lines",
    "server/throughput",
    "server/turns",
];
/// Faces that speak JSON know no gRPC, and not each other.
const JSON_FACE: &[&str] = &[
    "base",
    "engine",
    "text",
    "server/access",
    "server/backend",
    "server/bodies",
    "server/events",
    "server/held",
    "server/models",
    "server/ring",
    "server/http",
];
/// Policy knows no tensors, no tasks and no wire.
const POLICY: &[&str] = &[
    "base",
    "sampling/grammar", // Carried, never looked into.
    "layers/lora",      // Likewise.
    "engine/executor",
    "engine/sequence",
    "engine/block_manager",
    "engine/scheduler",
    "engine/faults",
];
const BASE_MODULES: &[&str] = &["error", "ids", "params", "config", "telemetry"];

/// A library, and the only places that may name it.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("tonic", &["server/grpc", "server/vllm_engine", "server/oip", "server/metrics", "proto", "cli/connect"]),
    ("axum", &["server"]),
    ("http_body", &["server"]),
    ("form_urlencoded", &["server/openai/responses"]),
    ("hyper", &["server/unread"]),
    ("tonic_web", &["server/grpc"]),
    ("tower_http", &["server/cors"]),
    ("tokenizers", &["text/tokenizer"]),
    ("regex_automata", &["text/pattern"]),
    ("fancy_regex", &["text/pattern"]),
    ("base64", &["text/tiktoken_file", "text/tokenizer_json", "convert/vocab/unigram", "server/openai/embeddings"]),
    ("zip", &["server/vllm_engine"]),
    ("sha2", &["config/keys", "server/vllm_engine", "engine/stream", "text/chat_template", "weights/fingerprint"]),
    ("tokio_rustls", &["server/tls"]),
    ("subtle", &["server/access"]),
    ("toml", &["config"]),
    ("minijinja", &["text/chat_template"]),
    ("llguidance", &["sampling/grammar"]),
    ("toktrie", &["sampling/grammar"]),
    ("clap", &["cli", "config", "main"]),
    ("reqwest", &["cli/bench_serve/client", "weights/hub/download"]),
    ("aws_lc_rs", &["server/tls", "weights/hub/checks"]),
    ("plotters", &["cli/bench_serve/plot"]),
    ("rand_distr", &["cli/bench_serve/arrivals"]),
    ("strsim", &["config/suggest"]),
    ("rustyline", &["cli/chat/terminal"]),
    ("opentelemetry", &["telemetry/spans"]),
    ("opentelemetry_sdk", &["telemetry/spans"]),
    ("opentelemetry_otlp", &["telemetry/spans"]),
    ("hf_hub", &["weights/hub"]),
    ("prometheus_client", &["telemetry"]),
    ("memmap2", &["weights"]),
    ("tokio", &["engine", "server", "cli", "main", "weights/hub"]),
    ("candle_transformers", &["arch/long_tail"]),
    ("candle_core", &["kernels", "weights", "layers", "arch", "engine/runner", "engine/load", "error"]),
];
/// Policy stays free of these, wherever the row above would allow them.
const POLICY_FREE_OF: &[&str] = &["tokio", "candle_core"];

/// Every source file of the server with its module path (`engine/scheduler`) and its text.
fn sources() -> Vec<(String, String)> {
    sources_in(&["src", "crates/compute/src"])
}

fn sources_in(roots: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let module = |root: &Path, path: &PathBuf| {
        let path = path.strip_prefix(root).unwrap().with_extension("");
        path.to_string_lossy().trim_end_matches("/mod").to_owned()
    };
    let mut sources = Vec::new();
    for root in roots.iter().map(|root| repository(root)) {
        let mut files = Vec::new();
        walk(&root, &mut files);
        files.sort();
        sources.extend(files.iter().map(|path| (module(&root, path), fs::read_to_string(path).unwrap())));
    }
    sources
}

fn is_under(module: &str, place: &str) -> bool {
    module.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest.starts_with('_'))
}

fn row_of(module: &str) -> Option<(&'static str, &'static [&'static str])> {
    let rows = LAYERS.iter().filter(|(place, _)| is_under(module, place));
    rows.max_by_key(|(place, _)| place.len()).copied()
}

/// The code of a file: without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What follows each `crate::` in a file, as module paths (`engine/scheduler`); groups are opened.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with("pub(in ")) {
        open_path("", &code[at + "crate::".len()..], &mut found);
    }
    found.retain(|path| !path.is_empty());
    found
}

/// Adds the module paths at the start of `text`, below `prefix`: the lower-case parts of a path, or of each in a group.
fn open_path(prefix: &str, text: &str, found: &mut Vec<String>) {
    let text = text.trim_start();
    if text.is_empty() {
        return;
    }
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                '}' | ',' if depth == 0 => {
                    open_path(prefix, &group[start..at], found);
                    start = at + 1;
                    if c == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if !name.starts_with(|c: char| c.is_lowercase()) {
        return found.push(prefix.to_owned());
    }
    let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
    match text[name.len()..].strip_prefix("::") {
        Some(rest) => open_path(&path, rest, found),
        None => found.push(path),
    }
}

fn allowed(own: &str, allowed: &[&str], import: &str) -> bool {
    is_under(import, own)
        || allowed.iter().any(|place| match *place {
            "base" => BASE_MODULES.iter().any(|base| is_under(import, base)),
            place => is_under(import, place),
        })
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for (module, text) in sources().iter().filter(|(module, _)| module != "lib") {
        let Some((own, may)) = row_of(module) else {
            wrong.push(format!("{module}: has no row in the table of layers"));
            continue;
        };
        for import in imports(&code(text)).iter().filter(|import| !allowed(own, may, import)) {
            wrong.push(format!("{module}: imports {import}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_library_is_named_in_its_own_place_only() {
    let mut wrong = Vec::new();
    for (module, text) in sources() {
        let code = code(&text);
        let names = |library: &str| code.contains(&format!("{library}::"));
        for (library, places) in LIBRARIES.iter().filter(|(library, _)| names(library)) {
            if !places.iter().any(|place| is_under(&module, place)) {
                wrong.push(format!("{module}: names {library}"));
            }
        }
        if row_of(&module).is_some_and(|(_, may)| std::ptr::eq(may, POLICY)) {
            let found = POLICY_FREE_OF.iter().filter(|library| names(library));
            wrong.extend(found.map(|library| format!("{module}: policy names {library}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    let all = sources_in(&["src", "crates/compute/src", "clients/rust/src"]);
    let silent: Vec<_> = all.into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(m, _)| m).collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn the_environment_is_read_in_one_place() {
    let readers = ["std::env", "env::var", "env::args"];
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(module, text)| module != "config" && readers.iter().any(|reader| code(text).contains(reader)))
        .map(|(module, _)| module)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
