//! A writer of GGUF files that can be told to lie.

/// A GGUF file, field by field.
pub(super) struct GgufFile {
    pub(super) magic: [u8; 4],
    pub(super) version: u32,
    /// In place of the true number of tensors.
    pub(super) tensor_count: Option<u64>,
    /// In place of the true number of keys.
    pub(super) metadata_count: Option<u64>,
    /// Keys and values; a value starts with its type.
    pub(super) metadata: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) tensors: Vec<TensorRow>,
    /// Alignment of the data, whatever the metadata says.
    pub(super) alignment: usize,
    pub(super) data: Vec<u8>,
}

/// A row of the table of tensors.
pub(super) struct TensorRow {
    pub(super) name: String,
    /// In place of the true number of dimensions.
    pub(super) n_dims: Option<u32>,
    /// Innermost first, as the format has them.
    pub(super) dims: Vec<u64>,
    pub(super) kind: u32,
    pub(super) offset: u64,
}

impl GgufFile {
    /// The file's bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(sized(key));
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(sized(tensor.name.as_bytes()));
            out.extend(tensor.n_dims.unwrap_or(tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    /// Bytes before the data.
    pub(super) fn header_bytes(&self) -> usize {
        self.bytes().len() - self.data.len()
    }

    /// Puts a value in place of a key's, or adds both.
    pub(super) fn set(&mut self, key: &str, value: Vec<u8>) -> &mut Self {
        self.metadata.retain(|(existing, _)| existing != key.as_bytes());
        self.metadata.push((key.into(), value));
        self
    }

    /// The row of a tensor.
    pub(super) fn tensor(&mut self, name: &str) -> &mut TensorRow {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the fixture has that tensor")
    }

    /// Adds a tensor of `bytes` bytes of data.
    fn push(&mut self, name: &str, kind: u32, dims: &[u64], bytes: usize) {
        let offset = self.data.len() as u64;
        self.tensors.push(TensorRow { name: name.into(), n_dims: None, dims: dims.into(), kind, offset });
        let filled = self.data.len() + bytes;
        self.data.extend((self.data.len()..filled).map(|place| (place * 7) as u8));
        self.data.resize(filled.next_multiple_of(self.alignment), 0);
    }

    /// A llama of one layer with a tokenizer, whole enough to be loaded: every metadata type, formats of each kind
    /// that is read, and one that is not.
    pub(super) fn tiny() -> Self {
        let mut file = Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            metadata_count: None,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        };
        let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u{2581}a", "b", "ab", "\u{2581}ab"];
        file.set("general.architecture", string("llama"))
            .set("general.alignment", u32(32))
            .set("llama.context_length", u32(64))
            .set("llama.embedding_length", u32(256))
            .set("llama.block_count", u32(1))
            .set("llama.feed_forward_length", u32(32))
            .set("llama.attention.head_count", u32(2))
            .set("llama.attention.head_count_kv", u32(1))
            .set("llama.attention.key_length", u32(16))
            .set("llama.attention.value_length", u32(16))
            .set("llama.attention.layer_norm_rms_epsilon", typed(6, &1e-5f32.to_le_bytes()))
            .set("tokenizer.ggml.model", string("llama"))
            .set("tokenizer.ggml.tokens", array(8, 8, &tokens.map(|token| sized(token.as_bytes())).concat()))
            .set(
                "tokenizer.ggml.scores",
                array(6, 8, &[0f32, 0., 0., 0., -1., -2., -3., -4.].map(f32::to_le_bytes).concat()),
            )
            .set("tokenizer.ggml.token_type", array(5, 8, &[2i32, 3, 3, 6, 1, 1, 1, 1].map(i32::to_le_bytes).concat()))
            .set("tokenizer.ggml.bos_token_id", u32(1))
            .set("tokenizer.ggml.eos_token_id", u32(2))
            .set("tokenizer.ggml.padding_token_id", u32(u32::MAX))
            .set("tokenizer.ggml.add_bos_token", typed(7, &[1]))
            .set("types.u8", typed(0, &[8]))
            .set("types.i8", typed(1, &[0xff]))
            .set("types.u16", typed(2, &[1, 2]))
            .set("types.i16", typed(3, &[1, 2]))
            .set("types.i32", typed(5, &[1, 2, 3, 4]))
            .set("types.u64", typed(10, &[1, 2, 3, 4, 5, 6, 7, 8]))
            .set("types.i64", typed(11, &[1, 2, 3, 4, 5, 6, 7, 8]))
            .set("types.f64", typed(12, &1.5f64.to_le_bytes()))
            .set("types.nested", array(9, 2, &[&array_head(4, 1)[..], &[1, 0, 0, 0], &array_head(0, 0)].concat()));
        file.push("token_embd.weight", 1, &[256, 8], 4096);
        file.push("output_norm.weight", 0, &[256], 1024);
        file.push("blk.0.attn_norm.weight", 0, &[256], 1024);
        file.push("blk.0.attn_q.weight", 8, &[256, 32], 32 * 8 * 34);
        file.push("blk.0.attn_k.weight", 2, &[256, 16], 16 * 8 * 18);
        file.push("blk.0.attn_v.weight", 21, &[256, 16], 16 * 110);
        file.push("blk.0.attn_output.weight", 8, &[32, 256], 256 * 34);
        file.push("blk.0.ffn_norm.weight", 0, &[256], 1024);
        file.push("blk.0.ffn_gate.weight", 12, &[256, 32], 32 * 144);
        file.push("blk.0.ffn_up.weight", 10, &[256, 32], 32 * 84);
        file.push("blk.0.ffn_down.weight", 39, &[32, 256], 256 * 17);
        file.push("output.weight", 14, &[256, 8], 8 * 210);
        file.push("plain.weight", 30, &[256], 512);
        file.push("unknown.weight", 99, &[7, 3], 96);
        file
    }
}

/// A length and as many bytes.
pub(super) fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// A value: its type and its bytes.
pub(super) fn typed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

/// A string value.
pub(super) fn string(text: &str) -> Vec<u8> {
    typed(8, &sized(text.as_bytes()))
}

/// An unsigned 32-bit value.
pub(super) fn u32(value: u32) -> Vec<u8> {
    typed(4, &value.to_le_bytes())
}

/// The type and count of an array's elements.
pub(super) fn array_head(kind: u32, count: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat()
}

/// An array value.
pub(super) fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    typed(9, &[&array_head(kind, count), elements].concat())
}
