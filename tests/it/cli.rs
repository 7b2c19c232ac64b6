//! The program from outside: what it prints, and the codes that it ends with. On the built-in model.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use candlewick::proto::candlewick::v1::{self as pb, generation_client::GenerationClient};
use serde_json::Value;
use tonic::transport::Endpoint;

use crate::place::{program, repository};

/// The program, with none of our caller's settings.
pub(crate) fn candlewick(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("CANDLEWICK_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    candlewick(args).output().unwrap()
}

pub(crate) fn run_with_input(args: &[&str], input: &str) -> Output {
    let mut child = candlewick(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&run(args))).unwrap()
}

/// Arguments that give the same tokens every time.
const REPEATABLE: [&str; 7] =
    ["generate", "--prompt", "Once upon a time", "--seed", "7", "--ignore-eos", "--temperature=0.9"];

/// Arguments that give the same 24 tokens every time.
fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [REPEATABLE.as_slice(), &["--max-tokens", "24"], more].concat()
}

#[test]
fn generate_says_that_the_demo_answers_and_gives_the_same_for_the_same_seed() {
    let output = run(&generate(&[]));
    assert!(stderr(&output).contains("built-in demo"), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.ends_with('\n'));
    assert_eq!(stdout(&run(&generate(&[]))), text);
}

#[test]
fn dummy_weights_need_no_more_than_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let config = r#"{
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 300, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
    }"#;
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    let model = directory.path().to_str().unwrap();
    let dummy = ["--load-format", "dummy", "--json"];
    let flags = ["--prompt-token-ids", "1,2,3", "--temperature", "0", "--max-tokens", "5"];
    let ids = |more: &[&str]| {
        json(&[&["generate", model], dummy.as_slice(), flags.as_slice(), more].concat())["token_ids"].clone()
    };
    assert_eq!(ids(&[]).as_array().unwrap().len(), 5);
    assert_eq!(ids(&["-q", "q8_0"]), ids(&["--quantization", "q8_0"]));
    // 128 numbers a token: a block of 16 tokens fits in 2048 bytes where each takes one, and in none otherwise.
    let one_block = ["--kv-cache-memory-bytes", "2048", "--kv-cache-dtype"];
    assert_eq!(ids(&[one_block.as_slice(), &["fp8"]].concat()).as_array().unwrap().len(), 5);
    let two_bytes = [&["generate", model], dummy.as_slice(), &flags, &one_block, &["bfloat16"]].concat();
    assert!(stderr(&run(&two_bytes)).contains("takes 4096 bytes"));

    let eight_bit_floats = ["--device", "cpu", "--quantization", "fp8"];
    let refused = run(&[&["generate", model], dummy.as_slice(), &flags, &eight_bit_floats].concat());
    assert!(stderr(&refused).contains("--quantization fp8: only NVIDIA cards"), "{}", stderr(&refused));

    let refused = run(&["generate", model, "--prompt-token-ids", "1"]);
    assert!(stderr(&refused).contains("model.safetensors"), "{}", stderr(&refused));

    // The bench on the same model: every number there, and the same tokens at every batch size.
    let bench = ["bench", model, "--prompt", "20", "--gen", "8", "--batch", "1,3"];
    let report = json(&[bench.as_slice(), &dummy, &["--max-num-batched-tokens", "64"]].concat());
    assert!(["1", "3"].iter().all(|batch| report["decode_tok_s"][batch].as_f64().unwrap() > 0.0), "{report}");
    assert_eq!(report["output_hash"]["1"], report["output_hash"]["3"]);
    assert!(report["prefill_tok_s"].as_f64().unwrap() > 0.0);
    assert!(["read_gb_s", "matmul_tflops"].iter().all(|limit| report["limits"][limit].as_f64().unwrap() > 0.0));
    // And of prompts that begin alike.
    let alike = ["--max-num-batched-tokens", "64", "--random-prefix-len", "70"];
    let of_alike = json(&[bench.as_slice(), &dummy, &alike].concat());
    assert_eq!(of_alike["prefix"], 70);
    assert_eq!(of_alike["output_hash"]["1"], of_alike["output_hash"]["3"]);
    let refused = run(&["bench", model, "--random-prefix-len", "100000000"]);
    assert!(stderr(&refused).contains("--random-prefix-len"), "{}", stderr(&refused));
    let refused = run(&["bench", model, "--load-format", "dummy", "--batch", "65"]);
    assert!(stderr(&refused).contains("--max-num-seqs"), "{}", stderr(&refused));
}

