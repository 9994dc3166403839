// weight_grad by panels: vectors along K, and one row of a register tile for each input channel and tap.
//
//   for each block of K x C and each part of the reduction (in parallel):
//     for each tile of outputs:
//       pack the upstream gradient position by position, a panel for every few vectors of K, and the input
//       for each panel, for each few rows of (C, taps): panel_tile, added to the sums
//   add the parts in order, turn the panels round, write
//
// No sums across lanes, no lanes lost to narrow maps. Start reading at run_panels_grad.
#pragma once

#include "direct.h"
#include "panel_tile.h"

namespace conv_ext {

template <class A>
struct PanelsGrad {
  const ConvProblem& z;
  const Plan& plan;
  Tables tables;
  View<A> input, grad, result;
  A* sums;          // (splits, groups, blocks of K, of C), each (panels, rows, width of the panel)
  bool taps_first;  // the rows of a block: (taps, C) if the result's channels are neighbours, else (C, taps)

  int64_t taps() const { return z.r * z.s; }
  int64_t blocks_k() const { return ceil_div(z.group_k(), plan.tile_k); }
  int64_t blocks_c() const { return ceil_div(z.group_c(), plan.tile_c); }
  int64_t block_sums() const { return round_up(plan.tile_k, kLanes<A>) * plan.tile_c * taps(); }

  struct Block {
    int64_t group, k0, c0, k, c, vectors, panels;
  };
  Block block_at(int64_t index) const {
    Block b;
    b.c0 = index % blocks_c() * plan.tile_c;
    index /= blocks_c();
    b.k0 = index % blocks_k() * plan.tile_k;
    b.group = index / blocks_k();
    b.k = min_of(plan.tile_k, z.group_k() - b.k0);
    b.c = min_of(plan.tile_c, z.group_c() - b.c0);
    b.vectors = ceil_div(b.k, kLanes<A>);
    b.panels = ceil_div(b.vectors, kPanelV);
    return b;
  }
  int64_t row_of(const Block& b, int64_t c, int64_t tap) const { return taps_first ? tap * b.c + c : c * taps() + tap; }

  // The upstream gradient of one tile: panel by panel, (positions, width of the panel).
  void pack_grad(A* to, const Block& b, int64_t n0, int64_t n1, int64_t i0, int64_t j0, int64_t height,
                 int64_t width) const {
    constexpr int L = kLanes<A>;
    const int64_t positions = (n1 - n0) * height * width;
    // Rows that follow one another without a gap are copied as one.
    const bool joined = grad.row == width * grad.column;
    for (int64_t p = 0; p < b.panels; ++p) {
      const int64_t v0 = part_begin(b.vectors, b.panels, p), v1 = part_begin(b.vectors, b.panels, p + 1);
      const int64_t pitch = (v1 - v0) * L, lanes = min_of(b.k, v1 * L) - v0 * L;
      A* at = to;
      for (int64_t n = n0; n < n1; ++n)
        for (int64_t i = 0; i < height; i += joined ? height : 1) {
          const int64_t count = joined ? height * width : width;
          pack_block(at, pitch, 1,
                     grad.data + n * grad.n + (b.group * z.group_k() + b.k0 + v0 * L) * grad.channel +
                         (i0 + i) * grad.row + j0 * grad.column,
                     grad.column, grad.channel, count, lanes);
          at += count * pitch;
        }
      if (lanes < pitch)
        for (int64_t i = 0; i < positions; ++i)
          for (int64_t l = lanes; l < pitch; ++l) to[i * pitch + l] = A(0);
      to += positions * pitch;
    }
  }

