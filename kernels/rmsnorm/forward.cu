// RMSNorm of rows, alone or of a residual stream that is summed on the way:
//
//   s = x [+ first [+ second]]      written only where something is added (ADDENDS 0, 1, 2)
//   y = s * rstd * weight           rstd = 1 / sqrt(mean(s^2) + eps)
//
// With ROUND_BEFORE_WEIGHT s * rstd is rounded to ELEMENT before it meets the weight. A row is read once, by 16-byte
// loads that are all in flight before the first is used, and stays in registers between the sum and the output.
#include "elements.cuh"
#include "rmsnorm/row.cuh"

extern "C" __global__ void __launch_bounds__(LANES * ROWS, MIN_BLOCKS) rms_norm_forward(
    const ELEMENT* __restrict__ x, const ELEMENT* __restrict__ first, const ELEMENT* __restrict__ second,
    const ELEMENT* __restrict__ weight, ELEMENT* __restrict__ sum, ELEMENT* __restrict__ y, float* __restrict__ rstd,
    int rows, float eps) {
    __shared__ float scratch[32];
    const int lane = threadIdx.x % LANES;
    const int row = blockIdx.x * ROWS + threadIdx.x / LANES;
    const bool present = row < rows;
    const size_t start = size_t(row) * HIDDEN;

    Elements stream[DEPTH];
    load_row(stream, x + start, lane, present);
    if constexpr (ADDENDS > 0) {
        Elements one[DEPTH], two[DEPTH];
        load_row(one, first + start, lane, present);
        if constexpr (ADDENDS > 1) load_row(two, second + start, lane, present);
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            float values[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                values[v] = stream[d].get(v) + one[d].get(v);
                if constexpr (ADDENDS > 1) values[v] += two[d].get(v);
            }
            // Rounded before it is normalised: backward sees only what was stored.
            stream[d].set(values);
            const int pack = d * LANES + lane;
            if (present && inside(pack)) stream[d].store(sum + start + pack * VECTOR);
        }
    }

    float squares = 0.0f;
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) squares += stream[d].get(v) * stream[d].get(v);
    const float scale = rsqrtf(sum_over_row(squares, scratch) * (1.0f / HIDDEN) + eps);
    if (present && lane == 0) rstd[row] = scale;

#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        const int pack = d * LANES + lane;
        if (present && inside(pack)) {
            Elements w, out;
            w.load(weight + pack * VECTOR);
            float values[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float normed = stream[d].get(v) * scale;
                values[v] = (ROUND_BEFORE_WEIGHT ? rounded<ELEMENT>(normed) : normed) * w.get(v);
            }
            out.set(values);
            out.store(y + start + pack * VECTOR);
        }
    }
}
