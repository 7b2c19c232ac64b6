//! How the queries of a step become units of work. What sequences have in common, a system prompt or that of several
//! samples, is read once for many of them, and not for each (Juravsky et al., 2024, arXiv:2402.05099).
//!
//! Rows of one query are sorted by their block tables, so that those that begin alike are neighbours. Neighbours form a
//! tree: keys that all of them see in the same blocks are one stretch, which they go through together; then each branch goes
//! on from what it has come to. A query meets the same keys in the same order either way, so none of its bits change.

use std::ops::Range;

use super::{KEYS, Row, register_tile::tile_range};

/// A query of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query {
    /// In the batch.
    pub(super) index: usize,
    /// In its sequence.
    pub(super) position: usize,
    /// Whose it is, in the step's rows.
    pub(super) row: usize,
}

/// Queries that one thread takes, in stretches of keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) queries: Range<usize>,
    pub(super) stretches: Range<usize>,
}

/// Some queries of a unit, and the positions whose keys they go through next, from `0` or where another stretch has ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stretch {
    /// From the unit's first on.
    pub(super) queries: Range<usize>,
    /// From one tile's beginning to another's, or to [`ALL`].
    pub(super) keys: Range<usize>,
}

/// The end of a query's last stretch.
pub(super) const ALL: usize = usize::MAX;

/// The most queries of a unit.
#[derive(Clone, Copy)]
pub(super) struct Most {
    /// Of one row.
    pub(super) of_a_row: usize,
    /// Of rows that have a prefix in common.
    pub(super) of_a_prefix: usize,
}

/// The units of a step; its vectors are kept from step to step.
#[derive(Default)]
pub(super) struct Cascade {
    pub(super) queries: Vec<Query>,
    pub(super) units: Vec<Unit>,
    pub(super) stretches: Vec<Stretch>,
    /// Keys that a query's next neighbour has in common with it, in whole tiles; of rows of one query.
    common: Vec<usize>,
}

