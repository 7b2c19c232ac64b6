//! Models by their name on the Hugging Face hub, kept in its cache, which other tools share.
//!
//! The hf-hub crate reads `HF_ENDPOINT`, `HF_TOKEN` (or the file that logging in leaves), `HF_HOME` and `HF_HUB_CACHE`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
};

use hf_hub::{
    HFClient, HFClientSync, HFError, HFResult,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
};

use crate::error::{Code, Error, Result};

/// What is taken of a repository: what [`model_files`](super::files::model_files) looks for, and no more.
const WANTED: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "*.tiktoken",
    "tokenizer_config.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "*.safetensors",
    "model.safetensors.index.json",
];

/// What is left out: other formats of the same weights, in folders of their own or beside.
const UNWANTED: [&str; 3] = ["*/*.safetensors", "*/*.tiktoken", "consolidated*"];

/// Progress reports that may wait for their reader; more are dropped, as each supersedes those before it.
const PROGRESS_CAPACITY: usize = 16;

/// Where to look, and at which state of the repository.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// Branch, tag or commit; `main` without one.
    pub revision: Option<String>,
    /// Take only what the cache holds.
    pub offline: bool,
    /// In place of `HF_ENDPOINT` or the public hub.
    pub endpoint: Option<String>,
    /// In place of `HF_HUB_CACHE` or the usual folder.
    pub cache_dir: Option<PathBuf>,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DownloadProgress {
    /// Bytes here.
    pub bytes: u64,
    /// Bytes in all, as far as is known.
    pub total_bytes: u64,
}

/// A model's name: `org/name`, with `:file.gguf` or `/file.gguf` for one file of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelId<'a> {
    owner: &'a str,
    name: &'a str,
    file: Option<&'a str>,
}

impl<'a> ModelId<'a> {
    fn parse(model: &'a str) -> Result<Self> {
        let wrong = |why: &str| {
            let message = format!("{model:?} is neither a path that exists nor a model of the hub: {why}");
            Error::invalid("model", message)
        };
        let (owner, rest) = model.split_once('/').ok_or_else(|| wrong("a hub model is org/name"))?;
        let (name, file) = match rest.split_once([':', '/']) {
            Some((name, file)) => (name, Some(file)),
            None => (rest, None),
        };
        if !is_plain(owner) || !is_plain(name) {
            return Err(wrong("a hub model is org/name, of letters, digits, '-', '_' and '.'"));
        }
        if file.is_some_and(|file| !file.ends_with(".gguf") || !is_relative(file)) {
            return Err(wrong("after org/name: there can only be a file that ends in .gguf"));
        }
        Ok(Self { owner, name, file })
    }
}

/// Whether a part of a model's name is one that the hub allows, and so can name a folder.
fn is_plain(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.bytes().all(allowed)
}

/// Whether a path stays inside the folder that it is joined to.
fn is_relative(path: &str) -> bool {
    !path.contains(['\\', ':']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Finds a model of the hub, downloading what the cache does not hold: `org/name` gives the folder of its snapshot,
/// `org/name:file.gguf` that file. Where the hub cannot be reached, an earlier download serves. Blocks; `progress` is
/// called on this thread as bytes arrive.
///
/// # Errors
/// `InvalidArgument` where the name cannot be one, `NotFound`, `Unauthenticated` and `PermissionDenied` as the hub says,
/// `FailedPrecondition` where an offline cache does not hold it or the repository is none that can be served,
/// `Unavailable` where the hub cannot be reached.
pub fn resolve(model: &str, options: &HubOptions, progress: &mut dyn FnMut(DownloadProgress)) -> Result<PathBuf> {
    let id = ModelId::parse(model)?;
    if let Some(revision) = options.revision.as_deref().filter(|revision| !is_relative(revision)) {
        return Err(Error::invalid("revision", format!("{revision:?} is no branch, tag or commit")));
    }
    let mut builder = HFClient::builder().user_agent(concat!("candlewick/", env!("CARGO_PKG_VERSION")));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(cache_dir) = &options.cache_dir {
        builder = builder.cache_dir(cache_dir);
    }
    let client = builder.build_sync().map_err(|error| explain(model, &error))?;
    let result = match fetch(&client, &id, options, options.offline, progress) {
        Err(error) if is_unreachable(&error) => {
            fetch(&client, &id, options, true, progress).map_err(|_| explain(model, &error))
        }
        result => result.map_err(|error| explain(model, &error)),
    };
    let path = result?;
    if id.file.is_none() && !path.join("config.json").is_file() {
        let why = "has no config.json; if it holds .gguf files, name one as org/name:file.gguf";
        return Err(Error::bad_file(&path, format!("model {model}"), why));
    }
    Ok(path)
}

/// Runs the download on a thread of its own, so that this one can report progress.
fn fetch(
    client: &HFClientSync,
    id: &ModelId<'_>,
    options: &HubOptions,
    local_files_only: bool,
    progress: &mut dyn FnMut(DownloadProgress),
) -> HFResult<PathBuf> {
    let (reports, arriving) = sync_channel(PROGRESS_CAPACITY);
    let handler = Reporter { files: Mutex::default(), reports };
    let repository = client.model(id.owner, id.name);
    let revision = options.revision.clone();
    let download = move || match id.file {
        Some(file) => {
            let request = repository.download_file().filename(file).maybe_revision(revision);
            request.local_files_only(local_files_only).progress(handler).send()
        }
        None => {
            let patterns = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>();
            let request = repository.snapshot_download().maybe_revision(revision);
            let request = request.allow_patterns(patterns(&WANTED)).ignore_patterns(patterns(&UNWANTED));
            request.local_files_only(local_files_only).progress(handler).send()
        }
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(download);
        // Ends when the download drops its handler.
        for report in arriving {
            progress(report);
        }
        worker.join().unwrap_or_else(|_| Err(HFError::Other("the download panicked".into())))
    })
}

/// Adds up what the crate reports file by file.
struct Reporter {
    /// Bytes here and in all by file; the empty name stands for a batch that is reported as one.
    files: Mutex<BTreeMap<String, DownloadProgress>>,
    reports: SyncSender<DownloadProgress>,
}

impl ProgressHandler for Reporter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            DownloadEvent::Progress { files: changed } => {
                for file in changed {
                    let bytes = DownloadProgress { bytes: file.bytes_completed, total_bytes: file.total_bytes };
                    files.insert(file.filename.clone(), bytes);
                }
            }
            &DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => {
                files.insert(String::new(), DownloadProgress { bytes: bytes_completed, total_bytes });
            }
            DownloadEvent::Start { .. } | DownloadEvent::Complete => {}
        }
        let sum = |part: fn(&DownloadProgress) -> u64| files.values().map(part).fold(0, u64::saturating_add);
        let report = DownloadProgress { bytes: sum(|file| file.bytes), total_bytes: sum(|file| file.total_bytes) };
        // A full channel means that a report is on its way already.
        let _ = self.reports.try_send(report);
    }
}

