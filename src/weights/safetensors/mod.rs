//! Tensors of a directory as the hub lays it out: one `model.safetensors`, or several behind an index.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The index maps each tensor to the file that holds it
//! (`{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}`).

mod fp8;
mod header;
mod index;
mod int4;
mod mxfp4;
mod quantization;
mod view;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use self::{
    fp8::Fp8,
    header::Entry,
    int4::{Int4, Parts},
    mxfp4::Mxfp4,
    quantization::Quantization,
    view::View,
};
use super::{StoredTensor, TensorHeader, TensorSource, file::FileBytes, part, shown};
use crate::{
    error::{Error, Result},
    kernels::linear::{
        format::{RawTensor, WeightFormat},
        stored::StoredFormat,
    },
};

/// The file that holds all tensors where they are not split.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The file that says which file holds which tensor where they are split.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of one safetensors file, or of several behind an index.
pub struct SafetensorsSource {
    path: PathBuf,
    shards: Vec<FileBytes>,
    tensors: BTreeMap<String, Located>,
    quantization: Quantization,
}

/// What is known of a tensor without reading it.
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// As the file spells it; `int4` for GPTQ and AWQ, `mxfp4` for blocks and scales of that.
    pub dtype: String,
    /// What it comes in.
    pub format: StoredFormat,
    /// Of its numbers in the file.
    pub bytes: usize,
}

/// A tensor and the file it lies in.
struct Located {
    shard: usize,
    entry: Entry,
}

impl SafetensorsSource {
    /// Maps the weights of a directory: `model.safetensors`, else the files that `model.safetensors.index.json` names.
    /// A path of a `.safetensors` file opens that file alone. Only headers are read.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the file and the field where one is missing or does not hold together.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::single(path.to_owned(), FileBytes::map(path)?);
        }
        let (weights, index) = (path.join(WEIGHTS_FILE), path.join(INDEX_FILE));
        let source = if weights.exists() {
            Self::single(weights.clone(), FileBytes::map(&weights)?)?
        } else if index.exists() {
            Self::sharded(path, index)?
        } else {
            let why = format!("there is neither {WEIGHTS_FILE} nor {INDEX_FILE}");
            return Err(Error::bad_file(path, "weights", why));
        };
        Ok(Self { quantization: Quantization::of_directory(path)?, ..source })
    }

    /// Reads one safetensors file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &Path, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::single(name.to_owned(), FileBytes::Held(bytes))
    }

    fn single(path: PathBuf, bytes: FileBytes) -> Result<Self> {
        let entries = header::read(&path, &bytes)?;
        let tensors = entries.into_iter().map(|(name, entry)| (renamed(name), Located { shard: 0, entry })).collect();
        Ok(Self { path, shards: vec![bytes], tensors, quantization: Quantization::default() })
    }

    fn sharded(directory: &Path, index: PathBuf) -> Result<Self> {
        let mut shards = Vec::new();
        let mut tensors = BTreeMap::new();
        for (file, names) in index::read(&index)? {
            let path = directory.join(&file);
            if !path.exists() {
                return Err(Error::bad_file(
                    &index,
                    "weight_map",
                    format!("names {}, which is not there", shown(&file)),
                ));
            }
            let bytes = FileBytes::map(&path)?;
            let mut entries = header::read(&path, &bytes)?;
            for name in names {
                let Some(entry) = entries.remove(&name) else {
                    let why = format!("names {}, which does not hold it", shown(&file));
                    return Err(Error::bad_file(&index, format!("weight_map: {}", shown(&name)), why));
                };
                tensors.insert(renamed(name), Located { shard: shards.len(), entry });
            }
            shards.push(bytes);
        }
        Ok(Self { path: index, shards, tensors, quantization: Quantization::default() })
    }
}

/// How names of models that see pictures begin in older files, and what transformers calls them since.
const RENAMED: [(&str, &str); 4] = [
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
];

/// A tensor's name as newer files have it.
fn renamed(name: String) -> String {
    let rest = RENAMED.iter().find_map(|(older, newer)| Some((newer, name.strip_prefix(older)?)));
    rest.map(|(newer, rest)| format!("{newer}{rest}")).unwrap_or(name)
}

