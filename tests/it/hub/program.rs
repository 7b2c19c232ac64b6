//! The program against a hub: what variables say, what is printed, and a disk that fills up.

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
};

use super::{
    blob, cache, large,
    server::{FakeHub, PULL_REQUEST, TOKEN},
};
use crate::{
    cli::{candlewick, stderr, stdout},
    place::{program, repository},
};

/// The command with the variables of Hugging Face's tools, and none of our caller's.
fn with_hub(mut command: Command, hub: &FakeHub, cache: &tempfile::TempDir) -> Command {
    for name in std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("HF_")) {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", format!("http://{}", hub.address));
    command.env("HF_HOME", cache.path().join("home")).env("HF_HUB_CACHE", cache.path()).env("HF_TOKEN", TOKEN);
    command
}

#[test]
fn a_pulled_model_is_inspected_and_served_offline_under_its_own_name() {
    let demo = fs::read(repository("models/demo/demo.gguf")).unwrap();
    let hub = FakeHub::start(&[("demo-Q8_0.gguf", &demo), ("demo-Q4_0.gguf", b"less")]);
    let cache = cache();
    let run = |args: &[&str], offline: &str| -> Output {
        with_hub(candlewick(args), &hub, &cache).env("HF_HUB_OFFLINE", offline).output().unwrap()
    };
    let refused = run(&["inspect", "org/name"], "0");
    assert!(stderr(&refused).contains("has not been downloaded"), "{}", stderr(&refused));
    assert!(hub.asked().is_empty(), "inspect downloads nothing");

    let pulled = run(&["pull", "org/name", "--json"], "");
    let said: serde_json::Value = serde_json::from_str(&stdout(&pulled)).unwrap();
    assert!(said["path"].as_str().unwrap().ends_with("demo-Q8_0.gguf"), "{said}");
    assert!(stderr(&pulled).contains("the largest that is quantized"), "{}", stderr(&pulled));
    assert!(stderr(&pulled).contains("also there: Q4_0"), "{}", stderr(&pulled));
    assert!(hub.asked().iter().all(|asked| asked.authorization.as_deref() == Some("Bearer hf_secret")));

    let asked = hub.asked().len();
    for yes in ["1", "true", "YES", "on"] {
        let found = stdout(&run(&["pull", "org/name"], yes));
        assert_eq!(found.trim(), said["path"].as_str().unwrap());
        let refused = run(&["pull", "org/other"], yes);
        assert!(stderr(&refused).contains("run once without offline mode"), "{}", stderr(&refused));
    }
    let facts: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["inspect", "org/name", "--json"], "0"))).unwrap();
    assert_eq!((&facts["path"], facts["format"].as_str()), (&said["path"], Some("GGUF v3")));
    for (model, name) in
        [("org/name", "name\n"), ("org/name:q8_0", "name:q8_0\n"), ("org/name:demo-Q8_0.gguf", "demo-Q8_0\n")]
    {
        let mut chat = with_hub(candlewick(&["chat", model]), &hub, &cache);
        let mut child = chat.env("HF_HUB_OFFLINE", "1").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"/model\n").unwrap();
        assert_eq!(stdout(&child.wait_with_output().unwrap()), name, "{model}");
    }
    assert_eq!(hub.asked().len(), asked, "nobody is asked");
}

/// A limit on the size of files stands for a disk with some room: the file grows, and then it does not.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_keeps_what_came_and_the_next_run_goes_on() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    let pull = |limit: &str| -> Output {
        let mut shell = Command::new("sh");
        let script = format!("trap '' XFSZ; {limit} exec \"$0\" pull org/name:m.gguf");
        shell.args(["-c", &script]).arg(program()).env_remove("CANDLEWICK_CONFIG");
        with_hub(shell, &hub, &cache).output().unwrap()
    };
    let full = pull("ulimit -f 64;");
    assert_eq!(full.status.code(), Some(1), "{}", stderr(&full));
    assert!(stderr(&full).contains("make room"), "{}", stderr(&full));
    let (whole, incomplete) = blob(&cache, "m.gguf", &bytes);
    let kept = fs::metadata(&incomplete).unwrap().len();
    assert!((1..300_000).contains(&kept) && !whole.exists(), "{kept}");

    stdout(&pull(""));
    assert!(fs::read(whole).unwrap() == bytes);
    assert_eq!(hub.downloads().last().unwrap().1, Some(format!("bytes={kept}-")));
}

