// A payload of reference.py back to values [num_elements]; blockIdx.y counts payloads that lie payload_stride bytes apart
// and whose values go values_stride elements apart. A block of 256 threads takes one group; each thread decodes one of
// its scales, and 8 words of codes, loaded before the scales are awaited: loads of 128 and stores of 512 contiguous bytes
// a warp. The sixteen values stand in the registers of half a warp, and a shuffle looks them up, as in bitsandbytes.
// Compiled for ELEMENT, and ALIGNED where every row of values starts on 16 bytes.
#include "elements.cuh"
#include "nf4/layout.cuh"

constexpr int THREADS = 256;
constexpr int ROUNDS = GROUP / (THREADS * UNIT);
using Elements = Pack<ELEMENT, UNIT>;

extern "C" __global__ void __launch_bounds__(THREADS, 4) nf4_dequantise(
    const unsigned char* __restrict__ payloads, ELEMENT* __restrict__ all_values, long long num_elements,
    long long payload_stride, long long values_stride) {
    __shared__ float scale_of[BLOCKS];
    __shared__ bool marked[BLOCKS];
    const Layout layout(num_elements);
    const unsigned char* const payload = payloads + blockIdx.y * payload_stride;
    ELEMENT* const values = all_values + blockIdx.y * values_stride;
    const long long group = blockIdx.x;
    const long long left = layout.blocks - group * BLOCKS;
    const int blocks = left < BLOCKS ? int(left) : BLOCKS;

    unsigned words[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const int unit = i * THREADS + threadIdx.x;
        words[i] = unit / UNIT < blocks ? reinterpret_cast<const unsigned*>(payload)[group * (GROUP / UNIT) + unit] : 0;
    }
    if (threadIdx.x < blocks) {
        const uint2 pair = *reinterpret_cast<const uint2*>(payload + layout.constants + 8 * group);
        const int scale = (signed char)payload[layout.scales + group * BLOCKS + threadIdx.x];
        scale_of[threadIdx.x] = decoded(scale, __uint_as_float(pair.x), __uint_as_float(pair.y));
        marked[threadIdx.x] = scale == NOT_FINITE;
    }
    const float entry = VALUES[threadIdx.x % 16];
    __syncthreads();

#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const int unit = i * THREADS + threadIdx.x, block = unit / UNIT;
        const bool present = block < blocks;
        const float scale = present ? scale_of[block] : 0.0f;
        float out[UNIT];
#pragma unroll
        for (int u = 0; u < UNIT; ++u) out[u] = times(__shfl_sync(0xffffffffu, entry, words[i] >> (4 * u), 16), scale);
        if (present && marked[block]) {
#pragma unroll
            for (int u = 0; u < UNIT; ++u) {
                const int code = words[i] >> (4 * u) & 15;
                if (code == MINUS_INFINITY) out[u] = __uint_as_float(0xff800000u);
                if (code == NOT_A_NUMBER) out[u] = __uint_as_float(0x7fc00000u);
                if (code == PLUS_INFINITY) out[u] = __uint_as_float(0x7f800000u);
            }
        }
        const long long at = group * GROUP + (long long)unit * UNIT;
        Elements pack;
        pack.set(out);
        if (ALIGNED && at + UNIT <= num_elements) {
            pack.store(values + at);
        } else {
            for (int u = 0; u < UNIT && at + u < num_elements; ++u) from_float(out[u], values[at + u]);
        }
    }
}
