//! Runs the blocks of shell in the documentation, offline, against a server with the built-in model. A block says in the words
//! behind its fence what becomes of it: `sh run` is run; of `sh serves` every `candlewick serve` is started until it serves;
//! `sh unrun=reason` is for those that cannot run here, for a reason of the list below. A block that says nothing fails the test.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    cli::{Served, candlewick},
    place::{program, repository},
};

/// Longest that a block may take before it counts as hung.
const PATIENCE_SECONDS: &str = "300";

/// Why a block is not run.
const REASONS: &[(&str, &str)] = &[
    ("card", "needs an NVIDIA card, or the toolkit for one"),
    ("network", "downloads something"),
    ("tools", "needs programs that come with neither Rust nor a usual system"),
    ("build", "builds the project, or measures it, for minutes"),
    ("own", "needs files of the reader's own: a larger model, a certificate"),
];

/// What blocks of shell are called.
const SHELLS: [&str; 4] = ["sh", "bash", "shell", "console"];

/// A block of shell.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Of its fence, from 1.
    line: usize,
    /// What stands behind the name of the shell.
    mark: String,
    text: String,
}

/// The blocks of shell of a page, in order.
fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None::<Option<Block>>);
    for (k, line) in page.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                let (name, mark) = info.split_once(' ').unwrap_or((info, ""));
                let is_shell = SHELLS.contains(&name);
                open = Some(is_shell.then(|| Block { line: k + 1, mark: mark.into(), text: String::new() }));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().flatten()),
            (None, Some(Some(block))) => block.text += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

/// The pages of the documentation.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(repository("docs")).unwrap().map(|page| page.unwrap().path());
    let others = ["README.md", "CONTRIBUTING.md", "models/demo/README.md"].map(repository);
    let mut pages: Vec<_> = docs.chain(others).collect();
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages
}

#[test]
fn every_block_of_shell_is_run_or_says_why_not() {
    let (mut wrong, mut ran, mut number) = (Vec::new(), 0, 0);
    for page in pages() {
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            number += 1;
            let is_run = ["run", "serves"].contains(&block.mark.as_str());
            ran += usize::from(is_run);
            let reason = block.mark.strip_prefix("unrun=");
            if !is_run && !REASONS.iter().any(|(known, _)| reason == Some(*known)) {
                wrong.push(format!("{}:{}: {:?}", page.display(), block.line, block.mark));
            }
        }
    }
    assert!(wrong.is_empty(), "neither run, serves nor unrun= with one of {REASONS:?}:\n{}", wrong.join("\n"));
    assert!(ran >= 23 && number > ran, "only {ran} of {number} blocks are run");
}

#[test]
fn blocks_are_cut_out_with_their_marks() {
    let page = "```sh run\na\nb\n```\n```python\nc\n```\n- x\n  ```bash\n  d\n  ```\n";
    let block = |line, mark: &str, text: &str| Block { line, mark: mark.into(), text: text.into() };
    assert_eq!(blocks(page), [block(1, "run", "a\nb\n"), block(9, "", "  d\n")]);
}

/// A folder for the blocks of a page, with what they name as the reader's own.
#[cfg(unix)]
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("path/to")).unwrap();
    for (name, file) in [
        ("model.gguf", "models/demo/demo.gguf"),
        ("path/to/model.gguf", "models/demo/demo.gguf"),
        ("path/to/small.gguf", "models/demo/demo.gguf"),
        ("path/to/model", "tests/fixtures/golden/llama"),
        ("path/to/sql", "tests/fixtures/lora/llama-all"),
        ("path/to/poet", "tests/fixtures/lora/llama-rslora"),
    ] {
        std::os::unix::fs::symlink(repository(file), folder.path().join(name)).unwrap();
    }
    folder
}

/// A shell in that folder that finds the program.
fn shell(folder: &Path, script: &str) -> Command {
    let program = program();
    let own = [program.parent().unwrap().to_path_buf()].into_iter();
    let path = std::env::join_paths(own.chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    // None of our caller's settings.
    let unset: Vec<_> = candlewick(&[]).get_envs().map(|(name, _)| name.to_owned()).collect();
    let mut command = Command::new("timeout");
    for name in unset {
        command.env_remove(name);
    }
    command.args([PATIENCE_SECONDS, "sh", "-eu", "-c", script]).current_dir(folder).env("PATH", path.unwrap());
    command.stdin(Stdio::null());
    command
}

/// Runs a script to its end.
fn runs(folder: &Path, script: &str, served: &Served) {
    let base_url = format!("http://{}", served.address);
    let output = shell(folder, script).env("CANDLEWICK_BASE_URL", base_url).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{script}\n{told}", output.status);
}

/// Starts a server by its command line, on a port of its own, and ends it when it serves.
fn serves(folder: &Path, line: &str) {
    let errors = folder.join("errors.txt");
    let line = line.split(" #").next().unwrap().trim_end();
    let line = match line.split_once("--listen ") {
        Some((before, rest)) => {
            format!("{before}--listen 127.0.0.1:0 {}", rest.split_once(' ').map_or("", |(_, after)| after))
        }
        None => format!("{line} --listen 127.0.0.1:0"),
    };
    let mut command = shell(folder, &format!("exec {line}"));
    let mut child = command.stdout(Stdio::piped()).stderr(File::create(&errors).unwrap()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    let told = fs::read_to_string(&errors).unwrap();
    assert!(ready.starts_with("candlewick serves ") && kill.success(), "{line}\n{status}\n{told}");
}

#[cfg(unix)]
#[test]
fn what_the_documentation_says_to_run_runs() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: the documentation's blocks need curl, which is not here");
        return;
    }
    let served = Served::start(&[]);
    for page in pages() {
        let folder = folder();
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            eprintln!("{}:{} {}", page.display(), block.line, block.mark);
            // The server's usual port may be somebody's; defaults come from variables, addresses from the text.
            let text = block.text.replace("127.0.0.1:50051", &served.address);
            match block.mark.as_str() {
                "run" => runs(folder.path(), &text, &served),
                "serves" => {
                    for line in block.text.replace("\\\n", " ").lines() {
                        match line.trim_start().starts_with("candlewick serve") {
                            true => serves(folder.path(), line),
                            false => runs(folder.path(), line, &served),
                        }
                    }
                }
                _ => {}
            }
        }
    }
}
