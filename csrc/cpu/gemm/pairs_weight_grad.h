// The implicit matrix product of bfloat16 by AVX512_BF16 in weight_grad: rows are K, lanes are taps and channels, and
// what is summed over is the outputs, two neighbours at a time.
//
//   for each block of K x C (in parallel):
//     for each tile of outputs:
//       pack the upstream gradient [K][output], the input [image][row][column][channel],
//       and of that [block of 16 lanes][pair of outputs][16][2]
//       for each pair of lane blocks, 14 rows of K: pairs_tile
//   add the parts, write
//
// Start reading at run_implicit_weight_grad, at the end.
#pragma once

#include "../base/reduction.h"
#include "pairs_gather.h"

#if defined(CONV_EXT_BF16_DOT)

namespace conv_ext {

template <class T>
struct DotWeightGrad {
  const ConvProblem& z;
  const ImplicitGemmPlan& own;
  View<T> input, grad, result;

  int64_t taps() const { return z.r * z.s; }
  int64_t block_lanes() const { return dot_block_lanes(z, own); }
  int64_t blocks_c() const { return ceil_div(z.group_c(), own.tile_c); }
  int64_t blocks_k() const { return ceil_div(z.group_k(), own.tile_k); }
  int64_t lanes_total() const { return blocks_c() * block_lanes(); }

