// Cross-entropy over rows of VOCABULARY logits, a block to a row:
//
//   statistics:  log_z = log(sum over the row of exp(logit)),   picked = the target's logit, 0 where it has none
//   gradient:    logit <- slope * exp(logit - log_z) - weight * [this is the target], in the same memory
//
// The sum is formed in one pass: each thread keeps the largest logit it has met and the sum of exponentials less it
// (Milakov and Gimelshein, arXiv:1805.02867). Packs are loaded UNROLLED at a time, before the first is used.
#include "elements.cuh"

constexpr int PACKS = VOCABULARY / VECTOR;
constexpr int WARPS = THREADS / 32;
using Elements = Pack<ELEMENT, VECTOR>;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

template <typename T>
__device__ __forceinline__ float highest(const Pack<T, VECTOR>& x) {
    if constexpr (sizeof(T) == 2 && VECTOR > 1) {
        unsigned pair = x.words[0];
#pragma unroll
        for (int w = 1; w < VECTOR / 2; ++w) pair = larger_pair(pair, x.words[w], T());
        Pack<T, 2> both;
        both.words[0] = pair;
        return fmaxf(both.get(0), both.get(1));
    } else {
        float found = x.get(0);
#pragma unroll
        for (int v = 1; v < VECTOR; ++v) found = fmaxf(found, x.get(v));
        return found;
    }
}

// The largest so far, and the sum of exponentials less it.
struct Running {
    float highest, sum;
    __device__ __forceinline__ void add(float other_highest, float other_sum) {
        const float top = fmaxf(highest, other_highest);
        const float base = top == minus_infinity() ? 0.0f : top;
        sum = sum * exponential<ELEMENT>(highest - base) + other_sum * exponential<ELEMENT>(other_highest - base);
        highest = top;
    }
    __device__ __forceinline__ void add_over_warp() {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            const float other_highest = __shfl_xor_sync(0xffffffffu, highest, offset);
            const float other_sum = __shfl_xor_sync(0xffffffffu, sum, offset);
            add(other_highest, other_sum);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) cross_entropy_statistics(
    const ELEMENT* __restrict__ logits, const long long* __restrict__ targets, float* __restrict__ log_z,
    float* __restrict__ picked) {
    __shared__ float highest_of[32], sum_of[32];
    const ELEMENT* const row = logits + size_t(blockIdx.x) * VOCABULARY;
    Running mine = {minus_infinity(), 0.0f};
    for (int first = threadIdx.x; first < PACKS; first += THREADS * UNROLLED) {
        Elements x[UNROLLED];
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
            if (first + i * THREADS < PACKS) x[i].load(row + (first + i * THREADS) * VECTOR);
        float top = minus_infinity(), sum = 0.0f;
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
            if (first + i * THREADS < PACKS) top = fmaxf(top, highest(x[i]));
        const float base = top == minus_infinity() ? 0.0f : top;
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
            if (first + i * THREADS < PACKS)
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) sum += exponential_less<ELEMENT>(x[i].get(v), base);
        mine.add(top, sum);
    }
    mine.add_over_warp();
    const int lane = threadIdx.x % 32;
    if (lane == 0) highest_of[threadIdx.x / 32] = mine.highest, sum_of[threadIdx.x / 32] = mine.sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        mine.highest = lane < WARPS ? highest_of[lane] : minus_infinity();
        mine.sum = lane < WARPS ? sum_of[lane] : 0.0f;
        mine.add_over_warp();
        if (lane == 0) {
            const long long target = targets[blockIdx.x];
            log_z[blockIdx.x] = logf(mine.sum) + mine.highest;
            picked[blockIdx.x] = target >= 0 && target < VOCABULARY ? to_float(row[target]) : 0.0f;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) cross_entropy_gradient(
    ELEMENT* logits, const long long* __restrict__ targets, const float* __restrict__ log_z,
    const float* __restrict__ slope, const float* __restrict__ weight) {
    ELEMENT* const row = logits + size_t(blockIdx.x) * VOCABULARY;
    const long long given = targets[blockIdx.x];
    const int target = given >= 0 && given < VOCABULARY ? int(given) : -1;
    const float of_row = log_z[blockIdx.x], steepness = slope[blockIdx.x], share = weight[blockIdx.x];
    for (int first = threadIdx.x; first < PACKS; first += THREADS * UNROLLED) {
        Elements x[UNROLLED];
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
            if (first + i * THREADS < PACKS) x[i].load(row + (first + i * THREADS) * VECTOR);
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i) {
            if (first + i * THREADS < PACKS) {
                const int column = (first + i * THREADS) * VECTOR;
                float values[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    values[v] = exponential_less<ELEMENT>(x[i].get(v), of_row) * steepness;
                    if (column + v == target) values[v] -= share;
                }
                x[i].set(values);
                x[i].store(row + column);
            }
        }
    }
}
