// Attention over the paged cache.
//
// A tile is sixteen rows, or a multiple of that: a row is a query and one of the query heads that share a KV head, the heads
// of a query one after another. A tile goes over its keys 64 at a time, with a running maximum, and begins anew at every
// multiple of SPLIT: what a split gives (its maximum, the sum of its weights, the weighted sum of its values) is merged with
// what was before it, from the first split to the last. Whether one block takes all splits of a tile, or each takes some and
// a second kernel merges them, whether a block has sixteen rows that all its warps work on or sixteen a warp: a row's
// result has the same bits, because every sum has the same terms in the same order. So it does not depend on the batch, on
// how a prompt was cut, or on what a launch found best for its shape.
//
// Queries and weights are rounded to what the cache's elements are multiplied as (bfloat16 or float16; eight bits are
// widened to bfloat16), and the sum of the weights is of the rounded ones. Over a float32 cache all is float32.

#include "cache.cuh"
#include "mma.cuh"
#include "reduce.cuh"

// Keys that are taken at once.
constexpr uint32_t KEYS = 64;
// Keys a split, which begins at a multiple of it. As in launches.rs.
constexpr uint32_t SPLIT = 256;
// Rows a warp multiplies at once.
constexpr uint32_t ROWS = 16;
// Warps of a block, where they all work on the same rows.
constexpr uint32_t WARPS = 4;
// Behind each line in shared memory, so that eight lines lie in different banks.
constexpr uint32_t PAD = 8;
// A tile that fills up a list.
constexpr uint32_t NO_ROW = 0xffffffffu;
constexpr float LOG2_E = 1.44269504f;
#define MINUS_INFINITY bits_float(0xff800000u)

struct Attention {
    // Float32 `[queries, heads, head_dim]`, and the distance between queries.
    const float* q;
    uint64_t q_stride;
    const void* keys;
    const void* values;
    // Float32 `[queries, heads, head_dim]`.
    float* out;
    // `[heads]`, or null.
    const float* sinks;
    // As in AttentionMetadata.
    const uint32_t* cu_seqlens;
    const uint32_t* context_lens;
    const uint32_t* block_tables;
    const uint32_t* cu_blocks;
    // `[tiles, 2]`: a row of the metadata, and the first of its rows here.
    const uint32_t* tiles;
    // Where there are more blocks than one a tile: `[tiles, kv_heads, partial_rows, max_splits, head_dim]`, and 2 numbers
    // in place of head_dim. Null where a block takes all splits.
    float* partial_sums;
    float* partial_stats;
    uint32_t partial_rows, max_splits;
    uint32_t heads;
    CacheShape shape;
    float scale, softcap;
    // Keys that a query sees, the newest of them its own.
    uint32_t window;
    // Tiles of keys that shared memory has room for, 1 or 2.
    uint32_t stages;
};

// What a block is to do: a tile of a sequence's rows, for one KV head.
struct Task {
    const uint32_t* table;
    uint32_t tile, kv_head, group;
    // The sequence's first query in the batch, its position, and all its rows.
    uint32_t begin, context, count;
    // The tile's first row, and where its rows end.
    uint32_t first, end;
    // Keys that some row sees.
    uint32_t first_key, end_key;

    DEVICE uint32_t first_split() const { return first_key / SPLIT; }
    DEVICE uint32_t end_split() const { return (end_key + SPLIT - 1) / SPLIT; }
    DEVICE uint32_t query(uint32_t row) const { return row / group; }
    DEVICE uint32_t head(uint32_t row) const { return kv_head * group + row % group; }
    DEVICE uint32_t position(uint32_t row) const { return context + query(row); }
};