impl Cascade {
    /// Plans these rows, whose queries see `window` keys.
    pub(super) fn plan(&mut self, rows: &[Row<'_>], block_size: usize, window: usize, most: Most) {
        let Self { queries, units, stretches, common } = self;
        queries.clear();
        units.clear();
        stretches.clear();
        common.clear();
        let of_row = |(row, one): (usize, &Row<'_>)| {
            let first = one.context_len;
            one.queries.clone().enumerate().map(move |(at, index)| Query { index, position: first + at, row })
        };
        queries.extend(rows.iter().enumerate().filter(|(_, row)| row.queries.len() == 1).flat_map(of_row));
        queries.sort_unstable_by(|a, b| rows[a.row].blocks.cmp(rows[b.row].blocks));
        common.extend(queries.windows(2).map(|pair| {
            let blocks = rows[pair[0].row].blocks.iter().zip(rows[pair[1].row].blocks);
            let alike = blocks.take_while(|(a, b)| a == b).count() * block_size;
            let seen = pair.iter().map(|query| if query.position < window { query.position + 1 } else { 0 });
            seen.fold(alike, usize::min) / KEYS * KEYS
        }));
        let singles = queries.len();
        let mut start = 0;
        while start < singles {
            let more = self.common[start..].iter().take_while(|&&common| common > 0).count();
            let count = more + 1;
            for piece in 0..count.div_ceil(most.of_a_prefix) {
                let piece = tile_range(count, most.of_a_prefix, piece);
                self.unit(start + piece.start..start + piece.end);
            }
            start += count;
        }
        for row in rows.iter().enumerate().filter(|(_, row)| row.queries.len() > 1) {
            let first = self.queries.len();
            self.queries.extend(of_row(row));
            for start in (first..self.queries.len()).step_by(most.of_a_row) {
                let queries = start..self.queries.len().min(start + most.of_a_row);
                let stretches = self.stretches.len()..self.stretches.len() + 1;
                self.stretches.push(Stretch { queries: 0..queries.len(), keys: 0..ALL });
                self.units.push(Unit { queries, stretches });
            }
        }
    }

    /// Makes a unit of rows of one query.
    fn unit(&mut self, queries: Range<usize>) {
        let first = self.stretches.len();
        self.branch(queries.clone(), 0);
        for stretch in &mut self.stretches[first..] {
            stretch.queries = stretch.queries.start - queries.start..stretch.queries.end - queries.start;
        }
        self.units.push(Unit { queries, stretches: first..self.stretches.len() });
    }

    /// Takes some of them, which are together up to key `from`, to their ends.
    fn branch(&mut self, queries: Range<usize>, from: usize) {
        let Some(&until) = self.common[queries.start..queries.end - 1].iter().min() else {
            return self.stretches.push(Stretch { queries, keys: from..ALL });
        };
        if until > from {
            self.stretches.push(Stretch { queries: queries.clone(), keys: from..until });
        }
        let mut start = queries.start;
        for end in start + 1..=queries.end {
            if end == queries.end || self.common[end - 1] == until {
                self.branch(start..end, until);
                start = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::{ids::BlockId, kernels::test_data::rng};

    const BLOCK_SIZE: usize = 32;

    /// Plans one query at the last position of each table, whose last block is full.
    fn planned(tables: &[Vec<BlockId>], window: usize, of_a_prefix: usize) -> Cascade {
        let rows = tables.iter().enumerate().map(|(index, blocks)| Row {
            queries: index..index + 1,
            context_len: blocks.len() * BLOCK_SIZE - 1,
            blocks,
        });
        let mut cascade = Cascade::default();
        cascade.plan(&rows.collect::<Vec<_>>(), BLOCK_SIZE, window, Most { of_a_row: 4, of_a_prefix });
        cascade
    }

    fn table(blocks: &[u32]) -> Vec<BlockId> {
        blocks.iter().copied().map(BlockId).collect()
    }

    /// Each stretch as the rows that go through it and its keys.
    fn stretches(cascade: &Cascade) -> Vec<(Vec<usize>, Range<usize>)> {
        let of_unit = |unit: &Unit| {
            let queries = &cascade.queries[unit.queries.clone()];
            let rows = |stretch: &Stretch| queries[stretch.queries.clone()].iter().map(|query| query.row).collect();
            let stretches = cascade.stretches[unit.stretches.clone()].iter();
            stretches.map(move |stretch| (rows(stretch), stretch.keys.clone())).collect::<Vec<_>>()
        };
        cascade.units.iter().flat_map(of_unit).collect()
    }

    #[test]
    fn rows_go_through_what_they_share_together_and_branch_where_they_differ() {
        // A tile has two blocks.
        let tables = [
            table(&[1, 2, 3, 4, 5, 6, 20]),
            table(&[40, 41]),
            table(&[1, 2, 3, 4, 7, 8, 21]),
            table(&[1, 2, 3, 4, 5, 6, 22]),
            table(&[1, 2, 30]),
            table(&[1, 50]),
        ];
        let want = [
            (vec![0, 3, 2, 4], 0..64),
            (vec![0, 3, 2], 64..128),
            (vec![0, 3], 128..192),
            (vec![0], 192..ALL),
            (vec![3], 192..ALL),
            (vec![2], 128..ALL),
            (vec![4], 64..ALL),
            (vec![5], 0..ALL),
            (vec![1], 0..ALL),
        ];
        assert_eq!(stretches(&planned(&tables, usize::MAX, 8)), want);
        // Keys that have left the window of one are not common.
        assert_eq!(stretches(&planned(&tables, 100, 8))[..2], [(vec![0], 0..ALL), (vec![3], 0..ALL)]);
        // No unit has more queries than it may have.
        let pairs = stretches(&planned(&tables, usize::MAX, 2));
        assert_eq!(pairs[..2], [(vec![0, 3], 0..192), (vec![0], 192..ALL)]);
        assert_eq!(pairs[3], (vec![2, 4], 0..64));
    }

    #[test]
    fn every_query_goes_through_its_own_blocks_once_and_in_order() {
        let mut rng = rng(1);
        for _ in 0..300 {
            // Few different blocks, so that many begin alike, whatever that says of a cache.
            let tables: Vec<_> = (0..rng.random_range(1..12))
                .map(|_| (0..rng.random_range(1..9)).map(|_| BlockId(rng.random_range(0..2))).collect::<Vec<_>>())
                .collect();
            let most = rng.random_range(1..12);
            let cascade = planned(&tables, [usize::MAX, 100][rng.random_range(0..2)], most);
            let mut ends = vec![0; tables.len()];
            for (rows, keys) in stretches(&cascade) {
                assert!(rows.len() <= most && (rows.len() == 1 || keys.end < ALL), "{tables:?}");
                for &row in &rows {
                    assert_eq!(ends[row], keys.start, "{tables:?}");
                    ends[row] = keys.end;
                    if rows.len() > 1 {
                        let blocks = keys.start / BLOCK_SIZE..keys.end / BLOCK_SIZE;
                        assert_eq!(tables[row][blocks.clone()], tables[rows[0]][blocks], "{tables:?}");
                    }
                }
            }
            assert!(ends.iter().all(|&end| end == ALL), "{tables:?}");
        }
    }

    #[test]
    fn queries_of_one_row_are_together_to_the_end() {
        let blocks = table(&[1, 2, 3]);
        let rows = [
            Row { queries: 0..6, context_len: 3, blocks: &blocks },
            Row { queries: 6..7, context_len: 0, blocks: &blocks },
        ];
        let mut cascade = Cascade::default();
        cascade.plan(&rows, BLOCK_SIZE, usize::MAX, Most { of_a_row: 4, of_a_prefix: 4 });
        assert_eq!(stretches(&cascade), [(vec![1], 0..ALL), (vec![0; 4], 0..ALL), (vec![0; 2], 0..ALL)]);
        let positions: Vec<_> = cascade.queries.iter().map(|query| (query.index, query.position)).collect();
        assert_eq!(positions, [(6, 0), (0, 3), (1, 4), (2, 5), (3, 6), (4, 7), (5, 8)]);
    }
}
