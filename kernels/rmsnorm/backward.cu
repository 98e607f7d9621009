// Gradients of RMSNorm, with the gradient of the residual stream folded in (RESIDUAL_GRADIENT):
//
//   dx = rstd * (dy * weight - xhat * mean(dy * weight * xhat)) [+ residual gradient]      xhat = s * rstd
//   dw = sum over rows of dy * xhat
//
// A persistent grid: while a row is worked on, the next one is on its way into shared memory (STAGED: asynchronous
// copies, two stages, each thread reads only what it copied itself), so that registers hold little but the fp32 weight
// gradient and, where a thread has one pack of a row, the weight. Each block leaves one partial row, which a second small
// kernel adds up in a fixed order: no atomics, so the same rows give the same bits. The shape is that of apex's
// FastLayerNorm (contrib/csrc/layer_norm/ln_bwd_kernels.cuh) and of QuACK's rmsnorm.py. Not STAGED (two-byte accesses,
// or rows too long for shared memory), each pass over a row reads memory, and the weight gradient stands in shared
// memory, as rows so cut leave no registers for it.
#include "elements.cuh"
#include "asynchronous_copy.cuh"
#include "rmsnorm/row.cuh"

constexpr int STAGED_PACKS = STAGED ? 4 * DEPTH * LANES * ROWS : 0;  // two stages of two tensors
constexpr bool GATHERED = !STAGED || ROWS > 1;                        // the weight gradient meets in shared memory
constexpr bool HELD = STAGED && DEPTH == 1;                           // registers are left for the weight
constexpr bool ALONE = HELD && ROWS == 1;                             // a block of one row, all its threads in it
constexpr int UNROLLED = STAGED ? DEPTH : VECTOR >= 4 ? 1 : 4;

extern "C" __global__ void __launch_bounds__(LANES * ROWS, MIN_BLOCKS) rms_norm_backward(
    const ELEMENT* __restrict__ stream, const ELEMENT* __restrict__ weight, const ELEMENT* __restrict__ dy,
    const ELEMENT* __restrict__ residual_gradient, const float* __restrict__ rstd, ELEMENT* __restrict__ dx,
    float* __restrict__ partial, int rows) {
    __shared__ float scratch[2][32];
    DYNAMIC_SHARED(Elements, stages);  // [2][stream, dy][DEPTH][threads], then gathered[ROWS][HIDDEN]
    float* const gathered = reinterpret_cast<float*>(stages + STAGED_PACKS);
    const int lane = ALONE ? threadIdx.x : threadIdx.x % LANES;
    const int step = gridDim.x * ROWS;

    float dw[STAGED ? DEPTH : 1][VECTOR];
    const auto weight_gradient = [&](int d, int v) -> float& {
        if constexpr (STAGED) return dw[d][v];
        else return gathered[threadIdx.x / LANES * HIDDEN + (d * LANES + lane) * VECTOR + v];
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            if (STAGED || inside(d * LANES + lane)) weight_gradient(d, v) = 0.0f;

    const auto slot = [&](int parity, int tensor, int d) -> Elements& {
        return stages[((parity * 2 + tensor) * DEPTH + d) * LANES * ROWS + threadIdx.x];
    };
    const auto stage = [&](int row, int parity) {
        if constexpr (STAGED) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const int pack = d * LANES + lane;
                if (row < rows && inside(pack)) {
                    const size_t at = size_t(row) * HIDDEN + pack * VECTOR;
                    copy_asynchronously<Elements::BYTES>(&slot(parity, 0, d), stream + at);
                    copy_asynchronously<Elements::BYTES>(&slot(parity, 1, d), dy + at);
                }
            }
            close_group();
        }
    };
    const auto read = [&](Elements& s, Elements& g, int row, int parity, int d) {
        if constexpr (STAGED) {
            s = slot(parity, 0, d), g = slot(parity, 1, d);
        } else {
            const size_t at = size_t(row) * HIDDEN + (d * LANES + lane) * VECTOR;
            s.load(stream + at), g.load(dy + at);
        }
    };

    int row = blockIdx.x * ROWS + (ALONE ? 0 : threadIdx.x / LANES);
    stage(row, 0);
    Elements held[DEPTH];
    if constexpr (HELD) load_row(held, weight, lane, true);
    float next_scale = row < rows ? rstd[row] : 0.0f;
    // The first row of the block decides, so that every thread meets every barrier.
    for (int base = blockIdx.x * ROWS, parity = 0; base < rows; base += step, row += step, parity ^= 1) {
        const float scale = next_scale;
        const bool present = ALONE || row < rows;
        stage(row + step, parity ^ 1);
        next_scale = row + step < rows ? rstd[row + step] : 0.0f;
        Elements r[DEPTH];
        if constexpr (RESIDUAL_GRADIENT && STAGED) load_row(r, residual_gradient + size_t(row) * HIDDEN, lane, present);
        if constexpr (STAGED) wait_for_groups<1>();

        float product = 0.0f;
#pragma unroll UNROLLED
        for (int d = 0; d < DEPTH; ++d) {
            const int pack = d * LANES + lane;
            if (present && inside(pack)) {
                Elements w, s, g;
                if constexpr (HELD) w = held[d];
                else w.load(weight + pack * VECTOR);
                read(s, g, row, parity, d);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) product += g.get(v) * w.get(v) * s.get(v);
            }
        }
        // The compiler would keep them as floats for the second pass, which takes twice the registers.
        if constexpr (HELD) held[0].stay_packed();
        // Two rows of scratch in turn: a slow warp still reads one while a fast warp writes the other.
        const float mean = sum_over_row(product, scratch[parity]) * scale * (1.0f / HIDDEN);
