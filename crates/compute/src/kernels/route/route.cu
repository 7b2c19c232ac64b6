// Which experts a token's rows go to, and where: the best of its scores, then the rows of each expert together.

#include "numbers.cuh"
#include "reduce.cuh"

constexpr uint32_t NONE = 0xffffffffu;

// As launches.rs numbers them.
enum Scores : uint32_t { SOFTMAX = 0, SOFTMAX_OF_TAKEN = 1, SIGMOID = 2 };

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// A candidate and how good it is; of equals the first is better.
struct Ranked {
    float value;
    uint32_t at;
};

DEVICE Ranked better(Ranked a, Ranked b) {
    if (a.at == NONE) return b;
    if (b.at == NONE) return a;
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

// The best of `values`, none of whose candidates is a NaN unless it was taken, in all lanes.
DEVICE Ranked best_of(const float* values, uint32_t count) {
    Ranked best{0.0f, NONE};
    for (uint32_t k = lane_id(); k < count; k += WARP) {
        if (values[k] == values[k]) best = better(best, Ranked{values[k], k});
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        best = better(best, Ranked{shuffle_xor(best.value, lanes), shuffle_xor(best.at, lanes)});
    }
    return best;
}

// A token a warp. `scores` `[tokens, experts]`, rows `stride` apart, and behind a row's experts one score more where `weighed`.
// Writes its `taken` experts, best first, and what each counts: `[tokens, taken + weighed]`, at last the sigmoid of the score
// more, whose row stands behind those of all experts. Of `groups` of experts `open` are open: those whose two best have the greatest
// sum. Grid: tokens.
extern "C" __global__ void candlewick_route_choose(const float* scores, uint64_t stride, const float* bias, uint32_t* chosen,
                                                   float* weights, uint32_t* places, uint32_t experts, uint32_t taken,
                                                   uint32_t groups, uint32_t open, uint32_t kind, uint32_t renormalize,
                                                   float scale, uint32_t weighed) {
    float* counts = reinterpret_cast<float*>(dynamic_shared());
    float* ranked = counts + experts;
    float* of_groups = ranked + experts;
    const uint64_t token = blockIdx.x;
    const uint32_t lane = lane_id();
    scores += token * stride;
    float max = -INFINITY, total = 0.0f;
    if (kind == SOFTMAX) {
        for (uint32_t k = lane; k < experts; k += WARP) max = fmaxf(max, scores[k]);
        max = warp_max(max);
        for (uint32_t k = lane; k < experts; k += WARP) total = add(total, expf(scores[k] - max));
        total = warp_sum(total);
    }
    for (uint32_t k = lane; k < experts; k += WARP) {
        const float score = scores[k];
        const float count = kind == SOFTMAX ? expf(score - max) / total : kind == SIGMOID ? sigmoid(score) : score;
        const float rank = bias ? add(count, bias[k]) : count;
        counts[k] = count;
        ranked[k] = rank == rank ? rank : -INFINITY;
    }
    __syncwarp();
    if (open < groups) {
        const uint32_t size = experts / groups;
        for (uint32_t group = lane; group < groups; group += WARP) {
            float first = -INFINITY, second = -INFINITY;
            for (uint32_t k = group * size; k < (group + 1) * size; k++) {
                second = fmaxf(second, fminf(first, ranked[k]));
                first = fmaxf(first, ranked[k]);
            }
            of_groups[group] = size > 1 ? add(first, second) : first;
        }
        __syncwarp();
        // What is open is marked by a NaN, and then the others are closed by one.
        for (uint32_t k = 0; k < open; k++) {
            const Ranked best = best_of(of_groups, groups);
            if (lane == 0 && best.at != NONE) of_groups[best.at] = NAN;
            __syncwarp();
        }
        for (uint32_t k = lane; k < experts; k += WARP) {
            const float group = k / size < groups ? of_groups[k / size] : 0.0f;
            if (group == group) ranked[k] = NAN;
        }
        __syncwarp();
    }
    const uint32_t each = taken + weighed;
    for (uint32_t k = 0; k < taken; k++) {
        const Ranked best = best_of(ranked, experts);
        if (lane == 0) {
            chosen[token * taken + k] = best.at;
            weights[token * each + k] = counts[best.at];
            ranked[best.at] = NAN;
        }
        __syncwarp();
    }
    if (lane > 0) return;
    // In the order in which the host adds them.
    float* own = weights + token * each;
    if (kind == SOFTMAX_OF_TAKEN) {
        float sum = 0.0f, largest = -INFINITY;
        for (uint32_t k = 0; k < taken; k++) largest = fmaxf(largest, own[k]);
        for (uint32_t k = 0; k < taken; k++) {
            own[k] = expf(own[k] - largest);
            sum = add(sum, own[k]);
        }
        for (uint32_t k = 0; k < taken; k++) own[k] = own[k] / sum;
    }
    if (renormalize) {
        float sum = 0.0f;
        for (uint32_t k = 0; k < taken; k++) sum = add(sum, own[k]);
        sum = add(sum, 1e-20f);
        for (uint32_t k = 0; k < taken; k++) own[k] = own[k] / sum;
    }
    for (uint32_t k = 0; k < taken; k++) own[k] = mul(own[k], scale);
    if (weighed) {
        own[taken] = sigmoid(scores[experts]);
        places[token * each + taken] = gridDim.x * taken + uint32_t(token);
    }
}
HOST_TWIN(candlewick_route_choose)

// What the threads before this one have of `mine`, and all of them: a sum in the order of threads. `scratch` is one number a warp.
DEVICE uint32_t sum_before(uint32_t mine, uint32_t* scratch, uint32_t& all) {
    uint32_t upto = mine;
    for (unsigned lanes = 1; lanes < WARP; lanes *= 2) {
        const uint32_t below = shuffle_up(upto, lanes);
        if (lane_id() >= lanes) upto += below;
    }
    __syncthreads();
    if (lane_id() == WARP - 1) scratch[warp_id()] = upto;
    __syncthreads();
    uint32_t before = upto - mine;
    all = 0;
    for (uint32_t warp = 0; warp < blockDim.x / WARP; warp++) {
        if (warp < warp_id()) before += scratch[warp];
        all += scratch[warp];
    }
    return before;
}

// A block an expert: finds where its rows begin among those of all, which stand in the order of experts and then of tokens, writes
// whose they are (`tokens[row]`), and where each token's choices stand (`places`, `each` a token, of which `taken` are chosen).
// The first block also cuts all rows into tiles, none with rows of two experts: `[tiles]` of expert, first row and the row
// behind its last; a tile that is not needed has no expert. `tiles` is enough for any choice.
extern "C" __global__ void candlewick_route_sort(const uint32_t* chosen, uint32_t* tokens, uint32_t* places, uint32_t* tiles,
                                                 uint32_t count, uint32_t taken, uint32_t each, uint32_t experts,
                                                 uint32_t rows_per_tile, uint32_t most_tiles) {
    uint32_t* counts = reinterpret_cast<uint32_t*>(dynamic_shared());
    uint32_t* scratch = counts + experts;
    const uint32_t expert = blockIdx.x;
    for (uint32_t k = threadIdx.x; k < experts; k += blockDim.x) counts[k] = 0;
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) atomicAdd(&counts[chosen[k]], 1u);
    __syncthreads();
    uint32_t lower = 0, all;
    for (uint32_t k = threadIdx.x; k < expert; k += blockDim.x) lower += counts[k];
    sum_before(lower, scratch, all);
    const uint32_t start = all;
    // A thread has choices that lie together, so that an expert's rows keep the order of tokens.
    const uint32_t share = (count + blockDim.x - 1) / blockDim.x;
    const uint32_t from = threadIdx.x * share < count ? threadIdx.x * share : count;
    const uint32_t to = from + share < count ? from + share : count;
    uint32_t mine = 0;
    for (uint32_t k = from; k < to; k++) mine += chosen[k] == expert;
    uint32_t row = start + sum_before(mine, scratch, all);
    for (uint32_t k = from; k < to; k++) {
        if (chosen[k] != expert) continue;
        tokens[row] = k / taken;
        places[k / taken * each + k % taken] = row;
        row++;
    }
    if (expert > 0) return;
    uint32_t tile = 0, first = 0;
    for (uint32_t base = 0; base < experts; base += blockDim.x) {
        const uint32_t own = base + threadIdx.x;
        const uint32_t rows = own < experts ? counts[own] : 0;
        const uint32_t cut = (rows + rows_per_tile - 1) / rows_per_tile;
        uint32_t all_rows, all_tiles;
        const uint32_t begin = first + sum_before(rows, scratch, all_rows);
        const uint32_t place = tile + sum_before(cut, scratch, all_tiles);
        for (uint32_t k = 0; k < cut; k++) {
            uint32_t* to = tiles + 3 * uint64_t(place + k);
            to[0] = own;
            to[1] = begin + k * rows_per_tile;
            to[2] = to[1] + rows_per_tile < begin + rows ? to[1] + rows_per_tile : begin + rows;
        }
        first += all_rows;
        tile += all_tiles;
    }
    for (uint32_t k = tile + threadIdx.x; k < most_tiles; k += blockDim.x) tiles[3 * uint64_t(k)] = NONE;
}
HOST_TWIN(candlewick_route_sort)