/// Whether the hub could not be asked, so that an earlier download is the best answer there is.
fn is_unreachable(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

/// The crate's error as ours, with what to do about it.
fn explain(model: &str, error: &HFError) -> Error {
    let (code, advice) = match error {
        HFError::AuthRequired { .. } => (
            Code::Unauthenticated,
            "check the name; if the model is private or its terms must be accepted, set HF_TOKEN to a token that may read it",
        ),
        HFError::Forbidden { .. } => {
            (Code::PermissionDenied, "accept the model's terms on its page, or use another HF_TOKEN")
        }
        HFError::RepoNotFound { .. } => (Code::NotFound, "check the name"),
        HFError::RevisionNotFound { .. } => (Code::NotFound, "check the name and the revision"),
        HFError::EntryNotFound { .. } => (Code::NotFound, "check the name of the file"),
        HFError::RateLimited { .. } => (Code::ResourceExhausted, "come back later, or set HF_TOKEN"),
        HFError::LocalEntryNotFound { .. } => (
            Code::FailedPrecondition,
            "it has not been downloaded: run once without offline mode, or give the path of a folder or .gguf file",
        ),
        HFError::Request { .. } | HFError::Http { .. } => {
            (Code::Unavailable, "check the connection and HF_ENDPOINT, or give the path of a folder or .gguf file")
        }
        HFError::Io(_) => {
            (Code::FailedPrecondition, "check the cache's folder (HF_HOME, HF_HUB_CACHE) and its free space")
        }
        _ => (Code::FailedPrecondition, "check HF_ENDPOINT and the cache's folder (HF_HOME, HF_HUB_CACHE)"),
    };
    let explained = Error::new(code, format!("model {model}: {error}; {advice}"));
    match error {
        HFError::RateLimited { retry_after: Some(after), .. } => explained.retry_after(*after),
        _ => explained,
    }
}

/// The folder in which downloads are kept, for messages.
#[must_use]
pub fn cache_dir(options: &HubOptions) -> PathBuf {
    options.cache_dir.as_deref().map_or_else(hf_hub::resolve_cache_dir, Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_taken_apart() {
        let id = |owner, name, file| ModelId { owner, name, file };
        for (model, expected) in [
            ("org/name", id("org", "name", None)),
            ("Qwen/Qwen3-0.6B", id("Qwen", "Qwen3-0.6B", None)),
            ("org/name:file.gguf", id("org", "name", Some("file.gguf"))),
            ("org/name/file.gguf", id("org", "name", Some("file.gguf"))),
            ("org/name/sub/file.gguf", id("org", "name", Some("sub/file.gguf"))),
        ] {
            assert_eq!(ModelId::parse(model).expect("a good name"), expected);
        }
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        for model in [
            "name",
            "",
            "/",
            "../x",
            "org/..",
            "org/.hidden",
            "org/a..b",
            "/etc/passwd",
            "org/na me",
            "org/name:file.bin",
            "org/name/../../x.gguf",
            "org/name:/x.gguf",
            r"org/name:..\x.gguf",
            "org/name/",
        ] {
            assert_eq!(ModelId::parse(model).expect_err("a bad name").code, Code::InvalidArgument, "{model}");
        }
        let options = HubOptions { revision: Some("../../x".into()), ..HubOptions::default() };
        assert_eq!(resolve("org/name", &options, &mut |_| {}).expect_err("a bad revision").code, Code::InvalidArgument);
    }
}
