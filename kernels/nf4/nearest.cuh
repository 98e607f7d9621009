// The code of a value: the number of THRESHOLDS at or below x * r, the product not rounded.

constexpr unsigned INFINITE = 0x7f800000u;  // the bits; those of NaN are above, as unsigned numbers

__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// One value at a time, for any value and any scale s.
__device__ __forceinline__ int careful_code(float x, float s, bool marked) {
    const unsigned bits = __float_as_uint(x);
    if (magnitude(x) >= INFINITE) return bits == INFINITE ? PLUS_INFINITY : bits == ~0u << 23 ? MINUS_INFINITY : NOT_A_NUMBER;
    const bool zero = magnitude(s) == 0;
    const float lifted = zero ? 0.0f : times(x, lift(s)), r = zero ? 0.0f : over(1.0f, times(s, lift(s)));
    int code = 0;
#pragma unroll 1
    for (int i = 0; i < 15; ++i) code += fused(lifted, r, -THRESHOLDS[i]) >= 0.0f;
    if (marked) code = code <= MINUS_INFINITY ? MINUS_INFINITY + 1 : code >= NOT_A_NUMBER ? NOT_A_NUMBER - 1 : code;
    return code;
}

// Cells of 1/12, in none of which two thresholds lie: the 32 about zero stand in the lanes of a warp.
struct Cells {
    static constexpr int PER_UNIT = 12;
    float offsets[32];
    __device__ constexpr Cells() : offsets() {
        for (int cell = -16; cell < 16; ++cell) {
            const double low = (cell - 0.5) / PER_UNIT, high = (cell + 0.5) / PER_UNIT;
            int below = 0;
            while (below < 15 && THRESHOLDS[below] < low) ++below;
            // Of a ratio t in the cell, 8 t + offset is 16 + its code and a fraction.
            const bool split = below < 15 && THRESHOLDS[below] < high;
            offsets[cell & 31] = float(split ? 17 + below - 8 * (THRESHOLDS[below] + 0x1p-23)
                                             : 16.5 + below - 8.0 * cell / PER_UNIT);
        }
    }
};
__constant__ constexpr Cells CELLS;

// Eight values at a time, where no |x / s| is above 1.25. One multiplication and addition finds the cell, which selects an
// offset from another lane; a second one leaves the code in four bits of the sum. The last place of that is 2^-19 and its
// slope 8, so it rounds up to the next code from 2^-23 below a multiple of 2^-22: all THRESHOLDS are of that form.
struct Nearest {
    static constexpr float SLOPE = 8.0f;
    const float offset;
    __device__ __forceinline__ explicit Nearest(int lane) : offset(CELLS.offsets[lane]) {}

    // Whether that is so of a block whose largest magnitude is `highest`, and 1 / s an ordinary number; slope is SLOPE / s.
    __device__ __forceinline__ static bool reaches(float highest, float s, float slope) {
        return magnitude(s) == 0 || (lift(s) == 1.0f && magnitude(times(highest, slope)) <= __float_as_uint(1.25f * SLOPE));
    }

    template <typename Elements>
    __device__ __forceinline__ unsigned codes(const Elements& x, float slope) const {
        const float to_cell = times(slope, Cells::PER_UNIT / SLOPE);
        unsigned sum[8];
#pragma unroll
        for (int u = 0; u < 8; ++u) {
            // The last bits of 1.5 * 2^23 + n hold n, and a shuffle takes the last five for the lane.
            const unsigned cell = __float_as_uint(fused(x.get(u), to_cell, 0x1.8p23f));
            sum[u] = __float_as_uint(fused(x.get(u), slope, __shfl_sync(0xffffffffu, offset, cell)));
        }
        // Bits 19 to 22 lie within a byte: those of even elements are gathered in one word, of odd ones in another.
        const unsigned even = __byte_perm(__byte_perm(sum[0], sum[2], 0x62), __byte_perm(sum[4], sum[6], 0x62), 0x5410);
        const unsigned odd = __byte_perm(__byte_perm(sum[1], sum[3], 0x62), __byte_perm(sum[5], sum[7], 0x62), 0x5410);
        return (even >> 3 & 0x0f0f0f0fu) | (odd << 1 & 0xf0f0f0f0u);
    }
};
