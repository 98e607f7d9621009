// Rotary position embedding of queries and keys in one launch, forward (direction 1) and backward (direction -1):
//
//   first'  = first * cos - direction * second * sin        second' = second * cos + direction * first * sin
//
// where a head's first 2 HALF elements are (first, second) and the remaining ones, if any, are copied. q [B, S, Q_HEADS,
// HEAD] and k [B, S, K_HEADS, HEAD] have any strides, so both may be views of one QKV buffer; the last dimension is dense,
// and input and output may be the same memory. The angles of a token stand in row positions[b, s] (or s, where
// positions is null) of the fp32 tables [table_rows, HALF]: a token whose position lies outside comes out as NaN, and
// nothing outside the tables is read.
//
// A block takes TOKENS tokens; a thread 16 bytes of the first half of a head and the matching 16 bytes of the second.
// Compiled for ELEMENT, VECTOR elements per access, HALF, HEAD, Q_HEADS, K_HEADS, TOKENS, THREADS, MIN_BLOCKS.
#include "elements.cuh"

constexpr int TURNED = HALF / VECTOR;                // threads of a head that turn two packs
constexpr int COPIED = (HEAD - 2 * HALF) / VECTOR;   // threads of a head that copy one
constexpr int LANES = TURNED + COPIED;
constexpr int ITEMS = (Q_HEADS + K_HEADS) * LANES;
using Elements = Pack<ELEMENT, VECTOR>;
using Angles = Pack<float, VECTOR>;

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) rope(
    const ELEMENT* q, const ELEMENT* k, ELEMENT* q_out, ELEMENT* k_out, const float* __restrict__ cosines,
    const float* __restrict__ sines, const long long* __restrict__ positions, long long positions_stride, int num_tokens,
    int table_rows, float direction, long long q_batch, long long q_token, long long q_head, long long k_batch,
    long long k_token, long long k_head, long long q_out_batch, long long q_out_token, long long q_out_head,
    long long k_out_batch, long long k_out_token, long long k_out_head) {
    const long long batch = blockIdx.y;
    for (int item = threadIdx.x; item < TOKENS * ITEMS; item += THREADS) {
        const long long token = (long long)blockIdx.x * TOKENS + item / ITEMS;
        if (token >= num_tokens) return;
        // Asked for before the addresses of q and k are worked out: the angles wait for it.
        const long long position = positions ? positions[batch * positions_stride + token] : token;
        const int head = item % ITEMS / LANES, lane = item % LANES;
        const bool query = head < Q_HEADS;
        const ELEMENT* from = query ? q + batch * q_batch + token * q_token + head * q_head
                                    : k + batch * k_batch + token * k_token + (head - Q_HEADS) * k_head;
        ELEMENT* to = query ? q_out + batch * q_out_batch + token * q_out_token + head * q_out_head
                            : k_out + batch * k_out_batch + token * k_out_token + (head - Q_HEADS) * k_out_head;
        if (COPIED > 0 && lane >= TURNED) {
            const int at = 2 * HALF + (lane - TURNED) * VECTOR;
            Elements rest;
            rest.load(from + at);
            rest.store(to + at);
            continue;
        }
        Elements first, second;
        first.load(from + lane * VECTOR);
        second.load(from + HALF + lane * VECTOR);
        const bool known = position >= 0 && position < table_rows;
        Angles cosine, sine;
        const long long row = (known ? position : 0) * HALF + lane * VECTOR;
        cosine.load(cosines + row);
        sine.load(sines + row);
        float low[VECTOR], high[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const float c = known ? cosine.get(v) : __uint_as_float(0x7fc00000u), s = direction * sine.get(v);
            low[v] = first.get(v) * c - second.get(v) * s;
            high[v] = second.get(v) * c + first.get(v) * s;
        }
        first.set(low);
        second.set(high);
        first.store(to + lane * VECTOR);
        second.store(to + HALF + lane * VECTOR);
    }
}
