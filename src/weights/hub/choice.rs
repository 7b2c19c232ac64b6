//! What is taken of a repository, and why.
//!
//! What is asked for, else safetensors with their config.json, else a GGUF file: of those that fit into memory the largest that
//! is quantized. More bits are better numbers, and eight of them already give what sixteen do, for half of the memory and of
//! the time; so plain numbers come after all others.

use std::{collections::BTreeMap, path::Path};

use super::name::{HubName, Wanted, is_gguf};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    weights::{gguf::first_of_parts, shown},
};

/// What a directory of safetensors is served from: what [`model_files`](crate::weights::files::model_files) looks for.
const BESIDE_WEIGHTS: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
];
const CONFIG: &str = "config.json";

/// GGUF files that are no model of text: an image's encoder, statistics for whoever quantizes.
const NO_MODELS: [&str; 2] = ["mmproj", "imatrix"];

/// How names say that numbers are plain.
const PLAIN: [&str; 5] = ["BF16", "F16", "F32", "FP16", "FP32"];

/// Most alternatives that are listed.
const MAX_NAMED: usize = 24;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RepoFile {
    /// Below the repository's root.
    pub(super) path: String,
    /// In bytes.
    pub(super) size: u64,
}

/// What is taken.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) files: Vec<&'a RepoFile>,
    /// The GGUF file that is the model, of a split one the first part; none where it is the folder.
    pub(super) gguf: Option<&'a str>,
    /// In words, with what else there is.
    pub(super) why: String,
}

impl Choice<'_> {
    /// The same without safetensors. A GGUF file is one piece.
    pub(super) fn without_weights(mut self) -> Self {
        self.files.retain(|file| !is_safetensors(&file.path));
        self
    }

    /// Whether it is a folder without any weights.
    pub(super) fn lacks_weights(&self) -> bool {
        self.gguf.is_none() && !self.files.iter().any(|file| is_safetensors(&file.path))
    }

    /// Of all files together.
    pub(super) fn bytes(&self) -> u64 {
        bytes(&self.files)
    }
}

/// Chooses among the files of a repository, for `memory` bytes where that is known.
///
/// # Errors
/// `NotFound` with what there is where what is asked for is not; `FailedPrecondition` where a part is missing, or there is no
/// model.
pub(super) fn choose<'a>(name: &HubName<'_>, files: &'a [RepoFile], memory: Option<u64>) -> Result<Choice<'a>> {
    let ggufs = gguf_files(files);
    let folder: Vec<_> = files.iter().filter(|file| is_of_folder(&file.path)).collect();
    let has_config = folder.iter().any(|file| file.path == CONFIG);
    let has_safetensors = has_config && folder.iter().any(|file| is_safetensors(&file.path));
    let of_folder = |why: &str| {
        let (count, bytes, others) = (folder.len(), size(bytes(&folder)), others(ggufs.iter()));
        Choice { files: folder.clone(), gguf: None, why: format!("{count} files, {bytes}: {why}{others}") }
    };
    let of_gguf = |taken: &GgufFile<'a>, why: String| {
        let safetensors = if has_safetensors { "; also there: safetensors" } else { "" };
        let others = others(ggufs.iter().filter(|other| other.first != taken.first));
        let (file, bytes) = (shown(taken.first), size(taken.bytes()));
        let parts = if taken.count > 1 { format!(" in {} parts", taken.count) } else { String::new() };
        Choice {
            files: taken.parts.clone(),
            gguf: Some(taken.first),
            why: format!("{file}, {bytes}{parts}: {why}{safetensors}{others}"),
        }
    };
    match name.wanted {
        Some(Wanted::File(wanted)) => {
            let taken = ggufs.iter().find(|gguf| gguf.parts.iter().any(|part| part.path == wanted));
            let taken = taken.ok_or_else(|| {
                let known: Vec<_> = ggufs.iter().map(|gguf| gguf.first).collect();
                missing(name, "file", wanted, &known)
            })?;
            Ok(of_gguf(taken.whole()?, "as asked".into()))
        }
        Some(Wanted::Quantization(wanted)) => {
            let named = ggufs.iter().filter(|gguf| says(gguf.first, wanted));
            // `UD-Q4_K_XL` is a Q4_K_XL too, but another is meant first.
            let taken = named.min_by_key(|gguf| (gguf.is_partial(), gguf.first.len())).ok_or_else(|| {
                let known: Vec<_> = ggufs.iter().map(GgufFile::label).collect();
                missing(name, "quantization", wanted, &known)
            })?;
            Ok(of_gguf(taken.whole()?, format!("{wanted} was asked for")))
        }
        None if has_safetensors => Ok(of_folder("safetensors with their config.json come first")),
        None => {
            let whole: Vec<_> = ggufs.iter().filter(|gguf| !gguf.is_partial()).collect();
            match (best(&whole, memory), ggufs.first()) {
                (Some((taken, why)), _) => Ok(of_gguf(taken, why)),
                (None, Some(partial)) => partial.whole().map(|gguf| of_gguf(gguf, String::new())),
                (None, None) if has_config => Ok(of_folder("there is a config.json, and no weights that can be read")),
                (None, None) => {
                    let why = "holds neither config.json with safetensors nor a .gguf file";
                    Err(Error::new(Code::FailedPrecondition, format!("{} {why}", name.repository())))
                }
            }
        }
    }
}

