// The matrix product in AMX's tiles, weight_grad: rows are K, lanes channels, and what is summed over are positions.
//
//   for each block of K x C (in parallel):
//     for each tile of outputs:
//       pack the upstream gradient [k/32][32 positions][part][2][16 k][32], zero between two rows of outputs,
//       and the input [c/16][part][position][16][2], whose pairs are positions j and j + 16
//       for each 32 k, 32 c and tap: multiply all positions
//   add the parts, write
//
// Pairs of the input begin at every position, so that each tap is whole rows, at its distance; a single tap needs every
// other 16 of them. Start reading at run_tiles_weight_grad, at the end.
#pragma once

#include "../base/reduction.h"
#include "../reference/reference.h"
#include "tiles_grad_line.h"

#if defined(CONV_EXT_AMX)

namespace conv_ext {

template <class T, int parts>
struct TilesWeightGrad {
  const ConvProblem& z;
  const ImplicitGemmPlan& own;
  const Buffers& buffers;
  PackedTaps tables;
  View<T> input, grad, result;

  int64_t taps() const { return z.r * z.s; }
  int64_t blocks_c() const { return ceil_div(z.group_c(), own.tile_c); }
  int64_t blocks_k() const { return ceil_div(z.group_k(), own.tile_k); }
  int64_t pitch() const { return tables.columns.longest; }
  int64_t part_bytes() const { return own.channel_pitch * int64_t(sizeof(bfloat16)); }
  int64_t positions() const { return part_bytes() / 64; }
  static constexpr int64_t kSums = kTileEdge * kTileEdge;

  // A block of the result, and a tile of outputs.
  struct Block {
    int64_t group, k0, rows, c0, channels;
  };
  Block block_at(int64_t index) const {
    const int64_t cb = index % blocks_c(), kb = index / blocks_c() % blocks_k();
    Block b;
    b.group = index / blocks_c() / blocks_k();
    b.k0 = kb * own.tile_k;
    b.rows = min_of(own.tile_k, z.group_k() - b.k0);
    b.c0 = cb * own.tile_c;
    b.channels = min_of(own.tile_c, z.group_c() - b.c0);
    return b;
  }
  struct Tile {
    int64_t n0, n1, i0, j0, height, width;
  };
  int64_t tiles() const { return tiles_of_group(z, own, tables.taps.vertical, tables.taps.horizontal); }
  Tile tile_at(int64_t index) const {
    const int64_t across = ceil_div(z.q, own.tile_w), down = ceil_div(z.p, own.tile_h);
    Tile t;
    t.j0 = index % across * own.tile_w;
    t.i0 = index / across % down * own.tile_h;
    t.n0 = index / across / down * own.images;
    t.n1 = min_of(z.n, t.n0 + own.images);
    t.height = min_of(own.tile_h, z.p - t.i0);
    t.width = min_of(own.tile_w, z.q - t.j0);
    return t;
  }
  int64_t steps_of(const Tile& t) const {
    return ceil_div(((t.height - 1) * pitch() + t.width) * own.images, kTileEdge);
  }

