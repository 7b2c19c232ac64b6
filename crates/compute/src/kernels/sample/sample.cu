// A token drawn from each row of logits, a block a row: temperature, then min_p, top_k and top_p, then the draw.
//
// A weight, e^((logit - largest) / temperature), becomes a whole number of 2^-40ths, so that sums have no order and threads
// may add as they come. What is kept are the first tokens by rank: the most likely first, of equally likely ones the lower
// id. How many is found digit by digit: a histogram of the ranks' highest digit says in which of its values the last kept
// token is, and only tokens with that digit go on to the next. The draw goes through what is kept in the order of ids.

#include "numbers.cuh"
#include "reduce.cuh"

constexpr uint32_t THREADS = 1024;
constexpr uint32_t DIGITS = 256;
constexpr uint32_t NONE = 0xffffffffu;
// Beyond this distance a weight is none: e^-27.7 is 2^-40.
constexpr float FARTHEST = 27.7f;

struct Row {
    const float* logits;
    uint32_t width;
    float max, temperature;
};

struct Shared {
    uint32_t counts[DIGITS];
    unsigned long long masses[DIGITS];
    unsigned long long sums[THREADS / WARP];
    float maxima[THREADS / WARP];
    unsigned long long chosen;
    unsigned long long left;
    uint32_t found;
};

// How far a token is from the most likely one, after the temperature.
DEVICE float distance(const Row& row, uint32_t id) { return add(row.max, -row.logits[id]) / row.temperature; }

DEVICE unsigned long long mass(float distance) {
    return distance < FARTHEST ? (unsigned long long)(expf(-distance) * 1099511627776.0f + 0.5f) : 0ull;
}

// Larger for what comes first: the distance in 2^-27ths, and the id turned round. A distance that has no weight has rank 0.
DEVICE unsigned long long rank(float distance, uint32_t id) {
    if (!(distance < FARTHEST)) return 0;
    return (unsigned long long)(NONE - uint32_t(distance * 134217728.0f)) << 32 | (NONE - id);
}

// The sum of all threads', in all threads.
DEVICE unsigned long long block_total(unsigned long long x, Shared& shared) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    __syncthreads();
    if (lane_id() == 0) shared.sums[warp_id()] = x;
    __syncthreads();
    x = shared.sums[lane_id()];
    for (int lanes = 16; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

// The least rank of the first tokens that are `wanted` many (BY_MASS: that together have this mass, the one that reaches it
// included), of those with at least the rank `floor`; `floor` where there are not so many.
template <bool BY_MASS>
DEVICE unsigned long long least_kept(const Row& row, unsigned long long floor, unsigned long long wanted, Shared& shared) {
    unsigned long long prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        if (threadIdx.x < DIGITS) {
            shared.counts[threadIdx.x] = 0;
            shared.masses[threadIdx.x] = 0;
        }
        __syncthreads();
        for (uint32_t id = threadIdx.x; id < row.width; id += THREADS) {
            const float far = distance(row, id);
            const unsigned long long one = rank(far, id);
            if (one == 0 || one < floor || (shift < 56 && one >> (shift + 8) != prefix >> (shift + 8))) continue;
            atomicAdd(&shared.counts[one >> shift & 0xff], 1u);
            if (BY_MASS) atomicAdd(&shared.masses[one >> shift & 0xff], mass(far));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = DIGITS;
            unsigned long long left = wanted;
            while (digit > 0) {
                digit--;
                const unsigned long long here = BY_MASS ? shared.masses[digit] : shared.counts[digit];
                if (shared.counts[digit] > 0 && here >= left) break;
                left -= here;
                if (digit == 0) {
                    // All of them are fewer.
                    digit = DIGITS;
                    break;
                }
            }
            shared.found = digit;
            shared.left = left;
            // Nothing in the digit is left out.
            shared.chosen = digit == DIGITS ? 0 : BY_MASS ? shared.counts[digit] == 1 : shared.counts[digit] == left;
        }
        __syncthreads();
        if (shared.found == DIGITS) return floor;
        prefix |= (unsigned long long)shared.found << shift;
        wanted = shared.left;
        // A prefix with zeros behind it is below all that begin with it.
        if (shared.chosen) return prefix > floor ? prefix : floor;
    }
    return prefix;
}

// `tokens[row]`: 2^32 - 1 for a row that holds a NaN or infinity, or nothing but minus infinity. A `top_k` of 0, a `top_p` of
// 1 and a `min_p` of 0 keep all. Grid: rows, of THREADS threads.
extern "C" __global__ void __launch_bounds__(1024)
    candlewick_sample(const float* logits, uint64_t stride, uint32_t width, const float* temperatures, const float* min_ps,
                      const uint32_t* top_ks, const float* top_ps, const double* uniforms, uint32_t* tokens) {
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared());
    Row row{logits + blockIdx.x * stride, width, bits_float(0xff800000u), temperatures[blockIdx.x]};
    // A NaN counts as infinity, which nothing is drawn from.
    const float infinity = bits_float(0x7f800000u);
    for (uint32_t id = threadIdx.x; id < width; id += THREADS) {
        const float one = row.logits[id];
        row.max = fmaxf(row.max, one != one ? infinity : one);
    }
    row.max = warp_max(row.max);
    if (lane_id() == 0) shared.maxima[warp_id()] = row.max;
    __syncthreads();
    row.max = warp_max(shared.maxima[lane_id()]);
    if (row.max == infinity || row.max == -infinity) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = NONE;
        return;
    }
    // Rank 1 is below that of every token that has a weight.
    unsigned long long floor = 1;
    if (min_ps[blockIdx.x] > 0.0f) {
        const float farthest = fmaxf(-logf(min_ps[blockIdx.x]), 0.0f);
        if (farthest < FARTHEST) floor = rank(farthest, NONE);
    }
    if (top_ks[blockIdx.x] > 0) floor = least_kept<false>(row, floor, top_ks[blockIdx.x], shared);
    // A thread has a run of ids, so that what is before it is a sum over the threads before.
    const uint32_t run = (width + THREADS - 1) / THREADS, first = threadIdx.x * run;
    const uint32_t end = first + run < width ? first + run : width;
    auto own_mass = [&] {
        unsigned long long own = 0;
        for (uint32_t id = first; id < end; id++) {
            const float far = distance(row, id);
            if (rank(far, id) >= floor) own += mass(far);
        }
        return own;
    };
    unsigned long long own = own_mass(), total = block_total(own, shared);
    if (top_ps[blockIdx.x] < 1.0f) {
        const unsigned long long target = (unsigned long long)ceil(double(top_ps[blockIdx.x]) * double(total));
        floor = least_kept<true>(row, floor, target > 0 ? target : 1, shared);
        own = own_mass();
        total = block_total(own, shared);
    }
    // The first token at which the sum exceeds this.
    const unsigned long long target = (unsigned long long)(uniforms[blockIdx.x] * double(total));
    unsigned long long before = own;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const unsigned long long other = shuffle_up(before, lanes);
        if (lane_id() >= unsigned(lanes)) before += other;
    }
    __syncthreads();
    if (lane_id() == WARP - 1) shared.sums[warp_id()] = before;
    __syncthreads();
    before -= own;
    for (uint32_t warp = 0; warp < warp_id(); warp++) before += shared.sums[warp];
    if (target < before || target >= before + own) return;
    for (uint32_t id = first; id < end; id++) {
        const float far = distance(row, id);
        if (rank(far, id) < floor) continue;
        before += mass(far);
        if (before > target) {
            tokens[blockIdx.x] = id;
            return;
        }
    }
}
HOST_TWIN(candlewick_sample)
