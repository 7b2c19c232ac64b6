//! What was found out once and is kept, up to so many.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

/// Values by key. Where there is no room for one more all are forgotten: those that are in use come back within a step, and
/// nobody has to keep account of which these are.
pub(super) struct Remembered<K, V> {
    values: HashMap<K, V>,
    most: usize,
}

impl<K: Eq + Hash, V> Remembered<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { values: HashMap::new(), most }
    }

    /// The value of a key, made where it is not known.
    ///
    /// # Errors
    /// What making it fails with; nothing is remembered of that.
    pub(super) fn get_or_make<E>(&mut self, key: K, make: impl FnOnce(&K) -> Result<V, E>) -> Result<&mut V, E> {
        if self.values.len() >= self.most && !self.values.contains_key(&key) {
            self.values.clear();
        }
        Ok(match self.values.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let value = make(place.key())?;
                place.insert(value)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn what_is_known_is_not_made_again_and_there_is_never_more_than_the_bound() {
        let (mut remembered, mut made) = (Remembered::new(3), Vec::new());
        let mut ask = |key: u32| {
            let value = remembered.get_or_make(key, |key| {
                made.push(*key);
                Ok::<_, Infallible>(10 * key)
            });
            assert_eq!(value, Ok(&mut (10 * key)));
            remembered.values.len()
        };
        let sizes: Vec<usize> = [1, 2, 1, 3, 3, 2, 4, 4, 1].map(&mut ask).to_vec();
        assert_eq!(sizes, [1, 2, 2, 3, 3, 3, 1, 1, 2]);
        assert_eq!(made, [1, 2, 3, 4, 1]);
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let mut remembered = Remembered::new(3);
        assert_eq!(remembered.get_or_make(1, |_| Err::<u32, _>("no")), Err("no"));
        assert_eq!(remembered.get_or_make(1, |_| Ok::<_, &str>(7)), Ok(&mut 7));
    }
}