// False for a tile that fills up the list.
DEVICE bool find_task(const Attention& a, uint32_t rows, Task& task) {
    task.tile = blockIdx.x;
    task.kv_head = blockIdx.y;
    const uint32_t sequence = a.tiles[2 * task.tile];
    if (sequence == NO_ROW) return false;
    task.group = a.heads / a.shape.kv_heads;
    task.begin = a.cu_seqlens[sequence];
    task.count = (a.cu_seqlens[sequence + 1] - task.begin) * task.group;
    task.context = a.context_lens[sequence];
    task.table = a.block_tables + a.cu_blocks[sequence];
    task.first = a.tiles[2 * task.tile + 1];
    if (task.first >= task.count) return false;
    task.end = task.first + rows < task.count ? task.first + rows : task.count;
    task.end_key = task.position(task.end - 1) + 1;
    const uint32_t oldest = task.position(task.first) + 1;
    task.first_key = oldest > a.window ? oldest - a.window : 0;
    return true;
}

// The result of keys: their largest score, the sum of their weights relative to it, and elsewhere the sum of their values.
struct Stats {
    float max, sum;
};

// What two results are multiplied with before they are added.
struct Factors {
    float old, added;
};

DEVICE Factors merge(Stats& stats, const Stats& split) {
    // Of a split that a row does not see.
    if (split.sum == 0.0f) return {1.0f, 0.0f};
    const float max = fmaxf(stats.max, split.max);
    const Factors by{stats.max == MINUS_INFINITY ? 0.0f : exp2_fast(add(stats.max, -max)), exp2_fast(add(split.max, -max))};
    stats = {max, fused(stats.sum, by.old, mul(split.sum, by.added))};
    return by;
}

DEVICE float merged(float old, float split, const Factors& by) { return fused(old, by.old, mul(split, by.added)); }

// What a row's sum is multiplied with in the end. A sink has a weight and no value.
DEVICE float last_factor(Stats stats, const float* sink) {
    if (!sink) return 1.0f / stats.sum;
    const float score = mul(*sink, LOG2_E), max = fmaxf(stats.max, score);
    const float by = exp2_fast(add(stats.max, -max));
    return by / fused(stats.sum, by, exp2_fast(add(score, -max)));
}

DEVICE float* partial_sums(const Attention& a, const Task& task, uint32_t row, uint32_t split) {
    const uint64_t line = (uint64_t(task.tile) * a.shape.kv_heads + task.kv_head) * a.partial_rows + (row - task.first);
    return a.partial_sums + (line * a.max_splits + (split - task.first_split())) * a.shape.head_dim;
}
DEVICE float* partial_stats(const Attention& a, const Task& task, uint32_t row, uint32_t split) {
    const uint64_t line = (uint64_t(task.tile) * a.shape.kv_heads + task.kv_head) * a.partial_rows + (row - task.first);
    return a.partial_stats + (line * a.max_splits + (split - task.first_split())) * 2;
}
DEVICE float* output(const Attention& a, const Task& task, uint32_t row) {
    return a.out + (uint64_t(task.begin + task.query(row)) * a.heads + task.head(row)) * a.shape.head_dim;
}

// A score in powers of two, minus infinity where the query at `position` does not see the key.
DEVICE float scored(const Attention& a, float product, uint32_t position, uint32_t key) {
    if (key > position || position - key >= a.window) return MINUS_INFINITY;
    if (a.softcap > 0.0f) return mul(tanhf(mul(product, a.scale) / a.softcap), mul(a.softcap, LOG2_E));
    return mul(product, mul(a.scale, LOG2_E));
}

// The running maximum with that of new scores, and what earlier sums are multiplied with.
DEVICE float raise(float& max, float tile_max) {
    const float higher = fmaxf(max, tile_max);
    const float by = higher == MINUS_INFINITY ? 1.0f : exp2_fast(add(max, -higher));
    max = higher;
    return by;
}
DEVICE float weight(float score, float max) { return exp2_fast(add(score, max == MINUS_INFINITY ? 0.0f : -max)); }

// The tile of keys after this one among those of a block, which takes every `stride`th split; `end` behind the last.
DEVICE uint32_t next_tile(uint32_t tile, uint32_t end, uint32_t stride) {
    constexpr uint32_t EACH = SPLIT / KEYS;
    const uint32_t next = (tile + 1) % EACH != 0 ? tile + 1 : tile + 1 + (stride - 1) * EACH;
    return next < end ? next : end;
}