#[test]
fn generate_as_json_holds_the_same_text_and_what_it_cost() {
    let object = json(&generate(&["--json", "--logprobs", "2"]));
    assert_eq!(object["model"], "demo");
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 24);
    assert_eq!((&object["finish_reason"], &object["usage"]["completion_tokens"]), (&"length".into(), &24.into()));
    assert_eq!(object["logprobs"].as_array().unwrap().len(), 24);
    assert_eq!(object["logprobs"][0]["top"].as_array().unwrap().len(), 2);
    assert!(object["timings"]["total_ms"].as_f64().unwrap() > 0.0);
    let text = object["text"].as_str().unwrap();
    assert_eq!(stdout(&run(&generate(&[]))).trim_end_matches('\n'), text.trim_end_matches('\n'));
}

#[test]
fn a_prompt_comes_from_standard_input_as_well() {
    let flags = ["generate", "--temperature", "0", "--max-tokens", "8", "--json"];
    let piped: Value = serde_json::from_str(&stdout(&run_with_input(&flags, "Hello\n"))).unwrap();
    let given = json(&[flags.as_slice(), &["--prompt", "Hello"]].concat());
    assert_eq!(piped["token_ids"], given["token_ids"]);
    assert_eq!(piped["usage"]["prompt_tokens"], given["usage"]["prompt_tokens"]);
}

#[test]
fn flags_can_be_variables_and_the_command_line_wins() {
    let tokens = |args: &[&str]| {
        let output = candlewick(args).env("CANDLEWICK_MAX_TOKENS", "3").env("CANDLEWICK_IGNORE_EOS", "true").output();
        let object: Value = serde_json::from_str(&stdout(&output.unwrap())).unwrap();
        object["token_ids"].as_array().unwrap().len()
    };
    assert_eq!(tokens(&["generate", "--prompt", "x", "--json"]), 3);
    assert_eq!(tokens(&["generate", "--prompt", "x", "--json", "--max-tokens", "5"]), 5);
}

#[test]
fn what_goes_wrong_is_one_line_and_a_code_of_one() {
    let cases: [(&[&str], &str); 5] = [
        (&["generate", "/no/such/model.gguf", "--prompt", "x"], "/no/such/model.gguf"),
        (&["generate", "--prompt", "x", "--max-model-len", "9999999"], "--max-model-len"),
        (&["generate", "--prompt", "x", "--top-p", "7"], "top_p"),
        (&["generate", "--prompt", "x", "--connect", "127.0.0.1:1"], "127.0.0.1:1"),
        (&["serve", "--listen", "nowhere"], "--listen"),
    ];
    for (args, says) in cases {
        let output = run(args);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {told}");
        let errors: Vec<_> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{args:?}: {told}");
        assert!(errors[0].contains(says), "{args:?}: {told}");
        assert!(told.ends_with(&format!("{}\n", errors[0])), "{args:?}: {told}");
    }
}

