// Writes into the cache: a warp a head of a token.

#include "cache.cuh"
#include "turn.cuh"

// The slot of a token that fills up a batch: nothing is stored of it.
constexpr uint32_t NO_SLOT = 0xffffffffu;

// Rounds keys and values, rows `stride` apart, to the cache's type and writes them to the tokens' slots. Grid: blocks that
// hold all tokens' heads, a warp each.
template <class E>
DEVICE void store_kv(const float* keys, uint64_t key_stride, const float* values, uint64_t value_stride,
                     const uint32_t* slots, E* key_cache, E* value_cache, uint32_t tokens, CacheShape shape) {
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / WARP) + warp_id();
    const uint32_t token = uint32_t(index / shape.kv_heads), head = uint32_t(index % shape.kv_heads);
    if (token >= tokens) return;
    const float* key = keys + token * key_stride + uint64_t(head) * shape.head_dim;
    const float* value = values + token * value_stride + uint64_t(head) * shape.head_dim;
    const uint32_t slot = slots[token];
    if (slot == NO_SLOT) return;
    for (uint32_t d = lane_id(); d < shape.head_dim; d += WARP) {
        round_into(key_cache[key_place(shape, slot, head, d)], key[d]);
        round_into(value_cache[value_place(shape, slot, head, d)], value[d]);
    }
}

// The same behind rotary embedding, and what it does to the queries, in one pass over a fused projection: a row of `qkv` has
// `heads` queries, then as many keys and as many values as the cache has heads. `queries` is `[tokens, heads, head_dim]`.
template <class E>
DEVICE void rope_store(const float* qkv, uint64_t stride, const uint32_t* positions, const uint32_t* slots,
                       const Turn& query_turn, const Turn& key_turn, float* queries, E* key_cache, E* value_cache,
                       uint32_t tokens, uint32_t heads, CacheShape shape) {
    const uint32_t all = heads + 2 * shape.kv_heads;
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / WARP) + warp_id();
    const uint32_t token = uint32_t(index / all), which = uint32_t(index % all);
    if (token >= tokens) return;
    const float* x = qkv + token * stride + uint64_t(which) * shape.head_dim;
    const uint32_t slot = slots[token];
    if (which < heads) {
        float* to = queries + (uint64_t(token) * heads + which) * shape.head_dim;
        turn_head(query_turn, x, positions[token], [&](uint32_t d, float y) { to[d] = y; });
    } else if (slot == NO_SLOT) {
        return;
    } else if (which < heads + shape.kv_heads) {
        const uint32_t head = which - heads;
        turn_head(key_turn, x, positions[token],
                  [&](uint32_t d, float y) { round_into(key_cache[key_place(shape, slot, head, d)], y); });
    } else {
        const uint32_t head = which - heads - shape.kv_heads;
        for (uint32_t d = lane_id(); d < shape.head_dim; d += WARP) {
            round_into(value_cache[value_place(shape, slot, head, d)], x[d]);
        }
    }
}

// Copies whole blocks of keys or values, of `words` words each, in the order given. Grid: parts of a block; a thread copies
// its words of every pair, so a copy sees what the one before it has written.
template <class Word>
DEVICE void copy_blocks(Word* cache, const uint32_t* pairs, uint32_t count, uint64_t words) {
    for (uint64_t k = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < words; k += uint64_t(gridDim.x) * blockDim.x) {
        for (uint32_t pair = 0; pair < count; pair++) {
            cache[pairs[2 * pair + 1] * words + k] = cache[pairs[2 * pair] * words + k];
        }
    }
}

extern "C" __global__ void candlewick_copy_blocks_bytes(uint8_t* cache, const uint32_t* pairs, uint32_t count,
                                                        uint64_t words) {
    copy_blocks(cache, pairs, count, words);
}
HOST_TWIN(candlewick_copy_blocks_bytes)
extern "C" __global__ void candlewick_copy_blocks_words(Words* cache, const uint32_t* pairs, uint32_t count,
                                                        uint64_t words) {
    copy_blocks(cache, pairs, count, words);
}
HOST_TWIN(candlewick_copy_blocks_words)

#define STORE_KV(type, E)                                                                                              \
    extern "C" __global__ void candlewick_store_kv_##type(                                                             \
        const float* keys, uint64_t key_stride, const float* values, uint64_t value_stride, const uint32_t* slots,     \
        E* key_cache, E* value_cache, uint32_t tokens, uint32_t kv_heads, uint32_t head_dim, uint32_t block_size) {    \
        store_kv(keys, key_stride, values, value_stride, slots, key_cache, value_cache, tokens,                        \
                 CacheShape{kv_heads, head_dim, block_size});                                                          \
    }                                                                                                                  \
    HOST_TWIN(candlewick_store_kv_##type)                                                                              \
    extern "C" __global__ void candlewick_rope_store_##type(                                                           \
        const float* qkv, uint64_t stride, const uint32_t* positions, const uint32_t* slots, const float* table,       \
        const float* query_weight, const float* key_weight, float query_eps, float key_eps, float* queries,            \
        E* key_cache, E* value_cache, uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,           \
        uint32_t block_size, uint32_t pairs, uint32_t interleaved) {                                                   \
        const Turn query_turn{table, query_weight, query_eps, head_dim, pairs, interleaved};                           \
        const Turn key_turn{table, key_weight, key_eps, head_dim, pairs, interleaved};                                 \
        rope_store(qkv, stride, positions, slots, query_turn, key_turn, queries, key_cache, value_cache, tokens,       \
                   heads, CacheShape{kv_heads, head_dim, block_size});                                                 \
    }                                                                                                                  \
    HOST_TWIN(candlewick_rope_store_##type)

STORE_KV(f32, float)
STORE_KV(f16, f16)
STORE_KV(bf16, bf16)
STORE_KV(f8, f8e4m3)
