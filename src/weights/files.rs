//! What lies at a model's path: a directory as the hub lays it out, or a GGUF file.

use std::path::{Path, PathBuf};

use super::{
    gguf::first_part,
    safetensors::{INDEX_FILE, WEIGHTS_FILE},
};
use crate::error::{Error, Result};

/// A model on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// A directory as the hub lays it out.
    Directory(ModelDirectory),
    /// A GGUF file, which holds everything.
    Gguf(PathBuf),
}

/// The files of a directory as the hub lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDirectory {
    /// The directory.
    pub path: PathBuf,
    /// `config.json`.
    pub config_json: PathBuf,
    /// `model.safetensors`, or `model.safetensors.index.json` where the weights are in several files.
    pub safetensors: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`.
    pub chat_template: Option<PathBuf>,
    /// `1_Pooling/config.json`, of sentence-transformers.
    pub pooling_config: Option<PathBuf>,
}

/// Says which kind of model lies at `path`, and which of its files are there. A directory without `config.json` that
/// holds one GGUF file, or the parts of one that is split, stands for that file (its first part).
///
/// # Errors
/// `FailedPrecondition` that says what was looked for where nothing fits.
pub fn model_files(path: &Path) -> Result<ModelFiles> {
    let wrong = |why: String| Error::bad_file(path, "model", why);
    let metadata = path.metadata().map_err(|error| wrong(format!("cannot be opened: {error}")))?;
    if metadata.is_file() {
        return if is_gguf(path) {
            Ok(ModelFiles::Gguf(path.to_owned()))
        } else {
            Err(wrong("is neither a directory with config.json nor a file that ends in .gguf".into()))
        };
    }
    let existing = |name: &str| Some(path.join(name)).filter(|file| file.is_file());
    if let Some(config_json) = existing("config.json") {
        return Ok(ModelFiles::Directory(ModelDirectory {
            path: path.to_owned(),
            config_json,
            safetensors: existing(WEIGHTS_FILE).or_else(|| existing(INDEX_FILE)),
            generation_config: existing("generation_config.json"),
            tokenizer_config: existing("tokenizer_config.json"),
            chat_template: existing("chat_template.jinja"),
            pooling_config: existing("1_Pooling/config.json"),
        }));
    }
    let entries = path.read_dir().map_err(|error| wrong(format!("cannot be listed: {error}")))?;
    let mut ggufs: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|file| is_gguf(file)).collect();
    ggufs.retain(|file| first_part(file).is_none_or(|first| first == *file || !first.is_file()));
    ggufs.sort();
    match ggufs.as_slice() {
        [] => Err(wrong("holds neither config.json nor a .gguf file".into())),
        [one] => Ok(ModelFiles::Gguf(one.clone())),
        [first, ..] => Err(wrong(format!(
            "holds no config.json but {} .gguf files: name one of them, for example {}",
            ggufs.len(),
            first.display()
        ))),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(names: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in names {
            std::fs::write(directory.path().join(name), b"{}").expect("a small file");
        }
        directory
    }

    #[test]
    fn a_hub_directory_lists_what_is_there() {
        let directory = directory_with(&["config.json", "model.safetensors.index.json", "tokenizer.json", "x.gguf"]);
        let ModelFiles::Directory(files) = model_files(directory.path()).expect("a model") else {
            panic!("is a directory");
        };
        assert_eq!(files.safetensors, Some(directory.path().join("model.safetensors.index.json")));
        assert_eq!(files.tokenizer_config, None);
        assert_eq!(files.chat_template, None);
    }

    #[test]
    fn one_gguf_file_is_found_by_itself_or_in_its_directory() {
        let directory = directory_with(&["tiny.gguf", "README.md"]);
        let file = directory.path().join("tiny.gguf");
        assert_eq!(model_files(&file).expect("a model"), ModelFiles::Gguf(file.clone()));
        assert_eq!(model_files(directory.path()).expect("a model"), ModelFiles::Gguf(file));
    }

    #[test]
    fn what_was_looked_for_is_said_where_nothing_fits() {
        let message = |path: &Path| model_files(path).expect_err("no model").message;
        let directory = directory_with(&["README.md"]);
        assert!(message(directory.path()).contains("neither config.json nor a .gguf file"));
        assert!(message(&directory.path().join("README.md")).contains("ends in .gguf"));
        assert!(message(&directory.path().join("nothing")).contains("cannot be opened"));
        let split = directory_with(&["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"]);
        let first = split.path().join("m-00001-of-00002.gguf");
        assert_eq!(model_files(split.path()).expect("a model"), ModelFiles::Gguf(first));
        let two = directory_with(&["a.gguf", "b.gguf"]);
        assert!(message(two.path()).contains("a.gguf"));
    }
}
