// What stands around a product of cuBLAS: inputs rounded to the weight's type, what a product is added to, rows of a table; and
// around one of cuBLASLt: inputs as eight-bit floats under a scale a row, sums that are multiplied by their scales.

#include "numbers.cuh"
#include "reduce.cuh"

// Grid: rows; each block goes over the columns of its rows.
template <class Out>
DEVICE void round_rows(const float* x, uint64_t stride, Out* out, uint64_t rows, uint64_t width) {
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        for (uint64_t k = threadIdx.x; k < width; k += blockDim.x) round_into(out[row * width + k], x[row * stride + k]);
    }
}

// `out = onto + bias`, where `onto` and `bias` may be null.
DEVICE void begin(const float* onto, uint64_t onto_stride, const float* bias, float* out, uint64_t rows, uint64_t width) {
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        for (uint64_t k = threadIdx.x; k < width; k += blockDim.x) {
            const float first = onto ? onto[row * onto_stride + k] : 0.0f;
            out[row * width + k] = bias ? add(first, bias[k]) : first;
        }
    }
}

// `out[row] = table[ids[row]]`.
template <class T>
DEVICE void gather(const T* table, const uint32_t* ids, float* out, uint64_t rows, uint64_t width) {
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = table + uint64_t(ids[row]) * width;
        for (uint64_t k = threadIdx.x; k < width; k += blockDim.x) out[row * width + k] = widen(from[k]);
    }
}

extern "C" __global__ void candlewick_linear_begin(const float* onto, uint64_t onto_stride, const float* bias, float* out,
                                                   uint64_t rows, uint64_t width) {
    begin(onto, onto_stride, bias, out, rows, width);
}
HOST_TWIN(candlewick_linear_begin)

#define ROUND(type, Out)                                                                                               \
    extern "C" __global__ void candlewick_linear_round_##type(const float* x, uint64_t stride, Out* out,               \
                                                              uint64_t rows, uint64_t width) {                         \
        round_rows(x, stride, out, rows, width);                                                                       \
    }                                                                                                                  \
    HOST_TWIN(candlewick_linear_round_##type)

#define GATHER(type, T)                                                                                                \
    extern "C" __global__ void candlewick_linear_gather_##type(const T* table, const uint32_t* ids, float* out,        \
                                                               uint64_t rows, uint64_t width) {                        \
        gather(table, ids, out, rows, width);                                                                          \
    }                                                                                                                  \
    HOST_TWIN(candlewick_linear_gather_##type)

ROUND(bf16, bf16)
ROUND(f16, f16)
GATHER(f32, float)
GATHER(f16, f16)
GATHER(bf16, bf16)

struct alignas(4) Four {
    f8e4m3 at[4];
};

// Rows under a scale each: the largest magnitude over 448, which is the format's largest number, or float32's smallest normal one,
// so that nothing is divided by zero. Rows and columns that fill up are zeros. Grid: rows. Shared memory: a float a warp.
extern "C" __global__ void candlewick_linear_quantize_f8e4m3(const float* x, uint64_t stride, f8e4m3* out, float* scales,
                                                             uint64_t rows, uint64_t width, uint64_t filled_rows,
                                                             uint64_t filled_width) {
    float* scratch = reinterpret_cast<float*>(dynamic_shared());
    for (uint64_t row = blockIdx.x; row < filled_rows; row += gridDim.x) {
        const uint64_t numbers = row < rows ? width : 0;
        const float* from = x + (row < rows ? row : 0) * stride;
        float largest = 0.0f;
        for (uint64_t k = threadIdx.x; k < numbers; k += blockDim.x) largest = fmaxf(largest, fabsf(from[k]));
        const float scale = fmaxf(block_max(largest, scratch) / 448.0f, bits_float(1u << 23));
        for (uint64_t k = 4 * threadIdx.x; k < filled_width; k += 4 * blockDim.x) {
            Four four;
            UNROLL for (unsigned j = 0; j < 4; j++) four.at[j] = rounded<f8e4m3>(k + j < numbers ? from[k + j] / scale : 0.0f);
            *reinterpret_cast<Four*>(out + row * filled_width + k) = four;
        }
        if (threadIdx.x == 0 && row < rows) scales[row] = scale;
        // What the warps of this row have written there may still be read.
        __syncthreads();
    }
}
HOST_TWIN(candlewick_linear_quantize_f8e4m3)

// `out = sums * row_scales * scales + bias + onto`, where `bias` and `onto` may be null, and `out` may be `sums`.
// Grid: rows, then parts of the columns.
extern "C" __global__ void candlewick_linear_rescale(const float* sums, uint64_t stride, const float* row_scales,
                                                     const float* scales, const float* bias, const float* onto,
                                                     uint64_t onto_stride, float* out, uint64_t rows, uint64_t width) {
    for (uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const float row_scale = row_scales[row];
        for (uint64_t k = blockIdx.y * blockDim.x + threadIdx.x; k < width; k += uint64_t(gridDim.y) * blockDim.x) {
            float y = mul(mul(sums[row * stride + k], row_scale), scales[k]);
            if (bias) y = add(y, bias[k]);
            if (onto) y = add(y, onto[row * onto_stride + k]);
            out[row * width + k] = y;
        }
    }
}
HOST_TWIN(candlewick_linear_rescale)
