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

// Halfway between neighbours, as fp64 rounds it and then fp32.
__constant__ float THRESHOLDS[15] = {
    float(-0.8480964004993439), float(-0.6106329262256622), float(-0.4599952697753906), float(-0.33967943489551544),
    float(-0.23460740596055984), float(-0.13791173323988914), float(-0.045525018125772476), float(0.03979014977812767),
    float(0.1202552504837513), float(0.2035212516784668), float(0.2920137718319893), float(0.3893125355243683),
    float(0.5016634166240692), float(0.6427869200706482), float(0.8614784181118011),
};

struct Layout {
    long long blocks, constants, scales, bytes;
    __device__ __forceinline__ explicit Layout(long long num_elements) {
        blocks = (num_elements + BLOCK - 1) / BLOCK;
        constants = blocks * (BLOCK / 2);
        scales = constants + (blocks + BLOCKS - 1) / BLOCKS * 8;
        bytes = (scales + blocks + 15) / 16 * 16;
    }
};

__device__ __forceinline__ float decoded(int scale, float span, float mean) {
    if (scale == NOT_FINITE) return mean == 0.0f ? 1.0f : mean;
    const float s = plus(times(over(float(scale), 127.0f), span), mean);
    const float largest = __uint_as_float(0x7f7fffffu);
    return s > largest ? largest : s;
}
