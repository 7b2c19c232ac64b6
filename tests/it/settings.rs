//! Where settings come from, how they are shown, and what can change while the server runs. On the built-in model.

use std::{
    io::{BufRead, BufReader},
    path::Path,
};

use serde_json::{Value, json};

use crate::cli::{candlewick, run, stderr, stdout};

/// A file of settings.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("candlewick.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// The line of a setting: its value, and where that came from.
fn line<'p>(printed: &'p str, name: &str) -> (&'p str, &'p str) {
    let found = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    let line = found.unwrap_or_else(|| panic!("no {name} in {printed}"));
    let (value, source) = line.rsplit_once('#').unwrap();
    (value.trim(), source.trim())
}

const SETTINGS: &str = r#"
# Dashes or underscores.
model = "models/x.gguf"
max-num-seqs = 3
max_waiting = 7
block-size = 32
stall-timeout = 1.5
enable-prefix-caching = false
offline = true
allowed-origins = ["https://a.example", "https://b.example"]
api-key = ["secret-of-the-file"]
dtype = "float32"
log-level = "debug"
"#;

#[test]
fn flags_win_over_variables_over_the_file_over_defaults_and_each_says_where_it_came_from() {
    let (_directory, path) = file(SETTINGS);
    let mut command = candlewick(&["serve", "--config", &path, "--block-size", "8", "--print-config"]);
    command.env("CANDLEWICK_BLOCK_SIZE", "64").env("CANDLEWICK_MAX_WAITING", "9");
    let printed = stdout(&command.output().unwrap());
    for (name, value, source) in [
        ("block-size", "8", "command line"),
        ("max-waiting", "9", "environment CANDLEWICK_MAX_WAITING"),
        ("max-num-seqs", "3", "file"),
        ("model", "\"models/x.gguf\"", "file"),
        ("stall-timeout", "1.5", "file"),
        ("enable-prefix-caching", "false", "file"),
        ("offline", "true", "file"),
        ("allowed-origins", r#"["https://a.example", "https://b.example"]"#, "file"),
        ("dtype", "\"float32\"", "file"),
        ("log-level", "\"debug\"", "file"),
        ("listen", "\"127.0.0.1:50051\"", "default"),
        ("# max-model-len", "", "default"),
        ("# api-key", "(1 not shown)", "file"),
    ] {
        let (found, from) = line(&printed, if value.is_empty() { "# max-model-len" } else { name });
        // Numbers with a fraction are texts, which are read alike.
        assert_eq!((found.trim_matches('"'), from), (value.trim_matches('"'), source), "{name}");
    }
    assert!(!printed.contains("secret"), "{printed}");
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    let (_directory, path) = file(SETTINGS);
    let printed = stdout(&run(&["serve", "--config", &path, "--print-config"]));
    let (_again, again) = file(&printed);
    let reprinted = stdout(&run(&["serve", "--config", &again, "--print-config"]));
    let values = |printed: &str| -> Vec<String> {
        let lines = printed.lines().filter(|line| !line.contains("api-key"));
        lines.map(|line| line.rsplit_once('#').unwrap().0.trim().to_owned()).collect()
    };
    assert_eq!(values(&printed), values(&reprinted));
    let mut command = candlewick(&["serve", "--print-config"]);
    command.env("CANDLEWICK_CONFIG", &path);
    assert_eq!(stdout(&command.output().unwrap()), printed);
}

#[test]
fn a_wrong_file_is_refused_by_the_setting_and_says_what_was_meant() {
    let cases = [
        ("max-num-seq = 3", "\"max-num-seq\" is no setting of serve: did you mean max-num-seqs?"),
        ("zzz = 3", "\"zzz\" is no setting of serve"),
        ("config = 'x'", "\"config\" is no setting"),
        ("no-enable-prefix-caching = true", "did you mean enable-prefix-caching?"),
        ("block-size = 0", "--block-size"),
        ("dtype = 'float17'", "--dtype"),
        ("offline = 'yes'", "offline: must be true or false"),
        ("block-size = [1, 2]", "--block-size"),
        ("block_size = 1\nblock-size = 1", "is there twice"),
        ("[serve]\nblock-size = 1", "\"serve\" is no setting"),
        ("[listen]\nx = 1", "listen: is a table"),
        ("kv-cache-memory-bytes = '1G'\nnum-gpu-blocks-override = 5", "cannot be used with"),
        ("block-size = 1\nblock-size", "line 2"),
    ];
    for (text, says) in cases {
        let (_directory, path) = file(text);
        let output = run(&["serve", "--config", &path, "--print-config"]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let said = stderr(&output);
        assert!(said.contains("candlewick.toml") && said.contains(says), "{text}: {said}");
    }
    let missing = run(&["serve", "--config", "/nowhere/x.toml"]);
    assert!(missing.status.code() == Some(2) && stderr(&missing).contains("/nowhere/x.toml"));
}

#[test]
fn a_key_of_the_file_that_is_no_good_is_not_said() {
    let (_directory, path) = file("api-key = ['correct horse']");
    let output = run(&["serve", "--config", &path, "--print-config"]);
    let said = stderr(&output);
    assert!(output.status.code() == Some(2) && said.contains("--api-key") && said.contains("visible ASCII"), "{said}");
    assert!(!said.contains("correct") && !said.contains("horse"), "{said}");
}

#[test]
fn a_flag_that_contradicts_the_file_wins() {
    let (_directory, path) = file("kv-cache-memory-bytes = '1G'");
    let output = run(&["serve", "--config", &path, "--num-gpu-blocks-override", "5", "--print-config"]);
    let printed = stdout(&output);
    assert_eq!(line(&printed, "num-gpu-blocks-override"), ("5", "command line"));
    assert_eq!(line(&printed, "kv-cache-memory-bytes"), (r#""auto""#, "default"));
}

#[test]
fn nobody_listens_to_everybody_without_having_said_so() {
    let refused = run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(["--insecure", "--api-key", "--ssl-certfile"].iter().all(|flag| stderr(&refused).contains(flag)));
    let wrong = run(&["serve", "--api-keys-file", "/nowhere/keys.toml"]);
    assert!(wrong.status.code() == Some(1) && stderr(&wrong).contains("/nowhere/keys.toml"), "{}", stderr(&wrong));
}

#[test]
fn a_new_key_is_said_apart_from_the_lines_for_its_file() {
    let output = run(&["key", "new", "--tenant", "alice"]);
    let key = stderr(&output).split_whitespace().last().unwrap().to_owned();
    let lines = stdout(&output);
    assert!(key.starts_with("cw-") && key.len() == 67 && !lines.contains(&key), "{key}");
    let (_directory, path) = file(&lines);
    let tenants = candlewick::config::read_keys_file(Path::new(&path)).unwrap();
    assert_eq!((&*tenants[0].name, &tenants[0].keys), ("alice", &vec![candlewick::config::key_hash(&key)]));
    assert_ne!(stdout(&run(&["key", "new", "--tenant", "alice"])), lines);
}

#[cfg(unix)]
mod signals {
    use std::{
        process::{Child, ChildStderr, Command},
        time::Duration,
    };

    use candlewick::proto::candlewick::v1::{ListRequest, models_client::ModelsClient};
    use tonic::{Code, Request, transport::Endpoint};

    use super::*;

    /// A server that says everything on its standard error.
    struct Serving {
        child: Child,
        log: BufReader<ChildStderr>,
        address: String,
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            let _gone = self.child.kill();
            let _status = self.child.wait();
        }
    }

    impl Serving {
        fn start(args: &[&str]) -> Self {
            let mut child = candlewick(&[&["serve", "--listen", "127.0.0.1:0"], args].concat()).spawn().unwrap();
            let mut ready = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
            let address = ready.split_whitespace().find_map(|word| word.strip_suffix(':').filter(|w| w.contains(':')));
            let address = address.unwrap_or_else(|| panic!("no address in {ready:?}")).to_owned();
            let log = BufReader::new(child.stderr.take().unwrap());
            Self { child, log, address }
        }

        /// Asks it to read its files again, and returns what it says to that.
        fn hang_up(&mut self, until: &str) -> String {
            let kill = Command::new("sh").args(["-c", &format!("kill -HUP {}", self.child.id())]).status().unwrap();
            assert!(kill.success());
            let mut said = String::new();
            while !said.lines().last().is_some_and(|line| line.contains(until)) {
                assert_ne!(self.log.read_line(&mut said).unwrap(), 0, "it ended: {said}");
            }
            said
        }

        /// What a call with this key comes to.
        fn code(&self, key: &str) -> Code {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
                let channel = endpoint.timeout(Duration::from_secs(60)).connect().await.unwrap();
                let mut request = Request::new(ListRequest {});
                request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
                ModelsClient::new(channel).list(request).await.err().map_or(Code::Ok, |status| status.code())
            })
        }
    }

    fn keys(tenants: &[(&str, &str)]) -> String {
        let hex = |key: &str| -> String {
            candlewick::config::key_hash(key).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        tenants.iter().map(|(name, key)| format!("[tenant.{name}]\nkeys = [{:?}]\n", hex(key))).collect()
    }

    #[test]
    fn keys_and_the_logs_level_change_on_a_hangup_and_a_bad_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let write = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
        let settings = |more: &str| format!("api-keys-file = {:?}\n{more}", path("keys.toml"));
        write("keys.toml", keys(&[("a", "one"), ("b", "two")]));
        write("candlewick.toml", settings("max-waiting = 7\n"));
        let mut serving = Serving::start(&["--config", &path("candlewick.toml")]);
        assert_eq!(
            [serving.code("one"), serving.code("two"), serving.code("three")],
            [Code::Ok, Code::Ok, Code::Unauthenticated]
        );

        write("keys.toml", keys(&[("a", "one"), ("c", "three")]));
        write("candlewick.toml", settings("max-waiting = 8\nlog-level = \"info,candlewick=debug\"\n"));
        let said = serving.hang_up("hold after a restart");
        assert!(said.contains("max-waiting") && said.contains("log-level"), "{said}");
        assert!(said.contains("tenants_added=[\"c\"]") && said.contains("tenants_removed=[\"b\"]"), "{said}");
        assert_eq!(
            [serving.code("one"), serving.code("two"), serving.code("three")],
            [Code::Ok, Code::Unauthenticated, Code::Ok]
        );

        for (name, text, names) in [
            ("keys.toml", "[tenant.a]\nkeys = ['x']".to_owned(), "tenant.a.keys[0]"),
            ("keys.toml", String::new(), "tenant"),
            ("candlewick.toml", settings("max-waitin = 8\n"), "did you mean max-waiting"),
        ] {
            write(name, text);
            let said = serving.hang_up("what was in force stays");
            assert!(said.contains(names) && said.contains("ERROR"), "{said}");
            assert_eq!([serving.code("one"), serving.code("two")], [Code::Ok, Code::Unauthenticated]);
        }
        write("candlewick.toml", "max-waiting = 7\n".to_owned());
        let said = serving.hang_up("what was in force stays");
        assert!(said.contains("everybody could call"), "{said}");
        assert_eq!([serving.code("one"), serving.code("two")], [Code::Ok, Code::Unauthenticated]);
    }
    #[test]
    fn a_client_on_the_command_line_shows_its_key() {
        let serving = Serving::start(&["--api-key", "one"]);
        let ask = |key: &[&str]| {
            let call = ["generate", "--connect", &serving.address, "--prompt", "Hi", "--max-tokens", "2"];
            run(&[call.as_slice(), key].concat())
        };
        assert!(!stdout(&ask(&["--api-key", "one"])).is_empty());
        for wrong in [&["--api-key", "two"][..], &[]] {
            let refused = ask(wrong);
            assert!(refused.status.code() == Some(1) && stderr(&refused).contains("key"), "{}", stderr(&refused));
        }
    }
}

#[test]
fn the_configuration_in_force_is_printed_as_json_too() {
    let (_directory, path) = file(SETTINGS);
    let mut command = candlewick(&["serve", "--config", &path, "--block-size", "8", "--print-config", "--json"]);
    command.env("CANDLEWICK_MAX_WAITING", "9");
    let printed = stdout(&command.output().unwrap());
    let object: Value = serde_json::from_str(&printed).unwrap();
    for (name, value, source) in [
        ("block-size", json!(8), "command line"),
        ("max-waiting", json!(9), "environment"),
        ("model", json!("models/x.gguf"), "file"),
        ("enable-prefix-caching", json!(false), "file"),
        ("allowed-origins", json!(["https://a.example", "https://b.example"]), "file"),
        ("listen", json!("127.0.0.1:50051"), "default"),
        ("max-model-len", Value::Null, "default"),
        ("api-key", Value::Null, "file"),
    ] {
        assert_eq!((&object[name]["value"], &object[name]["source"]), (&value, &json!(source)), "{name}");
    }
    assert_eq!(object["max-waiting"]["variable"], "CANDLEWICK_MAX_WAITING");
    assert!(object["api-key"]["secret"] == true && !printed.contains("secret-of"), "{printed}");
}

#[test]
fn a_misspelt_variable_gets_a_word() {
    let mut command = candlewick(&["serve", "--print-config"]);
    command.env("CANDLEWICK_MAX_NUM_SEQZ", "3").env("CANDLEWICK_SERVICE_HOST", "10.0.0.1");
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert!(
        said.contains("CANDLEWICK_MAX_NUM_SEQZ") && said.contains("did you mean CANDLEWICK_MAX_NUM_SEQS?"),
        "{said}"
    );
    assert!(!said.contains("SERVICE_HOST"), "{said}");
    assert_eq!(line(&stdout(&output), "max-num-seqs"), ("64", "default"));
}