  void pack_grad(char* to, float* rows, const Block& b, const Tile& t) const {
    const int64_t length = steps_of(t) * kTileEdge;
    for (int64_t k = 0; k < round_up(b.rows, kTileEdge); k += 16) {
      memset(rows, 0, size_t(16 * length) * sizeof(float));
      const T* const from = grad.data + (b.group * z.group_k() + b.k0 + k) * grad.channel;
      for (int64_t n = t.n0; n < t.n1 && k < b.rows; ++n)
        for (int64_t i = 0; i < t.height; ++i)
          pack_block(rows + i * pitch() * own.images + n - t.n0, length, own.images,
                     from + n * grad.n + (t.i0 + i) * grad.row + t.j0 * grad.column, grad.channel, grad.column,
                     min_of(16, b.rows - k), t.width);
      char* const panel = to + k / kTileEdge * (own.grad_pitch / kTileEdge) * parts * kStepBytes;
      for (int64_t step = 0; step < length / kTileEdge; ++step)
        for (int64_t i = 0; i < 16; ++i) {
          const float* const its = rows + i * length + step * kTileEdge;
          store_pairs<T, parts>(panel + step * parts * kStepBytes + k / 16 % 2 * kTileBytes + i * 64, kStepBytes,
                                (__m512)load(its), (__m512)load(its + 16));
        }
    }
  }
  void pack_input(char* to, float* rows, const Block& b, const Tile& t) const {
    for (int64_t c = 0; c < round_up(b.channels, kTileEdge); c += 16, to += parts * part_bytes()) {
      const int64_t channels = max_of(0, min_of(16, b.channels - c));
      View<T> view = input;
      view.data += (b.group * z.group_c() + b.c0 + c) * view.channel;
      // What no run has is multiplied with zeros.
      memset(rows, 0, size_t((positions() + 16) * 16) * sizeof(float));
      if (channels > 0)
        for_each_run(
            tables, own.images, view, t.n0, t.n1, t.i0, t.j0, t.height,
            [&](int64_t at, int64_t count, const T* from) {
              const int64_t step = tables.columns.step * view.column;
              alignas(64) float lanes[16 * 16];
              for (int64_t i = 0; i < count; i += 16) {
                const int64_t some = min_of(16, count - i);
                load_lanes(lanes, from + i * step, view.channel, step, channels, some);
                for (int64_t j = 0; j < some; ++j)
                  _mm512_storeu_ps(rows + (at + (i + j) * own.images) * 16, _mm512_load_ps(lanes + j * 16));
              }
            },
            [](int64_t, int64_t) {});
      if (taps() == 1) {
        for (int64_t j = 0; j + 16 < positions(); j += j % 16 == 15 ? 17 : 1)
          store_pairs<T, parts>(to + (j / 32 * 16 + j % 16) * 64, part_bytes(), (__m512)load(rows + j * 16),
                                (__m512)load(rows + (j + 16) * 16));
      } else {
        for (int64_t j = 0; j < positions(); ++j)
          store_pairs<T, parts>(to + j * 64, part_bytes(), (__m512)load(rows + j * 16),
                                (__m512)load(rows + (j + 16) * 16));
      }
    }
  }

  // sums[k/32][c/32][tap][32][32], of the first tile or beside those of tiles before.
  void add_tile(const TileScratch& m, float* sums, const Block& b, const Tile& t, bool add) const {
    pack_grad(m.grad, m.rows, b, t);
    pack_input(m.input, m.rows, b, t);
    const TilePitch pitch{kTileBytes, kStepBytes, parts * part_bytes(), part_bytes()};
    for (int64_t k = 0; k < b.rows; k += kTileEdge)
      for (int64_t c = 0; c < b.channels; c += kTileEdge)
        for (int64_t tap = 0; tap < taps(); ++tap, sums += kSums) {
          const GradSteps steps{m.grad + k / kTileEdge * (own.grad_pitch / kTileEdge) * parts * kStepBytes,
                                m.input + c / 16 * parts * part_bytes() + tables.offset[tap] * 64, parts * kStepBytes,
                                taps() == 1 ? kTileBytes : kStepBytes};
          multiply_rows<parts>(steps, steps_of(t), pitch, b.rows - k, sums, add);
        }
  }

  // All of a part of the line.
  void add_line(const TileScratch& m, float* sums, const Block& b, int64_t split) const {
    const auto line_of = [&](const View<T>& view, int64_t channel, int64_t channels, int64_t all) {
      return LineView<T>{view.data + channel * view.channel,
                         all > 1 ? view.channel : 1,
                         position_step(z, view.n, view.row, view.column),
                         view.n,
                         channels,
                         own.tile_w};
    };
    const int64_t strips = product(own.tile_h, ceil_div(own.tile_w, 16));
    const TilesGradLine<T, parts> line{line_of(grad, b.group * z.group_k() + b.k0, b.rows, z.k),
                                       line_of(input, b.group * z.group_c() + b.c0, b.channels, z.c), strips};
    line.run(part_of(ceil_div(line.steps(), kLineSteps), own.splits, split), m, sums);
  }