  void run_block(int64_t index, void* scratch) const {
    constexpr int L = kLanes<A>;
    const int64_t all_blocks = z.groups * blocks_k() * blocks_c();
    const int64_t split = index / all_blocks;
    const Block b = block_at(index % all_blocks);
    const int64_t rows = b.c * taps(), segments = plan.batch * plan.tile_h;
    Carver local{static_cast<char*>(scratch)};
    const A** const row = local.take<const A*>(rows);
    int64_t* const offset = local.take<int64_t>(segments);
    A* const g = local.take<A>(round_up(b.k, L) * segments * plan.tile_w);
    A* const x = local.take<A>(b.c * plan.channel_pitch);
    for (int64_t c = 0; c < b.c; ++c)
      for (int64_t t = 0; t < taps(); ++t)
        row[row_of(b, c, tables.tap_weight[t])] = x + c * plan.channel_pitch + tables.tap_offset[t];

    const int64_t tiles_h = ceil_div(z.p, plan.tile_h), tiles_w = ceil_div(z.q, plan.tile_w);
    const int64_t units = ceil_div(z.n, plan.batch) * tiles_h * tiles_w, pitch = tables.columns.longest;
    const int64_t first = units * split / plan.splits, last = units * (split + 1) / plan.splits;
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t j0 = unit % tiles_w * plan.tile_w, i0 = unit / tiles_w % tiles_h * plan.tile_h;
      const int64_t n0 = unit / tiles_w / tiles_h * plan.batch, n1 = min_of(z.n, n0 + plan.batch);
      const int64_t height = min_of(plan.tile_h, z.p - i0), width = min_of(plan.tile_w, z.q - j0);
      pack_grad(g, b, n0, n1, i0, j0, height, width);
      for (int64_t n = n0; n < n1; ++n) {
        View<A> view = input;
        view.data += (b.group * z.group_c() + b.c0) * view.channel;
        pack_tile(x + (n - n0) * plan.image_pitch, PackedTile{1, pitch, plan.channel_pitch}, view, b.c, n, n + 1,
                  tables.rows, tables.columns, i0, j0, height);
      }
      PanelArguments<A> a;
      a.rows_step = 0;
      a.offset = offset;
      a.step = 1;
      a.resume = false;
      a.add = unit > first;
      // One run of scalars where no column lies between two rows, and no row between two images.
      const bool rows_joined = width == pitch || height == 1, images_joined = plan.image_pitch == height * width;
      a.segments = rows_joined && (images_joined || n1 - n0 == 1) ? 1 : rows_joined ? n1 - n0 : (n1 - n0) * height;
      a.count = (n1 - n0) * height * width / a.segments;
      for (int64_t s = 0; s < a.segments; ++s)
        offset[s] = rows_joined ? s * plan.image_pitch : s / height * plan.image_pitch + s % height * pitch;
      a.out = sums + index * block_sums();
      a.panel = g;
      for (int64_t p = 0; p < b.panels; ++p) {
        const int v = int(part_begin(b.vectors, b.panels, p + 1) - part_begin(b.vectors, b.panels, p));
        const int64_t parts = ceil_div(rows, panel_rows(v));
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t from = part_begin(rows, parts, part), m = part_begin(rows, parts, part + 1) - from;
          a.rows = row + from;
          select_panel_tile<A>(int(m), v)(a);
          a.out += m * v * L;
        }
        a.panel += a.segments * a.count * v * L;
      }
    }
  }

  // Adds the parts of the reduction to the first one, in order, and writes a share of a block.
  void write_block(int64_t index) const {
    constexpr int L = kLanes<A>;
    const Block b = block_at(index);
    const int64_t rows = b.c * taps(), stride = z.groups * blocks_k() * blocks_c() * block_sums();
    for (int64_t p = 0; p < b.panels; ++p) {
      const int64_t v0 = part_begin(b.vectors, b.panels, p), v1 = part_begin(b.vectors, b.panels, p + 1);
      const int64_t width = (v1 - v0) * L, lanes = min_of(b.k, v1 * L) - v0 * L;
      A* const from = sums + index * block_sums() + v0 * L * rows;
      for (int64_t split = 1; split < plan.splits; ++split)
        for (int64_t i = 0; i < rows * width; i += L) store(from + i, load(from + i) + load(from + split * stride + i));
      A* const to = result.data + (b.group * z.group_k() + b.k0 + v0 * L) * result.n + b.c0 * result.channel;
      const int64_t column = result.column, joined_row = z.s * column;
      if (!taps_first && result.row == joined_row && result.channel == z.r * joined_row) {
        pack_block(to, result.n, column, from, 1, width, lanes, rows);  // (C, taps) without gaps
        continue;
      }
      for (int64_t t = 0; t < taps(); ++t)
        pack_block(to + t / z.s * result.row + t % z.s * column, result.n, result.channel,
                   from + row_of(b, 0, t) * width, 1, (row_of(b, 1, t) - row_of(b, 0, t)) * width, lanes, b.c);
    }
  }
};

template <class A>
void run_panels_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  Carver memory{static_cast<char*>(b.workspace)};
  const Tables tables = make_tables(z, Pass::WeightGrad, plan, memory);
  PanelsGrad<A> task{z,
                     plan,
                     tables,
                     view_of<A>(b.input, 1),
                     view_of<A>(b.output, 1),
                     view_of<A>(b.weight, 1),
                     nullptr,
                     b.weight.stride[1] == 1 && z.r * z.s > 1};
  task.sums = memory.take<A>(plan.tasks * task.block_sums());
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_block(index, scratch); });
  parallel_for(executor, plan.tasks / plan.splits, 0, [&](int64_t index, void*) { task.write_block(index); });
}

}  // namespace conv_ext
