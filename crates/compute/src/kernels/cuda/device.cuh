// What every kernel includes: one source for two compilers.
//
// Under nvcc this is CUDA. Under a host compiler the same words are those of host.hpp, which runs a block's threads as
// fibers of one thread, so that tests can hold each kernel against its scalar reference on a machine without a card.
// A kernel keeps to what both have: dynamic shared memory (`dynamic_shared`), barriers of a whole block, exchanges of a
// whole warp, and the wrappers of mma.cuh. `HOST_TWIN(name)` after a kernel makes it callable from tests.
//
// Sums and products whose bits must be the same in two kernels, or in two shapes of one, are spelled out (`mul`, `add`,
// `fused`): a compiler may join `a * b + c` in one place and not in the other.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define DEVICE __device__ __forceinline__
#define DEVICE_CALL __device__ __noinline__
#define HOST_TWIN(name)
#define UNROLL _Pragma("unroll")

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char candlewick_shared[];
    return candlewick_shared;
}

DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// 2^x, as the card has it: within two units in the last place.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(uint32_t x) { return __uint_as_float(x); }

template <class T>
DEVICE T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(ALL_LANES, value, lanes);
}
template <class T>
DEVICE T shuffle_up(T value, int lanes) {
    return __shfl_up_sync(ALL_LANES, value, lanes);
}
template <class T>
DEVICE T shuffle_from(T value, int lane) {
    return __shfl_sync(ALL_LANES, value, lane);
}

#else
#include "host.hpp"
#endif

// The lane of a warp that this thread is, in a block of one dimension.
DEVICE unsigned lane_id() { return threadIdx.x % WARP; }
DEVICE unsigned warp_id() { return threadIdx.x / WARP; }