  // Taps that are neighbours in the result, at most 16 at a time. Sums that are not finite are formed anew: parts of
  // Inf and NaN are NaN, and so are their products with the zeros between two rows.
  void write(const Block& b, const float* sums) const {
    const bool joined = result.column == 1 && result.row == z.s;
    const int64_t row = joined ? taps() : z.s;
    const __m512 scale = _mm512_set1_ps(parts > 1 ? kSumScale : 1.0f);
    alignas(64) float lanes[16 * 16];
    for (int64_t k = 0; k < b.rows; ++k)
      for (int64_t c = 0; c < b.channels; c += 16) {
        const float* const from = sums + (k / kTileEdge * tile_blocks(b.channels) + c / kTileEdge) * taps() * kSums +
                                  k % kTileEdge * kTileEdge + c % kTileEdge;
        const int64_t channels = min_of(16, b.channels - c), k_all = b.group * z.group_k() + b.k0 + k;
        for (int64_t tap = 0, count = 0; tap < taps(); tap += count) {
          count = min_of(16, row - tap % row);
          for (int64_t i = 0; i < count; ++i) {
            const __m512 v = _mm512_mul_ps(_mm512_load_ps(from + (tap + i) * kSums), scale);
            _mm512_store_ps(lanes + i * 16, v);
            if (_mm512_cmp_ps_mask(_mm512_sub_ps(v, v), _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0)
              for (int64_t l = 0; l < channels; ++l)
                if (float* const sum = lanes + i * 16 + l; *sum - *sum != 0)
                  *sum = float(sum_again<T>(z, Pass::WeightGrad, buffers, k_all, b.c0 + c + l, (tap + i) / z.s,
                                            (tap + i) % z.s));
          }
          lanes_to_positions(lanes,
                             result.data + k_all * result.n + (b.c0 + c) * result.channel + tap / z.s * result.row +
                                 tap % z.s * result.column,
                             result.channel, result.column, channels, count);
        }
      }
  }

  void run_task(int64_t index, void* scratch, float* partial) const {
    const int64_t blocks = grad_blocks(z, own), split = index / blocks;
    const Block b = block_at(index % blocks);
    Carver memory(scratch);
    const TileScratch m = tile_scratch(z, Pass::WeightGrad, own, memory);
    // The parts of a reduction that is cut are added up later; a whole one stays here.
    float* const sums = own.splits > 1 ? partial + index * grad_block_sums(z, own) : m.sums;
    {
      const TileScope scope;
      if (own.schedule == DotSchedule::Line) {
        add_line(m, sums, b, split);
      } else {
        const Range its = part_of(tiles(), own.splits, split);
        for (int64_t i = its.first; i < its.last; ++i) add_tile(m, sums, b, tile_at(i), i > its.first);
      }
    }
    if (own.splits == 1) write(b, sums);
  }
  // The parts of the reduction, in order.
  void add_parts(int64_t index, float* partial) const {
    const int64_t count = grad_block_sums(z, own);
    conv_ext::add_parts(partial + index * count, count, own.splits, grad_blocks(z, own) * count);
    write(block_at(index), partial + index * count);
  }
};

template <class T, int parts>
void run_tiles_weight_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const ImplicitGemmPlan& own = plan.own<ImplicitGemmPlan>();
  Carver memory(b.workspace);
  const TileWorkspace w = tile_workspace(z, Pass::WeightGrad, own, memory);
  TilesWeightGrad<T, parts> task{
      z, own, b, w.tables.taps, view_of<T>(b.input, 1), view_of<T>(b.output, 1), view_of<T>(b.weight, 1)};
  task.tables.build(own.tile_h, own.tile_w, own.images);
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch, w.partial); });
  if (own.splits > 1)
    parallel_for(executor, grad_blocks(z, own), 0, [&](int64_t index, void*) { task.add_parts(index, w.partial); });
}

}  // namespace conv_ext

#endif
