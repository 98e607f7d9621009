// NF4 with doubly quantised scales: values [num_elements] to a payload, the bytes of reference.py. A block of 256 threads
// takes one group of 256 blocks of 64 and reads it once, into registers: a warp takes 32 blocks, four at a time, with 8
// lanes to a block and 8 elements to a lane. Each thread then comes to own one block, whose scale it works out. Four such
// groups are resident on a multiprocessor, so that some read while others work.
// Compiled for ELEMENT, and ALIGNED where the values start on 16 bytes.
#include "elements.cuh"
#include "nf4/layout.cuh"
#include "nf4/nearest.cuh"

constexpr int THREADS = 256;
constexpr int ROUNDS = GROUP / (THREADS * UNIT);
constexpr int MIN_BLOCKS = sizeof(ELEMENT) == 4 ? 2 : 4;
constexpr unsigned ALL = 0xffffffffu;
using Elements = Pack<ELEMENT, UNIT>;
static_assert(ROUNDS == UNIT, "lane i of the eight owns the block of round i");

// The larger of two magnitudes, or of two pairs in a word each; not finite if one is not.
__device__ __forceinline__ unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }
__device__ __forceinline__ unsigned larger(unsigned a, unsigned b, float) { return larger(a, b); }
template <typename T>
__device__ __forceinline__ unsigned larger(unsigned a, unsigned b, T) { return larger_pair(a, b, T()); }

// Of a pack: the largest magnitude, or that of the even elements and that of the odd ones.
__device__ __forceinline__ unsigned largest(const Elements& x) {
    constexpr unsigned MAGNITUDE = sizeof(ELEMENT) == 4 ? 0x7fffffffu : 0x7fff7fffu;
    unsigned found = x.words[0] & MAGNITUDE;
#pragma unroll
    for (int w = 1; w < int(sizeof(x.words) / 4); ++w) found = larger(found, x.words[w] & MAGNITUDE, ELEMENT());
    return found;
}
// The larger of what one word holds, as fp32.
__device__ __forceinline__ unsigned widened(unsigned word) {
    if constexpr (sizeof(ELEMENT) == 4) {
        return word;
    } else {
        const ELEMENT low = {(unsigned short)word}, high = {(unsigned short)(word >> 16)};
        return larger(__float_as_uint(to_float(low)), __float_as_uint(to_float(high)));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) nf4_quantise(
    const ELEMENT* __restrict__ values, unsigned char* __restrict__ payload, long long num_elements) {
    __shared__ float absmax[BLOCKS];
    __shared__ float constants[3];  // span, mean, and what turns a difference from the mean into a scale
    const Layout layout(num_elements);
    const long long group = blockIdx.x, first = group * GROUP;
    const int blocks = layout.blocks_of(group);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int unit = warp * 32 * ROUNDS + lane;                 // this thread's unit of round 0; the next is 32 further
    const int own = warp * 32 + lane % UNIT * 4 + lane / UNIT;  // the block that it owns
    const Nearest nearest(lane);

    Elements x[ROUNDS];
    const auto element_or_zero = [&](long long at) { return at < num_elements ? to_float(values[at]) : 0.0f; };
    const auto unit_from_elements = [&](long long at) {
        float parts[UNIT];
#pragma unroll
        for (int u = 0; u < UNIT; ++u) parts[u] = element_or_zero(at + u);
        Elements made;
        made.set(parts);
        return made;
    };
    if (ALIGNED && first + GROUP <= num_elements) {
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i) x[i].load(values + first + (unit + i * 32) * UNIT);
    } else if (ALIGNED) {
        const int whole = int((num_elements - first) / UNIT);
        const Elements cut = unit_from_elements(first + whole * UNIT);
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i) {
            if (unit + i * 32 < whole) x[i].load(values + first + (unit + i * 32) * UNIT);
            else if (unit + i * 32 == whole) x[i] = cut;
            else x[i].clear();
        }
    } else {
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i) x[i] = unit_from_elements(first + (unit + i * 32) * UNIT);
    }

    unsigned found[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) found[i] = largest(x[i]);
    // Lanes exchange halves of their rounds, then quarters, then eighths: one round remains to each.