// ---- On tensor cores. ----

// Eight elements of a cache as they are multiplied, or zeros.
template <class M, class E>
DEVICE void bring(M* to, const E* from, bool there) {
    copy_async(to, from, there);
}
template <>
DEVICE void bring<bf16, f8e4m3>(bf16* to, const f8e4m3* from, bool there) {
    struct alignas(8) Eight {
        f8e4m3 at[8];
    };
    Words words{};
    if (there) {
        const Eight eight = *reinterpret_cast<const Eight*>(from);
        for (uint32_t k = 0; k < 4; k++) words.at[k] = packed<bf16>(widen(eight.at[2 * k]), widen(eight.at[2 * k + 1]));
    }
    *reinterpret_cast<Words*>(to) = words;
}
// Where things stand in a block's shared memory. As in launches.rs.
template <class M>
struct Shared {
    M* q;
    float* totals;
    M* weights;
    float* maxima;
    M* stages;
    uint32_t line, stage;

    DEVICE Shared(uint32_t dims, uint32_t rows, bool with_totals, bool together) {
        unsigned char* at = dynamic_shared();
        line = dims + PAD;
        q = reinterpret_cast<M*>(at);
        at += rows * line * sizeof(M);
        totals = reinterpret_cast<float*>(at);
        at += with_totals ? rows * line * sizeof(float) : 0;
        weights = reinterpret_cast<M*>(at);
        at += together ? ROWS * (KEYS + PAD) * sizeof(M) : 0;
        maxima = reinterpret_cast<float*>(at);
        at += together ? WARPS * ROWS * sizeof(float) : 0;
        stages = reinterpret_cast<M*>(at);
        stage = dims * (KEYS + PAD) + KEYS * line;
    }
    // `[dims, KEYS + PAD]` and `[KEYS, line]`.
    DEVICE M* keys(uint32_t which) const { return stages + which * stage; }
    DEVICE M* values(uint32_t which, uint32_t dims) const { return stages + which * stage + dims * (KEYS + PAD); }
};

// The same element by element, of blocks or heads that are no multiple of eight: out of line, because few have such.
template <class E, class M>
DEVICE_CALL void load_by_element(Attention a, Task task, M* keys, M* values, uint32_t dims, uint32_t first) {
    const CacheShape& shape = a.shape;
    const uint32_t size = shape.block_size, from = task.first_key / size * size, line = dims + PAD;
    const E* const all_keys = static_cast<const E*>(a.keys);
    const E* const all_values = static_cast<const E*>(a.values);
    for (uint32_t index = threadIdx.x; index < dims * KEYS; index += blockDim.x) {
        const uint32_t dim = index / KEYS, key = first + index % KEYS;
        const bool exists = dim < shape.head_dim && key >= from && key < task.end_key;
        const bool seen = exists && key >= task.first_key;
        const uint64_t part = exists ? head_part(shape, task.table[key / size], task.kv_head) : 0;
        const uint64_t key_at = exists ? part + uint64_t(dim) * size + key % size : 0;
        const uint64_t value_at = seen ? part + uint64_t(key % size) * shape.head_dim + dim : 0;
        keys[dim * (KEYS + PAD) + index % KEYS] = exists ? rounded<M>(widen(all_keys[key_at])) : M{0};
        values[index % KEYS * line + dim] = seen ? rounded<M>(widen(all_values[value_at])) : M{0};
    }
}

