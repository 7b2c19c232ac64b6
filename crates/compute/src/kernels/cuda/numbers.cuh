// The formats that kernels read and write, and their roundings. All arithmetic is float32.
#pragma once

#include "device.cuh"

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
// Four bits of exponent, three of fraction (Micikevicius et al., 2022, arXiv:2209.05433).
struct f8e4m3 {
    uint8_t bits;
};

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return bits_float(uint32_t(x.bits) << 16); }
DEVICE float widen(f16 x) {
#ifdef __CUDACC__
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    _Float16 y;
    memcpy(&y, &x.bits, 2);
    return float(y);
#endif
}
// As store_kv/element.rs reads it: a NaN is 480. The exponent's bias is 7 here and 127 there.
DEVICE float widen(f8e4m3 x) {
    const float two_to_120 = bits_float((127u + 120u) << 23);
    const float size = mul(bits_float((x.bits & 0x7fu) << 20), two_to_120);
    return bits_float(float_bits(size) | (x.bits & 0x80u) << 24);
}

// To nearest, ties to even.
DEVICE void round_into(float& to, float x) { to = x; }
DEVICE void round_into(bf16& to, float x) {
#ifdef __CUDACC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    const uint32_t bits = float_bits(x);
    to.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}
DEVICE void round_into(f16& to, float x) {
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    const _Float16 y = _Float16(x);
    memcpy(&to.bits, &y, 2);
#endif
}
// As store_kv/element.rs stores it: beyond 448 as that, a NaN as 480's place.
DEVICE void round_into(f8e4m3& to, float x) {
    const float size = x != x ? 480.0f : fminf(fabsf(x), 448.0f);
    // The smallest normal number is 2^-6; below it the step is 2^-9. Adding 1.5 * 2^14 rounds to such steps.
    const uint32_t steps = float_bits(add(size, 24576.0f)) & 0xf;
    const uint32_t bits = float_bits(size);
    const uint32_t rounded = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
    const uint32_t magnitude = size < 0.015625f ? steps : rounded;
    to.bits = uint8_t(magnitude | (float_bits(x) >> 31) << 7);
}

template <class T>
DEVICE T rounded(float x) {
    T y;
    round_into(y, x);
    return y;
}

// Two of a format of 16 bits in a word, the first in the low half.
template <class T>
DEVICE uint32_t packed(float low, float high) {
    return uint32_t(rounded<T>(low).bits) | uint32_t(rounded<T>(high).bits) << 16;
}
template <class T>
DEVICE float low_half(uint32_t word) {
    return widen(T{uint16_t(word & 0xffff)});
}
template <class T>
DEVICE float high_half(uint32_t word) {
    return widen(T{uint16_t(word >> 16)});
}

// Sixteen bytes, which is what a thread moves at once.
struct alignas(16) Words {
    uint32_t at[4];
};

DEVICE bool aligned16(const void* at) { return (uint64_t)at % 16 == 0; }
