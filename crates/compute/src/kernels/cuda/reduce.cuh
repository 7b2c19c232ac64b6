// Sums and maxima of a warp or a block, in an order that depends on the number of threads alone.
#pragma once

#include "device.cuh"

// The same bits in every lane: lanes are added as a tree, the two of a pair in either order.
DEVICE float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = add(x, shuffle_xor(x, lanes));
    return x;
}
DEVICE float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
    return x;
}

// Of all threads, in all threads: sum or maximum. `scratch` has room for a float a warp; it may be written again after the next barrier.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    const unsigned warps = blockDim.x / WARP;
    if (warps == 1) return x;
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    return warp_sum(lane_id() < warps ? scratch[lane_id()] : 0.0f);
}
DEVICE float block_max(float x, float* scratch) {
    x = warp_max(x);
    const unsigned warps = blockDim.x / WARP;
    if (warps == 1) return x;
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    return warp_max(lane_id() < warps ? scratch[lane_id()] : scratch[0]);
}
