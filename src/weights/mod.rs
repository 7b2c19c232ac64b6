//! Tensors by name, from safetensors, a GGUF file or a seed, as they lie in the file.

pub mod file;
pub mod files;
mod fingerprint;
pub mod gguf;
pub mod hub;
pub mod names;
mod part;
pub mod safetensors;
pub mod seeded;

use std::path::PathBuf;

use crate::{
    error::{Error, Result},
    kernels::linear::{format::RawTensor, stored::StoredFormat},
};

/// A place that tensors come from. Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the
/// file calls them, and rows lie in the order that Hugging Face's models expect, however the file orders them.
pub trait TensorSource: Send + Sync {
    /// The file, for messages.
    fn path(&self) -> PathBuf;
    /// The tensor of that name, borrowed from the file's map where its bytes can be used as they lie.
    fn get(&self, name: &str) -> Option<RawTensor<'_>>;
    /// All names that [`get`](Self::get) knows, in no particular order.
    fn names(&self) -> Vec<String>;
    /// Part `index` of the `count` that the tensor of that name has along its outermost dimension, which is taken away.
    /// A source that has to decode decodes that part alone. None where the tensor has another number of parts.
    fn part(&self, name: &str, index: usize, count: usize) -> Option<RawTensor<'_>> {
        part::part(&self.get(name)?, index, count)
    }
    /// What every tensor is that can be had, in no particular order; nothing is decoded for it.
    fn headers(&self) -> Vec<TensorHeader>;
    /// Shows every tensor of the file as it is stored, always in the same order.
    fn for_each_stored(&self, show: &mut dyn FnMut(&StoredTensor<'_>)) {
        let mut names = self.names();
        names.sort_unstable();
        for name in names {
            let Some(RawTensor { format, shape, bytes }) = self.get(&name) else { continue };
            show(&StoredTensor { name: &name, kind: &format.to_string(), shape: &shape, bytes: &bytes });
        }
    }
    /// Whether [`get`](Self::get) gives a tensor of that name.
    fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
    /// Why a tensor that is in the file cannot be had, e.g. for the format it is stored in.
    fn refusal(&self, _name: &str) -> Option<String> {
        None
    }
}

/// What is known of a tensor before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorHeader {
    /// Hugging Face's name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The format that [`TensorSource::get`] gives it in.
    pub format: StoredFormat,
    /// Whether that takes a copy, rather than the file's bytes as they lie.
    pub decoded: bool,
}

impl TensorHeader {
    /// Its numbers, or none where there are more than can be counted.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
    }
}

/// A tensor as its file has it: nothing decoded, scaled or put in another order.
pub struct StoredTensor<'a> {
    /// The file's name for it.
    pub name: &'a str,
    /// How the file spells the format of its numbers.
    pub kind: &'a str,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Empty where the format is not known, so that nobody knows how many there are.
    pub bytes: &'a [u8],
}

/// The tensors of one model.
pub struct Weights {
    source: Box<dyn TensorSource>,
    /// Names that stand for others: what is asked for, and what the source has.
    aliases: Vec<(&'static str, &'static str)>,
}

impl Weights {
    /// Takes the tensors of a source.
    #[must_use]
    pub fn new(source: Box<dyn TensorSource>) -> Self {
        Self { source, aliases: Vec::new() }
    }

    /// The same where the embedding is the head: a file may store it under either name.
    #[must_use]
    pub fn tied(mut self) -> Self {
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        if !self.contains(embedding) && self.contains(head) {
            self.aliases.push((embedding, head));
        }
        self
    }

    /// What the source calls a tensor.
    fn stored_name<'n>(&self, name: &'n str) -> &'n str {
        self.aliases.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, stored)| stored)
    }

    /// The file that the tensors come from, for messages.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.source.path()
    }

    /// Whether there is a tensor of that name. One in a format that cannot be read is there too, so that asking for it
    /// says why, rather than its being taken for an optional tensor that the model does without.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let name = self.stored_name(name);
        self.source.contains(name) || self.source.refusal(name).is_some()
    }

    /// All names, in no particular order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.source.names()
    }

    /// What every tensor is, in no particular order, without reading any.
    #[must_use]
    pub fn headers(&self) -> Vec<TensorHeader> {
        self.source.headers()
    }

    /// The tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the tensor where it is missing, its shape differs or its format
    /// cannot be read.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>> {
        let name = self.stored_name(name);
        let wrong = |why: String| Error::bad_file(self.source.path(), format!("tensor {name}"), why);
        let Some(tensor) = self.source.get(name) else {
            let refusal = self.source.refusal(name);
            return Err(wrong(
                refusal.unwrap_or_else(|| "is missing, but the model's configuration calls for it".into()),
            ));
        };
        if tensor.shape != shape {
            return Err(wrong(format!(
                "has shape {:?}, but the model's configuration calls for {shape:?}",
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    /// Part `index` along the outermost dimension of the tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn part(&self, name: &str, shape: &[usize], index: usize) -> Result<RawTensor<'_>> {
        let [count, rest @ ..] = shape else { return Err(Error::internal("a tensor without dimensions has no parts")) };
        match self.source.part(self.stored_name(name), index, *count) {
            Some(part) if part.shape == rest => Ok(part),
            // What is wrong with the part is wrong with the whole.
            _ => self.get(name, shape).and_then(|_| {
                let why = format!("cannot be cut into {count} parts");
                Err(Error::bad_file(self.source.path(), format!("tensor {name}"), why))
            }),
        }
    }
}

/// A name or text out of a file as a message may show it: control characters escaped, cut at 120 characters.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(120).flat_map(char::escape_debug).collect();
    if text.chars().nth(120).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{seeded::SeededSource, *};

    #[test]
    fn a_tied_model_may_store_its_embedding_under_either_name() {
        for stored in ["model.embed_tokens.weight", "lm_head.weight"] {
            let source = || Box::new(SeededSource::new(1, vec![(stored.to_owned(), vec![2, 3])]));
            let tied = Weights::new(source()).tied();
            assert!(tied.get("model.embed_tokens.weight", &[2, 3]).is_ok(), "{stored}");
            let apart = Weights::new(source());
            assert_eq!(apart.contains("model.embed_tokens.weight"), stored == "model.embed_tokens.weight");
        }
    }
}
