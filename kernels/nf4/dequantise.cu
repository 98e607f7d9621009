// A payload of reference.py back to values [num_elements]; blockIdx.y counts payloads that lie payload_stride bytes apart
// and whose values go values_stride elements apart. A block of 256 threads takes one group; as in quantise.cu a warp takes
// 32 blocks, each thread decodes the scale of one of them and has 8 words of codes under way before that is awaited. The
// sixteen values stand in the registers of half a warp, and a shuffle looks them up, as in bitsandbytes.
// Compiled for ELEMENT, and ALIGNED where every row of values starts on 16 bytes.
#include "elements.cuh"
#include "nf4/layout.cuh"

constexpr int THREADS = 256;
constexpr int ROUNDS = GROUP / (THREADS * UNIT);
constexpr unsigned ALL = 0xffffffffu;
using Elements = Pack<ELEMENT, UNIT>;
static_assert(ROUNDS == UNIT, "lane i of the eight decodes the scale of round i");

// What a code stands for in a block that is not finite.
__device__ __forceinline__ float unusual(int code, float value) {
    return code == MINUS_INFINITY  ? __uint_as_float(0xff800000u)
           : code == NOT_A_NUMBER  ? __uint_as_float(0x7fc00000u)
           : code == PLUS_INFINITY ? __uint_as_float(0x7f800000u)
                                   : value;
}

extern "C" __global__ void __launch_bounds__(THREADS, 6) nf4_dequantise(
    const unsigned char* __restrict__ payloads, ELEMENT* __restrict__ all_values, long long num_elements,
    long long payload_stride, long long values_stride) {
    const Layout layout(num_elements);
    const long long group = blockIdx.x, first = group * GROUP;
    const int blocks = layout.blocks_of(group);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int unit = warp * 32 * ROUNDS + lane;                 // this thread's unit of round 0; the next is 32 further
    const int own = warp * 32 + lane % UNIT * 4 + lane / UNIT;  // the block whose scale it decodes
    const int present = blocks * UNIT - unit;                   // units from this thread's first to the last
    const long long left = num_elements - first;
    const int whole = int((left < GROUP ? left : GROUP) / UNIT) - unit;  // to the last that is not cut short
    const unsigned char* const payload = payloads + blockIdx.y * payload_stride;
    const unsigned* const codes = reinterpret_cast<const unsigned*>(payload) + group * (GROUP / UNIT) + unit;
    ELEMENT* const values = all_values + blockIdx.y * values_stride + first + unit * UNIT;

    unsigned words[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) words[i] = i * 32 < present ? codes[i * 32] : 0;
    float scale = 0.0f;
    bool marked = false;
    if (own < blocks) {
        const uint2 pair = *reinterpret_cast<const uint2*>(payload + layout.constants + 8 * group);
        const int level = (signed char)payload[layout.scales + group * BLOCKS + own];
        scale = decoded<ELEMENT>(level, __uint_as_float(pair.x), __uint_as_float(pair.y));
        marked = level == NOT_FINITE;
    }
    const float entry = VALUES[lane % 16];

#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const float of_block = __shfl_sync(ALL, scale, i, UNIT);
        float out[UNIT];
#pragma unroll
        for (int u = 0; u < UNIT; ++u) out[u] = times(__shfl_sync(ALL, entry, words[i] >> (4 * u), 16), of_block);
        if (i * 32 < whole) {
            if constexpr (ALIGNED) {
                Elements pack;
                pack.set(out);
                pack.store(values + i * 32 * UNIT);
            } else {
#pragma unroll
                for (int u = 0; u < UNIT; ++u) from_float(out[u], values[i * 32 * UNIT + u]);
            }
        }
    }
    // Blocks that are not finite, and a unit that is cut short: once more, one element at a time.
    if (__any_sync(ALL, marked) || left < GROUP) {
#pragma unroll 1
        for (int i = 0; i < ROUNDS; ++i) {
            const float of_block = __shfl_sync(ALL, scale, i, UNIT);
            const bool marked_block = __shfl_sync(ALL, int(marked), i, UNIT);
            if (i * 32 >= present || !(marked_block || i * 32 == whole)) continue;
            const unsigned word = codes[i * 32];
            const int at = (unit + i * 32) * UNIT;
#pragma unroll 1
            for (int u = 0; u < UNIT && at + u < left; ++u) {
                const int code = word >> (4 * u) & 15;
                const float value = times(VALUES[code], of_block);
                from_float(marked_block ? unusual(code, value) : value, values[i * 32 * UNIT + u]);
            }
        }
    }
}
