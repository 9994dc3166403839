// Products of pairs of bfloat16 numbers, summed in float32: the register tile of the implicit matrix product.
//
//   dot_rows:  out[m][lane] = start[m][lane] + sum over segments, pairs i, h = 0, 1 of
//                             x[m * pitch + segment.x + 2 i + h] * w[lane / 16][segment.w + i][lane % 16][h]
//
// AVX512_BF16: one instruction multiplies 16 pairs of w with one pair of x and adds both products, the second first,
// each rounded to nearest even like a fused multiply-add. It takes subnormal operands and sums for zero, whatever the
// caller's mode: bfloat16 has the exponents of float32, so that only numbers below 2^-126 are lost (and Inf times a
// subnormal is NaN). Twice the multiply-adds of float32 in a cycle; the tile reaches 97 % of that where w comes from
// L2.
#pragma once

#include "../../common/indexing.h"
#include "../base/extents.h"
#include "../base/simd.h"
#include "pairs_layout.h"

// AMX goes before (amx.h).
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define CONV_EXT_BF16_DOT

namespace conv_ext {

static_assert(kMachine.bf16_dot == Bf16Dot::Vectors);

constexpr int kPairBlock = 2 * kDotLanes;  // elements of w for one pair

struct DotRows {
  const bfloat16* x;
  int64_t pitch;  // elements between rows
  const Segment* segment;
  int64_t segments;
  const bfloat16* w;
  int64_t block;  // elements between blocks of lanes
  const float* start;
  int64_t start_pitch;  // 0: one row for all
  float* out;
  int64_t out_pitch;
};

template <int M, int V>
void dot_rows(const DotRows& a) {
  __m512 sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[m][v] = _mm512_loadu_ps(a.start + m * a.start_pitch + v * kDotLanes);
  // Three pointers five rows apart and two multiples of the pitch reach all rows by addressing modes: fourteen pointers
  // would not fit the registers.
  const int64_t pitch = a.pitch * int64_t(sizeof(bfloat16)), pitch3 = 3 * pitch, pitch5 = 5 * pitch;
  const int64_t block = a.block;
  const auto row = [&](const char* x0, const char* x5, const char* x10, int m) __attribute__((always_inline)) {
    const char* const base = m < 5 ? x0 : m < 10 ? x5 : x10;
    const int rest = m % 5;
    return base + (rest == 0 ? 0 : rest == 1 ? pitch : rest == 2 ? 2 * pitch : rest == 3 ? pitch3 : 4 * pitch);
  };
  for (const Segment *s = a.segment, *last = s + a.segments; s != last; ++s) {
    const char* x0 = reinterpret_cast<const char*>(a.x + s->x);
    const bfloat16* w = a.w + s->w * kPairBlock;
    for (const bfloat16* const end = w + s->elements / 2 * kPairBlock; w != end; w += kPairBlock, x0 += 4) {
      const char* const x5 = x0 + pitch5;
      const char* const x10 = x5 + pitch5;
      __m512i lanes[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) lanes[v] = _mm512_loadu_si512(w + v * block);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        int32_t pair;
        memcpy(&pair, row(x0, x5, x10, m), 4);
        const __m512i x = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], (__m512bh)lanes[v], (__m512bh)x);
      }
    }
    if (s->elements % 2 != 0) {
      // The neighbour is not of this segment and may be Inf or NaN, which its zero in w would not silence.
      const char* const x5 = x0 + pitch5;
      const char* const x10 = x5 + pitch5;
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        uint16_t single;
        memcpy(&single, row(x0, x5, x10, m), 2);
        const __m512i x = _mm512_set1_epi32(single);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          sum[m][v] = _mm512_dpbf16_ps(sum[m][v], (__m512bh)_mm512_loadu_si512(w + v * block), (__m512bh)x);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(a.out + m * a.out_pitch + v * kDotLanes, sum[m][v]);
}

constexpr int max_dot_rows(int v) { return v == 4 ? 6 : kDotRows; }

inline void pairs_tile(const DotRows& a, int rows, int blocks) {
  with_one_of<4, 2, 1>(blocks, [&](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    with_extent<max_dot_rows(V)>(rows, [&](auto m) { dot_rows<decltype(m)::value, V>(a); });
  });
}

// Evenly high tiles of a run of rows, and how many blocks of lanes go with them.
inline int dot_tile_rows(int64_t rows) { return int(ceil_div(rows, ceil_div(rows, kDotRows))); }
inline int dot_tile_blocks(int rows, int64_t blocks) { return rows <= 6 && blocks >= 4 ? 4 : blocks >= 2 ? 2 : 1; }

}  // namespace conv_ext

#endif
