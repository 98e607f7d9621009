// A row of HIDDEN elements in the registers of LANES threads, and its sum over them.
//
// HIDDEN, VECTOR elements per access, LANES threads per row, ROWS rows per block, and the ELEMENT type are constants of
// the compilation. LANES is a power of two up to 32, or a multiple of 32 with ROWS = 1.

constexpr int PACKS = HIDDEN / VECTOR;
constexpr int DEPTH = (PACKS + LANES - 1) / LANES;
constexpr bool MASKED = PACKS % LANES != 0;
constexpr int WARPS = (LANES + 31) / 32;
using Elements = Pack<ELEMENT, VECTOR>;

// The sum over the threads of a row, the same bits in each of them. `scratch` holds one float per warp, and may be
// written again only after another barrier.
__device__ __forceinline__ float sum_over_row(float value, float* scratch) {
#pragma unroll
    for (int offset = (LANES < 32 ? LANES : 32) / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    if constexpr (LANES > 32) {
        const int lane = threadIdx.x % 32;
        if (lane == 0) scratch[threadIdx.x / 32] = value;
        __syncthreads();
        value = lane < WARPS ? scratch[lane] : 0.0f;
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    }
    return value;
}

__device__ __forceinline__ bool inside(int pack) { return !MASKED || pack < PACKS; }

__device__ __forceinline__ void load_row(Elements (&row)[DEPTH], const ELEMENT* from, int lane, bool present) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        const int pack = d * LANES + lane;
        if (present && inside(pack)) row[d].load(from + pack * VECTOR);
        else row[d].clear();
    }
}
