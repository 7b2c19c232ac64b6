//! Tokens that a step chose, which the next step goes on from before the host has heard of them.
//!
//! They stay where the logits were. A copy goes to the host behind the step ([`Chosen::wait`]), and the next step's ids are put
//! together there, out of those that the host knows and those that were chosen ([`follow`]).

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod host_twin_tests;
#[cfg(any(test, feature = "cuda"))]
mod launches;

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    ids::TokenId,
};

/// What stands for no token, or for no place.
pub const NONE: u32 = u32::MAX;

/// The tokens that a step chose, on their way to the host.
pub struct Chosen {
    tokens: Tensor,
    #[cfg(feature = "cuda")]
    fetched: Option<cuda::Fetched>,
}

impl Chosen {
    /// Of u32 `[rows]`, [`NONE`] for a row that has no token. On a card the copy to the host is queued behind what writes them.
    ///
    /// # Errors
    /// `Internal` where the copy cannot be queued, or they are no such numbers.
    pub(crate) fn new(tokens: Tensor) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "cuda")]
            fetched: tokens.device().is_cuda().then(|| cuda::fetch(&tokens)).transpose()?,
            tokens,
        })
    }

    /// The same of tokens that the host has.
    pub(crate) fn here(tokens: &[Option<TokenId>]) -> Result<Self> {
        let numbers: Vec<u32> = tokens.iter().map(|token| token.map_or(NONE, |token| token.0)).collect();
        Self::new(Tensor::new(numbers, &candle_core::Device::Cpu)?)
    }

    /// Where they are, u32 `[rows]`.
    #[must_use]
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Waits until they have been chosen; a row that has none has none.
    ///
    /// # Errors
    /// `Internal` where the step went wrong.
    pub fn wait(self) -> Result<Vec<Option<TokenId>>> {
        #[cfg(feature = "cuda")]
        if let Some(fetched) = self.fetched {
            return Ok(read(&fetched.wait()?));
        }
        Ok(read(&self.tokens.to_vec1()?))
    }
}

fn read(numbers: &[u32]) -> Vec<Option<TokenId>> {
    numbers.iter().map(|&id| (id != NONE).then_some(TokenId(id))).collect()
}

/// Ids of a step, u32 `[ids.len()]` where `chosen` is: of each its own, or the one at its place of those that the step before
/// chose, where `places` has one and not [`NONE`]. A place without a token gives token 0: its sequence has failed, and nobody will
/// ask for what comes of it.
///
/// # Errors
/// `Internal` where there are not as many places as ids, or a place is none of the chosen.
pub fn follow(ids: &[TokenId], places: &[u32], chosen: &Tensor) -> Result<Tensor> {
    let count = chosen.dims1()?;
    if places.len() != ids.len() || places.iter().any(|&place| place != NONE && place as usize >= count) {
        let why = format!("follow: {} ids, {} places among {count} tokens", ids.len(), places.len());
        return Err(Error::internal(why));
    }
    #[cfg(feature = "cuda")]
    if chosen.device().is_cuda() {
        return cuda::follow(bytemuck::cast_slice(ids), places, chosen);
    }
    let tokens: Vec<u32> = chosen.to_vec1()?;
    let known = bytemuck::cast_slice(ids).iter().zip(places);
    Ok(Tensor::new(known.map(|(&id, &place)| followed(id, place, &tokens)).collect::<Vec<u32>>(), chosen.device())?)
}

fn followed(id: u32, place: u32, chosen: &[u32]) -> u32 {
    let id = if place == NONE { id } else { chosen[place as usize] };
    if id == NONE { 0 } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_hosts_or_those_that_were_chosen() {
        let chosen = Chosen::here(&[Some(TokenId(7)), None, Some(TokenId(9))]).unwrap();
        let ids = follow(&[3, 4, 5, 6].map(TokenId), &[NONE, 2, 1, 0], chosen.tokens()).unwrap();
        assert_eq!(ids.to_vec1::<u32>().unwrap(), [3, 9, 0, 7]);
        assert_eq!(chosen.wait().unwrap(), [Some(TokenId(7)), None, Some(TokenId(9))]);
    }

    #[test]
    fn a_place_that_is_none_is_refused() {
        let chosen = Chosen::here(&[Some(TokenId(7))]).unwrap();
        for (ids, places) in [(&[TokenId(0)][..], &[1][..]), (&[TokenId(0)], &[]), (&[], &[0])] {
            assert!(follow(ids, places, chosen.tokens()).unwrap_err().message.contains("places among 1 tokens"));
        }
    }
}
