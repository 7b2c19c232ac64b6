// CUDA's words for a host compiler: what a kernel's body needs to run, block by block, on one thread.
//
// A block's threads are fibers. One runs until it waits: at a barrier for its whole block, at an exchange for its warp.
// So everything that a kernel does is done in a fixed order, and the order can be turned round (`Launch::reversed`): a
// result that changes with it has a race. Shared memory begins as 0xff bytes (NaN to any format) and ends at a page that
// nobody may touch. What would hang or be undefined on a card is an error here: a barrier that some threads do not
// reach, an exchange that some lanes leave out, copies that are read before they were waited for.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <utility>
#include <vector>

#define DEVICE inline
#define DEVICE_CALL inline
#define UNROLL
#define __global__
#define __device__
#define __restrict__ __restrict
#define __launch_bounds__(...)

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

struct dim3 {
    unsigned x, y, z;
};

namespace candlewick {

// As in kernels/cuda/host_twin.rs.
struct Launch {
    dim3 grid, block;
    uint32_t shared_bytes;
    // Blocks, and the threads of each, from the last to the first.
    uint32_t reversed;
    char* message;
    uint32_t message_len;
};

enum class Wait { nothing, warp, block };

// What a lane shows to the others of its warp.
struct Shown {
    uint64_t words[4];
};

struct AsyncCopy {
    void* to;
    const void* from;
    unsigned bytes;
};

struct Fiber {
    jmp_buf context;
    ucontext_t entry;
    dim3 thread;
    unsigned index;
    Wait wait;
    unsigned seen;
    bool started, done;
    std::vector<std::vector<AsyncCopy>> copies;
};

struct Warp {
    // What was shown last and the time before: a lane is never further ahead than that.
    Shown shown[2][WARP];
    unsigned arrived, generation;
    const char* what;
};

struct Block {
    dim3 grid, size, index;
    unsigned threads, live, at_barrier, barriers;
    bool reversed;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    unsigned char* shared;
    void (*body)(void*);
    void* arguments;
    jmp_buf leave;
    char message[256];
};

inline thread_local Block* block = nullptr;
inline thread_local Fiber* fiber = nullptr;

[[noreturn]] inline void fail(const char* what) {
    snprintf(block->message, sizeof block->message, "%s (block %u %u %u, thread %u)", what, block->index.x, block->index.y,
             block->index.z, fiber ? fiber->index : 0);
    _longjmp(block->leave, 2);
}

inline bool ready(const Fiber& one) {
    if (one.done) return false;
    switch (one.wait) {
        case Wait::nothing: return true;
        case Wait::warp: return block->warps[one.index / WARP].generation != one.seen;
        case Wait::block: return block->barriers != one.seen;
    }
    return false;
}

inline void fiber_main();

[[noreturn]] inline void go_on_with(Fiber& next) {
    fiber = &next;
    next.wait = Wait::nothing;
    if (next.started) _longjmp(next.context, 1);
    next.started = true;
    setcontext(&next.entry);
    abort();
}

// The next fiber that can run, in the block's order, this one the last to be asked.
[[noreturn]] inline void run_another() {
    const unsigned count = block->threads, from = fiber->index;
    for (unsigned step = 1; step <= count; step++) {
        Fiber& next = block->fibers[(block->reversed ? from + count - step : from + step) % count];
        if (ready(next)) go_on_with(next);
    }
    if (block->live == 0) _longjmp(block->leave, 1);
    fail("some threads wait for others that never come");
}

[[gnu::noinline]] inline void pause_here() {
    if (_setjmp(fiber->context) == 0) run_another();
}

inline void fiber_main() {
    block->body(block->arguments);
    fiber->done = true;
    block->live--;
    if (block->at_barrier > 0) fail("a thread ended while others wait at a barrier");
    if (!fiber->copies.empty()) {
        for (auto& group : fiber->copies)
            if (!group.empty()) fail("a thread ended before its copies were waited for");
    }
    run_another();
}

[[gnu::noinline]] inline void barrier() {
    block->at_barrier++;
    if (block->live < block->threads) fail("a barrier after some threads have ended");
    if (block->at_barrier == block->threads) {
        block->at_barrier = 0;
        block->barriers++;
        return;
    }
    fiber->wait = Wait::block;
    fiber->seen = block->barriers;
    pause_here();
}

// Shows words to the warp, waits for all of it, and gives what every lane has shown.
[[gnu::noinline]] inline const Shown* exchange(const Shown& mine, const char* what) {
    Warp& warp = block->warps[fiber->index / WARP];
    const unsigned lane = fiber->index % WARP, first = fiber->index - lane;
    const unsigned lanes = block->threads - first < WARP ? block->threads - first : WARP;
    if (lanes < WARP) fail("an exchange in a warp that is not whole");
    if (warp.arrived == 0) warp.what = what;
    if (strcmp(warp.what, what) != 0) fail("lanes of a warp at different exchanges");
    Shown* shown = warp.shown[warp.generation % 2];
    shown[lane] = mine;
    warp.arrived |= 1u << lane;
    if (warp.arrived == ALL_LANES) {
        warp.arrived = 0;
        warp.generation++;
    } else {
        fiber->wait = Wait::warp;
        fiber->seen = warp.generation;
        pause_here();
    }
    return shown;
}

template <class T>
inline T shuffled(T value, unsigned from, const char* what) {
    static_assert(sizeof(T) <= 8);
    Shown mine{};
    memcpy(mine.words, &value, sizeof value);
    const Shown* shown = exchange(mine, what);
    memcpy(&value, shown[from].words, sizeof value);
    return value;
}

constexpr size_t STACK = 64 * 1024;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t MOST_SHARED = 256 * 1024;

// Stacks and shared memory of the OS thread that runs blocks.
struct Memory {
    unsigned char* stacks;
    unsigned char* shared;
    Memory() {
        stacks = map(STACK * MOST_THREADS);
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        shared = map(MOST_SHARED + page);
        mprotect(shared + MOST_SHARED, page, PROT_NONE);
    }
    ~Memory() {
        munmap(stacks, STACK * MOST_THREADS);
        munmap(shared, MOST_SHARED + size_t(sysconf(_SC_PAGESIZE)));
    }
    static unsigned char* map(size_t bytes) {
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) abort();
        return static_cast<unsigned char*>(at);
    }
};

