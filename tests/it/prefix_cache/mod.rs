//! How often the prefix cache has what is asked for, beside an ideal one of the same size.

pub mod replay;

use replay::{Trace, conversations, ideal, replay};

#[test]
fn the_ideal_cache_finds_what_can_be_counted_by_hand() {
    let trace: Trace = vec![vec![1, 2, 3], vec![1, 2, 4], vec![5, 2, 3], vec![1, 2, 3]];
    // All fits: two blocks of the second prompt, none of the third (block 2 stands behind another one), the last whole.
    assert_eq!(ideal(&trace, 100), 5.0 / 12.0);
    // Five blocks: the third prompt's three leave 1 and 2, behind which 3 is gone.
    assert_eq!(ideal(&trace, 5), 4.0 / 12.0);
    assert_eq!(ideal(&trace, 3), 2.0 / 12.0);
}

#[test]
fn the_prefix_cache_finds_what_an_ideal_one_of_its_size_would() {
    for seed in [1, 2] {
        let trace = conversations(1500, seed);
        let mut rates = Vec::new();
        for num_blocks in [150, 500, 3000] {
            let (found, best) = (replay(&trace, num_blocks, 16, 1).unwrap(), ideal(&trace, num_blocks));
            assert!((found - best).abs() < 0.02, "{num_blocks} blocks: {found:.3}, and {best:.3} is ideal");
            rates.push(best);
        }
        // Sizes between which it matters.
        assert!(rates[0] > 0.1 && rates[1] > rates[0] + 0.1 && rates[2] > rates[1] + 0.1, "{rates:?}");
    }
}
