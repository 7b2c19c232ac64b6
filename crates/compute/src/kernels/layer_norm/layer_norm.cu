// Layer norm: a block a vector. The mean is taken first, then that of the squares of what is left without it.

#include "numbers.cuh"
#include "reduce.cuh"

// `out[row][v] = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, where `x` is the vector `v` of `width` numbers in a row
// of many; rows of `x` are `stride` apart. Grid: rows, vectors of a row. `bias` may be null.
template <class Out>
DEVICE void layer_norm(const float* x, uint64_t stride, const float* weight, Out* out, uint32_t width, float eps,
                       const float* bias) {
    float* scratch = reinterpret_cast<float*>(dynamic_shared());
    const uint64_t row = blockIdx.x, vector = blockIdx.y;
    x += row * stride + vector * width;
    out += (row * gridDim.y + vector) * width;
    float sum = 0.0f;
    for (uint32_t k = threadIdx.x; k < width; k += blockDim.x) sum = add(sum, x[k]);
    const float mean = block_sum(sum, scratch) / float(width);
    float squares = 0.0f;
    for (uint32_t k = threadIdx.x; k < width; k += blockDim.x) {
        const float left = add(x[k], -mean);
        squares = fused(left, left, squares);
    }
    const float variance = block_sum(squares, scratch + blockDim.x / WARP) / float(width);
    const float scale = 1.0f / sqrtf(add(variance, eps));
    for (uint32_t k = threadIdx.x; k < width; k += blockDim.x) {
        float y = mul(mul(add(x[k], -mean), scale), weight[k]);
        if (bias) y = add(y, bias[k]);
        round_into(out[k], y);
    }
}

#define LAYER_NORM(name, Out)                                                                                          \
    extern "C" __global__ void name(const float* x, uint64_t stride, const float* weight, Out* out, uint32_t width,    \
                                    float eps, const float* bias) {                                                    \
        layer_norm(x, stride, weight, out, width, eps, bias);                                                          \
    }                                                                                                                  \
    HOST_TWIN(name)

LAYER_NORM(candlewick_layer_norm_f32, float)
LAYER_NORM(candlewick_layer_norm_bf16, bf16)
LAYER_NORM(candlewick_layer_norm_f16, f16)