#[test]
fn a_wrong_command_line_is_a_code_of_two() {
    for args in [&["serve", "--no-such-flag"][..], &["frobnicate"], &["generate", "--temperature", "warm"], &[]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

#[test]
fn completions_name_every_subcommand() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&run(&["completions", shell]));
        assert!(["serve", "generate", "chat", "max-model-len"].iter().all(|word| script.contains(word)), "{shell}");
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("man/pages");
    assert!(run(&["man", place.to_str().unwrap()]).status.success());
    for page in ["candlewick.1", "candlewick-serve.1", "candlewick-bench-serve.1", "candlewick-chat.1"] {
        let text = std::fs::read_to_string(place.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH"), "{page}: {text}");
    }
    let page = std::fs::read_to_string(place.join("candlewick-serve.1")).unwrap();
    assert!(page.contains("max\\-model\\-len"), "{page}");
    let refused = run(&["man", "/dev/null/pages"]);
    assert!(stderr(&refused).contains("/dev/null/pages"), "{}", stderr(&refused));
}

#[test]
fn what_is_misspelt_is_answered_with_what_was_meant() {
    for (args, says) in [(&["serv"][..], "'serve'"), (&["serve", "--max-model-length", "5"], "--max-model-len")] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model-q8.gguf");
    std::fs::write(&model, "").unwrap();
    let misspelt = folder.path().join("model-q8.guf");
    let misspelt = misspelt.to_str().unwrap();
    let meant = format!("did you mean {}?", model.display());
    for args in [&["inspect", misspelt][..], &["generate", misspelt, "--prompt", "x"], &["bench", misspelt]] {
        assert!(stderr(&run(args)).contains(&meant), "{}", stderr(&run(args)));
    }
}

#[test]
fn pull_takes_names_of_the_hub_alone_and_looks_no_further_when_offline() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    for (model, says) in [("nonsense", "org/name"), (place, "is a path"), ("org/name", "offline")] {
        let output = run(&["pull", model, "--offline", "--download-dir", place, "--json"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(says), "{model}: {}", stderr(&output));
    }
}

#[test]
fn a_conversation_is_set_saved_loaded_and_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat.json");
    let talk = |lines: &str| {
        let args = ["chat", "--max-tokens", "6", "--min-tokens", "6", "--seed", "3", "--json"];
        stdout(&run_with_input(&args, lines))
    };
    let answer = |line: &str| serde_json::from_str::<Value>(line).unwrap()["content"].as_str().unwrap().to_owned();
    let text = talk(&format!("Hello\n/save {}\n/retry\n/settings\n/model\n", file.display()));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(answer(lines[0]), answer(lines[1]), "the same seed, asked again");
    assert_eq!(lines[2], "demo");
    let usage = serde_json::from_str::<Value>(lines[0]).unwrap()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 6);

    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&saved[0]["role"], &saved[0]["content"]), (&"user".into(), &"Hello".into()));
    assert_eq!(saved[1]["content"], answer(lines[0]));
    let text = talk(&format!("/load {}\n/undo\nHel\\\nlo\n/undo\nHello\n", file.display()));
    assert_eq!(answer(text.lines().nth(1).unwrap()), answer(lines[0]), "{text}");

    let text = talk("/set max_tokens 7\n/set min_tokens 7\n/settings\nHello\n");
    assert!(text.starts_with("max_tokens 7\nmin_tokens 7\n"), "{text}");
    let usage = serde_json::from_str::<Value>(text.lines().nth(2).unwrap()).unwrap()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 7);
    let refused = run_with_input(&["chat"], "/set temprature 3\n");
    assert!(stderr(&refused).contains("--temperature"), "{}", stderr(&refused));
}

