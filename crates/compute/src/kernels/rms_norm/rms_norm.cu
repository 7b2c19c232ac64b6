// RMS norm: a block a vector, whose threads each take every so manieth number.

#include "numbers.cuh"
#include "reduce.cuh"

// `out[row][v] = x / sqrt(mean(x^2) + eps) * weight`, where `x` is the vector `v` of `width` numbers in a row of many; rows of
// `x` are `stride` apart. Grid: rows, vectors of a row.
template <class Out>
DEVICE void rms_norm(const float* x, uint64_t stride, const float* weight, Out* out, uint32_t width, float eps) {
    float* scratch = reinterpret_cast<float*>(dynamic_shared());
    const uint64_t row = blockIdx.x, vector = blockIdx.y;
    x += row * stride + vector * width;
    out += (row * gridDim.y + vector) * width;
    float squares = 0.0f;
    for (uint32_t k = threadIdx.x; k < width; k += blockDim.x) squares = fused(x[k], x[k], squares);
    const float mean = block_sum(squares, scratch) / float(width);
    const float scale = 1.0f / sqrtf(add(mean, eps));
    for (uint32_t k = threadIdx.x; k < width; k += blockDim.x) round_into(out[k], mul(mul(x[k], scale), weight[k]));
}

#define RMS_NORM(name, Out)                                                                                            \
    extern "C" __global__ void name(const float* x, uint64_t stride, const float* weight, Out* out, uint32_t width,    \
                                    float eps) {                                                                       \
        rms_norm(x, stride, weight, out, width, eps);                                                                  \
    }                                                                                                                  \
    HOST_TWIN(name)

RMS_NORM(candlewick_rms_norm_f32, float)
RMS_NORM(candlewick_rms_norm_bf16, bf16)
RMS_NORM(candlewick_rms_norm_f16, f16)
