//! Low-rank adapters beside the Linears of a model: `y += (alpha / r) · B (A x)` (Hu et al. 2021, arXiv 2106.09685).
//!
//! A step may mix rows of several adapters and of none. Rows are grouped by adapter, each group is multiplied by its own
//! two matrices in float32, and what comes out is added to each row once. Products are added in a fixed order, so a row
//! has the same bits whoever else is in the batch.

use std::{collections::HashMap, fmt, ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};

use crate::{
    error::{Error, Result},
    kernels::{
        linear::{
            Extras, Inputs, PackedWeight,
            format::{RawTensor, WeightFormat},
            linear,
        },
        pool::for_each_mut,
        spare,
    },
};

/// A Linear that adapters may stand beside, as a model was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptableLinear {
    /// Its name; `qkv_proj` where it is several of the file's stacked.
    pub name: String,
    /// Inputs.
    pub inputs: usize,
    /// The file's own.
    pub parts: Vec<AdaptablePart>,
}

/// One of the file's Linears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptablePart {
    /// Its full name.
    pub name: String,
    /// How many outputs it has.
    pub outputs: usize,
    /// Where these stand in the Linear that it is a part of.
    pub places: Vec<Place>,
}

/// A run of outputs of a Linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it stands.
    pub columns: Range<usize>,
    /// Which outputs of the file's Linear stand there, in this order; without it, all of them as they are.
    pub rows: Option<Arc<[usize]>>,
}

impl AdaptablePart {
    /// A Linear of the file whose outputs stand together, in their order.
    #[must_use]
    pub fn whole(name: String, columns: Range<usize>) -> Self {
        Self { name, outputs: columns.len(), places: vec![Place { columns, rows: None }] }
    }
}

/// The two matrices of one of the file's Linears, in float32: `a` `[rank, in]`, `b` `[out, rank]` times the scale.
pub struct LowRank {
    /// How many numbers there are between the two.
    pub rank: usize,
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// For each run of outputs where it stands, and its rows of `b`, scaled.
    pub b: Vec<(Range<usize>, Vec<f32>)>,
}

/// What stands beside one Linear.
struct Beside {
    /// All parts' `a`, stacked: `[sum of ranks, in]`.
    a: PackedWeight,
    /// Of each run of outputs the place of its part among the rows of `a`, its columns and its `b`.
    parts: Vec<(Range<usize>, Range<usize>, PackedWeight)>,
}

/// A loaded adapter; its clones share its weights.
#[derive(Clone)]
pub struct Adapter {
    /// Tells it from all others that this process loads, also from those of the same name before and after it.
    id: u64,
    name: String,
    beside: Arc<HashMap<String, Beside>>,
    bytes: usize,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapter({} {})", self.id, self.name)
    }
}

