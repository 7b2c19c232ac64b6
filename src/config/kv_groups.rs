//! Which layers of a model share the blocks of a sequence, and how many blocks a sequence takes. Pure.
//!
//! Layers that see every token need its keys and values as long as the sequence lives; those with a sliding window need the
//! last ones only. So each kind has groups of its own, all of equally many layers: a block holds `block_size` tokens of the
//! layers of one group, whichever that is, and one pool of blocks serves all. A sequence has a block table a group, and the
//! tables of groups with a window give back what lies wholly before it. vLLM's hybrid KV cache manager groups layers likewise.

use std::iter;

/// Block tables that a sequence has, at most: each costs the scheduler time.
const MOST_GROUPS: usize = 8;

/// The groups of a model's layers: first those that see every token, then those with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheGroups {
    full: usize,
    windowed: usize,
    /// Tokens that a layer with a window sees, itself the last of them.
    window: usize,
    num_layers: usize,
    layers_per_group: usize,
}

/// Where a layer's keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlace {
    /// Its group.
    pub group: usize,
    /// Which of the group's layers it is.
    pub index: usize,
}

impl KvCacheGroups {
    /// One group of one layer that sees every token.
    pub const ONE: Self = Self { full: 1, windowed: 0, window: usize::MAX, num_layers: 1, layers_per_group: 1 };

    /// Groups for layers with these windows. Where windows differ, all are kept as long as the largest needs.
    #[must_use]
    pub fn of(windows: &[Option<usize>]) -> Self {
        let num_layers = windows.len().max(1);
        let slide = windows.iter().flatten().count();
        let see_all = num_layers - slide;
        let window = windows.iter().flatten().copied().max().unwrap_or(usize::MAX);
        // Room for layers that a group does not have is lost: with every token in groups that see all, with those of a window
        // in the others.
        let lost = |kind: usize, size: usize| kind.next_multiple_of(size) - kind;
        let count = |size: usize| see_all.div_ceil(size) + slide.div_ceil(size);
        let sizes = (1..=see_all.max(slide)).filter(|&size| count(size) <= MOST_GROUPS);
        let best = sizes.min_by_key(|&size| (lost(see_all, size), lost(slide, size), count(size)));
        let layers_per_group = best.unwrap_or(num_layers);
        Self {
            full: see_all.div_ceil(layers_per_group),
            windowed: slide.div_ceil(layers_per_group),
            window,
            num_layers,
            layers_per_group,
        }
    }

    /// The place of each layer, in order; `windows` are those that the groups were made [`of`](Self::of).
    #[must_use]
    pub fn places(&self, windows: &[Option<usize>]) -> Vec<LayerPlace> {
        let (mut see_all, mut slide) = (0, self.full * self.layers_per_group);
        let place = |window: &Option<usize>| {
            let next = if window.is_none() { &mut see_all } else { &mut slide };
            let place = LayerPlace { group: *next / self.layers_per_group, index: *next % self.layers_per_group };
            *next += 1;
            place
        };
        windows.iter().map(place).collect()
    }

    /// How many there are: block tables a sequence, and blocks that a stretch of `block_size` tokens takes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.full + self.windowed
    }

    /// Those of them whose layers see every token; they come first.
    #[must_use]
    pub fn num_full(&self) -> usize {
        self.full
    }

    /// Tokens that the layers of a group see, the newest included; `usize::MAX` for all.
    #[must_use]
    pub fn window(&self, group: usize) -> usize {
        if group < self.full { usize::MAX } else { self.window }
    }

    /// Layers whose keys and values are in a block.
    #[must_use]
    pub fn layers_per_group(&self) -> usize {
        self.layers_per_group
    }

    /// Bytes of a token in a block, of a model whose layers together take `bytes_per_token`.
    #[must_use]
    pub fn block_bytes_per_token(&self, bytes_per_token: usize) -> usize {
        (bytes_per_token / self.num_layers).saturating_mul(self.layers_per_group)
    }

    /// Bytes that `tokens` of one sequence take between two steps.
    #[must_use]
    pub fn bytes(&self, bytes_per_token: usize, tokens: usize) -> usize {
        let full = self.full.saturating_mul(tokens);
        let windowed = self.windowed.saturating_mul(tokens.min(self.window));
        full.saturating_add(windowed).saturating_mul(self.block_bytes_per_token(bytes_per_token))
    }

    /// Tokens of one sequence that so many bytes hold between two steps; `usize::MAX` where its length does not matter.
    #[must_use]
    pub fn tokens_in(&self, bytes_per_token: usize, bytes: usize) -> usize {
        let places = bytes / self.block_bytes_per_token(bytes_per_token).max(1);
        let each = places / self.count();
        if self.windowed == 0 || each < self.window {
            return each;
        }
        (places - self.windowed * self.window).checked_div(self.full).unwrap_or(usize::MAX)
    }

    /// Blocks that a table of a group with a window lists at once, at most: a step computes up to `step_tokens` of a
    /// sequence, and the first of them sees a window that may begin anywhere in a block. That leaves room for one token more,
    /// which is kept before the window of a row ahead.
    #[must_use]
    pub fn most_in_window(&self, block_size: usize, step_tokens: usize) -> usize {
        (self.window - 1).saturating_add(step_tokens).div_ceil(block_size).saturating_add(1)
    }

    /// Blocks that a sequence of `tokens` takes, at most, where a step computes up to `step_tokens` of it.
    #[must_use]
    pub fn blocks(&self, tokens: usize, block_size: usize, step_tokens: usize) -> usize {
        let each = tokens.div_ceil(block_size);
        let windowed = self.windowed.saturating_mul(each.min(self.most_in_window(block_size, step_tokens)));
        self.full.saturating_mul(each).saturating_add(windowed)
    }

    /// Tokens of the longest sequence that `num_blocks` blocks can always hold: a whole number of blocks; `usize::MAX` where
    /// its length does not matter.
    #[must_use]
    pub fn longest(&self, num_blocks: usize, block_size: usize, step_tokens: usize) -> usize {
        let in_window = self.most_in_window(block_size, step_tokens);
        let each = num_blocks / self.count();
        if self.windowed == 0 || each < in_window {
            return each.saturating_mul(block_size);
        }
        let left = num_blocks - self.windowed * in_window;
        left.checked_div(self.full).map_or(usize::MAX, |each| each.saturating_mul(block_size))
    }

    /// The window of each group, in order.
    pub fn windows(&self) -> impl Iterator<Item = usize> + use<> {
        iter::repeat_n(usize::MAX, self.full).chain(iter::repeat_n(self.window, self.windowed))
    }
}