#[test]
fn a_server_says_where_it_is_as_json() {
    let mut child = candlewick(&["serve", "--listen", "127.0.0.1:0", "--json"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (killed, _status) = (child.kill(), child.wait());
    killed.unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(said["model"], "demo");
    assert!(said["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{said}");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let mut child = candlewick(&["generate", "--prompt", "x", "--ignore-eos"]).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

#[test]
fn a_piped_conversation_answers_every_line() {
    let output = run_with_input(
        &["chat", "--system", "Be brief.", "--max-tokens", "6", "--seed", "3", "--min-tokens", "6"],
        "Hello\n\n/help\n/reset\nHello\n/quit\nnever said\n",
    );
    let text = stdout(&output);
    let (before, after) = text.split_once("/help").unwrap();
    assert!(!before.trim().is_empty() && after.contains("/reset"), "{text}");
    // After a reset the same words with the same seed get the same answer.
    assert!(after.ends_with(before), "{text}");
}

/// `candlewick serve` on a port of its own; killed where a test fails.
pub(crate) struct Served {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) address: String,
}

impl Served {
    pub(crate) fn start(more: &[&str]) -> Self {
        let mut child = candlewick(&[&["serve", "--listen", "127.0.0.1:0"], more].concat()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let address = ready.split_whitespace().find_map(|word| word.strip_suffix(':').filter(|w| w.contains(':')));
        let address = address.unwrap_or_else(|| panic!("no address in {ready:?}")).to_owned();
        assert!(["demo", "blocks", "context"].iter().all(|word| ready.contains(word)), "{ready}");
        Self { child, stdout, address }
    }

    #[cfg(unix)]
    fn terminate(&self) {
        let kill = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status().unwrap();
        assert!(kill.success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_server_gives_what_the_program_gives_itself() {
    let served = Served::start(&[]);
    let mut remote = json(&generate(&["--json", "--connect", &served.address]));
    let mut local = json(&generate(&["--json"]));
    for object in [&mut remote, &mut local] {
        object["timings"] = Value::Null;
    }
    assert_eq!(remote, local);

    let refused = run(&generate(&["--connect", &served.address, "--top-p", "7"]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("top_p"), "{}", stderr(&refused));

    let url = format!("http://{}", served.address);
    let talk = ["chat", "--max-tokens", "5", "--temperature", "0", "--min-tokens", "5"];
    let remote = stdout(&run_with_input(&[talk.as_slice(), &["--connect", &url]].concat(), "Hello\n"));
    assert_eq!(remote, stdout(&run_with_input(&talk, "Hello\n")));
}

#[test]
fn a_model_cannot_have_the_name_of_another_or_of_an_adapter() {
    let fixture = |name: &str| repository(&format!("tests/fixtures/{name}")).display().to_string();
    let (model, adapter) = (fixture("golden/llama"), format!("tuned={}", fixture("lora/llama-all")));
    let serve = ["serve", &model, "--listen", "127.0.0.1:0", "--enable-lora", "--lora-modules", &adapter];
    for (name, says) in [("tuned", "an adapter"), ("llama", "another model")] {
        let refused = run(&[serve.as_slice(), &["--models", &format!("{name}={model}")]].concat());
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
}

#[test]
fn two_servers_cannot_have_one_port() {
    let served = Served::start(&[]);
    let second = run(&["serve", "--listen", &served.address]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains(&served.address), "{}", stderr(&second));
}

#[cfg(unix)]
#[test]
fn a_terminated_server_finishes_its_streams_and_ends_well() {
    let args = [REPEATABLE.as_slice(), &["--max-tokens", "300"]].concat();
    let whole = stdout(&run(&args));
    let mut served = Served::start(&[]);
    let mut client = candlewick(&[args.as_slice(), &["--connect", &served.address]].concat()).spawn().unwrap();
    // Its first byte says that the stream is under way.
    let mut text = vec![0];
    let mut output = client.stdout.take().unwrap();
    output.read_exact(&mut text).unwrap();
    served.terminate();
    output.read_to_end(&mut text).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(0));
    assert_eq!(String::from_utf8(text).unwrap(), whole);
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    served.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "standard output says one line");
}

#[cfg(unix)]
#[tokio::test]
async fn a_second_signal_ends_a_draining_server_at_once() {
    let mut served = Served::start(&["--drain-timeout", "600"]);
    // A stream that cannot end: more comes than its reader lets in, and it reads no more than the beginning.
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(4096u32).connect().await.unwrap();
    let sampling = pb::SamplingParams { ignore_eos: Some(true), logprobs: Some(20), ..pb::SamplingParams::default() };
    let request = pb::GenerateStreamRequest {
        prompt: Some(pb::Prompt { prompt: Some(pb::prompt::Prompt::Text("x".into())) }),
        options: Some(pb::RequestOptions { sampling: Some(sampling), ..pb::RequestOptions::default() }),
    };
    let mut unread = GenerationClient::new(channel).generate_stream(request).await.unwrap().into_inner();
    unread.message().await.unwrap().unwrap();

    served.terminate();
    let mut told = BufReader::new(served.child.stderr.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains("second signal")));
    served.terminate();
    assert_eq!(served.child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_directory_converted_quantized_and_inspected_is_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let ids = |model: &str| {
        let flags = ["generate", model, "--prompt-token-ids", "1,2,3,4,5", "--temperature", "0", "--max-tokens", "12"];
        json(&[&flags[..], &["--ignore-eos", "--json"]].concat())["token_ids"].clone()
    };
    for name in ["llama", "llama3-rope", "qwen2", "qwen3", "qwen3_5_moe"] {
        let model = repository(&format!("tests/fixtures/golden/{name}")).display().to_string();
        let (plain, eight) = (place(&format!("{name}.gguf")), place(&format!("{name}-q8.gguf")));
        let written = json(&["convert", &model, &plain, "--json"]);
        let facts = json(&["inspect", &plain, "--json"]);
        assert_eq!(facts["unread"].as_array().map_or(0, Vec::len), 0);
        assert_eq!(facts["architecture"], json(&["inspect", &model, "--json"])["architecture"]);
        assert_eq!(ids(&plain), ids(&model), "{name}");

        let refused = run(&["convert", &model, &plain]);
        assert!(stderr(&refused).contains("--force replaces it"), "{}", stderr(&refused));

        let quantized = json(&["quantize", &model, &eight, "-q", "q8_0", "--json"]);
        assert_eq!(quantized["tensors"], written["tensors"]);
        assert!(quantized["bytes"].as_u64() < written["bytes"].as_u64(), "{quantized} {written}");
        let facts = json(&["inspect", &eight, "--context", "100", "--json"]);
        assert!(facts["tensors"]["Q8_0"]["tensors"].as_u64().unwrap() > 7, "{facts}");
        let memory = &facts["memory"];
        assert_eq!(memory["kv_bytes"].as_u64(), memory["kv_bytes_per_token"].as_u64().map(|bytes| 100 * bytes));
        assert_eq!(ids(&eight).as_array().unwrap().len(), 12);

        let again = run(&["quantize", &eight, &place("again.gguf"), "-q", "q4_0"]);
        assert!(stderr(&again).contains("is q8_0 already"), "{}", stderr(&again));
        assert!(!directory.path().join("again.gguf").exists());
    }
}
