//! What recurrent layers keep of each sequence, beside the blocks: as much of a long one as of a short one.

use candle_core::Device;

use crate::{
    error::{Error, Result},
    ids::StateSlot,
    kernels::{causal_conv::ConvState, gated_delta::DeltaState},
    layers::gated_delta_net::DeltaNetSizes,
};

/// Sizes of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateShape {
    /// Layers that keep something.
    pub num_layers: usize,
    /// Of each.
    pub sizes: DeltaNetSizes,
}

impl StateShape {
    /// Bytes that one sequence takes in all layers.
    #[must_use]
    pub fn bytes_per_sequence(&self) -> usize {
        let DeltaNetSizes { heads, taps } = &self.sizes;
        let layer = ConvState::bytes_per_slot(*taps, heads.qkv()).saturating_add(DeltaState::bytes_per_slot(heads));
        layer.saturating_mul(self.num_layers)
    }
}

/// One layer's states.
pub struct LayerState {
    /// The newest inputs of its convolution.
    pub conv: ConvState,
    /// What its heads remember.
    pub delta: DeltaState,
}

/// The states of all layers. A slot is one sequence's in all of them; what a former sequence left there is forgotten as the
/// next one's first tokens are computed.
pub struct StateCache {
    num_slots: usize,
    layers: Vec<LayerState>,
}

impl StateCache {
    /// States of `num_slots` sequences. On the CPU the operating system provides the memory when they are first written.
    ///
    /// # Errors
    /// `Internal` for impossible sizes, `ResourceExhausted` where there is no memory.
    pub fn new(shape: StateShape, num_slots: usize, device: &Device) -> Result<Self> {
        let StateShape { num_layers, sizes: DeltaNetSizes { heads, taps } } = shape;
        let layer = || -> Result<LayerState> {
            let conv = ConvState::new(num_slots, taps, heads.qkv(), device)?;
            Ok(LayerState { conv, delta: DeltaState::new(num_slots, heads, device)? })
        };
        let layers = std::iter::repeat_with(layer).take(num_layers).collect::<Result<Vec<_>>>()?;
        Ok(Self { num_slots, layers })
    }

    /// Sequences it has room for.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.num_slots
    }

    /// Those of one of the layers that keep something.
    ///
    /// # Errors
    /// `Internal` where there are fewer: it was made for another model.
    pub fn layer(&self, layer: usize) -> Result<&LayerState> {
        self.layers.get(layer).ok_or_else(|| Error::internal(format!("there are no states of a layer {layer}")))
    }
}

/// The states of a step.
#[derive(Clone, Copy)]
pub struct StepStates<'a> {
    /// All there are.
    pub cache: &'a StateCache,
    /// Which of them are the rows': `[rows]`, no two alike.
    pub slots: &'a [StateSlot],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gated_delta::{DeltaHeads, Sharing};

    #[test]
    fn states_take_what_is_said_and_are_numbered_by_layer() {
        let sharing = Sharing::Neighbours;
        let heads = DeltaHeads { key_heads: 2, value_heads: 4, key_dim: 6, value_dim: 20, sharing };
        let shape = StateShape { num_layers: 3, sizes: DeltaNetSizes { heads, taps: 4 } };
        // Three inputs of 2 * 12 + 80 channels, and four matrices of 6 by 20, which is filled up to 32.
        assert_eq!(shape.bytes_per_sequence(), 3 * 4 * (3 * 104 + 4 * 6 * 32));
        let states = StateCache::new(shape, 5, &Device::Cpu).unwrap();
        assert_eq!(states.num_slots(), 5);
        assert!(states.layer(2).is_ok());
        assert!(states.layer(3).err().is_some_and(|error| error.message.contains("layer 3")));
    }
}
