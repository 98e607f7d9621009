// Runs a CUDA kernel on the CPU: one fibre per CUDA thread, one block after the other, in a chosen order of threads.
//
// It shows what a GPU may or may not: shared memory holds NaN before each block, an asynchronous copy lands only when it
// is awaited, warps run far ahead of each other, in forward or reverse order, or threads take turns at random, and a barrier or shuffle that
// not all threads of the block or warp reach is reported as a deadlock. Under -fsanitize=address,alignment an access out
// of bounds or off its alignment ends the program. What it cannot show: inline PTX, weak memory order within a phase.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__ static const
#define __shared__ static __attribute__((section("shared_memory")))
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(emulator::dynamic_shared)
#define __syncthreads() emulator::barrier(__LINE__)

struct uint3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __float2int_rn(float x) { return int(lrintf(x)); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned made = 0;
    for (int i = 0; i < 4; ++i) made |= unsigned(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return made;
}
// The exact operations of nf4/exact.cuh; the compiler is told not to contract.
inline float plus(float a, float b) { return a + b; }
inline float minus(float a, float b) { return a - b; }
inline float times(float a, float b) { return a * b; }
inline float over(float a, float b) { return a / b; }
inline float at_most(float a, float b) { return a < b ? a : b; }
inline float fused(float a, float b, float c) { return fmaf(a, b, c); }

static uint3 threadIdx, blockIdx, blockDim, gridDim;
extern "C" char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));

namespace emulator {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr int MOST_THREADS = 1024, WARP = 32, MOST_COPIES = 256;

struct Copy { void* to; const void* from; size_t bytes; int group; };
struct Fibre {
    ucontext_t context;
    char* stack;
    const int* awaited;   // the generation it waits to see change, or null
    int seen, line;       // what that was; the line of the barrier it stands at
    bool done;
    int num_copies, group;
    Copy copies[MOST_COPIES];
};
// One meeting of several fibres: the last to arrive begins the next generation.
struct Meeting { int arrived, generation; };
struct Warp { Meeting meeting; uint64_t slots[2][WARP]; };

static Fibre fibres[MOST_THREADS];
static Warp warps[MOST_THREADS / WARP];
static Meeting block_meeting;
static ucontext_t scheduler;
static int num_threads, current;
static char* dynamic_shared;
static void (*body)(void**);
static void** body_arguments;
static char failure[256];
static const void* scheduler_stack;
static size_t scheduler_stack_bytes;

// Address sanitizer must be told of every change of stacks.
inline void switch_stacks(ucontext_t* from, ucontext_t* to, const void* stack, size_t bytes, bool last) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(last ? nullptr : &fake, stack, bytes);
    swapcontext(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)stack, (void)bytes, (void)last;
    swapcontext(from, to);
#endif
}
inline void pause(bool last) {
    switch_stacks(&fibres[current].context, &scheduler, scheduler_stack, scheduler_stack_bytes, last);
}

inline void meet(Meeting& meeting, int expected) {
    Fibre& self = fibres[current];
    self.seen = meeting.generation;
    self.awaited = &meeting.generation;
    if (++meeting.arrived == expected) meeting.arrived = 0, ++meeting.generation;
    pause(false);
}

// Not inlined, like exchange: whoever calls must read threadIdx anew.
__attribute__((noinline)) void barrier(int line) {
    static int first_line;
    if (block_meeting.arrived == 0) first_line = line;
    if (line != first_line && !failure[0])
        snprintf(failure, sizeof failure, "deadlock in block (%u, %u): thread %d stands at the barrier of line %d, others at %d",
                 blockIdx.x, blockIdx.y, current, line, first_line);
    fibres[current].line = line;
    meet(block_meeting, num_threads);
    fibres[current].line = 0;
}

template <typename T>
__attribute__((noinline)) T exchange(T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    Warp& warp = warps[current / WARP];
    const int parity = warp.meeting.generation & 1, first = current / WARP * WARP;
    const int lanes = num_threads - first < WARP ? num_threads - first : WARP;
    memcpy(&warp.slots[parity][current % WARP], &value, sizeof(T));
    meet(warp.meeting, lanes);
    if (source < lanes) memcpy(&value, &warp.slots[parity][source], sizeof(T));
    return value;
}

// The copies of groups older than `group` land now.
inline void land_copies_before(int group) {
    Fibre& self = fibres[current];
    int kept = 0;
    for (int i = 0; i < self.num_copies; ++i) {
        const Copy copy = self.copies[i];
        if (copy.group < group) memcpy(copy.to, copy.from, copy.bytes);
        else self.copies[kept++] = copy;
    }
    self.num_copies = kept;
}

static void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    body(body_arguments);
    fibres[current].done = true;
    pause(true);
}

// Not instrumented: it also covers what lies between the variables.
__attribute__((no_sanitize("address"))) inline void poison(char* from, char* to) {
    for (volatile char* p = from; p < to; ++p) *p = char(0xff);
}

inline void start_block(size_t dynamic_bytes) {
    if (__start_shared_memory) poison(__start_shared_memory, __stop_shared_memory);
    poison(dynamic_shared, dynamic_shared + dynamic_bytes);
    memset(warps, 0, sizeof warps);
    block_meeting = {0, 0};
    for (int t = 0; t < num_threads; ++t) {
        Fibre& fibre = fibres[t];
        fibre.awaited = nullptr;
        fibre.done = false;
        fibre.line = fibre.num_copies = fibre.group = 0;
        if (!fibre.stack) fibre.stack = static_cast<char*>(aligned_alloc(64, STACK_BYTES));
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack;
        fibre.context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&fibre.context, enter, 0);
    }
}