// Brings the 64 keys from `first` on and their values. Zeros stand where there is nothing that a row of the tile sees.
template <class E, class M, uint32_t HD>
DEVICE void load_tile(const Attention& a, const Task& task, const Shared<M>& shared, uint32_t which, uint32_t dims,
                      uint32_t first) {
    const CacheShape& shape = a.shape;
    const uint32_t size = shape.block_size;
    M* const keys = shared.keys(which);
    M* const values = shared.values(which, dims);
    if (size % 8 != 0 || shape.head_dim % 8 != 0) {
        load_by_element<E, M>(a, task, keys, values, dims, first);
        commit_copies();
        return;
    }
    const E* const all_keys = static_cast<const E*>(a.keys);
    const E* const all_values = static_cast<const E*>(a.values);
    const uint32_t from = task.first_key / size * size;
    for (uint32_t index = threadIdx.x; index < dims * (KEYS / 8); index += blockDim.x) {
        const uint32_t dim = index / (KEYS / 8), key = first + index % (KEYS / 8) * 8;
        const bool there = dim < shape.head_dim && key >= from && key < task.end_key;
        const E* at = all_keys;
        if (there) at += head_part(shape, task.table[key / size], task.kv_head) + uint64_t(dim) * size + key % size;
        bring<M, E>(keys + dim * (KEYS + PAD) + (key - first), at, there);
    }
    // Lines as long as the longest head's, so that what a thread takes is found by shifts.
    for (uint32_t index = threadIdx.x; index < KEYS * (HD / 8); index += blockDim.x) {
        const uint32_t key = first + index / (HD / 8), dim = index % (HD / 8) * 8;
        if (dim >= dims) continue;
        const bool there = dim < shape.head_dim && key >= task.first_key && key < task.end_key;
        const E* at = all_values;
        if (there) {
            at += head_part(shape, task.table[key / size], task.kv_head) + uint64_t(key % size) * shape.head_dim + dim;
        }
        bring<M, E>(values + (key - first) * shared.line + dim, at, there);
    }
    commit_copies();
}

// The queries of a block's rows, rounded; zeros for rows and dimensions that there are not.
template <class M>
DEVICE void load_queries(const Attention& a, const Task& task, const Shared<M>& shared, uint32_t rows, uint32_t dims) {
    for (uint32_t index = threadIdx.x; index < rows * dims; index += blockDim.x) {
        const uint32_t row = task.first + index / dims, dim = index % dims;
        const bool there = row < task.end && dim < a.shape.head_dim;
        const float* from = a.q + (task.begin + task.query(row)) * a.q_stride + task.head(row) * a.shape.head_dim;
        round_into(shared.q[index / dims * shared.line + dim], there ? from[dim] : 0.0f);
    }
}

// Where a lane's part of four matrices begins: 16 x 16 of lines `line` apart. In this order they are the words of `a`, and,
// transposed, those of `b` for eight columns and for the next eight.
template <class M>
DEVICE const M* lines_by_row(const M* at, uint32_t line) {
    const uint32_t lane = lane_id();
    return at + (lane % 8 + lane / 8 % 2 * 8) * line + lane / 16 * 8;
}

// The products of a warp's sixteen queries with 16 keys.
template <class M>
DEVICE void multiply(float (&c)[2][4], const uint32_t (&a)[4], const M* matrix, uint32_t line) {
    uint32_t b[4];
    load_transposed(b, lines_by_row(matrix, line));
    mma<M>(c[0], a, {b[0], b[1]});
    mma<M>(c[1], a, {b[2], b[3]});
}

// The weights of 16 keys as they are multiplied with values; their sum is of these.
template <class M>
DEVICE void add_weights(const uint32_t (&p)[4], float (&sums)[2]) {
    for (uint32_t row = 0; row < 2; row++) {
        for (uint32_t word = row; word < 4; word += 2) {
            sums[row] = add(sums[row], low_half<M>(p[word]));
            sums[row] = add(sums[row], high_half<M>(p[word]));
        }
    }
}

DEVICE float quad_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}
DEVICE float quad_sum(float x) {
    x = add(x, shuffle_xor(x, 1));
    return add(x, shuffle_xor(x, 2));
}