impl Default for KvCacheGroups {
    fn default() -> Self {
        Self::ONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many layers of each kind as models have, the last of each period seeing all.
    fn every(period: usize, num_layers: usize, window: usize) -> Vec<Option<usize>> {
        (1..=num_layers).map(|layer| (layer % period != 0).then_some(window)).collect()
    }

    #[test]
    fn models_get_few_groups_and_lose_little_room() {
        // (layers, groups that see all, with a window, layers a group)
        let cases = [
            (vec![None; 28], (1, 0, 28)),
            (vec![Some(4096); 32], (0, 1, 32)),
            (every(2, 24, 128), (1, 1, 12)),  // gpt-oss 20B
            (every(2, 26, 4096), (1, 1, 13)), // Gemma 2 2B
            (every(6, 26, 512), (1, 6, 4)),   // Gemma 3 1B: 4 and 22
            (every(6, 34, 1024), (1, 6, 5)),  // Gemma 3 4B: 5 and 29
            (every(6, 62, 1024), (1, 6, 10)), // Gemma 3 27B: 10 and 52
            (every(4, 32, 4096), (1, 3, 8)),  // Command R7B
            (every(28, 28, 4096), (1, 7, 4)), // Layers of their own kind do not make tables without end.
        ];
        for (windows, (full, windowed, layers)) in cases {
            let groups = KvCacheGroups::of(&windows);
            assert_eq!((groups.full, groups.windowed, groups.layers_per_group), (full, windowed, layers));
            let places = groups.places(&windows);
            for (layer, (place, window)) in places.iter().zip(&windows).enumerate() {
                assert!(place.group < groups.count() && place.index < layers);
                assert_eq!(groups.window(place.group), window.unwrap_or(usize::MAX), "layer {layer}");
                assert!(!places[..layer].contains(place), "layer {layer} has a place of its own");
            }
            assert_eq!(
                groups.windows().collect::<Vec<_>>(),
                (0..groups.count()).map(|g| groups.window(g)).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn the_longest_sequence_is_the_longest_whose_blocks_are_there() {
        for windows in [vec![None; 2], vec![Some(9); 2], every(2, 4, 9), every(6, 12, 5), vec![Some(1), None, None]] {
            let groups = KvCacheGroups::of(&windows);
            for (num_blocks, block_size, step) in
                [(7, 1, 1), (40, 4, 3), (41, 4, 16), (100, 16, 64), (0, 4, 4), (8, 3, 1)]
            {
                let longest = groups.longest(num_blocks, block_size, step);
                let fits = |tokens| groups.blocks(tokens, block_size, step) <= num_blocks;
                assert!(fits(longest), "{groups:?} {num_blocks} {block_size} {step}: {longest}");
                assert!(longest == usize::MAX || !fits(longest + 1), "{groups:?} {num_blocks} {block_size} {step}");
            }
        }
    }

    #[test]
    fn a_window_saves_what_lies_before_it() {
        let groups = KvCacheGroups::of(&every(6, 26, 512));
        // Four layers of all, 22 and two for which there is room of the last 512, a byte a layer and token.
        assert_eq!(groups.bytes(26, 32768), 4 * 32768 + 24 * 512);
        assert_eq!(groups.bytes(26, 100), 28 * 100);
        assert_eq!(KvCacheGroups::of(&[None; 26]).bytes(26, 32768), 26 * 32768);
        for tokens in [1, 100, 512, 513, 32768] {
            let bytes = groups.bytes(26, tokens);
            assert_eq!((groups.tokens_in(26, bytes), groups.tokens_in(26, bytes - 1)), (tokens, tokens - 1));
        }
        let sliding = KvCacheGroups::of(&[Some(512); 26]);
        assert_eq!([26 * 512, 26 * 512 - 1].map(|bytes| sliding.tokens_in(26, bytes)), [usize::MAX, 511]);
    }
}
