// The gated delta rule: a warp keeps one number of a value for all of a key in its registers, and takes a row's tokens one
// after another. Warps need nothing of each other.

#include "numbers.cuh"
#include "reduce.cuh"

// Numbers of a value that lie together in a state.
constexpr uint32_t LANES = 16;
// Numbers of a key that a lane has.
constexpr uint32_t MOST = 256 / WARP;
constexpr float EPS = 1e-6f;

// A sequence's part of a step, as recurrent.rs has it.
struct Row {
    uint32_t first, count, slot, begins;
};

// `qkv` is float32, its rows `stride` apart, `gating` `[tokens, 2 * value_heads]`, its rows `gating_stride` apart, `states`
// `[slots, value_heads, strips, key_dim, 16]`, `out` `[tokens, value_heads * value_dim]`; `strided` is 1 where value heads that
// share a key are as far apart as there are key heads, 0 where they are neighbours. Grid: rows, value heads, blocks of
// numbers of a value, a warp each.
extern "C" __global__ void candlewick_gated_delta(const float* qkv, uint64_t stride, const float* gating,
                                                  uint64_t gating_stride, const float* rates, const float* biases,
                                                  float* states, const Row* rows, float* out, uint32_t key_heads,
                                                  uint32_t value_heads, uint32_t key_dim, uint32_t value_dim,
                                                  uint32_t strided) {
    const Row row = rows[blockIdx.x];
    const uint32_t head = blockIdx.y, lane = lane_id(), column = blockIdx.z * (blockDim.x / WARP) + warp_id();
    if (column >= value_dim) return;
    const uint32_t strips = (value_dim + LANES - 1) / LANES, keys = key_heads * key_dim;
    const uint64_t strip = (uint64_t(row.slot) * value_heads + head) * strips + column / LANES;
    float* const state = states + strip * key_dim * LANES + column % LANES;
    float s[MOST];
    UNROLL
    for (uint32_t k = 0; k < MOST; k++) {
        const uint32_t i = k * WARP + lane;
        s[k] = i < key_dim && !row.begins ? state[uint64_t(i) * LANES] : 0.0f;
    }
    const uint32_t key_head = strided ? head % key_heads : head / (value_heads / key_heads);
    const float rate = rates[head], bias = biases[head];
    for (uint32_t token = row.first; token < row.first + row.count; token++) {
        const float* q = qkv + token * stride + uint64_t(key_head) * key_dim;
        const float* const v = qkv + token * stride + 2 * keys + uint64_t(head) * value_dim;
        float query[MOST], key[MOST], query_squares = 0.0f, key_squares = 0.0f;
        UNROLL
        for (uint32_t k = 0; k < MOST; k++) {
            const uint32_t i = k * WARP + lane;
            query[k] = i < key_dim ? q[i] : 0.0f;
            key[k] = i < key_dim ? q[keys + i] : 0.0f;
            query_squares = fused(query[k], query[k], query_squares);
            key_squares = fused(key[k], key[k], key_squares);
        }
        const float query_by = 1.0f / (sqrtf(add(warp_sum(query_squares), EPS)) * sqrtf(float(key_dim)));
        const float key_by = 1.0f / sqrtf(add(warp_sum(key_squares), EPS));
        const float beta = gating[token * gating_stride + head];
        const float x = add(gating[token * gating_stride + value_heads + head], bias);
        // log(1 + e^x) without an overflow.
        const float decay = expf(rate * (fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)))));
        const float share = 1.0f / (1.0f + expf(-beta));
        float remembered = 0.0f;
        UNROLL
        for (uint32_t k = 0; k < MOST; k++) {
            s[k] = mul(s[k], decay);
            key[k] = mul(key[k], key_by);
            remembered = fused(s[k], key[k], remembered);
        }
        const float correction = mul(share, add(v[column], -warp_sum(remembered)));
        float answer = 0.0f;
        UNROLL
        for (uint32_t k = 0; k < MOST; k++) {
            s[k] = fused(key[k], correction, s[k]);
            answer = fused(s[k], mul(query[k], query_by), answer);
        }
        answer = warp_sum(answer);
        if (lane == 0) out[(uint64_t(token) * value_heads + head) * value_dim + column] = answer;
    }
    UNROLL
    for (uint32_t k = 0; k < MOST; k++) {
        const uint32_t i = k * WARP + lane;
        if (i < key_dim) state[uint64_t(i) * LANES] = s[k];
    }
}
HOST_TWIN(candlewick_gated_delta)
