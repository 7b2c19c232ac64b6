//! The model's tokenizer as a router fetches it: a zip of the files that Hugging Face keeps beside a model.
//!
//! A router renders templates and tokenizes by itself, so what goes out is what this server works with: the files of
//! the model's directory where it has them, else files written from the vocabulary in use; always the chat template in
//! use.

use std::{
    fs,
    io::{Cursor, Write},
    path::Path,
};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{
    engine::Engine,
    error::{Code, Error, Result},
    proto::smg::grpc::common::GetTokenizerChunk,
};

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// Most bytes of one of a directory's files; larger ones are no tokenizer's.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// The archive, whole.
pub(super) struct Archive {
    bytes: Vec<u8>,
    sha256: String,
}

impl Archive {
    /// Packs the files of an engine's model.
    ///
    /// # Errors
    /// `FailedPrecondition` where the model came without a tokenizer, `Unimplemented` where its kind cannot be written
    /// down, and where a file cannot be read.
    pub(super) fn of(engine: &Engine) -> Result<Self> {
        let files = [
            ("tokenizer.json", tokenizer(engine)?),
            ("tokenizer_config.json", tokenizer_config(engine)?),
            ("config.json", config(engine)?),
        ];
        let bytes = pack(&files).map_err(|error| Error::internal(format!("the tokenizer's archive: {error}")))?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, sha256 })
    }

    /// Chunk `n`; the last one, and no other, has the fingerprint.
    pub(super) fn chunk(&self, n: usize) -> Option<GetTokenizerChunk> {
        let mut chunks = self.bytes.chunks(CHUNK_BYTES);
        let data = chunks.nth(n)?.to_vec();
        let sha256 = if chunks.len() == 0 { self.sha256.clone() } else { String::new() };
        Some(GetTokenizerChunk { data, sha256 })
    }
}

fn pack(files: &[(&str, Vec<u8>)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored))?;
        zip.write_all(bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

/// A file of the model's directory, where it is one and has it.
fn own_file(engine: &Engine, name: &str) -> Result<Option<Vec<u8>>> {
    let path = Path::new(&engine.info().path).join(name);
    let bad = |why: String| Error::bad_file(&path, "file", why);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            Err(bad(format!("has {} bytes, at most {MAX_FILE_BYTES} are allowed", metadata.len())))
        }
        Ok(_) => fs::read(&path).map(Some).map_err(|error| bad(format!("cannot be read: {error}"))),
        Err(_absent) => Ok(None),
    }
}

fn tokenizer(engine: &Engine) -> Result<Vec<u8>> {
    if let Some(bytes) = own_file(engine, "tokenizer.json")? {
        return Ok(bytes);
    }
    let tokenizer = engine.text().tokenizer.as_ref();
    let missing = || Error::new(Code::FailedPrecondition, "the model came without a tokenizer");
    Ok(tokenizer.ok_or_else(missing)?.to_json()?.into_bytes())
}

fn tokenizer_config(engine: &Engine) -> Result<Vec<u8>> {
    let own = own_file(engine, "tokenizer_config.json")?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut config: Map<String, Value> = own.unwrap_or_default();
    config.entry("tokenizer_class").or_insert("PreTrainedTokenizerFast".into());
    config.entry("model_max_length").or_insert(engine.config().max_model_len.into());
    let text = engine.text();
    if let Some(tokenizer) = &text.tokenizer {
        for (name, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
            if let Some(token) = id.and_then(|id| tokenizer.id_to_token(id)) {
                config.entry(name).or_insert(token.into());
            }
        }
    }
    // The flags may have named another than the model's own.
    let mut sources = text.chat_template.as_ref().map(|template| template.sources()).unwrap_or_default();
    config.remove("chat_template");
    let template = match sources.len() {
        0 => return Ok(Value::from(config).to_string().into_bytes()),
        1 => Value::from(sources.swap_remove(0).1),
        _ => sources.into_iter().map(|(name, template)| json!({"name": name, "template": template})).collect(),
    };
    config.insert("chat_template".to_owned(), template);
    Ok(Value::from(config).to_string().into_bytes())
}

fn config(engine: &Engine) -> Result<Vec<u8>> {
    if let Some(bytes) = own_file(engine, "config.json")? {
        return Ok(bytes);
    }
    let info = engine.info();
    let config = json!({
        "model_type": info.model_type,
        "architectures": [info.architecture],
        "vocab_size": info.vocab_size,
        "max_position_embeddings": engine.config().max_model_len,
        "bos_token_id": info.bos_token_id.map(|id| id.0),
        "eos_token_id": info.eos_token_ids.iter().map(|id| id.0).collect::<Vec<_>>(),
    });
    Ok(config.to_string().into_bytes())
}
