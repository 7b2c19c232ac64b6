//! Weights of four bits as GPTQ and AWQ keep them: `qweight`, eight to a word; `scales` `[groups, out]`; `qzeros`, eight to
//! a word; for GPTQ perhaps `g_idx`, the group of each input. A weight is `scale * (number - zero)`.
//!
//! GPTQ packs along the input (`qweight` is `[in / 8, out]`), AWQ along the output (`[in, out / 8]`) and in an order of its
//! own. Groups of whole 32 inputs are blocks of Q8_0 as they are, or of Q4_0 where all zeros are 8; others, and inputs in
//! no order, are widened to bfloat16.

use half::{bf16, f16};

use super::view::View;
use crate::kernels::{linear::format::WeightFormat, pool::for_each_mut};

/// Numbers a word.
const PACKED: usize = 8;
/// Where in a word AWQ keeps each of eight neighbouring outputs.
const AWQ_PLACES: [usize; PACKED] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Inputs a block of the formats that groups can become.
const BLOCK: usize = 32;

/// The tensors of one weight.
pub(super) struct Parts<'a> {
    pub(super) qweight: View<'a>,
    pub(super) qzeros: Option<View<'a>>,
    pub(super) scales: Option<View<'a>>,
    pub(super) g_idx: Option<View<'a>>,
}

/// A checked weight.
pub(super) struct Int4 {
    words: Vec<u32>,
    is_awq: bool,
    zero_words: Vec<u32>,
    /// What zeros are stored less than they are: 1 in GPTQ's first format.
    zero_offset: i8,
    scales: Vec<f32>,
    /// The group of each input.
    groups: Vec<usize>,
    pub(super) out: usize,
    /// What it becomes.
    pub(super) format: WeightFormat,
}

impl Int4 {
    /// Checks the tensors of a weight; `zeros_are_exact` in GPTQ's second format.
    pub(super) fn new(parts: &Parts<'_>, zeros_are_exact: bool) -> Result<Self, String> {
        let (Some(scales), Some(qzeros)) = (&parts.scales, &parts.qzeros) else {
            return Err("has a qweight, but not both scales and qzeros".into());
        };
        let wrong = |what: &str, view: &View<'_>| format!("has {what} of shape {:?} in {}", view.shape, view.dtype);
        // With no outputs no byte would stand for the inputs, and a shape may claim any number of them.
        let scale_numbers = scales.floats().filter(|_| !scales.shape.contains(&0));
        let (&[group_count, out], Some(scale_numbers)) = (scales.shape, scale_numbers) else {
            return Err(wrong("scales", scales));
        };
        let (&[height, width], Some(words)) = (parts.qweight.shape, parts.qweight.words()) else {
            return Err(wrong("a qweight", &parts.qweight));
        };
        let is_awq = width != out;
        let inputs = if is_awq { Some(height) } else { height.checked_mul(PACKED) };
        let Some(inputs) = inputs.filter(|&inputs| inputs > 0 && (!is_awq || width.checked_mul(PACKED) == Some(out)))
        else {
            return Err(wrong("scales", scales) + " that do not fit its qweight: four bits a weight are read");
        };
        let zero_words =
            qzeros.words().filter(|_| qzeros.shape == [group_count, out / PACKED] && out.is_multiple_of(PACKED));
        let zero_words = zero_words.ok_or_else(|| wrong("qzeros", qzeros))?;
        let groups = match &parts.g_idx {
            Some(view) => {
                let groups = view.words().filter(|_| *view.shape == [inputs]).ok_or_else(|| wrong("a g_idx", view))?;
                groups.iter().map(|&group| group as usize).collect::<Vec<_>>()
            }
            None if group_count > 0 && inputs.is_multiple_of(group_count) => {
                (0..inputs).map(|input| input / (inputs / group_count)).collect()
            }
            None => return Err(format!("has {inputs} inputs in {group_count} groups")),
        };
        if let Some(group) = groups.iter().find(|&&group| group >= group_count) {
            return Err(format!("has g_idx {group}, but {group_count} groups"));
        }
        let zero_offset = i8::from(!is_awq && !zeros_are_exact);
        let mut int4 = Self {
            words,
            is_awq,
            zero_words,
            zero_offset,
            scales: scale_numbers,
            groups,
            out,
            format: WeightFormat::BF16,
        };
        if inputs.is_multiple_of(BLOCK)
            && int4.groups.chunks_exact(BLOCK).all(|block| block.iter().all(|g| *g == block[0]))
        {
            let symmetric = (0..group_count).all(|group| (0..out).all(|row| int4.zero(group, row) == 8));
            int4.format = if symmetric { WeightFormat::Q4_0 } else { WeightFormat::Q8_0 };
        }
        Ok(int4)
    }

    /// Inputs.
    pub(super) fn inputs(&self) -> usize {
        self.groups.len()
    }

    fn zero(&self, group: usize, row: usize) -> i8 {
        let place = if self.is_awq { AWQ_PLACES[row % PACKED] } else { row % PACKED };
        (self.zero_words[(group * self.out + row) / PACKED] >> (4 * place) & 0xf) as i8 + self.zero_offset
    }

    fn number(&self, row: usize, input: usize) -> i8 {
        let (word, place) = if self.is_awq {
            ((input * self.out + row) / PACKED, AWQ_PLACES[row % PACKED])
        } else {
            (input / PACKED * self.out + row, input % PACKED)
        };
        (self.words[word] >> (4 * place) & 0xf) as i8
    }

    /// The rows in [`format`](Self::format).
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let row_bytes = self.format.bytes_for(self.inputs()).unwrap_or(0);
        let mut bytes = vec![0u8; row_bytes * self.out];
        if row_bytes > 0 {
            for_each_mut(&mut bytes.chunks_exact_mut(row_bytes).enumerate().collect::<Vec<_>>(), |(row, bytes)| {
                self.write_row(*row, bytes);
            });
        }
        bytes
    }

    fn write_row(&self, row: usize, bytes: &mut [u8]) {
        if self.format == WeightFormat::BF16 {
            for (input, to) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let group = self.groups[input];
                let number = f32::from(self.number(row, input) - self.zero(group, row));
                *to = bf16::from_f32(self.scales[group * self.out + row] * number).to_le_bytes();
            }
            return;
        }
        for (index, block) in bytes.chunks_exact_mut(self.format.block_bytes()).enumerate() {
            let first = BLOCK * index;
            let group = self.groups[first];
            let (scale, quants) = block.split_at_mut(2);
            scale.copy_from_slice(&f16::from_f32(self.scales[group * self.out + row]).to_le_bytes());
            for (k, quant) in quants.iter_mut().enumerate() {
                let number = |k: usize| self.number(row, first + k);
                *quant = match self.format {
                    WeightFormat::Q4_0 => number(k) as u8 | (number(k + BLOCK / 2) as u8) << 4,
                    _ => (number(k) - self.zero(group, row)) as u8,
                };
            }
        }
    }
}
