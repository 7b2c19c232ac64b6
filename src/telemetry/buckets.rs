//! Where the bars of histograms end.

/// Upper bounds in seconds. vLLM's, with finer ones below, where a small model on a CPU lives.
pub(super) const TTFT_SECONDS: [f64; 21] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0,
];
pub(super) const INTER_TOKEN_SECONDS: [f64; 19] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 10.0, 40.0];
pub(super) const REQUEST_SECONDS: [f64; 22] = [
    0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    480.0, 1920.0,
];
/// Phases of a step, which on a small model take microseconds.
pub(super) const STEP_SECONDS: [f64; 16] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0,
];
/// Tokens of a request.
pub(super) const REQUEST_TOKENS: [f64; 18] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0, 200_000.0, 500_000.0,
];
/// Tokens of a step.
pub(super) const STEP_TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0];
/// Bytes a second that memory gives, from a small model on a busy core to a GPU.
pub(super) const BYTES_PER_SECOND: [f64; 13] =
    [1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10, 2.5e10, 5e10, 1e11, 2.5e11, 1e12, 4e12];
/// Sequences of a request.
pub(super) const SEQUENCES: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];
