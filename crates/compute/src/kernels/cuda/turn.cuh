// Rotary embedding of one head by one warp, behind its RMS norm where it has one.
#pragma once

#include "numbers.cuh"
#include "reduce.cuh"

struct Turn {
    // `[positions, 2, pairs]`: a position's cosines, then its sines.
    const float* table;
    // `[head_dim]`, or null for no norm.
    const float* weight;
    float eps;
    uint32_t head_dim, pairs;
    // Whether neighbours make a pair, not one of the first half with one of the second.
    uint32_t interleaved;
};

// Calls `write(dim, value)` once for each dimension of the head at `x`.
template <class Write>
DEVICE void turn_head(const Turn& turn, const float* x, uint32_t position, Write write) {
    const uint32_t lane = lane_id();
    float scale = 1.0f;
    if (turn.weight) {
        float squares = 0.0f;
        for (uint32_t d = lane; d < turn.head_dim; d += WARP) squares = fused(x[d], x[d], squares);
        scale = 1.0f / sqrtf(add(warp_sum(squares) / float(turn.head_dim), turn.eps));
    }
    auto normed = [&](uint32_t d) { return turn.weight ? mul(mul(x[d], scale), turn.weight[d]) : x[d]; };
    const float* cos = turn.table + uint64_t(position) * 2 * turn.pairs;
    const float* sin = cos + turn.pairs;
    for (uint32_t k = lane; k < turn.pairs; k += WARP) {
        const uint32_t first = turn.interleaved ? 2 * k : k, second = turn.interleaved ? 2 * k + 1 : k + turn.pairs;
        const float a = normed(first), b = normed(second);
        write(first, fused(a, cos[k], -mul(b, sin[k])));
        write(second, fused(b, cos[k], mul(a, sin[k])));
    }
    for (uint32_t d = 2 * turn.pairs + lane; d < turn.head_dim; d += WARP) write(d, normed(d));
}
