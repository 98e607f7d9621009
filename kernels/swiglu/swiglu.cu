// The gated product of an MLP, out = silu(gate) * up with silu(x) = x * sigmoid(x), and its gradients:
//
//   d gate = dy * up * s * (1 + gate * (1 - s))        d up = dy * gate * s        s = sigmoid(gate)
//
// Element by element over dense tensors: a thread takes UNROLLED packs, a block's width apart, so that all of a warp's
// accesses are contiguous. Computed in fp32 and rounded once.
#include "elements.cuh"

using Elements = Pack<ELEMENT, VECTOR>;

__device__ __forceinline__ float sigmoid(float x) {
    return reciprocal<ELEMENT>(1.0f + exponential<ELEMENT>(-x));
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_forward(
    const ELEMENT* __restrict__ gate, const ELEMENT* __restrict__ up, ELEMENT* __restrict__ out, long long packs) {
    const long long first = (long long)blockIdx.x * (THREADS * UNROLLED) + threadIdx.x;
    Elements g[UNROLLED], u[UNROLLED];
#pragma unroll
    for (int i = 0; i < UNROLLED; ++i) {
        const long long pack = first + i * THREADS;
        if (pack < packs) g[i].load(gate + pack * VECTOR), u[i].load(up + pack * VECTOR);
    }
#pragma unroll
    for (int i = 0; i < UNROLLED; ++i) {
        const long long pack = first + i * THREADS;
        if (pack < packs) {
            float values[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) values[v] = g[i].get(v) * sigmoid(g[i].get(v)) * u[i].get(v);
            g[i].set(values);
            g[i].store(out + pack * VECTOR);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_backward(
    const ELEMENT* __restrict__ gate, const ELEMENT* __restrict__ up, const ELEMENT* __restrict__ dy,
    ELEMENT* __restrict__ gate_gradient, ELEMENT* __restrict__ up_gradient, long long packs) {
    const long long first = (long long)blockIdx.x * (THREADS * UNROLLED) + threadIdx.x;
    Elements g[UNROLLED], u[UNROLLED], d[UNROLLED];
#pragma unroll
    for (int i = 0; i < UNROLLED; ++i) {
        const long long pack = first + i * THREADS;
        if (pack < packs)
            g[i].load(gate + pack * VECTOR), u[i].load(up + pack * VECTOR), d[i].load(dy + pack * VECTOR);
    }
#pragma unroll
    for (int i = 0; i < UNROLLED; ++i) {
        const long long pack = first + i * THREADS;
        if (pack < packs) {
            float of_gate[VECTOR], of_up[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float x = g[i].get(v), gradient = d[i].get(v), s = sigmoid(x);
                of_gate[v] = gradient * u[i].get(v) * (s * (1.0f + x * (1.0f - s)));
                of_up[v] = gradient * x * s;
            }
            g[i].set(of_gate);
            u[i].set(of_up);
            g[i].store(gate_gradient + pack * VECTOR);
            u[i].store(up_gradient + pack * VECTOR);
        }
    }
}