// The rows of a tile, TOGETHER by four warps that share out keys and then dimensions, or sixteen a warp. E is what the cache
// holds, M what is multiplied, HD 128 or 256, not below the head's dimensions.
template <class E, class M, uint32_t HD, bool TOGETHER>
DEVICE void attend(const Attention& a) {
    constexpr uint32_t STRIPS = TOGETHER ? HD / 16 / WARPS : HD / 16;
    constexpr uint32_t KEY_STRIPS = TOGETHER ? KEYS / 16 / WARPS : KEYS / 16;
    const uint32_t rows = TOGETHER ? ROWS : blockDim.x / WARP * ROWS;
    Task task;
    if (!find_task(a, rows, task)) return;
    const uint32_t dims = (a.shape.head_dim + 15) / 16 * 16, lane = lane_id(), warp = warp_id();
    const bool split_up = a.partial_sums != nullptr;
    const Shared<M> shared(dims, rows, !split_up, TOGETHER);
    const uint32_t stride = split_up ? gridDim.z : 1;
    const uint32_t first_split = task.first_split() + (split_up ? blockIdx.z : 0);
    if (first_split >= task.end_split()) return;

    // The two rows that a lane has to do with, the warp's rows in shared memory, and the strips of dimensions it sums.
    const uint32_t warp_row = TOGETHER ? 0 : warp * ROWS, first_strip = TOGETHER ? warp : 0;
    constexpr uint32_t STRIP_STEP = TOGETHER ? WARPS : 1;
    const uint32_t row[2] = {task.first + warp_row + lane / 4, task.first + warp_row + lane / 4 + 8};
    const bool there[2] = {row[0] < task.end, row[1] < task.end};
    const uint32_t position[2] = {there[0] ? task.position(row[0]) : 0, there[1] ? task.position(row[1]) : 0};

    load_queries(a, task, shared, rows, dims);
    float* const totals = shared.totals + (warp_row + lane / 4) * shared.line + lane % 4 * 2;
    if (!split_up) {
        for (uint32_t k = threadIdx.x; k < rows * shared.line; k += blockDim.x) shared.totals[k] = 0.0f;
    }
    Stats total[2] = {{MINUS_INFINITY, 0.0f}, {MINUS_INFINITY, 0.0f}}, split[2] = {total[0], total[1]};
    float sums[STRIPS][2][4] = {};

    const uint32_t end_tile = (task.end_key + KEYS - 1) / KEYS;
    uint32_t tile = first_split * (SPLIT / KEYS), seen_from = task.first_key / KEYS;
    if (tile < seen_from) tile = seen_from;
    uint32_t stage = 0;
    load_tile<E, M, HD>(a, task, shared, stage, dims, tile * KEYS);
    while (tile < end_tile) {
        const uint32_t next = next_tile(tile, end_tile, stride);
        const bool ahead = a.stages == 2 && next < end_tile;
        if (ahead) {
            load_tile<E, M, HD>(a, task, shared, stage ^ 1, dims, next * KEYS);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();

        const M* const keys = shared.keys(stage);
        const M* const values = shared.values(stage, dims);
        const M* const queries = lines_by_row(shared.q + warp_row * shared.line, shared.line);
        // Scores: a lane has two of each row for every eight keys.
        float scores[KEY_STRIPS][2][4] = {};
        const uint32_t first_key_strip = TOGETHER ? warp : 0;
        UNROLL
        for (uint32_t k = 0; k < HD / 16; k++) {
            if (k * 16 >= dims) continue;
            uint32_t q[4];
            load_matrices(q, queries + k * 16);
            UNROLL
            for (uint32_t strip = 0; strip < KEY_STRIPS; strip++) {
                multiply<M>(scores[strip], q, keys + k * 16 * (KEYS + PAD) + (first_key_strip + strip) * 16, KEYS + PAD);
            }
        }
        float maxima[2] = {MINUS_INFINITY, MINUS_INFINITY};
        UNROLL
        for (uint32_t strip = 0; strip < KEY_STRIPS; strip++) {
            UNROLL
            for (uint32_t k = 0; k < 8; k++) {
                const uint32_t which = k % 4 / 2;
                const uint32_t key = tile * KEYS + (first_key_strip + strip) * 16 + k / 4 * 8 + lane % 4 * 2 + k % 2;
                float& score = scores[strip][k / 4][k % 4];
                score = there[which] ? scored(a, score, position[which], key) : MINUS_INFINITY;
                maxima[which] = fmaxf(maxima[which], score);
            }
        }
        maxima[0] = quad_max(maxima[0]);
        maxima[1] = quad_max(maxima[1]);
        if (TOGETHER) {
            if (lane % 4 == 0) {
                shared.maxima[warp * ROWS + lane / 4] = maxima[0];
                shared.maxima[warp * ROWS + lane / 4 + 8] = maxima[1];
            }
            __syncthreads();
            for (uint32_t other = 0; other < WARPS; other++) {
                maxima[0] = fmaxf(maxima[0], shared.maxima[other * ROWS + lane / 4]);
                maxima[1] = fmaxf(maxima[1], shared.maxima[other * ROWS + lane / 4 + 8]);
            }
        }
        const float by[2] = {raise(split[0].max, maxima[0]), raise(split[1].max, maxima[1])};
        float weights[2] = {mul(split[0].sum, by[0]), mul(split[1].sum, by[1])};
        UNROLL
        for (uint32_t strip = 0; strip < STRIPS; strip++) {
            UNROLL
            for (uint32_t k = 0; k < 8; k++) sums[strip][k / 4][k % 4] = mul(sums[strip][k / 4][k % 4], by[k % 4 / 2]);
        }
        // Scores become weights, which lie in a lane as a product's left side wants them.
        uint32_t p[KEYS / 16][4];
        UNROLL
        for (uint32_t strip = 0; strip < KEY_STRIPS; strip++) {
            UNROLL
            for (uint32_t word = 0; word < 4; word++) {
                const float* pair = &scores[strip][word / 2][word % 2 * 2];
                const float max = split[word % 2].max;
                p[strip][word] = packed<M>(weight(pair[0], max), weight(pair[1], max));
            }
        }
        if (TOGETHER) {
            UNROLL
            for (uint32_t word = 0; word < 4; word++) {
                M* line = shared.weights + (lane / 4 + word % 2 * 8) * (KEYS + PAD);
                *reinterpret_cast<uint32_t*>(line + warp * 16 + word / 2 * 8 + lane % 4 * 2) = p[0][word];
            }
            __syncthreads();
            UNROLL
            for (uint32_t k = 0; k < KEYS / 16; k++) {
                load_matrices(p[k], lines_by_row(shared.weights + k * 16, KEYS + PAD));
            }
        }
        UNROLL
        for (uint32_t k = 0; k < KEYS / 16; k++) {
            add_weights<M>(p[k], weights);
            UNROLL
            for (uint32_t strip = 0; strip < STRIPS; strip++) {
                const uint32_t dim = (first_strip + strip * STRIP_STEP) * 16;
                if (dim < dims) multiply<M>(sums[strip], p[k], values + k * 16 * shared.line + dim, shared.line);
            }
        }
        split[0].sum = weights[0];
        split[1].sum = weights[1];

        if (next == end_tile || next / (SPLIT / KEYS) != tile / (SPLIT / KEYS)) {
            // The split is at its end.
            const uint32_t index = tile / (SPLIT / KEYS);
            UNROLL
            for (uint32_t which = 0; which < 2; which++) {
                split[which].sum = quad_sum(split[which].sum);
                Factors factors{};
                float* sums_out = nullptr;
                if (!split_up) {
                    factors = merge(total[which], split[which]);
                } else if (there[which]) {
                    sums_out = partial_sums(a, task, row[which], index);
                    if (lane % 4 == 0 && (!TOGETHER || warp == 0)) {
                        float* stats = partial_stats(a, task, row[which], index);
                        stats[0] = split[which].max;
                        stats[1] = split[which].sum;
                    }
                }
                UNROLL
                for (uint32_t strip = 0; strip < STRIPS; strip++) {
                    const uint32_t dim = (first_strip + strip * STRIP_STEP) * 16;
                    UNROLL
                    for (uint32_t k = 0; k < 4; k++) {
                        const uint32_t at = dim + k / 2 * 8 + k % 2;
                        float& sum = sums[strip][k / 2][which * 2 + k % 2];
                        if (dim < dims) {
                            if (!split_up) {
                                float& old = totals[which * 8 * shared.line + at];
                                if (split[which].sum != 0.0f) old = merged(old, sum, factors);
                            } else if (there[which] && at + lane % 4 * 2 < a.shape.head_dim) {
                                sums_out[at + lane % 4 * 2] = sum;
                            }
                        }
                        sum = 0.0f;
                    }
                }
                split[which] = {MINUS_INFINITY, 0.0f};
            }
        }
        // All have read this stage before it is written again.
        __syncthreads();
        if (a.stages == 2) stage ^= 1;
        else if (next < end_tile) load_tile<E, M, HD>(a, task, shared, stage, dims, next * KEYS);
        tile = next;
    }
    if (split_up) return;
    UNROLL
    for (uint32_t which = 0; which < 2; which++) {
        if (!there[which]) continue;
        const float factor = last_factor(total[which], a.sinks ? a.sinks + task.head(row[which]) : nullptr);
        float* out = output(a, task, row[which]);
        for (uint32_t strip = 0; strip < STRIPS; strip++) {
            const uint32_t dim = (first_strip + strip * STRIP_STEP) * 16;
            for (uint32_t k = 0; k < 4; k++) {
                const uint32_t at = dim + k / 2 * 8 + k % 2;
                if (dim < dims && at + lane % 4 * 2 < a.shape.head_dim) {
                    out[at + lane % 4 * 2] = mul(totals[which * 8 * shared.line + at], factor);
                }
            }
        }
    }
}

// ---- Over float32: a warp a row, without tensor cores. ----

DEVICE void attend_f32(const Attention& a) {
    constexpr uint32_t MOST = 256 / WARP;
    Task task;
    if (!find_task(a, ROWS, task)) return;
    const CacheShape& shape = a.shape;
    const uint32_t lane = lane_id(), row = task.first + warp_id(), size = shape.block_size;
    // No barrier below, so a warp may leave.
    if (row >= task.end) return;
    const uint32_t position = task.position(row);
    const float* q = a.q + (task.begin + task.query(row)) * a.q_stride + task.head(row) * shape.head_dim;
    const float* all_keys = static_cast<const float*>(a.keys);
    const float* all_values = static_cast<const float*>(a.values);
    const bool split_up = a.partial_sums != nullptr;
    Stats total{MINUS_INFINITY, 0.0f};
    float totals[MOST] = {};
    for (uint32_t index = task.first_split() + (split_up ? blockIdx.z : 0); index < task.end_split();
         index += split_up ? gridDim.z : 1) {
        Stats split{MINUS_INFINITY, 0.0f};
        float sums[MOST] = {};
        const uint32_t end = (index + 1) * SPLIT < task.end_key ? (index + 1) * SPLIT : task.end_key;
        for (uint32_t first = index * SPLIT; first < end; first += WARP) {
            // A key a lane.
            const uint32_t key = first + lane;
            float score = MINUS_INFINITY;
            if (key <= position && position - key < a.window) {
                const float* from = all_keys + head_part(shape, task.table[key / size], task.kv_head) + key % size;
                float product = 0.0f;
                for (uint32_t d = 0; d < shape.head_dim; d++) product = fused(q[d], from[uint64_t(d) * size], product);
                score = scored(a, product, position, key);
            }
            const float by = raise(split.max, warp_max(score));
            const float p = weight(score, split.max);
            split.sum = fused(split.sum, by, warp_sum(p));
            for (uint32_t k = 0; k < MOST; k++) sums[k] = mul(sums[k], by);
            for (uint32_t k = 0; k < WARP; k++) {
                // The same in all lanes, so all go on, or none.
                const float each = shuffle_from(p, int(k));
                if (each == 0.0f || first + k > position) continue;
                const uint32_t one = first + k;
                const float* from = all_values + head_part(shape, task.table[one / size], task.kv_head) +
                                    uint64_t(one % size) * shape.head_dim;
                for (uint32_t d = 0; d < MOST; d++) {
                    if (d * WARP + lane < shape.head_dim) sums[d] = fused(each, from[d * WARP + lane], sums[d]);
                }
            }
        }
        const Factors by = split_up ? Factors{} : merge(total, split);
        for (uint32_t k = 0; k < MOST; k++) {
            if (k * WARP + lane >= shape.head_dim) continue;
            if (split_up) partial_sums(a, task, row, index)[k * WARP + lane] = sums[k];
            else if (split.sum != 0.0f) totals[k] = merged(totals[k], sums[k], by);
        }
        if (split_up && lane == 0) {
            float* stats = partial_stats(a, task, row, index);
            stats[0] = split.max;
            stats[1] = split.sum;
        }
    }
    if (split_up) return;
    const float factor = last_factor(total, a.sinks ? a.sinks + task.head(row) : nullptr);
    float* out = output(a, task, row);
    for (uint32_t k = 0; k < MOST; k++) {
        if (k * WARP + lane < shape.head_dim) out[k * WARP + lane] = mul(totals[k], factor);
    }
}

// ---- What the splits of a tile's rows gave, merged. Grid: tiles, KV heads, rows of a tile; a thread a dimension. ----

DEVICE void merge_splits(const Attention& a) {
    Task task;
    if (!find_task(a, ROWS, task)) return;
    const uint32_t row = task.first + blockIdx.z;
    if (row >= task.end) return;
    for (uint32_t d = threadIdx.x; d < a.shape.head_dim; d += blockDim.x) {
        Stats total{MINUS_INFINITY, 0.0f};
        float sum = 0.0f;
        for (uint32_t index = task.first_split(); index < task.end_split(); index++) {
            const float* stats = partial_stats(a, task, row, index);
            const Stats split{stats[0], stats[1]};
            const Factors by = merge(total, split);
            if (split.sum != 0.0f) sum = merged(sum, partial_sums(a, task, row, index)[d], by);
        }
        output(a, task, row)[d] = mul(sum, last_factor(total, a.sinks ? a.sinks + task.head(row) : nullptr));
    }
}

#define ATTENTION(name, threads, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(threads) name(                                                        \
        const float* q, uint64_t q_stride, const void* keys, const void* values, float* out, const float* sinks,       \
        const uint32_t* cu_seqlens, const uint32_t* context_lens, const uint32_t* block_tables,                        \
        const uint32_t* cu_blocks, const uint32_t* tiles, float* partial_sums, float* partial_stats,                   \
        uint32_t partial_rows, uint32_t max_splits, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,              \
        uint32_t block_size, float scale, float softcap, uint32_t window, uint32_t stages) {                           \
        __VA_ARGS__(Attention{q, q_stride, keys, values, out, sinks, cu_seqlens, context_lens, block_tables,           \
                              cu_blocks, tiles, partial_sums, partial_stats, partial_rows, max_splits, heads,          \
                              CacheShape{kv_heads, head_dim, block_size}, scale, softcap, window, stages});            \
    }                                                                                                                  \
    HOST_TWIN(name)

// A few rows are a few registers whatever the head's size, and wait for memory; a prompt's would fill half of a smaller
// head's with zeros.
#define ON_TENSOR_CORES(type, E, M)                                                                                    \
    ATTENTION(candlewick_paged_attention_##type##_together, 128, attend<E, M, 256, true>)                              \
    ATTENTION(candlewick_paged_attention_##type##_128, 128, attend<E, M, 128, false>)                                  \
    ATTENTION(candlewick_paged_attention_##type##_256, 128, attend<E, M, 256, false>)

ON_TENSOR_CORES(bf16, bf16, bf16)
ON_TENSOR_CORES(f16, f16, f16)
ON_TENSOR_CORES(f8, f8e4m3, bf16)
ATTENTION(candlewick_paged_attention_f32, 512, attend_f32)
ATTENTION(candlewick_paged_attention_merge, 256, merge_splits)