  // Sums of one k, lanes ordered (tap, channel), to the weights of channels [c0, c0 + count).
  void write_row(int64_t k, int64_t c0, int64_t count, float* lanes) const {
    T* const to = result.data + k * result.n + c0 * result.channel;
    if (result.channel == 1) {
      for (int64_t t = 0; t < taps(); ++t)
        for (int64_t c = 0; c < count; c += 16)
          write16(to + t / z.s * result.row + t % z.s * result.column + c,
                  _mm512_maskz_loadu_ps(mask16(count - c), lanes + t * count + c), count - c);
    } else if (result.column == 1 && result.row == z.s && taps() > 1) {
      for (int64_t c = 0; c < count; c += 16) {
        for (int64_t t0 = 0; t0 < taps(); t0 += 16) {
          const int64_t some = min_of(16, taps() - t0), wide = min_of(16, count - c);
          __m512i square[16];
          const float* const from = lanes + t0 * count + c;
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i)
            square[i] =
                i < some ? (__m512i)_mm512_maskz_loadu_ps(mask16(wide), from + i * count) : _mm512_setzero_si512();
          turn_square(square);
          alignas(64) __m512i turned[16];
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) turned[i] = square[i];
          for (int64_t i = 0; i < wide; ++i)
            write16(to + (c + i) * result.channel + t0, _mm512_castsi512_ps(turned[i]), some);
        }
      }
    } else {
      for (int64_t t = 0; t < taps(); ++t)
        for (int64_t c = 0; c < count; ++c)
          write<T>(to + c * result.channel + t / z.s * result.row + t % z.s * result.column, lanes[t * count + c]);
    }
  }

  // Lanes of two outputs, taps and channels, pair by pair; `second` is nullptr where there is none.
  void interleave(bfloat16* to, int64_t block_pitch, const DotTables& tables, const bfloat16* first,
                  const bfloat16* second, bfloat16* flat, int64_t lanes) const {
    const int64_t segments = tables.segment_begin[1], channels = tables.channels;
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const auto run = [&](int64_t lane, const bfloat16* a, const bfloat16* b, int64_t count) {
      bfloat16* t = to + lane / kDotLanes * block_pitch;
      for (int64_t e = 0; e < count; e += 32, t += 2 * block_pitch) {
        const __mmask32 mask = mask32(count - e);
        const __m512i even = _mm512_maskz_loadu_epi16(mask, a + e);
        const __m512i odd = b ? _mm512_maskz_loadu_epi16(mask, b + e) : _mm512_setzero_si512();
        _mm512_storeu_si512(t, _mm512_permutex2var_epi16(even, low, odd));
        if (count - e > 16) _mm512_storeu_si512(t + block_pitch, _mm512_permutex2var_epi16(even, high, odd));
      }
    };
    if (channels % kDotLanes == 0) {
      for (int64_t i = 0; i < segments; ++i) {
        const Segment& s = tables.segment[i];
        run(tables.first_tap[i] * channels, first + s.x, second ? second + s.x : nullptr, s.elements);
      }
      return;
    }
    // Taps begin within blocks of lanes: their elements are put together first. (By whole vectors that overlap, without
    // masks, half as fast: what is loaded next would wait for several stores.)
    const int64_t flat_pitch = round_up(lanes, 32);
    for (int64_t i = 0; i < segments; ++i) {
      const Segment& s = tables.segment[i];
      bfloat16* const f = flat + tables.first_tap[i] * channels;
      copy_run(f, first + s.x, s.elements);
      if (second) copy_run(f + flat_pitch, second + s.x, s.elements);
    }
    run(0, flat, second ? flat + flat_pitch : nullptr, lanes);
  }

  // Adds a tile of outputs to sums[rows][block_lanes].
  void add_tile(const DotScratch<bfloat16>& m, float* sums, int64_t group, int64_t k0, int64_t rows, int64_t c0,
                int64_t n0, int64_t n1, int64_t i0, int64_t j0, int64_t height, int64_t width) const {
    const DotTables& tables = m.tables;
    const int64_t packed_rows = tables.down.extent(height);
    const int64_t outputs = (n1 - n0) * height * width, pairs = ceil_div(outputs, 2);
    // The upstream gradient, with a zero behind an odd number of outputs.
    const bool joined = grad.row == width * grad.column || height == 1;
    const int64_t lines = joined ? 1 : height, length = joined ? height * width : width;
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t p = 0; p < lines; ++p)
        pack_bf16(
            m.grad + ((n - n0) * lines + p) * length, own.grad_pitch, 1,
            grad.data + n * grad.n + (group * z.group_k() + k0) * grad.channel + (i0 + p) * grad.row + j0 * grad.column,
            grad.channel, grad.column, rows, length);
    if (outputs % 2 != 0)
      for (int64_t k = 0; k < rows; ++k) m.grad[k * own.grad_pitch + outputs] = bfloat16{0};

    int64_t next = 0;
    for (int64_t n = 0; n < n1 - n0; ++n)
      for (int64_t p = 0; p < height; ++p)
        for (int64_t q = 0; q < width; ++q)
          m.at[next++] =
              ((n * packed_rows + p * tables.down.output_step) * tables.pitch + q * tables.across.output_step) *
              tables.channels;
    const int64_t lanes = tables.channels * taps(), block_pitch = pairs * kPairBlock;
    View<T> view = input;
    view.data += (group * z.group_c() + c0) * view.channel;
    pack_source(m.input, tables, view, n0, n1, i0, j0, packed_rows, tables.pitch);
    for (int64_t i = 0; i < pairs; ++i)
      interleave(m.pairs + i * kPairBlock, block_pitch, tables, m.input + m.at[2 * i],
                 2 * i + 1 < outputs ? m.input + m.at[2 * i + 1] : nullptr, m.flat, lanes);

    const Segment all{0, 0, 2 * pairs};
    DotRows a;
    a.pitch = own.grad_pitch;
    a.segment = &all;
    a.segments = 1;
    a.block = block_pitch;
    a.start_pitch = a.out_pitch = block_lanes();
    const int64_t blocks = ceil_div(lanes, kDotLanes);
    const int tile_rows = dot_tile_rows(rows);
    for (int64_t b = 0; b < blocks;) {
      const int blocks_now = dot_tile_blocks(tile_rows, blocks - b);
      a.w = m.pairs + b * block_pitch;
      for (int64_t k = 0; k < rows; k += tile_rows) {
        a.x = m.grad + k * own.grad_pitch;
        a.start = a.out = sums + k * block_lanes() + b * kDotLanes;
        pairs_tile(a, int(min_of(tile_rows, rows - k)), blocks_now);
      }
      b += blocks_now;
    }
  }

  void run_task(int64_t index, void* scratch, float* partial) const {
    const int64_t cb = index % blocks_c(), kb = index / blocks_c() % blocks_k();
    index /= blocks_c() * blocks_k();
    const int64_t group = index % z.groups, split = index / z.groups;
    const int64_t k0 = kb * own.tile_k, rows = min_of(own.tile_k, z.group_k() - k0);
    const int64_t c0 = cb * own.tile_c, channels = min_of(own.tile_c, z.group_c() - c0);
    Carver memory(scratch);
    DotScratch<bfloat16> m = dot_scratch<bfloat16>(z, Pass::WeightGrad, own, memory);
    m.tables.build(own.tile_w, channels);
    float* sums = m.sums;
    // The parts of a reduction that is cut are added up later; a whole one stays here.
    if (own.splits > 1) sums = partial + ((split * blocks_c() + cb) * z.k + group * z.group_k() + k0) * block_lanes();
    memset(sums, 0, size_t(rows * block_lanes()) * sizeof(float));
    const int64_t tiles_h = ceil_div(z.p, own.tile_h), tiles_w = ceil_div(z.q, own.tile_w);
    const int64_t units = ceil_div(z.n, own.images) * tiles_h * tiles_w;
    for (int64_t unit = part_begin(units, own.splits, split); unit < part_begin(units, own.splits, split + 1); ++unit) {
      const int64_t j0 = unit % tiles_w * own.tile_w, i0 = unit / tiles_w % tiles_h * own.tile_h;
      const int64_t n0 = unit / tiles_w / tiles_h * own.images;
      add_tile(m, sums, group, k0, rows, c0, n0, min_of(z.n, n0 + own.images), i0, j0, min_of(own.tile_h, z.p - i0),
               min_of(own.tile_w, z.q - j0));
    }
    if (own.splits > 1) return;
    for (int64_t k = 0; k < rows; ++k) write_row(group * z.group_k() + k0 + k, c0, channels, sums + k * block_lanes());
  }

  // The parts of the reduction, in order.
  void add_parts(int64_t index, float* partial) const {
    const int64_t k = index % z.k, cb = index / z.k, lanes = block_lanes();
    float* const sums = partial + index * lanes;
    conv_ext::add_parts(sums, lanes, own.splits, z.k * lanes_total());
    const int64_t c0 = cb * own.tile_c;
    write_row(k, c0, min_of(own.tile_c, z.group_c() - c0), sums);
  }
};

template <class T>
void run_implicit_weight_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const ImplicitGemmPlan& own = plan.own<ImplicitGemmPlan>();
  const DotWeightGrad<T> task{z, own, view_of<T>(b.input, 1), view_of<T>(b.output, 1), view_of<T>(b.weight, 1)};
  Carver memory(b.workspace);
  float* const partial = dot_workspace<bfloat16>(z, Pass::WeightGrad, own, memory).partial;
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch, partial); });
  if (own.splits > 1)
    parallel_for(executor, z.k * task.blocks_c(), 0, [&](int64_t index, void*) { task.add_parts(index, partial); });
}

}  // namespace conv_ext

#endif
