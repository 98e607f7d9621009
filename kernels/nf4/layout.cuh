// The layout and the tables of format.py, and the scale that a receiver decodes. NUM_ELEMENTS are passed at run time.
#include "nf4/exact.cuh"

constexpr int BLOCK = 64;                // elements that share one 8-bit scale
constexpr int BLOCKS = 256;              // blocks of a group, which share one (span, mean)
constexpr int GROUP = BLOCK * BLOCKS;
constexpr int UNIT = 8;                  // elements that a thread works on at once: a 32-bit word of codes
constexpr int NOT_FINITE = -128, MINUS_INFINITY = 0, NOT_A_NUMBER = 14, PLUS_INFINITY = 15;

__constant__ float VALUES[16] = {
    float(-1.0), float(-0.6961928009986877), float(-0.5250730514526367), float(-0.39491748809814453),
    float(-0.28444138169288635), float(-0.18477343022823334), float(-0.09105003625154495), float(0.0),
    float(0.07958029955625534), float(0.16093020141124725), float(0.24611230194568634), float(0.33791524171829224),
    float(0.44070982933044434), float(0.5626170039176941), float(0.7229568362236023), float(1.0),
};

// Halfway between neighbours, to 2^-22.
__constant__ constexpr float THRESHOLDS[15] = {
    float(-0.848096489906311), float(-0.6106330156326294), float(-0.4599953889846802), float(-0.3396795988082886),
    float(-0.23460757732391357), float(-0.13791191577911377), float(-0.045525193214416504),
    float(0.03979003429412842), float(0.12025511264801025), float(0.20352113246917725), float(0.2920137643814087),
    float(0.38931238651275635), float(0.501663327217102), float(0.6427868604660034), float(0.8614782094955444),
};

struct Layout {
    unsigned long long blocks, constants, scales, bytes;
    __device__ __forceinline__ explicit Layout(unsigned long long num_elements) {
        blocks = (num_elements + BLOCK - 1) / BLOCK;
        constants = blocks * (BLOCK / 2);
        scales = constants + (blocks + BLOCKS - 1) / BLOCKS * 8;
        bytes = (scales + blocks + 15) / 16 * 16;
    }
    // Of the group: 256 but in the last one.
    __device__ __forceinline__ int blocks_of(long long group) const {
        const long long left = blocks - group * BLOCKS;
        return left < BLOCKS ? int(left) : BLOCKS;
    }
};

// A power of two that makes what is tiny or huge neither, so that its reciprocal is an ordinary number.
__device__ __forceinline__ float lift(float x) {
    const float size = __uint_as_float(__float_as_uint(x) & 0x7fffffffu);
    return size < 0x1p-64f ? 0x1p64f : size > 0x1p64f ? 0x1p-64f : 1.0f;
}

template <typename T>
__device__ __forceinline__ float decoded(int scale, float span, float mean) {
    if (scale == NOT_FINITE) return (__float_as_uint(mean) & 0x7fffffffu) == 0 ? 1.0f : mean;
    return at_most(plus(times(times(float(scale), 1.0f / 127), span), mean), largest_finite(T()));
}