/// A GGUF file, or one that is split.
struct GgufFile<'a> {
    first: &'a str,
    /// How many files it says it is.
    count: usize,
    parts: Vec<&'a RepoFile>,
}

impl<'a> GgufFile<'a> {
    fn is_partial(&self) -> bool {
        self.parts.len() != self.count
    }

    fn whole(&self) -> Result<&Self> {
        if self.is_partial() {
            let (file, here) = (shown(self.first), self.parts.len());
            let message = format!("{file}: {here} of its {} parts are there", self.count);
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        Ok(self)
    }

    fn bytes(&self) -> u64 {
        bytes(&self.parts)
    }

    /// Its quantization, or its name where that does not say.
    fn label(&self) -> &'a str {
        quantization(self.first).unwrap_or(self.first)
    }

    fn is_plain(&self) -> bool {
        quantization(self.first).is_some_and(|label| PLAIN.iter().any(|plain| label.eq_ignore_ascii_case(plain)))
    }
}

/// The GGUF files that may be models, parts put together, in the order of their names.
fn gguf_files(files: &[RepoFile]) -> Vec<GgufFile<'_>> {
    let is_model = |path: &str| {
        let path = path.to_ascii_lowercase();
        is_gguf(&path) && !NO_MODELS.iter().any(|no| path.contains(no))
    };
    let mut found: BTreeMap<String, GgufFile<'_>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_model(&file.path)) {
        let split = first_of_parts(Path::new(&file.path));
        let split = split.and_then(|(first, count)| Some((first.to_str()?.to_owned(), count)));
        let (first, count) = split.unwrap_or_else(|| (file.path.clone(), 1));
        let gguf = found.entry(first).or_insert(GgufFile { first: &file.path, count, parts: Vec::new() });
        gguf.parts.push(file);
    }
    let mut found: Vec<_> = found.into_values().collect();
    for gguf in &mut found {
        gguf.parts.sort();
        gguf.first = gguf.parts.first().map_or(gguf.first, |part| &part.path);
    }
    found
}

/// The best for so much memory, and why it is.
fn best<'g, 'a>(ggufs: &[&'g GgufFile<'a>], memory: Option<u64>) -> Option<(&'g GgufFile<'a>, String)> {
    // A quarter more for what a model takes beside its weights.
    let fits =
        |gguf: &GgufFile<'_>| memory.is_none_or(|memory| gguf.bytes().saturating_add(gguf.bytes() / 4) <= memory);
    let room = memory.map_or_else(String::new, |memory| format!(" and fits into {} of memory", size(memory)));
    let largest = |plain: bool| {
        let fitting = ggufs.iter().filter(|gguf| fits(gguf) && gguf.is_plain() == plain);
        fitting.max_by_key(|gguf| gguf.bytes()).copied()
    };
    match ggufs {
        [] => None,
        [one] => Some((*one, "the only one".into())),
        _ => largest(false)
            .map(|gguf| (gguf, format!("the largest that is quantized{room}")))
            .or_else(|| Some((largest(true)?, format!("nothing quantized is there{room}"))))
            .or_else(|| {
                let smallest = ggufs.iter().copied().min_by_key(|gguf| gguf.bytes())?;
                Some((smallest, format!("the smallest, as none{}", room.trim_start_matches(" and"))))
            }),
    }
}

/// What a GGUF file's name says of its numbers: the last word between `-` and `.` that is spelt as ggml's types are.
fn quantization(path: &str) -> Option<&str> {
    let is_type = |word: &&str| {
        let word = word.to_ascii_uppercase();
        let digits = word.trim_start_matches(['I', 'T']).strip_prefix('Q');
        let is_packed = digits.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        is_packed || word.ends_with("FP4") || PLAIN.contains(&word.as_str())
    };
    path.rsplit(['-', '.', '/']).find(is_type)
}

