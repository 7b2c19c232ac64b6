//! Holds the documentation to the command line: every `candlewick …` in a block of shell is one that is understood.

use std::{fs, path::Path};

use clap::FromArgMatches;

use super::{Cli, command};

/// The lines of a page's blocks of shell, continuations joined.
fn shell_lines(page: &str) -> Vec<String> {
    let (mut lines, mut in_shell, mut in_block) = (Vec::<String>::new(), false, false);
    let mut goes_on = false;
    for line in page.lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            (in_shell, in_block) = (!in_block && kind.split_whitespace().next() == Some("sh"), !in_block);
            goes_on = false;
        } else if in_shell {
            let text = line.trim_end_matches('\\').to_owned();
            match lines.last_mut().filter(|_| goes_on) {
                Some(last) => last.push_str(&text),
                None => lines.push(text),
            }
            goes_on = line.ends_with('\\');
        }
    }
    lines
}

/// The words of a command as a shell would pass them on: up to a comment, a pipe or another command.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '|' | '&' | ';' | '>' | '<') => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The calls of the program in a line of shell, by whichever of its names.
fn calls(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for name in ["candlewick ", "target/release/candlewick ", "cargo run --release -- "] {
        let starts = line.match_indices(name).map(|(at, _)| at);
        let begins = |at: &usize| *at == 0 || line[..*at].trim_end().ends_with(['|', ';', '&', '(']);
        found.extend(starts.filter(begins).map(|at| {
            let rest = words(&line[at + name.len()..]);
            std::iter::once("candlewick".to_owned()).chain(rest).collect()
        }));
    }
    found
}

#[test]
fn shell_is_cut_into_the_programs_calls() {
    let page = "```sh run\ncandlewick a \\\n  --b 'c d' # e\necho x | candlewick f > g\n```\ncandlewick no\n```python\ncandlewick no\n```\n";
    let found: Vec<_> = shell_lines(page).iter().flat_map(|line| calls(line)).collect();
    assert_eq!(found, [&["candlewick", "a", "--b", "c d"][..], &["candlewick", "f"]]);
}

#[test]
fn every_command_line_of_the_documentation_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages: Vec<_> = pages.chain([root.join("README.md"), root.join("models/demo/README.md")]).collect();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        for line in shell_lines(&fs::read_to_string(page).unwrap()) {
            for call in calls(&line) {
                checked += 1;
                let parsed = command().try_get_matches_from(&call).and_then(|matches| Cli::from_arg_matches(&matches));
                // `--help` is said by an error that is none.
                if let Err(error) = parsed.map(drop).or_else(|e| if e.use_stderr() { Err(e) } else { Ok(()) }) {
                    wrong.push(format!("{}: {line}\n{error}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 40, "only {checked} were found");
}
