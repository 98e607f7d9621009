// NF4 with doubly quantised scales: values [num_elements] to a payload, the bytes of reference.py. One block of 1024
// threads takes one group of 256 blocks of 64, which it reads once: 8 lanes hold a block, a thread 8 elements of two.
// Compiled for ELEMENT, and ALIGNED where the values start on 16 bytes.
#include "elements.cuh"
#include "nf4/layout.cuh"

constexpr int THREADS = 1024;
constexpr int ROUNDS = GROUP / (THREADS * UNIT);
using Elements = Pack<ELEMENT, UNIT>;

__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ __forceinline__ bool finite(float x) { return magnitude(x) < 0x7f800000u; }

// The number of thresholds below the ratio. They stand in shared memory: sixteen words, sixteen banks.
__device__ __forceinline__ int nearest(float ratio, const float* thresholds) {
    int code = ratio > thresholds[7] ? 8 : 0;
    code += ratio > thresholds[code + 3] ? 4 : 0;
    code += ratio > thresholds[code + 1] ? 2 : 0;
    code += ratio > thresholds[code] ? 1 : 0;
    return code;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) nf4_quantise(
    const ELEMENT* __restrict__ values, unsigned char* __restrict__ payload, long long num_elements) {
    __shared__ float thresholds[15];
    __shared__ float absmax[BLOCKS], scale_of[BLOCKS];
    __shared__ signed char scale_code[BLOCKS];
    __shared__ unsigned char all_finite[BLOCKS];
    __shared__ float span_and_mean[2];
    const Layout layout(num_elements);
    const long long group = blockIdx.x, first = group * GROUP;
    const long long left = layout.blocks - group * BLOCKS;
    const int blocks = left < BLOCKS ? int(left) : BLOCKS;
    if (threadIdx.x < 15) thresholds[threadIdx.x] = THRESHOLDS[threadIdx.x];

    Elements x[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const long long at = first + (i * THREADS + threadIdx.x) * UNIT;
        if (ALIGNED && at + UNIT <= num_elements) {
            x[i].load(values + at);
        } else {
            float parts[UNIT];
#pragma unroll
            for (int u = 0; u < UNIT; ++u) parts[u] = at + u < num_elements ? to_float(values[at + u]) : 0.0f;
            x[i].set(parts);
        }
    }
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        unsigned largest = 0, unusual = 0;
#pragma unroll
        for (int u = 0; u < UNIT; ++u) {
            const unsigned m = magnitude(x[i].get(u));
            if (m >= 0x7f800000u) unusual = 1;
            else if (m > largest) largest = m;
        }
#pragma unroll
        for (int offset = 4; offset > 0; offset /= 2) {
            const unsigned other = __shfl_xor_sync(0xffffffffu, largest, offset);
            largest = other > largest ? other : largest;
            unusual |= __shfl_xor_sync(0xffffffffu, unusual, offset);
        }
        const int block = (i * THREADS + threadIdx.x) / UNIT;
        if (threadIdx.x % UNIT == 0) absmax[block] = __uint_as_float(largest), all_finite[block] = !unusual;
    }
    __syncthreads();

    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = over(absmax[j * 32 + lane], float(blocks));
        // Halves added, v[i] + v[i + 128] and so on: the first three times within the thread.
#pragma unroll
        for (int half = 4; half > 0; half /= 2)
#pragma unroll
            for (int j = 0; j < half; ++j) v[j] = plus(v[j], v[j + half]);
        float mean = v[0];
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) mean = plus(mean, __shfl_xor_sync(0xffffffffu, mean, offset));
        unsigned span = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const unsigned m = magnitude(minus(absmax[j * 32 + lane], mean));
            if (j * 32 + lane < blocks && m > span) span = m;
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            const unsigned other = __shfl_xor_sync(0xffffffffu, span, offset);
            span = other > span ? other : span;
        }
        if (lane == 0) span_and_mean[0] = __uint_as_float(span), span_and_mean[1] = mean;
    }
    __syncthreads();

    const float span = span_and_mean[0], mean = span_and_mean[1];
    if (threadIdx.x < blocks) {
        const int block = threadIdx.x;
        int scale = NOT_FINITE;
        if (all_finite[block]) {
            const float share = over(minus(absmax[block], mean), magnitude(span) == 0 ? 1.0f : span);
            scale = __float2int_rn(times(share, 127.0f));
        }
        scale_code[block] = (signed char)scale;
        scale_of[block] = decoded(scale, span, mean);
        payload[layout.scales + group * BLOCKS + block] = (unsigned char)scale;
    }
    if (threadIdx.x == 0)
        *reinterpret_cast<uint2*>(payload + layout.constants + 8 * group) = make_uint2(__float_as_uint(span), __float_as_uint(mean));
    if (left <= BLOCKS && threadIdx.x < layout.bytes - layout.scales - layout.blocks)
        payload[layout.scales + layout.blocks + threadIdx.x] = 0;
    __syncthreads();

#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const int unit = i * THREADS + threadIdx.x, block = unit / UNIT;
        if (block >= blocks) continue;
        const float scale = scale_of[block];
        const bool marked = scale_code[block] == NOT_FINITE;
        // What cannot be told from zero at the receiver is divided by infinity, which gives the code of zero.
        const float divisor = magnitude(scale) == 0 ? __uint_as_float(0x7f800000u) : scale;
        unsigned word = 0;
#pragma unroll
        for (int u = 0; u < UNIT; ++u) {
            const float value = x[i].get(u);
            int code = nearest(over(finite(value) ? value : 0.0f, divisor), thresholds);
            if (marked) {
                code = code < MINUS_INFINITY + 1 ? MINUS_INFINITY + 1 : code > NOT_A_NUMBER - 1 ? NOT_A_NUMBER - 1 : code;
                if (!finite(value)) {
                    const unsigned bits = __float_as_uint(value);
                    code = bits == 0x7f800000u ? PLUS_INFINITY : bits == 0xff800000u ? MINUS_INFINITY : NOT_A_NUMBER;
                }
            }
            word |= unsigned(code) << (4 * u);
        }
        reinterpret_cast<unsigned*>(payload)[group * (GROUP / UNIT) + unit] = word;
    }
}
