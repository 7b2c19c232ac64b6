// Tensor cores, and what brings matrices to them, each as one function with a twin on the host.
//
// A warp multiplies 16 x 16 with 16 x 8 numbers of 16 bits and adds to 16 x 8 of float32. Which lane holds which of them is
// fixed (PTX, "Matrix fragments for mma.m16n8k16"). With `row = lane / 4` and `column = lane % 4 * 2`:
//
//   a[0] (row, column..)     a[1] (row + 8, column..)     a[2] (row, column + 8..)     a[3] (row + 8, column + 8..)
//   b[0] (column.., row)     b[1] (column + 8.., row)            two numbers a word, the first in the low half
//   c[0] (row, column)   c[1] (row, column + 1)   c[2] (row + 8, column)   c[3] (row + 8, column + 1)
#pragma once

#include "numbers.cuh"

#ifdef __CUDACC__

template <class T>
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
DEVICE void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
DEVICE void mma<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8: the lanes 8j..8j+7 give where the rows of matrix j stand in shared memory, 16 bytes each; word j of
// a lane becomes (lane / 4, lane % 4 * 2..) of matrix j.
DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
    const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
// The same of the transposed matrices: (lane % 4 * 2.., lane / 4).
DEVICE void load_transposed(uint32_t (&to)[4], const void* row) {
    const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

// Sixteen bytes to shared memory, on their way while the thread goes on; zeros where `there` is false.
DEVICE void copy_async(void* to, const void* from, bool there) {
    const uint32_t at = uint32_t(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// Ends a group of them.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits for all groups of this thread but the newest `LEFT`.
template <int LEFT>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
}

#else

template <class T>
inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    candlewick::Shown mine{};
    memcpy(mine.words, a, 16);
    memcpy(mine.words + 2, b, 8);
    const candlewick::Shown* shown = candlewick::exchange(mine, "mma");
    auto half = [&](unsigned lane, unsigned word, unsigned which) {
        uint32_t words[6];
        memcpy(words, shown[lane].words, 24);
        return which ? high_half<T>(words[word]) : low_half<T>(words[word]);
    };
    const unsigned lane = lane_id();
    for (unsigned k = 0; k < 4; k++) {
        const unsigned row = lane / 4 + k / 2 * 8, column = lane % 4 * 2 + k % 2;
        float sum = c[k];
        for (unsigned i = 0; i < 16; i++) {
            const float x = half(row % 8 * 4 + i % 8 / 2, row / 8 + i / 8 * 2, i % 2);
            const float y = half(column * 4 + i % 8 / 2, 4 + i / 8, i % 2);
            // A product of two such numbers is exact, so this is one rounding, as a fused one.
            sum += x * y;
        }
        c[k] = sum;
    }
}

namespace candlewick {
inline void matrices(uint32_t (&to)[4], const void* row, bool transposed) {
    if (uint64_t(row) % 16 != 0) fail("a row of a matrix that is not aligned to 16 bytes");
    Shown mine{};
    memcpy(mine.words, &row, sizeof row);
    const Shown* shown = exchange(mine, transposed ? "load_transposed" : "load_matrices");
    const unsigned lane = fiber->index % WARP;
    for (unsigned j = 0; j < 4; j++) {
        uint16_t pair[2];
        for (unsigned half = 0; half < 2; half++) {
            const unsigned first = lane / 4, second = lane % 4 * 2 + half;
            const unsigned from = transposed ? second : first, column = transposed ? first : second;
            const uint16_t* at;
            memcpy(&at, shown[8 * j + from].words, sizeof at);
            pair[half] = at[column];
        }
        memcpy(&to[j], pair, 4);
    }
}
}  // namespace candlewick

inline void load_matrices(uint32_t (&to)[4], const void* row) { candlewick::matrices(to, row, false); }
inline void load_transposed(uint32_t (&to)[4], const void* row) { candlewick::matrices(to, row, true); }

// Copied when they are waited for, and not before.
inline void copy_async(void* to, const void* from, bool there) {
    auto& groups = candlewick::fiber->copies;
    if (uint64_t(to) % 16 != 0 || uint64_t(from) % 16 != 0) candlewick::fail("a copy that is not aligned to 16 bytes");
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({to, there ? from : nullptr, 16});
}
inline void commit_copies() {
    auto& groups = candlewick::fiber->copies;
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}
template <int LEFT>
inline void wait_for_copies() {
    auto& groups = candlewick::fiber->copies;
    // The last group is still open.
    while (groups.size() > LEFT + 1) {
        for (const auto& copy : groups.front()) {
            if (copy.from) memcpy(copy.to, copy.from, copy.bytes);
            else memset(copy.to, 0, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

#endif