// Runs one block; whether it came to its end.
inline bool run_block(Block& one, Memory& memory) {
    block = &one;
    fiber = nullptr;
    one.live = one.threads;
    one.at_barrier = one.barriers = 0;
    memset(one.shared, 0xff, size_t(memory.shared + MOST_SHARED - one.shared));
    for (Warp& warp : one.warps) warp.arrived = warp.generation = 0;
    for (unsigned k = 0; k < one.threads; k++) {
        Fiber& each = one.fibers[k];
        each.index = k;
        each.thread = {k % one.size.x, k / one.size.x % one.size.y, k / one.size.x / one.size.y};
        each.wait = Wait::nothing;
        each.started = each.done = false;
        each.copies.clear();
        getcontext(&each.entry);
        each.entry.uc_stack.ss_sp = memory.stacks + k * STACK;
        each.entry.uc_stack.ss_size = STACK;
        each.entry.uc_link = nullptr;
        makecontext(&each.entry, fiber_main, 0);
    }
    const int left = _setjmp(one.leave);
    if (left == 0) go_on_with(one.fibers[one.reversed ? one.threads - 1 : 0]);
    fiber = nullptr;
    block = nullptr;
    return left == 1;
}

inline int run(const Launch& launch, void (*body)(void*), void* arguments) {
    static thread_local Memory memory;
    const dim3 grid = launch.grid;
    const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
    const size_t blocks = size_t(grid.x) * grid.y * grid.z;
    const char* refused = threads == 0 || threads > MOST_THREADS || launch.shared_bytes > MOST_SHARED ? "impossible launch" : nullptr;
    if (blocks == 0) refused = "a grid without blocks";
    if (refused) {
        snprintf(launch.message, launch.message_len, "%s", refused);
        return 1;
    }
    Block one{};
    one.grid = grid;
    one.size = launch.block;
    one.threads = threads;
    one.reversed = launch.reversed != 0;
    one.fibers.resize(threads);
    one.warps.resize((threads + WARP - 1) / WARP);
    one.shared = memory.shared + (MOST_SHARED - (launch.shared_bytes + 15) / 16 * 16);
    one.body = body;
    one.arguments = arguments;
    for (size_t k = 0; k < blocks; k++) {
        const size_t at = one.reversed ? blocks - 1 - k : k;
        one.index = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        if (!run_block(one, memory)) {
            snprintf(launch.message, launch.message_len, "%s", one.message);
            return 1;
        }
    }
    return 0;
}

// Calls a kernel with arguments as the driver takes them: addresses of as many values as it has parameters.
template <class... P>
struct Call {
    void (*kernel)(P...);
    void** arguments;
    template <size_t... I>
    void apply(std::index_sequence<I...>) const {
        kernel(*static_cast<P*>(arguments[I])...);
    }
    static void body(void* self) { static_cast<Call*>(self)->apply(std::index_sequence_for<P...>{}); }
};

template <class... P>
inline int run_twin(void (*kernel)(P...), const Launch& launch, void** arguments, const uint32_t* sizes, uint32_t count) {
    const uint32_t want[] = {uint32_t(sizeof(P))...};
    bool fits = count == sizeof...(P);
    for (uint32_t k = 0; fits && k < count; k++) fits = sizes[k] == want[k];
    if (!fits) {
        snprintf(launch.message, launch.message_len, "the arguments are not those of the kernel: %u given, %u taken", count,
                 unsigned(sizeof...(P)));
        return 1;
    }
    Call<P...> call{kernel, arguments};
    return run(launch, Call<P...>::body, &call);
}

}  // namespace candlewick

#define HOST_TWIN(name)                                                                                                \
    extern "C" __attribute__((visibility("default"))) int name##_on_host(                                              \
        const candlewick::Launch* launch, void** arguments, const uint32_t* sizes, uint32_t count) {                   \
        return candlewick::run_twin(name, *launch, arguments, sizes, count);                                           \
    }

#define threadIdx (candlewick::fiber->thread)
#define blockIdx (candlewick::block->index)
#define blockDim (candlewick::block->size)
#define gridDim (candlewick::block->grid)

inline void __syncthreads() { candlewick::barrier(); }
inline void __syncwarp() { candlewick::exchange({}, "syncwarp"); }
inline unsigned char* dynamic_shared() { return candlewick::block->shared; }

inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
inline float exp2_fast(float x) { return exp2f(x); }
inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Fibers of one thread: nobody comes between.
template <class T>
inline T atomicAdd(T* to, T x) {
    const T before = *to;
    *to += x;
    return before;
}

template <class T>
inline T shuffle_xor(T value, int lanes) {
    return candlewick::shuffled(value, candlewick::fiber->index % WARP ^ unsigned(lanes), "shuffle_xor");
}
// From the lane so many below; where there is none, one's own.
template <class T>
inline T shuffle_up(T value, int lanes) {
    const unsigned lane = candlewick::fiber->index % WARP;
    return candlewick::shuffled(value, lane < unsigned(lanes) ? lane : lane - unsigned(lanes), "shuffle_up");
}
template <class T>
inline T shuffle_from(T value, int lane) {
    return candlewick::shuffled(value, unsigned(lane) % WARP, "shuffle_from");
}
