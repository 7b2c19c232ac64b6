//! How the kernels of route.cu are launched.

use super::{Routing, Scores};
use crate::kernels::cuda::{Arg, Call, Launch};

/// Threads of a block that sorts.
const THREADS: u32 = 256;

/// Addresses on the card, and sizes.
pub(super) struct RouteLaunch<'a> {
    pub(super) routing: &'a Routing,
    pub(super) experts: usize,
    /// Whether a token has one score and one weight more.
    pub(super) weighed: bool,
    /// Float32 `[tokens, experts]`, or one score more a token, and the numbers between two rows.
    pub(super) scores: (u64, usize),
    /// Float32 `[experts]`; 0 for none.
    pub(super) selection_bias: u64,
    pub(super) tokens: usize,
    /// `[tokens, experts_per_token]`.
    pub(super) chosen: u64,
    /// Float32 `[tokens, each]`.
    pub(super) weights: u64,
    /// `[tokens, each]`.
    pub(super) places: u64,
    /// `[tokens * experts_per_token]`.
    pub(super) of_rows: u64,
    /// `[num_tiles, 3]`.
    pub(super) tiles: u64,
    pub(super) num_tiles: usize,
    pub(super) rows_per_tile: usize,
}

impl RouteLaunch<'_> {
    /// Chooses each token's experts: a warp a token, of which there is at least one.
    pub(super) fn choose(&self) -> Call<14> {
        let Routing { experts_per_token, scores, renormalize, scale, groups: (groups, open), .. } = *self.routing;
        let kind = match scores {
            Scores::Softmax => 0,
            Scores::SoftmaxOfTaken => 1,
            Scores::Sigmoid => 2,
        };
        let shared_bytes = (2 * self.experts + groups) * size_of::<f32>();
        Call {
            kernel: "candlewick_route_choose",
            launch: Launch { grid: [self.tokens as u32, 1, 1], block: [32, 1, 1], shared_bytes: shared_bytes as u32 },
            args: [
                Arg::Ptr(self.scores.0),
                Arg::U64(self.scores.1 as u64),
                Arg::Ptr(self.selection_bias),
                Arg::Ptr(self.chosen),
                Arg::Ptr(self.weights),
                Arg::Ptr(self.places),
                Arg::U32(self.experts as u32),
                Arg::U32(experts_per_token as u32),
                Arg::U32(groups as u32),
                Arg::U32(open as u32),
                Arg::U32(kind),
                Arg::U32(renormalize.into()),
                Arg::F32(scale),
                Arg::U32(self.weighed.into()),
            ],
        }
    }

    /// Puts the rows of each expert together: a block an expert.
    pub(super) fn sort(&self) -> Call<10> {
        let taken = self.routing.experts_per_token;
        let shared_bytes = (self.experts * size_of::<u32>()) as u32 + THREADS / 32 * 4;
        Call {
            kernel: "candlewick_route_sort",
            launch: Launch { grid: [self.experts as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes },
            args: [
                Arg::Ptr(self.chosen),
                Arg::Ptr(self.of_rows),
                Arg::Ptr(self.places),
                Arg::Ptr(self.tiles),
                Arg::U32((self.tokens * taken) as u32),
                Arg::U32(taken as u32),
                Arg::U32((taken + usize::from(self.weighed)) as u32),
                Arg::U32(self.experts as u32),
                Arg::U32(self.rows_per_tile as u32),
                Arg::U32(self.num_tiles as u32),
            ],
        }
    }
}