#pragma unroll
    for (int half = ROUNDS / 2; half > 0; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const unsigned kept = upper ? found[i + half] : found[i], given = upper ? found[i] : found[i + half];
            found[i] = larger(kept, __shfl_xor_sync(ALL, given, half), ELEMENT());
        }
    }
    unsigned top = widened(found[0]);
    const bool marked = top >= INFINITE;
    if (marked) {
        top = 0;
#pragma unroll 1
        for (int e = 0; e < BLOCK; ++e) {
            const unsigned m = magnitude(element_or_zero(first + own * BLOCK + e));
            if (m < INFINITE) top = larger(top, m);
        }
    }
    const float highest = __uint_as_float(top);
    absmax[own] = highest;
    __syncthreads();

    if (warp == 0) {
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = times(absmax[j * 32 + lane], 1.0f / BLOCKS);
        // Halves added, v[i] + v[i + 128] and so on: the first three times within the thread.
#pragma unroll
        for (int half = 4; half > 0; half /= 2)
#pragma unroll
            for (int j = 0; j < half; ++j) v[j] = plus(v[j], v[j + half]);
        float mean = v[0];
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) mean = plus(mean, __shfl_xor_sync(ALL, mean, offset));
        mean = at_most(times(mean, over(float(BLOCKS), float(blocks))), largest_finite(0.0f));
        unsigned span = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const unsigned m = magnitude(minus(absmax[j * 32 + lane], mean));
            if (j * 32 + lane < blocks) span = larger(span, m);
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) span = larger(span, __shfl_xor_sync(ALL, span, offset));
        if (lane == 0) {
            const float wide = __uint_as_float(span);
            constants[0] = wide, constants[1] = mean;
            constants[2] = span == 0 ? 0.0f : over(127.0f, times(wide, lift(wide)));
            *reinterpret_cast<uint2*>(payload + layout.constants + 8 * group) = make_uint2(span, __float_as_uint(mean));
        }
    }
    __syncthreads();

    const float span = constants[0], mean = constants[1];
    const float share = times(times(minus(highest, mean), lift(span)), constants[2]);
    const int scale = marked ? NOT_FINITE : __float2int_rn(share);
    const float s = decoded<ELEMENT>(scale, span, mean);
    const float slope = magnitude(s) == 0 ? 0.0f : over(Nearest::SLOPE, s);
    const bool ordinary = !marked && nearest.reaches(highest, s, slope);
    if (own < blocks) payload[layout.scales + group * BLOCKS + own] = (unsigned char)scale;
    if (group == gridDim.x - 1 && threadIdx.x < layout.bytes - layout.scales - layout.blocks)
        payload[layout.scales + layout.blocks + threadIdx.x] = 0;

    unsigned* const words = reinterpret_cast<unsigned*>(payload) + group * (GROUP / UNIT) + unit;
    const int present = blocks * UNIT - unit;  // units from this thread's first to the end
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const unsigned word = nearest.codes(x[i], __shfl_sync(ALL, slope, i, UNIT));
        if (i * 32 < present) words[i * 32] = word;
    }
    // Blocks that are not finite, or whose scale is out of all proportion, are read and coded once more, with care.
    if (__any_sync(ALL, !ordinary)) {
#pragma unroll 1
        for (int i = 0; i < ROUNDS; ++i) {
            const float of_block = __shfl_sync(ALL, s, i, UNIT);
            const int kind = __shfl_sync(ALL, marked ? 2 : !ordinary, i, UNIT);
            if (!kind || i * 32 >= present) continue;
            unsigned word = 0;
#pragma unroll 1
            for (int u = UNIT - 1; u >= 0; --u) {
                const float value = element_or_zero(first + (unit + i * 32) * UNIT + u);
                word = word << 4 | careful_code(value, of_block, kind == 2);
            }
            words[i * 32] = word;
        }
    }
}