#[test]
fn whatever_takes_a_model_takes_one_of_the_hub_at_a_revision() {
    let demo = fs::read(repository("models/demo/demo.gguf")).unwrap();
    let hub = FakeHub::start(&[("demo-Q8_0.gguf", &demo), ("demo-Q4_0.gguf", b"less")]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.gguf").display().to_string();
    for command in [
        &["tokenize", "org/name:q8_0@refs/pr/1", "--text", "hello"][..],
        &["tokenize", "org/name:q8_0", "--revision", "refs/pr/1", "--text", "hello"],
        &["convert", "org/name:q8_0@refs/pr/1", &file],
        &["convert", "org/name/demo-Q8_0.gguf", &file, "--revision", "refs/pr/1", "--force"],
        &["generate", "org/name:q8_0@refs/pr/1", "--prompt", "hello", "--max-tokens", "1"],
    ] {
        let (cache, asked, downloaded) = (cache(), hub.asked().len(), hub.downloads().len());
        let run = |more: &[&str]| with_hub(candlewick(&[command, more].concat()), &hub, &cache).output().unwrap();
        stdout(&run(&[]));
        let downloads = &hub.downloads()[downloaded..];
        assert!(matches!(downloads, [(file, _)] if file == "demo-Q8_0.gguf"), "{command:?}: {downloads:?}");
        let asked = &hub.asked()[asked..];
        assert!(asked.iter().any(|asked| asked.path.contains(PULL_REQUEST)), "{command:?}: {asked:?}");
        if command[0] == "tokenize" {
            let asked = hub.asked().len();
            stdout(&run(&["--offline"]));
            assert_eq!(hub.asked().len(), asked, "it is there");
        }
    }
}

#[test]
fn a_directory_of_the_hub_is_quantized_and_tokenized_without_its_weights() {
    let read = |path: &str| fs::read(repository(path)).unwrap();
    let golden = ["config.json", "model.safetensors"].map(|name| read(&format!("tests/fixtures/golden/llama/{name}")));
    let tokenizer = read("tests/data/tokenizers/byte-level.json");
    let cache = cache();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.gguf").display().to_string();
    let hub = FakeHub::start(&[("config.json", &golden[0]), ("model.safetensors", &golden[1])]);
    let run = |hub: &FakeHub, args: &[&str]| stdout(&with_hub(candlewick(args), hub, &cache).output().unwrap());
    run(&hub, &["quantize", "org/name", &file, "-q", "q8_0"]);
    let said: serde_json::Value = serde_json::from_str(&run(&hub, &["inspect", &file, "--json"])).unwrap();
    assert!(said["tensors"]["Q8_0"]["tensors"].as_u64() > Some(0), "{said}");

    let of_json =
        FakeHub::start(&[("config.json", b"{}"), ("tokenizer.json", &tokenizer), ("model.safetensors", &[7; 64])]);
    let another = super::cache();
    let ids = |model: &str| {
        let command = candlewick(&["tokenize", model, "--text", "hello world"]);
        stdout(&with_hub(command, &of_json, &another).output().unwrap())
    };
    let own = repository("tests/data/tokenizers/byte-level.json").display().to_string();
    assert_eq!(ids("org/name"), ids(&own));
    let downloads: Vec<_> = of_json.downloads().into_iter().map(|(file, _)| file).collect();
    assert_eq!(downloads.len(), 2, "{downloads:?}");
    assert!(!downloads.iter().any(|file| file.contains("safetensors")), "{downloads:?}");
    // Who wants the model later gets what is missing.
    with_hub(candlewick(&["pull", "org/name"]), &of_json, &another).output().unwrap();
    assert_eq!(of_json.downloads().last().unwrap().0, "model.safetensors");
}
