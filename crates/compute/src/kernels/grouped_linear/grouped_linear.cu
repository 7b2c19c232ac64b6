// Rows of several experts, each times the weight of its own: tiles of rows, none with rows of two experts, by 64 outputs, four
// warps each. An output is one chain over the inputs, sixteen a tensor core's instruction or one a multiply-add, so neither the
// tile's height nor who else is in it changes its bits.

#include "mma.cuh"
#include "numbers.cuh"

constexpr uint32_t NONE = 0xffffffffu;
constexpr uint32_t THREADS = 128;
constexpr uint32_t COLUMNS = 64;
// As launches.rs counts shared memory.
constexpr uint32_t DEPTH = 64;
// 16 bytes longer than they must be, which puts the eight lines of an ldmatrix into different banks.
constexpr uint32_t LINE = DEPTH + 8;
constexpr uint32_t FLOAT_DEPTH = 32;
constexpr uint32_t FLOAT_LINE = FLOAT_DEPTH + 1;

struct Product {
    // `[tokens, inputs]`.
    const void* x;
    // Whose row each of the result is; null where rows are as they come.
    const uint32_t* tokens;
    // Addresses of `[outputs, inputs]`, an expert each.
    const uint64_t* weights;
    // `[experts, outputs]`, or null.
    const float* biases;
    // Expert, first row and the row behind the last, as route.cu cuts them.
    const uint32_t* tiles;
    // `[rows, outputs]`.
    float* out;
    uint32_t inputs, outputs;
};

struct Tile {
    uint32_t expert, first, end, column;
};

DEVICE Tile tile_of(const Product& product) {
    const uint32_t* tile = product.tiles + 3 * uint64_t(blockIdx.x);
    return Tile{tile[0], tile[1], tile[2], blockIdx.y * COLUMNS};
}

// Where a row's inputs are; of a row that the tile does not have, those of some row.
template <class T>
DEVICE const T* inputs_of(const Product& product, uint32_t row, bool there) {
    const uint64_t from = !there ? 0 : product.tokens ? product.tokens[row] : row;
    return static_cast<const T*>(product.x) + from * product.inputs;
}

DEVICE void put(const Product& product, const Tile& tile, uint32_t row, uint32_t column, float sum) {
    if (row >= tile.end || column >= product.outputs) return;
    if (product.biases) sum = add(sum, product.biases[uint64_t(tile.expert) * product.outputs + column]);
    product.out[uint64_t(row) * product.outputs + column] = sum;
}

// Eight numbers of a line to shared memory, zeros for those that are not there.
template <class T>
DEVICE void fetch(T* to, const T* line, uint32_t k, uint32_t inputs, bool there, bool aligned) {
    if (aligned) {
        const bool inside = there && k < inputs;
        copy_async(to, inside ? line + k : line, inside);
        return;
    }
    for (uint32_t i = 0; i < 8; i++) to[i] = there && k + i < inputs ? line[k + i] : T{0};
}

