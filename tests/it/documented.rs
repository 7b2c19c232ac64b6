//! Runs the blocks of the documentation that are marked `sh run`, offline, against a server with the built-in model.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{
    cli::Served,
    place::{program, repository},
};

/// Longest that a block may take before it counts as hung.
const PATIENCE_SECONDS: &str = "300";

/// The blocks of a page that are marked, in order.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("\n```sh run\n") {
        let (block, beyond) = after.split_once("\n```").unwrap_or_else(|| panic!("a block does not end: {after}"));
        blocks.push(block.to_owned());
        rest = beyond;
    }
    blocks
}

#[cfg(unix)]
#[test]
fn what_the_documentation_says_to_run_runs() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: the documentation's blocks need curl, which is not here");
        return;
    }
    let served = Served::start(&[]);
    let program = program();
    let path = std::env::join_paths(
        [program.parent().unwrap().to_path_buf()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut pages: Vec<_> = fs::read_dir(repository("docs")).unwrap().collect();
    pages.sort_by_key(|page| page.as_ref().unwrap().path());
    let mut ran = 0;
    for page in pages.into_iter().map(|page| page.unwrap().path()) {
        if page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            // The server's usual port may be somebody's; defaults come from variables, addresses from the text.
            let script = block.replace("127.0.0.1:50051", &served.address);
            let output = Command::new("timeout")
                .args([PATIENCE_SECONDS, "sh", "-eu", "-c", &script])
                .current_dir(folder.path())
                .env("PATH", &path)
                .env("CANDLEWICK_BASE_URL", format!("http://{}", served.address))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {:?}\n{block}\n{told}", page.display(), output.status);
            ran += 1;
        }
    }
    assert!(ran >= 5, "only {ran} blocks are marked");
}
