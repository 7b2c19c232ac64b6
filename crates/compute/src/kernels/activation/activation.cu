// Activations and gates, a thread a number.

#include "numbers.cuh"

// As launches.rs numbers them.
enum Kind : uint32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, SIGMOID = 4, CLIPPED = 5 };

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE float activation(float x, uint32_t kind) {
    switch (kind) {
        case SILU: return x * sigmoid(x);
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * x * (1.0f + 0.044715f * x * x)));
        // A NaN stays one.
        default: return x < 0.0f ? 0.0f : x;
    }
}

DEVICE float gate(float gate, float up, uint32_t kind, float alpha, float limit) {
    if (kind == SIGMOID) return up * sigmoid(gate);
    if (kind == CLIPPED) {
        gate = fminf(gate, limit);
        up = fminf(fmaxf(up, -limit), limit);
        return gate * sigmoid(alpha * gate) * (up + 1.0f);
    }
    return activation(gate, kind) * up;
}

// `out[row][k] = gate(x[row][k], x[row][width + k])`; rows of `x` are `stride` apart. Grid: blocks of columns, rows.
template <class Out>
DEVICE void gated(const float* x, uint64_t stride, Out* out, uint32_t rows, uint32_t width, uint32_t kind, float alpha,
                  float limit) {
    const uint32_t k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= width) return;
    for (uint64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const float* from = x + row * stride;
        round_into(out[row * width + k], gate(from[k], from[width + k], kind, alpha, limit));
    }
}

// `out[row][k] = activation(x[row][k])`.
template <class Out>
DEVICE void activated(const float* x, uint64_t stride, Out* out, uint32_t rows, uint32_t width, uint32_t kind) {
    const uint32_t k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= width) return;
    for (uint64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        round_into(out[row * width + k], activation(x[row * stride + k], kind));
    }
}

#define ACTIVATION(type, Out)                                                                                          \
    extern "C" __global__ void candlewick_gated_##type(const float* x, uint64_t stride, Out* out, uint32_t rows,       \
                                                       uint32_t width, uint32_t kind, float alpha, float limit) {      \
        gated(x, stride, out, rows, width, kind, alpha, limit);                                                        \
    }                                                                                                                  \
    HOST_TWIN(candlewick_gated_##type)                                                                                 \
    extern "C" __global__ void candlewick_activated_##type(const float* x, uint64_t stride, Out* out, uint32_t rows,   \
                                                           uint32_t width, uint32_t kind) {                            \
        activated(x, stride, out, rows, width, kind);                                                                  \
    }                                                                                                                  \
    HOST_TWIN(candlewick_activated_##type)

ACTIVATION(f32, float)
ACTIVATION(bf16, bf16)
ACTIVATION(f16, f16)