/// The format of a safetensors dtype, where it is one of plain numbers that weights are read in.
fn weight_format(dtype: &str) -> Option<WeightFormat> {
    match dtype {
        "F32" => Some(WeightFormat::F32),
        "F16" => Some(WeightFormat::F16),
        "BF16" => Some(WeightFormat::BF16),
        _ => None,
    }
}

/// What a weight's own tensors are called where it is not one of plain numbers, after its name without `weight`.
const PARTS: [&str; 6] = ["weight_scale_inv", "weight_scale", "qweight", "qzeros", "scales", "g_idx"];

/// A weight as it is stored.
enum Stored<'a> {
    Plain(WeightFormat, View<'a>),
    Fp8(Fp8<'a>, View<'a>),
    Int4(Int4),
    Mxfp4(Mxfp4<'a>),
}

impl SafetensorsSource {
    fn view(&self, name: &str) -> Option<View<'_>> {
        let Located { shard, entry } = self.tensors.get(name)?;
        let bytes = self.shards.get(*shard)?.get(entry.bytes.clone())?;
        Some(View { dtype: &entry.dtype, shape: &entry.shape, bytes })
    }

    /// The weight of that name, or why it cannot be had.
    fn stored(&self, name: &str) -> Option<Result<Stored<'_>, String>> {
        let part = |part: &str| self.view(&format!("{}{part}", name.strip_suffix("weight")?));
        let Some(view) = self.view(name) else {
            if let Some(mxfp4) = self.mxfp4(name) {
                return Some(Ok(Stored::Mxfp4(mxfp4)));
            }
            let qweight = part("qweight")?;
            let parts = Parts { qweight, qzeros: part("qzeros"), scales: part("scales"), g_idx: part("g_idx") };
            let bits = self.quantization.bits.filter(|&bits| bits != 4);
            return Some(match bits {
                Some(bits) => Err(format!("is quantized to {bits} bits, but only 4 are read")),
                None => Int4::new(&parts, self.quantization.zeros_are_exact).map(Stored::Int4),
            });
        };
        if let Some(format) = weight_format(view.dtype) {
            return Some(Ok(Stored::Plain(format, view)));
        }
        let scale = part("weight_scale_inv").or_else(|| part("weight_scale"));
        Some(match Fp8::new(&view, scale.as_ref(), self.quantization.weight_block_size) {
            Some(fp8) => fp8.map(|fp8| Stored::Fp8(fp8, view)),
            None => Err(format!(
                "is stored as {}, but only F32, F16, BF16, F8_E4M3 and F8_E5M2 are read, and four bits of GPTQ and AWQ",
                shown(view.dtype)
            )),
        })
    }

    /// The weight of that name, where it is one in MXFP4.
    fn mxfp4(&self, name: &str) -> Option<Mxfp4<'_>> {
        let [blocks, scales] = mxfp4::PARTS.map(|part| self.view(&format!("{name}{part}")));
        Mxfp4::new(&blocks?, &scales?)
    }

    /// What every tensor of weights is, without reading it: its name, shape, dtype in the file, the format it comes in, and
    /// its bytes in the file.
    pub fn facts(&self) -> impl Iterator<Item = TensorFacts> {
        self.names().into_iter().filter_map(|name| {
            let (dtype, shape, format, bytes) = match self.stored(&name)?.ok()? {
                Stored::Plain(format, view) => (view.dtype, view.shape.to_vec(), format.into(), view.bytes.len()),
                Stored::Fp8(_, view) => (view.dtype, view.shape.to_vec(), WeightFormat::BF16.into(), view.bytes.len()),
                Stored::Int4(int4) => {
                    ("int4", vec![int4.out, int4.inputs()], int4.format.into(), int4.out * int4.inputs() / 2)
                }
                Stored::Mxfp4(mxfp4) => ("mxfp4", mxfp4.shape.clone(), mxfp4::FORMAT, mxfp4.bytes()),
            };
            let dtype = dtype.to_owned();
            Some(TensorFacts { name, shape, dtype, format, bytes })
        })
    }

    /// Files that are read.
    #[must_use]
    pub fn files(&self) -> usize {
        self.shards.len()
    }

    /// The names of all weights, those that cannot be had too: of tensors that are parts of one, the name of the whole.
    #[must_use]
    pub fn weights(&self) -> BTreeSet<String> {
        self.tensors.keys().map(|name| self.weight_of(name).unwrap_or_else(|| name.clone())).collect()
    }

    /// The names of tensors that cannot be had as weights.
    #[must_use]
    pub fn unread(&self) -> Vec<String> {
        let names = self.weights().into_iter().filter(|name| !self.contains(name));
        names.map(|name| shown(&name)).collect()
    }

    /// The name of the weight that a tensor is a part of.
    fn weight_of(&self, name: &str) -> Option<String> {
        let mut stems = mxfp4::PARTS.iter().filter_map(|part| name.strip_suffix(part));
        if let Some(stem) = stems.find(|stem| self.mxfp4(stem).is_some()) {
            return Some(stem.to_owned());
        }
        let (stem, last) = name.rsplit_once('.')?;
        let weight = format!("{stem}.weight");
        let whole = if last.starts_with("weight_") { weight.clone() } else { format!("{stem}.qweight") };
        (PARTS.contains(&last) && self.tensors.contains_key(&whole)).then_some(weight)
    }
}

