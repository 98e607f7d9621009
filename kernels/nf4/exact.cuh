// One rounded fp32 operation each: subnormals kept and nothing contracted, whatever the compiler's flags (CuPy compiles
// with -ftz=true), so that the bytes are those of reference.py.
#ifndef CUDA_ON_CPU
#define EXACT(name, instruction)                                      \
    __device__ __forceinline__ float name(float a, float b) {         \
        float c;                                                      \
        asm(instruction " %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));   \
        return c;                                                     \
    }
EXACT(plus, "add.rn.f32")
EXACT(minus, "sub.rn.f32")
EXACT(times, "mul.rn.f32")
EXACT(over, "div.rn.f32")
EXACT(at_most, "min.f32")
// a * b + c, rounded once.
__device__ __forceinline__ float fused(float a, float b, float c) {
    float d;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
    return d;
}
#endif
