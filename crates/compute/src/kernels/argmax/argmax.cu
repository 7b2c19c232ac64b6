// The largest logit of each row, of equal ones the first: parts of a row by a block each, then the parts by a warp.

#include "numbers.cuh"

// A logit and its place as a number that is larger for what is to be preferred: the bits of a float put into the order of
// its value, above the place turned round. A NaN is above all.
DEVICE uint64_t preference(float logit, uint32_t place) {
    if (logit != logit) return ~uint64_t(0);
    const uint32_t bits = float_bits(add(logit, 0.0f));
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return uint64_t(ordered) << 32 | (0xffffffffu - place);
}

DEVICE uint64_t warp_most(uint64_t x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const uint64_t other = shuffle_xor(x, lanes);
        x = other > x ? other : x;
    }
    return x;
}

// `best[row][part]`. Grid: parts, rows.
extern "C" __global__ void candlewick_argmax_parts(const float* logits, uint64_t stride, uint64_t* best, uint32_t width) {
    uint64_t* scratch = reinterpret_cast<uint64_t*>(dynamic_shared());
    const float* row = logits + blockIdx.y * stride;
    uint64_t most = 0;
    for (uint32_t k = blockIdx.x * blockDim.x + threadIdx.x; k < width; k += gridDim.x * blockDim.x) {
        const uint64_t one = preference(row[k], k);
        most = one > most ? one : most;
    }
    most = warp_most(most);
    if (lane_id() == 0) scratch[warp_id()] = most;
    __syncthreads();
    if (warp_id() == 0) {
        most = warp_most(lane_id() < blockDim.x / WARP ? scratch[lane_id()] : 0);
        if (lane_id() == 0) best[uint64_t(blockIdx.y) * gridDim.x + blockIdx.x] = most;
    }
}
HOST_TWIN(candlewick_argmax_parts)

// The places, 2^32 - 1 for a row that holds a NaN or infinity, or nothing but minus infinity. Grid: rows, of one warp.
extern "C" __global__ void candlewick_argmax(const uint64_t* best, uint32_t parts, uint32_t* places) {
    uint64_t most = 0;
    for (uint32_t k = lane_id(); k < parts; k += WARP) {
        const uint64_t one = best[uint64_t(blockIdx.x) * parts + k];
        most = one > most ? one : most;
    }
    most = warp_most(most);
    // In order, minus infinity is the bits of 0xff800000 turned round, and infinity has its own and the highest bit.
    const uint32_t ordered = uint32_t(most >> 32);
    const bool none = ordered <= 0x007fffffu || ordered >= 0xff800000u;
    if (lane_id() == 0) places[blockIdx.x] = none ? 0xffffffffu : 0xffffffffu - uint32_t(most);
}
HOST_TWIN(candlewick_argmax)
