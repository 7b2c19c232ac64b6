//! The tokenizer in a GGUF file's metadata, as the text layer takes it.

use crate::{
    error::Result,
    ids::TokenId,
    text::{GgufVocab, TokenType},
    weights::gguf::Gguf,
};

/// What the file says of its tokenizer; `None` where it has none.
pub(super) fn gguf_vocab(gguf: &Gguf) -> Result<Option<GgufVocab>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = gguf.string(&key("model"))?.filter(|model| !matches!(*model, "none" | "no_vocab")) else {
        return Ok(None);
    };
    let strings = |name: &str| -> Result<Vec<String>> {
        Ok(gguf.array_strings(&key(name))?.map(|list| list.map(str::to_owned).collect()).unwrap_or_default())
    };
    let id = |name: &str| -> Result<Option<u32>> { Ok(gguf.token_id(&key(name))?.map(|TokenId(id)| id)) };
    let types = key("token_type");
    let types = gguf.array_i64(&types)?;
    // Bytes, as signed or unsigned numbers.
    let charsmap = gguf.array_i64(&key("precompiled_charsmap"))?;
    Ok(Some(GgufVocab {
        path: gguf.path().to_owned(),
        model: model.to_owned(),
        pre: gguf.string(&key("pre"))?.map(str::to_owned),
        tokens: strings("tokens")?,
        scores: gguf.array_f32(&key("scores"))?.map(Iterator::collect).unwrap_or_default(),
        token_types: types.map(|types| types.map(TokenType::from_number).collect()).unwrap_or_default(),
        merges: strings("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        sep: id("seperator_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: gguf.bool(&key("add_bos_token"))?,
        add_eos: gguf.bool(&key("add_eos_token"))?,
        add_space_prefix: gguf.bool(&key("add_space_prefix"))?,
        add_sep: gguf.bool(&key("add_sep_token"))?,
        remove_extra_whitespaces: gguf.bool(&key("remove_extra_whitespaces"))?,
        precompiled_charsmap: charsmap.map(|bytes| bytes.map(|byte| byte as u8).collect()).unwrap_or_default(),
        chat_template: gguf.string("tokenizer.chat_template")?.map(str::to_owned),
    }))
}