// Resumes one thread up to its next wait; false if it cannot go on.
inline bool resume(int thread, int& done) {
    Fibre& fibre = fibres[thread];
    if (fibre.done || (fibre.awaited && *fibre.awaited == fibre.seen)) return false;
    current = thread;
    threadIdx = {unsigned(thread), 0, 0};
    fibre.awaited = nullptr;
    switch_stacks(&scheduler, &fibre.context, fibre.stack, STACK_BYTES, false);
    done += fibre.done;
    return true;
}

// Runs the block's threads. Order 0 and 1 take the warps forward or in reverse and let each run as far ahead of the
// others as it can; otherwise all threads take turns, shuffled anew each time.
inline void run_block(int order, uint64_t& random) {
    static int turn[MOST_THREADS];
    for (int t = 0; t < num_threads; ++t) turn[t] = order == 1 ? num_threads - 1 - t : t;
    int done = 0;
    while (done < num_threads && !failure[0]) {
        if (order > 1)
            for (int t = num_threads - 1; t > 0; --t) {
                random = random * 6364136223846793005u + 1442695040888963407u;
                std::swap(turn[t], turn[(random >> 33) % uint64_t(t + 1)]);
            }
        bool moved = false;
        for (int first = 0; first < num_threads; first += WARP) {
            bool again = true;
            while (again && !failure[0]) {
                again = false;
                for (int i = first; i < num_threads && i < first + WARP; ++i) again |= resume(turn[i], done);
                moved |= again;
                if (order > 1) break;
            }
        }
        if (!moved) {
            int waiting = 0;
            while (fibres[waiting].done) ++waiting;
            snprintf(failure, sizeof failure, "deadlock in block (%u, %u): thread %d waits at %s that not all reach",
                     blockIdx.x, blockIdx.y, waiting, fibres[waiting].line ? "a barrier" : "a shuffle");
        }
    }
}

template <typename... Arguments, size_t... Is>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Is...>) {
    kernel(*static_cast<Arguments*>(arguments[Is])...);
}

// Like cuLaunchKernel: arguments are pointers to the values. Null on success, or what went wrong.
inline const char* launch(void (*kernel)(void**), unsigned grid_x, unsigned grid_y, unsigned threads, size_t dynamic_bytes,
                          void** arguments, int order, uint64_t random) {
    failure[0] = 0;
    if (threads < 1 || threads > MOST_THREADS) return "a block has 1 to 1024 threads";
    num_threads = int(threads);
    body = kernel;
    body_arguments = arguments;
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    dynamic_shared = static_cast<char*>(aligned_alloc(16, (dynamic_bytes + 15) / 16 * 16));
    for (unsigned b = 0; b < grid_x * grid_y && !failure[0]; ++b) {
        blockIdx = {b % grid_x, b / grid_x, 0};
        start_block(dynamic_bytes);
        run_block(order, random);
    }
    free(dynamic_shared);
    return failure[0] ? failure : nullptr;
}

}  // namespace emulator

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::exchange(value, (emulator::current % emulator::WARP) ^ mask);
}
template <typename T>
inline T __shfl_sync(unsigned, T value, int lane, int width = emulator::WARP) {
    const int self = emulator::current % emulator::WARP;
    return emulator::exchange(value, self / width * width + (lane & (width - 1)));
}

inline bool __any_sync(unsigned mask, bool value) {
    for (int offset = emulator::WARP / 2; offset > 0; offset /= 2) value |= __shfl_xor_sync(mask, int(value), offset);
    return value;
}

template <int BYTES>
inline void copy_asynchronously(void* shared, const void* global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    emulator::Fibre& self = emulator::fibres[emulator::current];
    if (self.num_copies == emulator::MOST_COPIES) abort();
    self.copies[self.num_copies++] = {shared, global, BYTES, self.group};
}
inline void close_group() { ++emulator::fibres[emulator::current].group; }
template <int PENDING>
inline void wait_for_groups() {
    emulator::land_copies_before(emulator::fibres[emulator::current].group - PENDING);
}

// The primitives that elements.cuh builds on; conversions round to nearest even, NaN stays NaN.
inline float half_value(unsigned short bits) { _Float16 x; memcpy(&x, &bits, 2); return float(x); }
inline unsigned short half_bits(float x) { const _Float16 y = _Float16(x); unsigned short bits; memcpy(&bits, &y, 2); return bits; }
inline unsigned short bfloat_bits(float x) {
    const unsigned u = __float_as_uint(x);
    return (unsigned short)(x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline unsigned half_pair(float low, float high) { return half_bits(low) | unsigned(half_bits(high)) << 16; }
inline unsigned bfloat_pair(float low, float high) { return bfloat_bits(low) | unsigned(bfloat_bits(high)) << 16; }
inline float bfloat_value(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }
template <float (*value)(unsigned short)>
inline unsigned larger_of(unsigned a, unsigned b) {
    const auto is_larger = [](unsigned short x, unsigned short y) { return !(value(x) < value(y)) && value(y) == value(y); };
    const unsigned low = is_larger(a, b) ? a : b, high = is_larger(a >> 16, b >> 16) ? a : b;
    return (low & 0xffff) | (high & 0xffff0000);
}
inline unsigned larger_halves(unsigned a, unsigned b) { return larger_of<half_value>(a, b); }
inline unsigned larger_bfloats(unsigned a, unsigned b) { return larger_of<bfloat_value>(a, b); }
inline void store_whole(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
}
