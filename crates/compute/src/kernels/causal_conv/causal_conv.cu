// A causal convolution of each channel by itself: one chain of multiply-adds from the oldest input to the newest, a thread a
// result. The states are moved on by a second kernel, when all results have read them.

#include "numbers.cuh"

// As activation/launches.rs numbers them.
enum Kind : uint32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

DEVICE float activation(float x, uint32_t kind) {
    switch (kind) {
        case SILU: return x / (1.0f + expf(-x));
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * x * (1.0f + 0.044715f * x * x)));
        default: return x < 0.0f ? 0.0f : x;
    }
}

// A sequence's part of a step, as recurrent.rs has it.
struct Row {
    uint32_t first, count, slot, begins;
};

// `x[t - taps + 1 + j]` of a row for `t = token` of it: from before its first token it is the state's, or zero.
DEVICE float input(const float* x, uint64_t stride, const float* states, const Row& row, uint32_t kept, uint32_t channels,
                   uint32_t at, uint32_t channel) {
    if (at >= kept) return x[uint64_t(row.first + at - kept) * stride + channel];
    return row.begins ? 0.0f : states[(uint64_t(row.slot) * kept + at) * channels + channel];
}

// `x` is float32, its rows `stride` apart, `weight` `[taps, channels]`, `states` `[slots, taps - 1, channels]`, `out`
// `[tokens, channels]`. Grid: blocks of channels, rows, and blocks that share out a row's tokens.
extern "C" __global__ void candlewick_causal_conv(const float* x, uint64_t stride, const float* weight, const float* states,
                                                  const Row* rows, float* out, uint32_t taps, uint32_t channels,
                                                  uint32_t kind) {
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    const Row row = rows[blockIdx.y];
    for (uint32_t token = blockIdx.z; token < row.count; token += gridDim.z) {
        float sum = 0.0f;
        for (uint32_t j = 0; j < taps; j++) {
            const float one = input(x, stride, states, row, taps - 1, channels, token + j, channel);
            sum = fused(weight[uint64_t(j) * channels + channel], one, sum);
        }
        out[uint64_t(row.first + token) * channels + channel] = activation(sum, kind);
    }
}
HOST_TWIN(candlewick_causal_conv)

// The newest inputs of each row become its state. A thread a channel, oldest first, so nothing is read after it was written.
extern "C" __global__ void candlewick_causal_conv_states(const float* x, uint64_t stride, float* states, const Row* rows,
                                                         uint32_t taps, uint32_t channels) {
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x, kept = taps - 1;
    if (channel >= channels) return;
    const Row row = rows[blockIdx.y];
    for (uint32_t k = 0; k < kept; k++) {
        const float one = input(x, stride, states, row, kept, channels, row.count + k, channel);
        states[(uint64_t(row.slot) * kept + k) * channels + channel] = one;
    }
}
HOST_TWIN(candlewick_causal_conv_states)
