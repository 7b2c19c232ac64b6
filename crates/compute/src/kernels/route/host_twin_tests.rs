//! The kernels of route.cu, as host C++, against the choice and the order that the host makes.

use super::{Router, Routing, Scores, launches::RouteLaunch, route, tiling};
use crate::kernels::{
    cuda::host_twin::{Order, Output, Twin, address},
    test_data::{assert_close, floats, rng, tensor},
};

static TWIN: Twin = Twin::of("route");

/// What the kernels write of these scores: whose rows are, places, weights, tiles.
fn run(scores: &[f32], stride: usize, router: &Router, order: Order) -> (Vec<u32>, Vec<u32>, Vec<f32>, Vec<u32>) {
    let tokens = scores.len() / stride;
    let num_rows = tokens * router.routing.experts_per_token;
    let (rows_per_tile, num_tiles) = tiling(num_rows, router.experts);
    let mut chosen = Output::unwritten(num_rows, 7_777_777u32);
    let mut places = Output::unwritten(tokens * router.each(), 7_777_777u32);
    let mut weights = Output::unwritten(tokens * router.each(), 7.0f32);
    let mut of_rows = Output::unwritten(num_rows, 7_777_777u32);
    let mut tiles = Output::unwritten(3 * num_tiles, 7_777_777u32);
    let launch = RouteLaunch {
        routing: &router.routing,
        experts: router.experts,
        weighed: router.weighed,
        scores: (address(scores), stride),
        selection_bias: router.routing.selection_bias.as_deref().map_or(0, address),
        tokens,
        chosen: chosen.address(),
        weights: weights.address(),
        places: places.address(),
        of_rows: of_rows.address(),
        tiles: tiles.address(),
        num_tiles,
        rows_per_tile,
    };
    // SAFETY: the addresses are of buffers of these sizes.
    unsafe {
        TWIN.run(&launch.choose(), order);
        TWIN.run(&launch.sort(), order);
    }
    chosen.written();
    let written = (of_rows.written(), places.written(), weights.written(), tiles.written());
    (written.0.to_vec(), written.1.to_vec(), written.2.to_vec(), written.3.to_vec())
}

/// The kernels' routes are the host's, in both orders of threads.
fn check(scores: &[f32], stride: usize, router: &Router, what: &str) {
    let width = router.experts + usize::from(router.weighed);
    let all = tensor(scores.to_vec(), &[scores.len() / stride, stride]).narrow(1, 0, width).unwrap();
    let want = route(&all, router).unwrap();
    let mut bounds: Vec<u32> = want.tiles.bounds.flatten_all().unwrap().to_vec1().unwrap();
    let [forward, reversed] = Order::BOTH.map(|order| run(scores, stride, router, order));
    let (tokens, places, weights, mut tiles) = forward.clone();
    assert_eq!(tokens, want.tokens.to_vec1::<u32>().unwrap(), "{what}");
    assert_eq!(places, want.places.to_vec1::<u32>().unwrap(), "{what}");
    let close: Vec<f64> = want.weights.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
    assert_close(&weights, &close, 1e-6);
    // Of a tile that is not needed, nothing but that is read.
    for tile in [&mut bounds, &mut tiles].into_iter().flat_map(|tiles| tiles.chunks_exact_mut(3)) {
        if tile[0] == super::NONE {
            tile[1..].fill(0);
        }
    }
    assert_eq!(tiles, bounds, "{what}");
    assert_eq!(forward, reversed, "{what}");
}

fn routing(experts_per_token: usize, scores: Scores) -> Routing {
    Routing { experts_per_token, scores, renormalize: false, scale: 1.0, selection_bias: None, groups: (1, 1) }
}

#[test]
fn routes_are_those_of_the_host_whatever_the_rules() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(1);
    for (tokens, experts, each) in [(1, 4, 2), (3, 1, 1), (70, 8, 2), (40, 128, 8), (9, 60, 4), (300, 6, 6)] {
        for scores in [Scores::Softmax, Scores::SoftmaxOfTaken, Scores::Sigmoid] {
            let plain = routing(each, scores);
            let bias = floats(&mut rng, experts);
            let rules = [
                plain.clone(),
                Routing { renormalize: true, scale: 2.5, ..plain.clone() },
                Routing { selection_bias: Some(bias), ..plain },
            ];
            for (k, rules) in rules.iter().enumerate() {
                let stride = experts + 3;
                let logits: Vec<f32> = floats(&mut rng, tokens * stride).iter().map(|x| x * 4.0).collect();
                let router = Router::new(rules, experts).unwrap();
                let router = if k == 1 { router.weighed() } else { router };
                check(&logits, stride, &router, &format!("{tokens} tokens, {each} of {experts} by {scores:?}, {k}"));
            }
        }
    }
}

#[test]
fn groups_open_and_close_as_on_the_host() {
    if !TWIN.exists() {
        return;
    }
    let mut rng = rng(2);
    for (experts, each, groups) in [(64, 6, (8, 3)), (40, 2, (40, 5)), (35, 3, (4, 1))] {
        let bias = Some(floats(&mut rng, experts));
        let rules =
            Routing { groups, selection_bias: bias, renormalize: true, scale: 2.5, ..routing(each, Scores::Sigmoid) };
        let router = Router::new(&rules, experts).unwrap();
        check(&floats(&mut rng, 33 * experts), experts, &router, &format!("{each} of {experts} in {groups:?}"));
    }
}

#[test]
fn equals_keep_their_order_and_what_is_no_number_comes_last() {
    if !TWIN.exists() {
        return;
    }
    let router = Router::new(&routing(3, Scores::Sigmoid), 5).unwrap();
    let nan = f32::NAN;
    check(&[1.0, 1.0, 1.0, 1.0, 1.0, nan, 0.0, -0.0, 0.0, nan, 2.0, 3.0, 2.0, 3.0, 9.0], 5, &router, "ties");
    // All tokens at one expert: the others have no rows and no tiles.
    let router = Router::new(&routing(1, Scores::Softmax), 40).unwrap();
    let mut scores = vec![0.0; 100 * 40];
    scores.iter_mut().skip(17).step_by(40).for_each(|score| *score = 5.0);
    check(&scores, 40, &router, "one expert");
}