impl Adapter {
    /// Packs the matrices of an adapter: for each Linear, by its name and inputs, its parts.
    ///
    /// # Errors
    /// `Internal` where matrices do not have the sizes that they say.
    pub fn new(id: u64, name: String, linears: Vec<(&AdaptableLinear, Vec<LowRank>)>, device: &Device) -> Result<Self> {
        let mut beside = HashMap::new();
        let mut bytes = 0;
        for (linear, parts) in linears {
            let mut a = Vec::new();
            let mut packed = Vec::with_capacity(parts.len());
            let mut at = 0;
            for LowRank { rank, a: own, b } in parts {
                a.extend(own);
                for (columns, b) in b {
                    let b = pack(&b, columns.len(), rank, device)?;
                    bytes += b.bytes();
                    packed.push((at..at + rank, columns, b));
                }
                at += rank;
            }
            let a = pack(&a, at, linear.inputs, device)?;
            bytes += a.bytes();
            beside.insert(linear.name.clone(), Beside { a, parts: packed });
        }
        Ok(Self { id, name, beside: Arc::new(beside), bytes })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What requests call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn pack(numbers: &[f32], rows: usize, columns: usize, device: &Device) -> Result<PackedWeight> {
    let bytes = bytemuck::cast_slice::<f32, u8>(numbers).into();
    let raw = RawTensor { format: WeightFormat::F32.into(), shape: vec![rows, columns], bytes };
    PackedWeight::pack(&raw, WeightFormat::F32, device)
}

/// Which rows of a step go through which adapter.
pub struct AdapterRows {
    groups: Vec<Group>,
}

struct Group {
    adapter: Arc<Adapter>,
    rows: Vec<u32>,
    /// The same for candle; none where they are all rows there are.
    index: Option<Tensor>,
}

impl AdapterRows {
    /// Groups a step's `num_rows` rows, of which those of each range go through its adapter; none where no row does.
    ///
    /// # Errors
    /// candle's.
    pub fn new(
        ranges: impl Iterator<Item = (Arc<Adapter>, Range<usize>)>,
        num_rows: usize,
        device: &Device,
    ) -> Result<Option<Self>> {
        let mut groups: Vec<Group> = Vec::new();
        for (adapter, range) in ranges {
            let rows = range.start as u32..range.end as u32;
            match groups.iter_mut().find(|group| group.adapter.id == adapter.id) {
                Some(group) => group.rows.extend(rows),
                None => groups.push(Group { adapter, rows: rows.collect(), index: None }),
            }
        }
        for group in groups.iter_mut().filter(|group| group.rows.len() < num_rows) {
            group.index = Some(Tensor::new(group.rows.as_slice(), device)?);
        }
        Ok((!groups.is_empty()).then_some(Self { groups }))
    }

    /// `y` of the Linear `name` for the inputs `x`, with what the rows' adapters have beside that Linear.
    ///
    /// # Errors
    /// `Internal` where an operation fails.
    pub fn add(&self, name: &str, x: Inputs<'_>, y: Tensor) -> Result<Tensor> {
        let mut y = y;
        for group in &self.groups {
            let Some(beside) = group.adapter.beside.get(name) else { continue };
            let picked = match &group.index {
                Some(index) => x.rows().index_select(index, 0)?,
                None => x.rows().clone(),
            };
            let low = linear(of_rows(x, &picked), &beside.a, Extras::default())?;
            for (ranks, columns, b) in &beside.parts {
                let low = low.narrow(1, ranks.start, ranks.len())?;
                let delta = linear(Inputs::Rows(&low), b, Extras::default())?;
                y = if y.device().is_cpu() {
                    add_on_cpu(y, &group.rows, columns, &delta)?
                } else {
                    let right = y.dim(1)?.saturating_sub(columns.end);
                    let delta = delta.pad_with_zeros(1, columns.start, right)?;
                    match &group.index {
                        Some(index) => y.index_add(index, &delta, 0)?,
                        None => (y + delta)?,
                    }
                };
            }
        }
        Ok(y)
    }
}

/// The same inputs made of other rows.
fn of_rows<'a>(x: Inputs<'a>, rows: &'a Tensor) -> Inputs<'a> {
    match x {
        Inputs::Rows(_) => Inputs::Rows(rows),
        Inputs::Normed { weight, eps, .. } => Inputs::Normed { x: rows, weight, eps },
        Inputs::LayerNormed { weight, bias, eps, .. } => Inputs::LayerNormed { x: rows, weight, bias, eps },
        Inputs::Gated(_, gate) => Inputs::Gated(rows, gate),
        Inputs::Activated(_, activation) => Inputs::Activated(rows, activation),
    }
}

/// Adds row `i` of `delta` to the columns of row `rows[i]` of `y`, whose buffer is used again.
fn add_on_cpu(y: Tensor, rows: &[u32], columns: &Range<usize>, delta: &Tensor) -> Result<Tensor> {
    let (count, width) = y.dims2()?;
    if y.dtype() != DType::F32 || columns.end > width || delta.dims() != [rows.len(), columns.len()] {
        let why = format!("an adapter's result {:?} does not fit {:?}", delta.dims(), y.dims());
        return Err(Error::internal(why));
    }
    let (mut numbers, deltas) = (spare::take(&y)?, spare::take(delta)?);
    let mut of_row = vec![None; count];
    for (&row, delta) in rows.iter().zip(deltas.chunks_exact(columns.len().max(1))) {
        *of_row.get_mut(row as usize).ok_or_else(|| Error::internal("an adapter's row is not in the step"))? =
            Some(delta);
    }
    let rows = numbers.chunks_exact_mut(width.max(1)).zip(of_row);
    let mut work: Vec<_> = rows.filter_map(|(row, delta)| Some((row.get_mut(columns.clone())?, delta?))).collect();
    for_each_mut(&mut work, |(row, delta)| row.iter_mut().zip(delta.iter()).for_each(|(y, delta)| *y += delta));
    spare::keep(deltas);
    Ok(Tensor::from_vec(numbers, (count, width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An adapter of rank 2 beside the middle two of four outputs of a Linear of three inputs.
    fn adapter(id: u64, factor: f32) -> Arc<Adapter> {
        let linear =
            AdaptableLinear { name: "l".into(), inputs: 3, parts: vec![AdaptablePart::whole("b".into(), 1..3)] };
        let b = vec![(1..3, vec![factor, 0.0, 0.0, 10.0 * factor])];
        let part = LowRank { rank: 2, a: vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], b };
        Arc::new(Adapter::new(id, format!("n{id}"), vec![(&linear, vec![part])], &Device::Cpu).expect("fits"))
    }

    fn rows(y: &Tensor) -> Vec<Vec<f32>> {
        y.to_vec2().expect("rows")
    }

    #[test]
    fn each_row_gets_its_own_adapters_part_and_others_nothing() {
        let x = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], &Device::Cpu).expect("rows");
        let y = || Tensor::zeros((3, 4), DType::F32, &Device::Cpu).expect("zeros");
        let ranges = vec![(adapter(1, 1.0), 0..1), (adapter(2, 2.0), 2..3)];
        let mixed = AdapterRows::new(ranges.into_iter(), 3, &Device::Cpu).expect("groups").expect("there are some");
        let got = rows(&mixed.add("l", Inputs::Rows(&x), y()).expect("fits"));
        assert_eq!(got, [[0.0, 1.0, 20.0, 0.0], [0.0; 4], [0.0, 14.0, 160.0, 0.0]]);
        // All rows of one adapter, in two ranges.
        let all = vec![(adapter(1, 1.0), 0..2), (adapter(1, 1.0), 2..3)];
        let all = AdapterRows::new(all.into_iter(), 3, &Device::Cpu).expect("groups").expect("there are some");
        let got = rows(&all.add("l", Inputs::Rows(&x), y()).expect("fits"));
        assert_eq!(got, [[0.0, 1.0, 20.0, 0.0], [0.0, 4.0, 50.0, 0.0], [0.0, 7.0, 80.0, 0.0]]);
        assert_eq!(rows(&all.add("other", Inputs::Rows(&x), y()).expect("is left alone")), [[0.0; 4]; 3]);
        assert!(AdapterRows::new(std::iter::empty(), 3, &Device::Cpu).expect("no groups").is_none());
    }
}
