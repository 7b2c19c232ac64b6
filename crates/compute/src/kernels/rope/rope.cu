// Rotary embedding: a warp a head.

#include "turn.cuh"

// `out[row][head] = turned(x[row][head])`; rows of `x` are `stride` apart, heads lie one after another. Grid: blocks that
// hold all rows' heads, a warp each.
extern "C" __global__ void candlewick_rope_f32(const float* x, uint64_t stride, const uint32_t* positions,
                                               const float* table, const float* weight, float eps, float* out,
                                               uint32_t rows, uint32_t heads, uint32_t head_dim, uint32_t pairs,
                                               uint32_t interleaved) {
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / WARP) + warp_id();
    const uint32_t row = uint32_t(index / heads), head = uint32_t(index % heads);
    if (row >= rows) return;
    const Turn turn{table, weight, eps, head_dim, pairs, interleaved};
    float* to = out + index * head_dim;
    turn_head(turn, x + row * stride + uint64_t(head) * head_dim, positions[row], [&](uint32_t d, float y) { to[d] = y; });
}
HOST_TWIN(candlewick_rope_f32)
