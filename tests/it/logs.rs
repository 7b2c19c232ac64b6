//! What stands in the log: nothing of a prompt, unless it is asked for. On the built-in model.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::Child,
};

use serde_json::{Value, json};

use crate::{cli::candlewick, openai::http::post};

/// A word that nobody else says.
const WORD: &str = "Zwetschgendatschi";

/// A server whose log is a file.
struct Logged {
    child: Child,
    address: SocketAddr,
}

impl Logged {
    fn start(log: &Path, more: &[&str]) -> Self {
        let args = [&["serve", "--listen", "127.0.0.1:0", "--json"], more].concat();
        let mut child = candlewick(&args).stderr(File::create(log).unwrap()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let ready: Value = serde_json::from_str(&ready).unwrap();
        Self { child, address: ready["address"].as_str().unwrap().parse().unwrap() }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Says the word in every face, in requests that work and in requests that do not; gives the log.
async fn log_of(more: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let server = Logged::start(&path, more);
    let messages = json!([{"role": "user", "content": WORD}]);
    for (path, status, body) in [
        ("/v1/completions", 200, json!({"prompt": WORD, "max_tokens": 4, "stop": [WORD], "echo": true})),
        ("/v1/chat/completions", 200, json!({"messages": messages, "max_tokens": 4, "stream": true})),
        ("/v1/responses", 200, json!({"input": WORD, "max_output_tokens": 4})),
        ("/v1/embeddings", 200, json!({"input": WORD})),
        ("/tokenize", 200, json!({"prompt": WORD})),
        ("/v1/messages", 200, json!({"model": "demo", "messages": messages, "max_tokens": 4})),
        ("/api/chat", 200, json!({"model": "demo", "messages": messages, "options": {"num_predict": 4}})),
        ("/v1/completions", 400, json!({"prompt": WORD, "top_p": 7})),
        ("/v1/completions", 400, json!({"prompt": WORD.repeat(9999)})),
        ("/v1/completions", 400, json!({"prompt": "x", "temperature": WORD})),
        ("/v1/chat/completions", 400, json!({"messages": [{"role": WORD, "content": WORD}]})),
        (
            "/v1/chat/completions",
            400,
            json!({"messages": messages, "structured_outputs": {"regex": format!("({WORD}")}}),
        ),
    ] {
        let answer = post(server.address, path, &body.to_string()).await;
        assert_eq!(answer.status, status, "{path} {body:.200}");
        let _whole = answer.bytes().await;
    }
    // It writes before it answers, and to a file at once.
    drop(server);
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn nothing_of_a_prompt_is_logged_unless_it_is_asked_for() {
    let quiet = log_of(&["--log-level", "trace"]).await;
    assert!(quiet.contains("TRACE") && quiet.contains("candlewick"), "{quiet:.2000}");
    let line = quiet.lines().find(|line| line.contains(WORD));
    assert!(line.is_none(), "{line:?}");

    let asked = log_of(&["--enable-log-requests"]).await;
    let told: Vec<_> = asked.lines().filter(|line| line.contains(WORD)).collect();
    assert!(told.len() >= 5, "{asked}");

    let short = log_of(&["--enable-log-requests", "--max-log-len", "5"]).await;
    assert!(short.contains(&format!("prompt=\"{}\"", &WORD[..5])) && !short.contains(WORD), "{short}");
}
