// Where keys and values stand in a layer's cache: store_kv/mod.rs says how it lies.
#pragma once

#include "numbers.cuh"

struct CacheShape {
    uint32_t kv_heads, head_dim, block_size;
};

// The first element of a head's part of a block, in keys and in values.
DEVICE uint64_t head_part(CacheShape shape, uint32_t block, uint32_t head) {
    return (uint64_t(block) * shape.kv_heads + head) * shape.block_size * shape.head_dim;
}
DEVICE uint64_t key_place(CacheShape shape, uint32_t slot, uint32_t head, uint32_t dim) {
    const uint32_t block = slot / shape.block_size, offset = slot % shape.block_size;
    return head_part(shape, block, head) + uint64_t(dim) * shape.block_size + offset;
}
DEVICE uint64_t value_place(CacheShape shape, uint32_t slot, uint32_t head, uint32_t dim) {
    const uint32_t block = slot / shape.block_size, offset = slot % shape.block_size;
    return head_part(shape, block, head) + uint64_t(offset) * shape.head_dim + dim;
}