// On tensor cores; `ROWS` by `COLUMNS` are shared out to `ROW_WARPS` times as many warps as make four.
template <class T, uint32_t ROWS, uint32_t ROW_WARPS, uint32_t STAGES>
DEVICE void multiply(const Product& product) {
    constexpr uint32_t COLUMN_WARPS = THREADS / WARP / ROW_WARPS;
    // Blocks of sixteen rows, and of sixteen outputs, of a warp.
    constexpr uint32_t DOWN = ROWS / ROW_WARPS / 16, ACROSS = COLUMNS / COLUMN_WARPS / 16;
    constexpr uint32_t STAGE = (ROWS + COLUMNS) * LINE;
    const Tile tile = tile_of(product);
    if (tile.expert == NONE) return;
    T* shared = reinterpret_cast<T*>(dynamic_shared());
    const T* weight = reinterpret_cast<const T*>(product.weights[tile.expert]);
    const uint32_t inputs = product.inputs, steps = (inputs + DEPTH - 1) / DEPTH;
    const bool aligned = inputs % 8 == 0 && aligned16(product.x) && aligned16(weight);

    auto fetch_stage = [&](uint32_t step) {
        T* stage = shared + step % STAGES * STAGE;
        for (uint32_t at = threadIdx.x; at < (ROWS + COLUMNS) * (DEPTH / 8); at += THREADS) {
            const uint32_t line = at / (DEPTH / 8), k = at % (DEPTH / 8) * 8;
            T* to = stage + line * LINE + k;
            if (line < ROWS) {
                const bool there = tile.first + line < tile.end;
                fetch(to, inputs_of<T>(product, tile.first + line, there), step * DEPTH + k, inputs, there, aligned);
            } else {
                const uint32_t column = tile.column + line - ROWS;
                const bool there = column < product.outputs;
                fetch(to, weight + (there ? uint64_t(column) * inputs : 0), step * DEPTH + k, inputs, there, aligned);
            }
        }
    };

    float sums[DOWN][ACROSS][2][4] = {};
    const uint32_t lane = lane_id();
    const uint32_t first_row = warp_id() / COLUMN_WARPS * DOWN * 16, first_column = warp_id() % COLUMN_WARPS * ACROSS * 16;
    UNROLL for (uint32_t step = 0; step < STAGES - 1; step++) {
        if (step < steps) fetch_stage(step);
        commit_copies();
    }
    for (uint32_t step = 0; step < steps; step++) {
        wait_for_copies<STAGES - 2>();
        // What this step needs has come, and nobody reads what the fetch behind it overwrites.
        __syncthreads();
        if (step + STAGES - 1 < steps) fetch_stage(step + STAGES - 1);
        commit_copies();
        const T* stage = shared + step % STAGES * STAGE;
        UNROLL for (uint32_t k = 0; k < DEPTH; k += 16) {
            uint32_t a[DOWN][4], b[ACROSS][4];
            UNROLL for (uint32_t i = 0; i < DOWN; i++) {
                const uint32_t row = first_row + i * 16 + lane % 16;
                load_matrices(a[i], stage + row * LINE + k + lane / 16 * 8);
            }
            UNROLL for (uint32_t j = 0; j < ACROSS; j++) {
                const uint32_t row = ROWS + first_column + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(b[j], stage + row * LINE + k + lane / 8 % 2 * 8);
            }
            UNROLL for (uint32_t i = 0; i < DOWN; i++) {
                UNROLL for (uint32_t j = 0; j < ACROSS; j++) {
                    const uint32_t left[2] = {b[j][0], b[j][1]}, right[2] = {b[j][2], b[j][3]};
                    mma<T>(sums[i][j][0], a[i], left);
                    mma<T>(sums[i][j][1], a[i], right);
                }
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < DOWN; i++) {
        UNROLL for (uint32_t j = 0; j < ACROSS; j++) {
            UNROLL for (uint32_t half = 0; half < 2; half++) {
                UNROLL for (uint32_t k = 0; k < 4; k++) {
                    const uint32_t row = tile.first + first_row + i * 16 + lane / 4 + k / 2 * 8;
                    const uint32_t column = tile.column + first_column + j * 16 + half * 8 + lane % 4 * 2 + k % 2;
                    put(product, tile, row, column, sums[i][j][half][k]);
                }
            }
        }
    }
}

// Without them: a thread has one output of half of the rows.
template <uint32_t ROWS>
DEVICE void multiply_floats(const Product& product) {
    const Tile tile = tile_of(product);
    if (tile.expert == NONE) return;
    float* x = reinterpret_cast<float*>(dynamic_shared());
    float* w = x + ROWS * FLOAT_LINE;
    const float* weight = reinterpret_cast<const float*>(product.weights[tile.expert]);
    const uint32_t own = threadIdx.x % COLUMNS, first_row = threadIdx.x / COLUMNS * (ROWS / 2);
    float sums[ROWS / 2] = {};
    for (uint32_t from = 0; from < product.inputs; from += FLOAT_DEPTH) {
        __syncthreads();
        for (uint32_t at = threadIdx.x; at < (ROWS + COLUMNS) * FLOAT_DEPTH; at += THREADS) {
            const uint32_t line = at / FLOAT_DEPTH, k = from + at % FLOAT_DEPTH;
            const uint32_t row = tile.first + line, column = tile.column + line - ROWS;
            const bool there = k < product.inputs && (line < ROWS ? row < tile.end : column < product.outputs);
            float value = 0.0f;
            if (there) value = line < ROWS ? inputs_of<float>(product, row, true)[k] : weight[uint64_t(column) * product.inputs + k];
            x[line * FLOAT_LINE + at % FLOAT_DEPTH] = value;
        }
        __syncthreads();
        for (uint32_t k = 0; k < FLOAT_DEPTH; k++) {
            const float factor = w[own * FLOAT_LINE + k];
            UNROLL for (uint32_t i = 0; i < ROWS / 2; i++) {
                sums[i] = fused(x[(first_row + i) * FLOAT_LINE + k], factor, sums[i]);
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < ROWS / 2; i++) put(product, tile, tile.first + first_row + i, tile.column + own, sums[i]);
}

#define GROUPED_LINEAR(name, ...)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        name(const void* x, const uint32_t* tokens, const uint64_t* weights, const float* biases,                      \
             const uint32_t* tiles, float* out, uint32_t inputs, uint32_t outputs) {                                   \
        __VA_ARGS__(Product{x, tokens, weights, biases, tiles, out, inputs, outputs});                                 \
    }                                                                                                                  \
    HOST_TWIN(name)

GROUPED_LINEAR(candlewick_grouped_linear_bf16_16, multiply<bf16, 16, 1, 4>)
GROUPED_LINEAR(candlewick_grouped_linear_bf16_64, multiply<bf16, 64, 2, 3>)
GROUPED_LINEAR(candlewick_grouped_linear_f16_16, multiply<f16, 16, 1, 4>)
GROUPED_LINEAR(candlewick_grouped_linear_f16_64, multiply<f16, 64, 2, 3>)
GROUPED_LINEAR(candlewick_grouped_linear_f32_16, multiply_floats<16>)
GROUPED_LINEAR(candlewick_grouped_linear_f32_64, multiply_floats<64>)
