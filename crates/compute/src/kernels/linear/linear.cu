// What stands around a product of cuBLAS: inputs rounded to the weight's type, what a product is added to, rows of a table.

#include "numbers.cuh"

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
