//! The convolution of one sequence from its first token, in float64.

pub(super) fn causal_conv(x: &[f32], weight: &[f32], channels: usize, activation: impl Fn(f64) -> f64) -> Vec<f64> {
    let taps = weight.len() / channels;
    let at = |token: usize, channel: usize| f64::from(x[token * channels + channel]);
    let mut out = Vec::with_capacity(x.len());
    for token in 0..x.len() / channels {
        for channel in 0..channels {
            // The last tap is of the token itself, those before it of the tokens before it.
            let product = |back: usize| {
                let weight = f64::from(weight[(taps - 1 - back) * channels + channel]);
                if back <= token { weight * at(token - back, channel) } else { 0.0 }
            };
            out.push(activation((0..taps).map(product).sum()));
        }
    }
    out
}