impl TensorSource for SafetensorsSource {
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn get(&self, name: &str) -> Option<RawTensor<'_>> {
        Some(match self.stored(name)?.ok()? {
            Stored::Plain(format, View { shape, bytes, .. }) => {
                RawTensor { format: format.into(), shape: shape.to_vec(), bytes: Cow::Borrowed(bytes) }
            }
            Stored::Fp8(fp8, view) => RawTensor {
                format: WeightFormat::BF16.into(),
                shape: view.shape.to_vec(),
                bytes: Cow::Owned(fp8.to_bf16()),
            },
            Stored::Int4(int4) => RawTensor {
                format: int4.format.into(),
                shape: vec![int4.out, int4.inputs()],
                bytes: Cow::Owned(int4.to_bytes()),
            },
            Stored::Mxfp4(mxfp4) => mxfp4.to_tensor(),
        })
    }

    fn part(&self, name: &str, index: usize, count: usize) -> Option<RawTensor<'_>> {
        match self.mxfp4(name) {
            Some(mxfp4) => Some(mxfp4.part(index, count)?.to_tensor()),
            None => part::part(&self.get(name)?, index, count),
        }
    }

    fn names(&self) -> Vec<String> {
        self.weights().into_iter().filter(|name| self.contains(name)).collect()
    }

    fn headers(&self) -> Vec<TensorHeader> {
        let header = |TensorFacts { name, shape, dtype, format, .. }: TensorFacts| TensorHeader {
            name,
            shape,
            format,
            decoded: weight_format(&dtype).is_none(),
        };
        self.facts().map(header).collect()
    }

    fn for_each_stored(&self, show: &mut dyn FnMut(&StoredTensor<'_>)) {
        for name in self.tensors.keys() {
            let Some(View { dtype, shape, bytes }) = self.view(name) else { continue };
            show(&StoredTensor { name, kind: dtype, shape, bytes });
        }
    }

    fn contains(&self, name: &str) -> bool {
        matches!(self.stored(name), Some(Ok(_)))
    }

    fn refusal(&self, name: &str) -> Option<String> {
        self.stored(name)?.err()
    }
}

#[cfg(test)]
mod tests {
    use ::safetensors::{Dtype, serialize, tensor::TensorView};

