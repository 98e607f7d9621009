// Element types, and packs of them that one 16-byte access moves. Needs no CUDA header, so that NVRTC compiles it as
// it is, and so does a C++ compiler behind emulator/cuda_on_cpu.h, which brings its own conversions.

#ifndef CUDA_ON_CPU
__device__ __forceinline__ float half_value(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ unsigned short half_bits(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ unsigned short bfloat_bits(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ unsigned half_pair(float low, float high) {
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
__device__ __forceinline__ unsigned bfloat_pair(float low, float high) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
// Of two pairs the larger numbers; NaN if one is.
__device__ __forceinline__ unsigned larger_halves(unsigned a, unsigned b) {
    unsigned larger;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
__device__ __forceinline__ unsigned larger_bfloats(unsigned a, unsigned b) {
    unsigned larger;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
// Written out because the compiler splits some uint4 stores into four.
__device__ __forceinline__ void store_whole(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
#endif

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(float16 x) { return half_value(x.bits); }
__device__ __forceinline__ float to_float(bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ void from_float(float x, float& y) { y = x; }
__device__ __forceinline__ void from_float(float x, float16& y) { y.bits = half_bits(x); }
__device__ __forceinline__ void from_float(float x, bfloat16& y) { y.bits = bfloat_bits(x); }
__device__ __forceinline__ float largest_finite(float) { return __uint_as_float(0x7f7fffffu); }
__device__ __forceinline__ float largest_finite(float16) { return 65504.0f; }
__device__ __forceinline__ float largest_finite(bfloat16) { return __uint_as_float(0x7f7f0000u); }
// Two in a word, the first in its low half, which is the lower address.
__device__ __forceinline__ unsigned from_floats(float low, float high, float16) { return half_pair(low, high); }
__device__ __forceinline__ unsigned from_floats(float low, float high, bfloat16) { return bfloat_pair(low, high); }

__device__ __forceinline__ unsigned larger_pair(unsigned a, unsigned b, float16) { return larger_halves(a, b); }
__device__ __forceinline__ unsigned larger_pair(unsigned a, unsigned b, bfloat16) { return larger_bfloats(a, b); }

template <typename T>
__device__ __forceinline__ float rounded(float x) {
    T y;
    from_float(x, y);
    return to_float(y);
}

// e^x, and 1 / x of x >= 1, on the way to a result of type T. Where that has 16 bits the hardware's own approximations do:
// within 2 units in the last place of fp32, and 1.2 |x| more of e^x. The last bit costs a branch for each element, which
// keeps 1 / x of one from overlapping that of the next, and three times the instructions of e^x.
template <typename T>
__device__ __forceinline__ float exponential(float x) {
    if constexpr (sizeof(T) == 4) return expf(x);
    else return __expf(x);
}
// e^(x - y): the hardware's power is that of two, so for 16 bits difference and change of base are one operation.
template <typename T>
__device__ __forceinline__ float exponential_less(float x, float y) {
    constexpr float LOG2_E = 1.44269504f;
    if constexpr (sizeof(T) == 4) return expf(x - y);
    else return exp2f(x * LOG2_E - y * LOG2_E);
}
template <typename T>
__device__ __forceinline__ float reciprocal(float x) {
    if constexpr (sizeof(T) == 4) return 1.0f / x;
    else return __fdividef(1.0f, x);
}

// N elements of T in registers as 32-bit words; N * sizeof(T) is 2, 4, 8 or a multiple of 16, and so is the alignment
// that load and store rely on.
template <typename T, int N>
struct Pack {
    static constexpr int BYTES = N * int(sizeof(T));
    unsigned words[(BYTES + 3) / 4];

    __device__ __forceinline__ void load(const T* from) {
        if constexpr (BYTES >= 16) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; ++i) {
                const uint4 v = reinterpret_cast<const uint4*>(from)[i];
                words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
            }
        } else if constexpr (BYTES == 8) {
            const uint2 v = *reinterpret_cast<const uint2*>(from);
            words[0] = v.x, words[1] = v.y;
        } else if constexpr (BYTES == 4) {
            words[0] = *reinterpret_cast<const unsigned*>(from);
        } else {
            words[0] = *reinterpret_cast<const unsigned short*>(from);
        }
    }

    __device__ __forceinline__ void store(T* to) const {
        if constexpr (BYTES >= 16) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; ++i)
                store_whole(to + i * (16 / sizeof(T)), words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
        } else if constexpr (BYTES == 8) {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else if constexpr (BYTES == 4) {
            *reinterpret_cast<unsigned*>(to) = words[0];
        } else {
            *reinterpret_cast<unsigned short*>(to) = (unsigned short)words[0];
        }
    }

    __device__ __forceinline__ float get(int i) const {
        if constexpr (sizeof(T) == 4) {
            return __uint_as_float(words[i]);
        } else {
            T x;
            x.bits = (unsigned short)(words[i / 2] >> (16 * (i % 2)));
            return to_float(x);
        }
    }

    __device__ __forceinline__ void set(const float (&values)[N]) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < N; ++i) words[i] = __float_as_uint(values[i]);
        } else if constexpr (N == 1) {
            T x;
            from_float(values[0], x);
            words[0] = x.bits;
        } else {
#pragma unroll
            for (int i = 0; i < N / 2; ++i) words[i] = from_floats(values[2 * i], values[2 * i + 1], T());
        }
    }

    // From here on the compiler knows nothing of the words, so it unpacks them again.
    __device__ __forceinline__ void stay_packed() {
#pragma unroll
        for (int i = 0; i < (BYTES + 3) / 4; ++i) asm volatile("" : "+r"(words[i]));
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < (BYTES + 3) / 4; ++i) words[i] = 0;
    }
};
