//! What a config.json says of how its weights were quantized, as far as their tensors do not say it themselves.

use std::path::Path;

use serde_json::Value;

use crate::{
    error::{Error, Result},
    weights::file::read_small,
};

/// Most bytes of a config.json.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// `quantization_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quantization {
    /// Bits a weight.
    pub(super) bits: Option<u64>,
    /// Rows and columns under one scale.
    pub(super) weight_block_size: Option<[usize; 2]>,
    /// Whether GPTQ's zeros are stored as they are, rather than less one.
    pub(super) zeros_are_exact: bool,
}

impl Quantization {
    /// Reads it beside the weights; a directory without a config.json has nothing to say.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the field.
    pub(super) fn of_directory(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        if !path.is_file() {
            return Ok(Self::default());
        }
        let config: Value = serde_json::from_slice(&read_small(&path, MAX_CONFIG_BYTES)?)
            .map_err(|error| Error::bad_file(&path, "json", error))?;
        let Some(config) = config.get("quantization_config").filter(|config| !config.is_null()) else {
            return Ok(Self::default());
        };
        let wrong = |field: &str, why: &str| Error::bad_file(&path, format!("quantization_config.{field}"), why);
        let block = match config.get("weight_block_size").filter(|block| !block.is_null()) {
            None => None,
            Some(block) => {
                let sizes = block.as_array().map(Vec::as_slice).unwrap_or_default();
                let sizes = sizes.iter().map(|size| usize::try_from(size.as_u64()?).ok().filter(|&size| size > 0));
                match sizes.collect::<Option<Vec<_>>>().as_deref() {
                    Some(&[rows, columns]) => Some([rows, columns]),
                    _ => return Err(wrong("weight_block_size", "is no pair of sizes above 0")),
                }
            }
        };
        let bits = config.get("bits").filter(|bits| !bits.is_null());
        Ok(Self {
            bits: bits.map(|bits| bits.as_u64().ok_or_else(|| wrong("bits", "is no number"))).transpose()?,
            weight_block_size: block,
            zeros_are_exact: config.get("checkpoint_format").and_then(Value::as_str) == Some("gptq_v2"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<Quantization> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("config.json"), config).expect("is written");
        Quantization::of_directory(directory.path())
    }

    #[test]
    fn what_is_said_is_read_and_what_is_wrong_is_named() {
        assert_eq!(read("{}").expect("says nothing"), Quantization::default());
        let gptq = r#"{"quantization_config":{"bits":4,"checkpoint_format":"gptq_v2","weight_block_size":[128,64]}}"#;
        let want = Quantization { bits: Some(4), weight_block_size: Some([128, 64]), zeros_are_exact: true };
        assert_eq!(read(gptq).expect("good"), want);
        for (config, field) in [
            (r#"{"quantization_config":{"weight_block_size":[0,1]}}"#, "quantization_config.weight_block_size"),
            (r#"{"quantization_config":{"weight_block_size":7}}"#, "quantization_config.weight_block_size"),
            (r#"{"quantization_config":{"bits":"four"}}"#, "quantization_config.bits"),
            ("{", "json"),
        ] {
            let error = read(config).expect_err("is wrong");
            assert_eq!(error.violations[0].field, field);
        }
    }
}
