//! The matrix that expands a latent to keys and values (DeepSeek V3's `kv_b_proj`), which llama.cpp's converter cuts in two:
//! the keys' half with the latent outermost, so that queries can be multiplied with it, and the values' half.

use std::{borrow::Cow, collections::BTreeMap};

use crate::kernels::linear::format::{RawTensor, WeightFormat};

/// How names end: of the whole, as Hugging Face has it.
const WHOLE: &str = ".self_attn.kv_b_proj.weight";
/// The keys' half.
const KEYS: &str = ".self_attn.k_b_proj.weight";
/// The values' half.
const VALUES: &str = ".self_attn.v_b_proj.weight";

/// One layer's matrix, by GGUF's names of its halves.
pub(super) struct Expansion {
    /// `[heads, latent, key]`.
    pub(super) keys: String,
    /// `[heads, value, latent]`.
    pub(super) values: String,
}

impl Expansion {
    /// All of a file, by Hugging Face's names of the wholes. Takes the halves away from `names`, which has GGUF's by
    /// Hugging Face's.
    pub(super) fn all(names: &mut BTreeMap<String, String>) -> BTreeMap<String, Self> {
        let stems = names.keys().filter_map(|name| name.strip_suffix(KEYS)).map(str::to_owned).collect::<Vec<_>>();
        let mut all = BTreeMap::new();
        for stem in stems {
            let (keys, values, whole) = (format!("{stem}{KEYS}"), format!("{stem}{VALUES}"), format!("{stem}{WHOLE}"));
            if !names.contains_key(&values) || names.contains_key(&whole) {
                continue;
            }
            if let (Some(keys), Some(values)) = (names.remove(&keys), names.remove(&values)) {
                all.insert(whole, Self { keys, values });
            }
        }
        all
    }

    /// The shape of the whole, `[heads * (key + value), latent]`; none where the halves do not fit each other.
    pub(super) fn shape(keys: &RawTensor<'_>, values: &RawTensor<'_>) -> Option<Vec<usize>> {
        let (&[heads, latent, key], &[value_heads, value, value_latent]) =
            (keys.shape.as_slice(), values.shape.as_slice())
        else {
            return None;
        };
        let fits = heads == value_heads && latent == value_latent;
        let rows = key.checked_add(value)?.checked_mul(heads)?;
        fits.then(|| vec![rows, latent])
    }

    /// The format of the whole. Blocks of a quantized one lie along a key, and would have to along a latent.
    pub(super) fn format(keys: &RawTensor<'_>, values: &RawTensor<'_>) -> WeightFormat {
        if keys.format == values.format && keys.format.is_float() { keys.format.kept() } else { WeightFormat::BF16 }
    }

    /// The whole: of each head the rows of its key, then those of its value.
    pub(super) fn joined(&self, keys: &RawTensor<'_>, values: &RawTensor<'_>) -> Option<RawTensor<'static>> {
        let shape = Self::shape(keys, values)?;
        let &[heads, latent, key] = keys.shape.as_slice() else { return None };
        let (format, key_numbers, value_numbers) = (Self::format(keys, values), keys.to_f32(), values.to_f32());
        let of_value = value_numbers.len() / heads.max(1);
        let mut bytes = Vec::with_capacity(format.bytes_for(key_numbers.len() + value_numbers.len())?);
        for head in 0..heads {
            let of_key = key_numbers.get(head * latent * key..(head + 1) * latent * key)?;
            for row in 0..key {
                (0..latent).for_each(|column| push(&mut bytes, format, of_key[column * key + row]));
            }
            let of_value = value_numbers.get(head * of_value..(head + 1) * of_value)?;
            of_value.iter().for_each(|&number| push(&mut bytes, format, number));
        }
        Some(RawTensor { format: format.into(), shape, bytes: Cow::Owned(bytes) })
    }
}

/// Appends a number in a plain format.
fn push(bytes: &mut Vec<u8>, format: WeightFormat, number: f32) {
    match format {
        WeightFormat::F32 => bytes.extend(number.to_le_bytes()),
        WeightFormat::F16 => bytes.extend(half::f16::from_f32(number).to_le_bytes()),
        _ => bytes.extend(half::bf16::from_f32(number).to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], numbers: impl IntoIterator<Item = f32>) -> RawTensor<'static> {
        let bytes = numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>();
        RawTensor { format: WeightFormat::F32.into(), shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
    }

    #[test]
    fn a_head_has_the_rows_of_its_key_and_then_those_of_its_value() {
        // Two heads, a latent of three, keys of two and values of one: number `100 * head + 10 * row + column` of the whole.
        let number = |head: usize, row: usize, column: usize| (100 * head + 10 * row + column) as f32;
        let keys = (0..2).flat_map(|h| (0..3).flat_map(move |c| (0..2).map(move |r| number(h, r, c))));
        let values = (0..2).flat_map(|h| (0..3).map(move |c| number(h, 2, c)));
        let expansion = Expansion { keys: "k".into(), values: "v".into() };
        let whole = expansion.joined(&tensor(&[2, 3, 2], keys), &tensor(&[2, 1, 3], values)).expect("they fit");
        assert_eq!(whole.shape, [6, 3]);
        let wanted = (0..2).flat_map(|h| (0..3).flat_map(move |r| (0..3).map(move |c| number(h, r, c))));
        assert_eq!(whole.to_f32(), wanted.collect::<Vec<_>>());
    }

    #[test]
    fn halves_of_other_shapes_are_no_whole() {
        let none = || std::iter::empty::<f32>();
        for (keys, values) in [(&[2, 3, 2][..], &[2, 1, 4][..]), (&[2, 3, 2], &[1, 1, 3]), (&[2, 3], &[2, 1, 3])] {
            assert_eq!(Expansion::shape(&tensor(keys, none()), &tensor(values, none())), None, "{keys:?} {values:?}");
        }
    }

    #[test]
    fn halves_are_taken_for_a_whole_where_both_are_there_and_it_is_not() {
        let names = |names: &[&str]| -> BTreeMap<String, String> {
            names.iter().map(|name| (format!("l{name}"), (*name).to_owned())).collect()
        };
        let mut both = names(&[KEYS, VALUES]);
        assert_eq!(Expansion::all(&mut both).into_keys().collect::<Vec<_>>(), [format!("l{WHOLE}")]);
        assert!(both.is_empty());
        for mut others in [names(&[KEYS]), names(&[VALUES]), names(&[KEYS, VALUES, WHOLE])] {
            let before = others.clone();
            assert!(Expansion::all(&mut others).is_empty());
            assert_eq!(others, before);
        }
    }
}