/// Whether a file's name or folder says that quantization, as a word of its own.
fn says(path: &str, wanted: &str) -> bool {
    let (path, wanted) = (path.to_ascii_uppercase(), wanted.to_ascii_uppercase());
    let path = path.strip_suffix(".GGUF").unwrap_or(&path);
    path.match_indices(&wanted).any(|(at, _)| {
        let (before, after) = (path[..at].chars().next_back(), path[at + wanted.len()..].chars().next());
        before.is_none_or(|c| !c.is_alphanumeric()) && after.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

fn is_safetensors(path: &str) -> bool {
    // Those in folders, and Mistral's own, are the same weights again.
    path.ends_with(".safetensors") && !path.contains('/') && !path.starts_with("consolidated")
}

fn is_of_folder(path: &str) -> bool {
    BESIDE_WEIGHTS.contains(&path) || is_safetensors(path) || (path.ends_with(".tiktoken") && !path.contains('/'))
}

/// Says that something is not there, and what is.
fn missing(name: &HubName<'_>, what: &str, wanted: &str, known: &[&str]) -> Error {
    let repository = name.repository();
    if known.is_empty() {
        return Error::new(Code::NotFound, format!("{repository} has no {what} {wanted}, and no .gguf file at all"));
    }
    let alike: Vec<_> = known.iter().map(|known| known.to_ascii_uppercase()).collect();
    let meant = nearest(&wanted.to_ascii_uppercase(), alike.iter().map(String::as_str));
    let meant = meant.and_then(|meant| known.iter().find(|known| known.eq_ignore_ascii_case(meant)));
    let hint = meant.map_or_else(|| "; it has".into(), |meant| format!("; did you mean {}? It has", shown(meant)));
    Error::new(Code::NotFound, format!("{repository} has no {what} {wanted}{hint} {}", list(known)))
}

fn list(labels: &[&str]) -> String {
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    labels.dedup();
    let named: Vec<_> = labels.iter().take(MAX_NAMED).map(|label| shown(label)).collect();
    let more = labels.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

fn others<'g, 'a: 'g>(ggufs: impl Iterator<Item = &'g GgufFile<'a>>) -> String {
    let labels: Vec<_> = ggufs.map(GgufFile::label).collect();
    if labels.is_empty() { String::new() } else { format!("; also there: {}", list(&labels)) }
}

fn bytes(files: &[&RepoFile]) -> u64 {
    files.iter().map(|file| file.size).fold(0, u64::saturating_add)
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn files(files: &[(&str, u64)]) -> Vec<RepoFile> {
        files.iter().map(|&(path, size)| RepoFile { path: path.into(), size: size * MB }).collect()
    }

    fn quantized() -> Vec<RepoFile> {
        files(&[
            ("mmproj-model-F16.gguf", 900),
            ("model-BF16.gguf", 1600),
            ("model-Q4_K_M.gguf", 500),
            ("model-Q8_0.gguf", 850),
            ("model-UD-Q4_K_M.gguf", 510),
            ("model.imatrix.gguf", 2000),
            ("README.md", 0),
        ])
    }

    /// The GGUF file that is chosen, or the message why there is none, and the reason.
    fn chosen(model: &str, files: &[RepoFile], memory: Option<u64>) -> (String, String) {
        match choose(&HubName::parse(model).expect("a good name"), files, memory) {
            Ok(choice) => (choice.gguf.unwrap_or("the folder").to_owned(), choice.why),
            Err(error) => (error.message, String::new()),
        }
    }

    #[test]
    fn the_largest_quantized_file_that_fits_is_taken_and_the_line_says_why() {
        for (memory, taken, why) in [
            (None, "model-Q8_0.gguf", "850 MB: the largest that is quantized; also"),
            (Some(8000), "model-Q8_0.gguf", "the largest that is quantized and fits into 8.0 GB of memory"),
            (Some(850), "model-UD-Q4_K_M.gguf", "the largest that is quantized and fits into 850 MB of memory"),
            (Some(100), "model-Q4_K_M.gguf", "the smallest, as none fits into 100 MB of memory"),
        ] {
            let (gguf, line) = chosen("org/name", &quantized(), memory.map(|memory| memory * MB));
            assert_eq!(gguf, taken, "{memory:?}");
            assert!(line.contains(why), "{line}");
        }
        let (_, line) = chosen("org/name", &quantized(), None);
        assert!(line.ends_with("; also there: BF16, Q4_K_M"), "{line}");
        let plain = files(&[("model-f16.gguf", 100), ("model-f32.gguf", 200)]);
        assert_eq!(chosen("org/name", &plain, Some(150 * MB)).0, "model-f16.gguf");
        assert!(chosen("org/name", &plain[..1], None).1.contains("the only one"));
    }

    #[test]
    fn safetensors_come_first_and_bring_what_stands_beside_them() {
        let mut all = quantized();
        all.extend(files(&[
            ("config.json", 0),
            ("model.safetensors", 1600),
            ("consolidated.safetensors", 1600),
            ("original/model.safetensors", 1600),
            ("1_Pooling/config.json", 0),
            ("qwen.tiktoken", 1),
        ]));
        let choice = choose(&HubName::parse("org/name").expect("a good name"), &all, None).expect("a model");
        let paths: Vec<_> = choice.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["config.json", "model.safetensors", "1_Pooling/config.json", "qwen.tiktoken"]);
        assert!(
            choice.why.contains("safetensors with their config.json come first; also there: BF16"),
            "{}",
            choice.why
        );
        let (gguf, line) = chosen("org/name:Q8_0", &all, None);
        assert_eq!(gguf, "model-Q8_0.gguf");
        assert!(line.contains("also there: safetensors"), "{line}");
        all.retain(|file| file.path != "config.json");
        assert_eq!(chosen("org/name", &all, None).0, "model-Q8_0.gguf");
        let config = files(&[("config.json", 0), ("pytorch_model.bin", 10)]);
        assert_eq!(chosen("org/name", &config, None).0, "the folder");
        assert!(chosen("org/name", &config[1..], None).0.contains("neither config.json"));
    }

    #[test]
    fn a_quantization_is_a_word_of_the_name_in_any_case() {
        let all = quantized();
        for (model, taken) in [
            ("org/name:q4_k_m", "model-Q4_K_M.gguf"),
            ("org/name:UD-Q4_K_M", "model-UD-Q4_K_M.gguf"),
            ("org/name:bf16", "model-BF16.gguf"),
            ("org/name:model-Q8_0.gguf", "model-Q8_0.gguf"),
        ] {
            assert_eq!(chosen(model, &all, None).0, taken, "{model}");
        }
        for (model, says) in [
            ("org/name:Q4_K_L", "has no quantization Q4_K_L; did you mean Q4_K_M? It has BF16, Q4_K_M, Q8_0"),
            ("org/name:Q4", "has no quantization Q4;"),
            ("org/name:F16", "has no quantization F16;"),
            (
                "org/name:model-Q8.gguf",
                "has no file model-Q8.gguf; did you mean model-Q8_0.gguf? It has model-BF16.gguf",
            ),
            ("org/name:mmproj-model-F16.gguf", "has no file mmproj-model-F16.gguf"),
        ] {
            let (message, _) = chosen(model, &all, None);
            assert!(message.contains(says), "{model}: {message}");
        }
        for (path, label) in [
            ("a/Llama-3.2-1B-Instruct-Q4_K_M.gguf", Some("Q4_K_M")),
            ("Meta-Llama-3.i1-IQ2_XXS.gguf", Some("IQ2_XXS")),
            ("gpt-oss-20b-mxfp4.gguf", Some("mxfp4")),
            ("Q6_K/m-00001-of-00002.gguf", Some("Q6_K")),
            ("Qwen3-0.6B.gguf", None),
        ] {
            assert_eq!(quantization(path), label, "{path}");
        }
    }

    #[test]
    fn a_split_file_is_all_of_its_parts() {
        let all = files(&[
            ("Q8_0/m-00002-of-00002.gguf", 5),
            ("Q8_0/m-00001-of-00002.gguf", 5),
            ("Q4_0/m-00001-of-00003.gguf", 1),
            ("Q4_0/m-00003-of-00003.gguf", 1),
        ]);
        let first = "Q8_0/m-00001-of-00002.gguf";
        for model in ["org/name", "org/name:Q8_0", "org/name:Q8_0/m-00002-of-00002.gguf"] {
            let choice = choose(&HubName::parse(model).expect("a good name"), &all, None).expect("a model");
            let paths: Vec<_> = choice.files.iter().map(|file| file.path.as_str()).collect();
            assert_eq!((choice.gguf, paths), (Some(first), vec![first, "Q8_0/m-00002-of-00002.gguf"]), "{model}");
            assert!(choice.why.contains("10 MB in 2 parts"), "{}", choice.why);
        }
        for (model, some) in [("org/name:Q4_0", &all[..]), ("org/name", &all[2..])] {
            let (message, _) = chosen(model, some, None);
            assert_eq!(message, "Q4_0/m-00001-of-00003.gguf: 2 of its 3 parts are there", "{model}");
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let many: Vec<_> = (0..100).map(|n| RepoFile { path: format!("m{n:02}.gguf"), size: MB }).collect();
        let (message, _) = chosen("org/name:none.gguf", &many, None);
        assert!(message.ends_with("m23.gguf and 76 more"), "{message}");
    }
}
