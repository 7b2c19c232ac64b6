// Ids of tokens, of which the host knows some and a step before chose the others.

#include "device.cuh"

// `out[k]`: the token at `places[k]` of those that were chosen, or `ids[k]` where that is 2^32 - 1. Where none was chosen, and so
// nobody will ask what comes of it, token 0. A thread an id.
extern "C" __global__ void candlewick_follow(const uint32_t* ids, const uint32_t* places, const uint32_t* chosen,
                                             uint32_t* out, uint32_t count) {
    const uint32_t k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count) return;
    const uint32_t id = places[k] == 0xffffffffu ? ids[k] : chosen[places[k]];
    out[k] = id == 0xffffffffu ? 0 : id;
}
HOST_TWIN(candlewick_follow)