#pragma unroll UNROLLED
        for (int d = 0; d < DEPTH; ++d) {
            const int pack = d * LANES + lane;
            if (present && inside(pack)) {
                Elements w, s, g, add, out;
                if constexpr (HELD) w = held[d];
                else w.load(weight + pack * VECTOR);
                read(s, g, row, parity, d);
                if constexpr (RESIDUAL_GRADIENT) {
                    if constexpr (STAGED) add = r[d];
                    else add.load(residual_gradient + size_t(row) * HIDDEN + pack * VECTOR);
                }
                float values[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    const float normed = s.get(v) * scale;
                    weight_gradient(d, v) += g.get(v) * (ROUND_BEFORE_WEIGHT ? rounded<ELEMENT>(normed) : normed);
                    values[v] = scale * (g.get(v) * w.get(v) - normed * mean);
                    if constexpr (RESIDUAL_GRADIENT) values[v] += add.get(v);
                }
                out.set(values);
                out.store(dx + size_t(row) * HIDDEN + pack * VECTOR);
            }
        }
    }

    float* const mine = partial + size_t(blockIdx.x) * HIDDEN;
    if constexpr (GATHERED) {
        if constexpr (STAGED) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d)
#pragma unroll
                for (int v = 0; v < VECTOR; ++v)
                    if (inside(d * LANES + lane))
                        gathered[threadIdx.x / LANES * HIDDEN + (d * LANES + lane) * VECTOR + v] = dw[d][v];
        }
        __syncthreads();
        for (int column = threadIdx.x; column < HIDDEN; column += LANES * ROWS) {
            float total = 0.0f;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) total += gathered[i * HIDDEN + column];
            mine[column] = total;
        }
    } else {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int pack = d * LANES + lane;
            if (inside(pack)) {
                Pack<float, VECTOR> out;
                out.set(dw[d]);
                out.store(mine + pack * VECTOR);
            }
        }
    }
}

// dw[column] = sum over the partial rows, for 32 columns a block of 1024 threads. The order is fixed, so the result is.
extern "C" __global__ void __launch_bounds__(1024, 1) rms_norm_weight_gradient(
    const float* __restrict__ partial, ELEMENT* __restrict__ dw, int num_partials) {
    __shared__ float sums[32][33];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int column = blockIdx.x * 32 + lane;
    float total = 0.0f;
    if (column < HIDDEN) {
#pragma unroll 8
        for (int i = warp; i < num_partials; i += 32) total += partial[size_t(i) * HIDDEN + column];
    }
    sums[warp][lane] = total;
    __syncthreads();
    total = sums[lane][warp];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
    const int out = blockIdx.x * 32 + warp;
    if (lane == 0 && out < HIDDEN) {
        ELEMENT value;
        from_float(total, value);
        dw[out] = value;
    }
}
