// Sums of weighted rows, a thread a number: one chain of multiply-adds in the order given, whatever other rows there are.

#include "numbers.cuh"

// `out[i] = onto[i] + sum over j < each of weights[i * each + j] * rows[places[i * each + j]]`; rows of `rows` and of `onto`,
// which may be null, are so far apart. Grid: blocks of columns, results.
extern "C" __global__ void candlewick_combine(const float* rows, uint64_t stride, const uint32_t* places,
                                              const float* weights, const float* onto, uint64_t onto_stride, float* out,
                                              uint32_t count, uint32_t each, uint32_t width) {
    const uint32_t k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= width) return;
    for (uint64_t row = blockIdx.y; row < count; row += gridDim.y) {
        float sum = onto ? onto[row * onto_stride + k] : 0.0f;
        for (uint64_t j = row * each; j < (row + 1) * each; j++) sum = fused(rows[places[j] * stride + k], weights[j], sum);
        out[row * width + k] = sum;
    }
}
HOST_TWIN(candlewick_combine)