    use super::*;

    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let views = tensors.iter().map(|&(name, dtype, shape, bytes)| {
            (name, TensorView::new(dtype, shape.to_vec(), bytes).expect("a tensor that fits its bytes"))
        });
        serialize(views, None).expect("serializes")
    }

    #[test]
    fn tensors_come_back_as_they_were_written() {
        let (floats, halves) = ([1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12]);
        let bytes = file(&[
            ("a.weight", Dtype::F32, &[2, 1], &floats),
            ("b.weight", Dtype::BF16, &[1, 2], &halves),
            ("ids", Dtype::I64, &[1], &floats),
        ]);
        let source = SafetensorsSource::from_bytes(Path::new("m.safetensors"), bytes.into()).expect("a good file");
        let a = source.get("a.weight").expect("is there");
        assert_eq!((a.format, a.shape.as_slice(), &*a.bytes), (WeightFormat::F32.into(), &[2, 1][..], &floats[..]));
        let b = source.get("b.weight").expect("is there");
        assert_eq!((b.format, b.shape.as_slice(), &*b.bytes), (WeightFormat::BF16.into(), &[1, 2][..], &halves[..]));
        assert_eq!(source.names(), ["a.weight", "b.weight"]);
        let error = crate::weights::Weights::new(Box::new(source)).get("ids", &[1]).expect_err("is not for weights");
        assert!(
            error.message.starts_with("m.safetensors: tensor ids: is stored as I64, but only F32, F16, BF16"),
            "{error}"
        );
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).expect("is written");
        write("one.safetensors", &file(&[("a", Dtype::F16, &[1], &[1, 2])]));
        write("two.safetensors", &file(&[("b", Dtype::F16, &[1], &[3, 4]), ("unlisted", Dtype::F16, &[1], &[3, 4])]));
        write(
            INDEX_FILE,
            br#"{"metadata":{"total_size":4},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
        );
        let source = SafetensorsSource::open(directory.path()).expect("good files");
        assert_eq!(source.names(), ["a", "b"]);
        assert_eq!(&*source.get("b").expect("is there").bytes, [3, 4]);

        write(INDEX_FILE, br#"{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}"#);
        let error = SafetensorsSource::open(directory.path()).err().expect("c is not there");
        assert!(error.message.contains("index.json: weight_map: c: names two.safetensors, which does not hold it"));

        write(INDEX_FILE, br#"{"weight_map":{"a":"three.safetensors"}}"#);
        let error = SafetensorsSource::open(directory.path()).err().expect("the file is not there");
        assert!(error.message.contains("index.json: weight_map: names three.safetensors, which is not there"));
    }

    #[test]
    fn older_names_beside_a_model_of_pictures_are_those_of_newer_files() {
        let stored = [
            "language_model.lm_head.weight",
            "language_model.model.norm.weight",
            "multi_modal_projector.norm.weight",
            "vision_tower.ln_pre.weight",
            "x.language_model.model.weight",
        ];
        let one = [1u8, 2, 3, 4];
        let tensors = stored.map(|name| (name, Dtype::F32, &[1usize][..], &one[..]));
        let wanted = [
            "lm_head.weight",
            "model.language_model.norm.weight",
            "model.multi_modal_projector.norm.weight",
            "model.vision_tower.ln_pre.weight",
            "x.language_model.model.weight",
        ];
        assert_eq!(opened(&tensors).names(), wanted);
    }

    #[test]
    fn a_directory_without_weights_says_what_was_looked_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let error = SafetensorsSource::open(directory.path()).err().expect("nothing is there");
        assert!(error.message.contains("neither model.safetensors nor model.safetensors.index.json"), "{error}");
    }

    /// Floats as bytes.
    fn f32s(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn opened(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> SafetensorsSource {
        SafetensorsSource::from_bytes(Path::new("m.safetensors"), file(tensors).into()).expect("a good file")
    }

    #[test]
    fn eight_bit_floats_come_under_their_scales() {
        // 1, -1.5, 448, the least above zero, and half of one; as E5M2 the same bits are others.
        let bytes = [0x38, 0xbc, 0x7e, 0x01, 0x30, 0x38];
        let source = opened(&[
            ("a.weight", Dtype::F8_E4M3, &[2, 3], &bytes),
            ("a.weight_scale_inv", Dtype::F32, &[2, 1], &f32s(&[2.0, 4.0])),
            ("b.weight", Dtype::F8_E4M3, &[2, 3], &bytes),
            ("b.weight_scale", Dtype::F32, &[], &f32s(&[0.5])),
            ("c.weight", Dtype::F8_E5M2, &[6], &bytes),
            ("d.weight", Dtype::F8_E4M3, &[2, 3], &bytes),
            ("d.weight_scale_inv", Dtype::F32, &[3], &f32s(&[1.0; 3])),
        ]);
        assert_eq!(source.names(), ["a.weight", "b.weight", "c.weight"]);
        let weights = |name: &str| source.get(name).expect("is there").to_f32();
        assert_eq!(weights("a.weight"), [2.0, -3.0, 896.0, 0.0078125, 2.0, 4.0]);
        assert_eq!(weights("b.weight"), [0.5, -0.75, 224.0, 0.0009765625, 0.25, 0.5]);
        let c = weights("c.weight");
        assert!(c[2].is_nan(), "E5M2 has numbers that are none");
        assert_eq!([c[0], c[1], c[3], c[4], c[5]], [0.5, -1.0, 2f32.powi(-16), 0.125, 0.5]);
        assert!(source.refusal("d.weight").expect("does not fit").contains("scales of shape [3]"));
    }

    #[test]
    fn blocks_of_rows_and_columns_have_a_scale_each() {
        let (rows, columns) = (130, 257);
        let bytes = vec![0x38; rows * columns];
        let scales: Vec<f32> = (1..=6).map(|n| n as f32).collect();
        let source = opened(&[
            ("a.weight", Dtype::F8_E4M3, &[rows, columns], &bytes),
            ("a.weight_scale_inv", Dtype::F32, &[2, 3], &f32s(&scales)),
        ]);
        let got = source.get("a.weight").expect("is there").to_f32();
        for (k, weight) in got.iter().enumerate() {
            let want = scales[k / columns / 128 * 3 + k % columns / 128];
            assert_eq!(*weight, want, "{k}");
        }
    }

    /// The numbers of a weight of 64 inputs and 16 outputs, and its scales and zeros in two groups.
    fn four_bits(input: usize, row: usize) -> (u32, usize) {
        ((input * 7 + row * 3 + input / 9) as u32 % 16, input / 32)
    }

    /// Packs `[height, width]` numbers, eight to a word, along the width, in an order.
    fn words(height: usize, width: usize, places: [usize; 8], number: impl Fn(usize, usize) -> u32) -> Vec<u8> {
        let word = |row: usize, at: usize| (0..8).map(|k| number(row, 8 * at + k) << (4 * places[k])).sum::<u32>();
        let words = (0..height).flat_map(|row| (0..width / 8).map(move |at| (row, at)));
        words.flat_map(|(row, at)| word(row, at).to_le_bytes()).collect()
    }

    #[test]
    fn gptq_and_awq_are_blocks_without_loss() {
        let (inputs, out) = (64, 16);
        let zero = |group: usize, row: usize| (3 + group + row % 7) as u32;
        let scale = |group: usize, row: usize| (1 + group * 16 + row) as f32 / 1024.0;
        let scales: Vec<f32> = (0..2).flat_map(|group| (0..out).map(move |row| scale(group, row))).collect();
        let scales = f32s(&scales);
        let (plain, awq) = ([0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7]);
        // GPTQ packs along the input: the transpose of what `words` lays out.
        let transposed = words(out, inputs, plain, |row, input| four_bits(input, row).0);
        let mut gptq = Vec::new();
        for at in 0..inputs / 8 {
            (0..out).for_each(|row| gptq.extend_from_slice(&transposed[4 * (row * inputs / 8 + at)..][..4]));
        }
        let backwards: Vec<u8> = (0..inputs as u32).flat_map(|input| (input % 2).to_le_bytes()).collect();
        let source = opened(&[
            ("g.qweight", Dtype::I32, &[inputs / 8, out], &gptq),
            ("g.qzeros", Dtype::I32, &[2, out / 8], &words(2, out, plain, |group, row| zero(group, row) - 1)),
            ("g.scales", Dtype::F32, &[2, out], &scales),
            ("s.qweight", Dtype::I32, &[inputs / 8, out], &gptq),
            ("s.qzeros", Dtype::I32, &[2, out / 8], &words(2, out, plain, |_, _| 7)),
            ("s.scales", Dtype::F32, &[2, out], &scales),
            ("o.qweight", Dtype::I32, &[inputs / 8, out], &gptq),
            ("o.qzeros", Dtype::I32, &[2, out / 8], &words(2, out, plain, |_, _| 7)),
            ("o.scales", Dtype::F32, &[2, out], &scales),
            ("o.g_idx", Dtype::I32, &[inputs], &backwards),
            (
                "a.qweight",
                Dtype::I32,
                &[inputs, out / 8],
                &words(inputs, out, awq, |input, row| four_bits(input, row).0),
            ),
            ("a.qzeros", Dtype::I32, &[2, out / 8], &words(2, out, awq, zero)),
            ("a.scales", Dtype::F32, &[2, out], &scales),
        ]);
        assert_eq!(source.names(), ["a.weight", "g.weight", "o.weight", "s.weight"]);
        for (name, format) in [
            ("a.weight", WeightFormat::Q8_0),
            ("g.weight", WeightFormat::Q8_0),
            ("o.weight", WeightFormat::BF16),
            ("s.weight", WeightFormat::Q4_0),
        ] {
            let tensor = source.get(name).expect("is there");
            assert_eq!((tensor.format, tensor.shape.as_slice()), (format.into(), &[out, inputs][..]), "{name}");
            for (k, weight) in tensor.to_f32().into_iter().enumerate() {
                let (row, input) = (k / inputs, k % inputs);
                let (number, group) = four_bits(input, row);
                let group = if name == "o.weight" { input % 2 } else { group };
                let zero = if matches!(name, "a.weight" | "g.weight") { zero(group, row) } else { 8 };
                assert_eq!(weight, scale(group, row) * (number as f32 - zero as f32), "{name} {row} {input}");
            }
        }
    }

    #[test]
    fn what_is_read_in_parts_is_known_and_what_is_not_is_named() {
        let source = opened(&[
            ("e.down_proj_blocks", Dtype::U8, &[2, 3, 4, 16], &[0; 384]),
            ("e.down_proj_scales", Dtype::U8, &[2, 3, 4], &[0; 24]),
            ("f.down_proj_blocks", Dtype::U8, &[2, 16], &[0; 32]),
            ("f.down_proj_scales", Dtype::U8, &[3], &[0; 3]),
            ("g.qweight", Dtype::I32, &[8, 8], &[0; 256]),
            ("g.scales", Dtype::F32, &[1, 8], &[0; 32]),
        ]);
        let facts: Vec<_> = source.facts().map(|fact| (fact.name, fact.shape, fact.dtype, fact.bytes)).collect();
        assert_eq!(facts, [("e.down_proj".to_owned(), vec![2, 3, 128], "mxfp4".to_owned(), 408)]);
        assert_eq!(source.unread(), ["f.down_proj_blocks", "f.down_proj_scales", "g.weight"]);
    }

    #[test]
    fn four_bits_that_do_not_fit_together_are_refused_with_the_reason() {
        let refusal =
            |tensors: &[(&str, Dtype, &[usize], &[u8])]| opened(tensors).refusal("g.weight").expect("is refused");
        let (weight, zeros, scales) = ([0; 32 * 8], [0; 4], [0; 32]);
        let good: [(&str, Dtype, &[usize], &[u8]); 3] = [
            ("g.qweight", Dtype::I32, &[8, 8], &weight),
            ("g.qzeros", Dtype::I32, &[1, 1], &zeros),
            ("g.scales", Dtype::F32, &[1, 8], &scales),
        ];
        assert!(opened(&good).get("g.weight").is_some());
        assert!(refusal(&good[..2]).contains("not both scales and qzeros"));
        let with = |at: usize, dtype: Dtype, shape: &'static [usize], bytes: &'static [u8]| {
            let mut tensors = good.to_vec();
            tensors[at] = (tensors[at].0, dtype, shape, bytes);
            refusal(&tensors)
        };
        assert!(with(1, Dtype::I32, &[1, 2], &[0; 8]).contains("qzeros of shape [1, 2]"));
        assert!(with(2, Dtype::I32, &[1, 8], &[0; 32]).contains("scales of shape [1, 8] in I32"));
        assert!(with(2, Dtype::F32, &[1, 9], &[0; 36]).contains("scales of shape [1, 9]"));
        assert!(with(0, Dtype::F32, &[8, 8], &[0; 256]).contains("a qweight of shape [8, 8] in F32"));
        // No outputs: then no byte stands for all the inputs that a shape may claim.
        let none = refusal(&[
            ("g.qweight", Dtype::I32, &[1 << 60, 0], &[]),
            ("g.qzeros", Dtype::I32, &[1, 0], &[]),
            ("g.scales", Dtype::F32, &[1, 0], &[]),
        ]);
        assert!(none.contains("scales of shape [1, 0]"), "{none}");
        let beyond: Vec<u8> = (0..64u32).flat_map(|input| (input / 63).to_le_bytes()).collect();
        let ordered = [&good[..], &[("g.g_idx", Dtype::I32, &[64], &beyond)]].concat();
        assert!(refusal(&ordered).contains("g_idx 1, but 1 groups"));
    }
}
