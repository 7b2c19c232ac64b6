//! Which experts each token gets, and where their rows are among those of all: what a mixture needs before it multiplies, made where
//! the scores are, so that nobody waits for the host.
//!
//! Rows stand in the order of experts, those of an expert in the order of tokens, and are cut into tiles, none with rows of two
//! experts. How many tiles there are depends on the choice; there is room for as many as any choice could need.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;
mod portable;
mod routing;

#[cfg(feature = "cuda")]
use candle_core::Device;
use candle_core::{DType, Tensor};

pub use routing::{Routing, Scores};

use crate::error::{Error, Result};

/// A [`Routing`] of so many experts, as a device wants it.
pub struct Router {
    routing: Routing,
    experts: usize,
    /// Whether scores have one more behind those of the experts, whose sigmoid is one weight more.
    weighed: bool,
}

/// Most experts: their scores are in the memory that threads share.
const MOST_EXPERTS: usize = 4096;
/// What stands for no expert.
pub(super) const NONE: u32 = u32::MAX;

impl Router {
    /// Of so many experts.
    ///
    /// # Errors
    /// `Internal` where the [routing](Routing::check) is not one of so many experts, or these are too many for a card.
    pub fn new(routing: &Routing, experts: usize) -> Result<Self> {
        routing.check(experts)?;
        if experts > MOST_EXPERTS {
            return Err(Error::internal(format!("route: {experts} experts, of which there may be {MOST_EXPERTS}")));
        }
        Ok(Self { routing: routing.clone(), experts, weighed: false })
    }

    /// The same where each token has a score more, behind those of the experts.
    #[must_use]
    pub fn weighed(self) -> Self {
        Self { weighed: true, ..self }
    }

    /// Weights a token.
    fn each(&self) -> usize {
        self.routing.experts_per_token + usize::from(self.weighed)
    }
}

/// Where the rows of experts are, and whose. All of it is on the device of the scores.
pub struct Routes {
    /// Whose each row is: `[rows]`, u32.
    pub tokens: Tensor,
    /// Where the rows of each token's choices are, `[tokens * each]`, u32. That of a score more is behind those of all experts,
    /// token by token.
    pub places: Tensor,
    /// What they count: `[tokens * each]`, float32.
    pub weights: Tensor,
    /// The [tiles](Tiles) that rows are cut into.
    pub tiles: Tiles,
}

/// Rows of experts, cut up.
pub struct Tiles {
    /// Expert, first row and the row behind the last: `[tiles, 3]`, u32. One that is not needed has no expert (`u32::MAX`).
    pub bounds: Tensor,
    /// How many rows one has at most.
    pub rows: usize,
}

/// Heights of tiles: the second where experts have as many rows as half of it on average.
pub(super) const TILE_ROWS: [usize; 2] = [16, 64];

/// How high tiles are, and how many may be needed, for so many rows of so many experts.
fn tiling(rows: usize, experts: usize) -> (usize, usize) {
    let height = TILE_ROWS[usize::from(rows >= experts * TILE_ROWS[1] / 2)];
    // All but one row of each expert's may be in tiles that are full.
    (height, rows.min(rows / height + experts))
}

/// Routes tokens by their float32 scores `[tokens, experts]`, or one more a token where the router has that.
///
/// # Errors
/// `Internal` where the scores have another shape or type.
pub fn route(scores: &Tensor, router: &Router) -> Result<Routes> {
    let width = router.experts + usize::from(router.weighed);
    if !matches!(scores.dims(), [_, w] if *w == width) || scores.dtype() != DType::F32 {
        let (dims, dtype) = (scores.dims(), scores.dtype());
        return Err(Error::internal(format!("route: the scores are {dtype:?} {dims:?}, must be F32 [n, {width}]")));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(_) = scores.device() {
        return cuda::route(scores, router);
    }
    portable::route(scores, router)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn routing(experts_per_token: usize) -> Routing {
        let scores = Scores::Softmax;
        Routing { experts_per_token, scores, renormalize: true, scale: 1.0, selection_bias: None, groups: (1, 1) }
    }

    #[test]
    fn tiles_are_enough_for_any_choice() {
        for (rows, experts) in [(0, 4), (1, 128), (8, 128), (512, 8), (513, 8), (4096, 8), (65_536, 128)] {
            let (height, tiles) = tiling(rows, experts);
            // The worst: as many experts as can be with one row in a tile of its own, all else in one.
            for alone in 0..experts.min(rows + 1) {
                assert!(alone + (rows - alone).div_ceil(height) <= tiles, "{rows} of {experts}: {tiles}");
            }
        }
    }

    #[test]
    fn rows_stand_by_expert_and_each_token_finds_its_own() {
        // Two of three experts a token, and one score more.
        let scores = [[3.0f32, 1.0, 2.0, 0.0], [0.0, 2.0, 1.0, 1.0], [5.0, 0.0, 4.0, -1.0]];
        let router = Router::new(&routing(2), 3).unwrap().weighed();
        let routes = route(&Tensor::new(&scores, &Device::Cpu).unwrap(), &router).unwrap();
        // Tokens 0 and 2 have the experts 0 and 2, token 1 has 1 and 2.
        assert_eq!(routes.tokens.to_vec1::<u32>().unwrap(), [0, 2, 1, 0, 1, 2]);
        assert_eq!(routes.places.to_vec1::<u32>().unwrap(), [0, 3, 6, 2, 4, 7, 1, 5, 8]);
        let tiles: Vec<Vec<u32>> = routes.tiles.bounds.to_vec2().unwrap();
        assert_eq!(tiles[..3], [[0, 0, 2], [1, 2, 3], [2, 3, 6]]);
        assert!(tiles[3..].iter().all(|tile| tile[0] == NONE));
        let weights: Vec<f32> = routes.weights.to_vec1().unwrap();
        assert!((weights[0] + weights[1] - 1.0).abs() < 1e-6 && weights[2] == 0.5, "{weights:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Router::new(&routing(4), 3).is_err());
        assert!(Router::new(&routing(0), 3).is_err());
        assert!(Router::new(&Routing { groups: (4, 1), ..routing(3) }, 8).is_err());
        assert!(Router::new(&Routing { selection_bias: Some(vec![0.0]), ..routing(1) }, 3).is_err());
        let router = Router::new(&routing(1), 3).unwrap();
        let scores = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(route(&scores, &router).err().unwrap().message.contains("[n, 3]"));
    }
}
