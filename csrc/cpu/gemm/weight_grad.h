// weight_grad by panels: vectors along K, and one row of a register tile for each input channel and tap.
//
//   for each block of K x C and each part of the reduction (in parallel):
//     for each tile of outputs:
//       pack the upstream gradient position by position, a panel for every few vectors of K, and the input
//       for each panel, for each few rows of (C, taps): panel_tile, added to the sums
//   add the parts in order, turn the panels round, write
//
// No sums across lanes, no lanes lost to narrow maps. A 1x1 kernel without padding reads the input where it lies, and
// where K is larger than C the two change places, so that the smaller one is packed. Start reading at run_panels_grad.
#pragma once

#include "../base/pack.h"
#include "../base/reduction.h"
#include "tile.h"
#include "layout.h"

namespace conv_ext {

template <class A>
struct PanelsGrad {
  const ConvProblem& z;
  const PanelsGradPlan& own;
  PackedTaps tables;
  // The operand whose channels are lanes, and the one whose channels (and taps) are rows; the weights in these roles.
  View<A> lanes, rows, result;
  A* sums;  // (splits, groups, blocks of lanes, of rows), each (panels, rows, width of the panel)

  static constexpr int L = kLanes<A>;

  int64_t taps() const { return z.r * z.s; }
  int64_t all_lanes() const { return own.along_input ? z.group_c() : z.group_k(); }
  int64_t all_rows() const { return own.along_input ? z.group_k() : z.group_c(); }
  int64_t tile_lanes() const { return own.along_input ? own.tile_c : own.tile_k; }
  int64_t tile_rows() const { return own.along_input ? own.tile_k : own.tile_c; }
  int64_t blocks_of_lanes() const { return ceil_div(all_lanes(), tile_lanes()); }
  int64_t blocks_of_rows() const { return ceil_div(all_rows(), tile_rows()); }
  int64_t blocks() const { return z.groups * blocks_of_lanes() * blocks_of_rows(); }

  struct Block {
    int64_t lane0, row0;              // first channels, numbered through all groups
    int64_t group_lane0, group_row0;  // the same within the group
    int64_t lanes, channels, vectors, panels;
  };
  Block block_at(int64_t index) const {
    Block b;
    b.group_row0 = index % blocks_of_rows() * tile_rows();
    index /= blocks_of_rows();
    b.group_lane0 = index % blocks_of_lanes() * tile_lanes();
    const int64_t group = index / blocks_of_lanes();
    b.lane0 = group * all_lanes() + b.group_lane0;
    b.row0 = group * all_rows() + b.group_row0;
    b.lanes = min_of(tile_lanes(), all_lanes() - b.group_lane0);
    b.channels = min_of(tile_rows(), all_rows() - b.group_row0);
    b.vectors = ceil_div(b.lanes, L);
    b.panels = ceil_div(b.vectors, kPanelV);
    return b;
  }
  struct Panel {
    int64_t first, width, used;  // lanes of a block: width is whole vectors, of which so many lanes are used
  };
  Panel panel_at(const Block& b, int64_t i) const {
    const int64_t first = part_begin(b.vectors, b.panels, i) * L, last = part_begin(b.vectors, b.panels, i + 1) * L;
    return {first, last - first, min_of(b.lanes, last) - first};
  }
  int64_t row_of(const Block& b, int64_t channel, int64_t tap) const {
    return own.taps_first ? tap * b.channels + channel : channel * taps() + tap;
  }

  struct Tile {  // of outputs
    int64_t n0, i0, j0, images, height, width;
    int64_t positions() const { return images * height * width; }
    // Elements between its first position and that of the whole operand.
    int64_t place_in(const View<A>& view) const { return n0 * view.n + i0 * view.row + j0 * view.column; }
    // Positions that follow one another evenly in an operand: a row's, or an image's where its rows do.
    int64_t run_in(const View<A>& view) const { return view.row == width * view.column ? height * width : width; }
  };
  int64_t tiles_h() const { return ceil_div(z.p, own.tile_h); }
  int64_t tiles_w() const { return ceil_div(z.q, own.tile_w); }
  int64_t tiles() const { return ceil_div(z.n, own.batch) * tiles_h() * tiles_w(); }
  Tile tile_at(int64_t index) const {
    Tile t;
    t.j0 = index % tiles_w() * own.tile_w;
    t.i0 = index / tiles_w() % tiles_h() * own.tile_h;
    t.n0 = index / tiles_w() / tiles_h() * own.batch;
    t.images = min_of(own.batch, z.n - t.n0);
    t.height = min_of(own.tile_h, z.p - t.i0);
    t.width = min_of(own.tile_w, z.q - t.j0);
    return t;
  }
  // What a block reads of the two operands for a tile.
  const A* lanes_at(const Block& b, const Tile& t) const {
    return lanes.data + b.lane0 * lanes.channel + t.place_in(lanes);
  }
  const A* rows_at(const Block& b, const Tile& t) const { return rows.data + b.row0 * rows.channel + t.place_in(rows); }

  // The lanes of one tile: panel by panel, (positions, width of the panel).
  void pack_lanes(A* to, const Block& b, const Tile& t) const {
    const int64_t run = t.run_in(lanes);
    for (int64_t p = 0; p < b.panels; ++p) {
      const Panel panel = panel_at(b, p);
      const A* const from = lanes_at(b, t) + panel.first * lanes.channel;
      A* at = to;
      for (int64_t n = 0; n < t.images; ++n)
        for (int64_t i = 0; i < t.height; i += run / t.width) {
          pack_block(at, panel.width, 1, from + n * lanes.n + i * lanes.row, lanes.column, lanes.channel, run,
                     panel.used);
          at += run * panel.width;
        }
      if (panel.used < panel.width)
        for (int64_t i = 0; i < t.positions(); ++i)
          for (int64_t l = panel.used; l < panel.width; ++l) to[i * panel.width + l] = A(0);
      to += t.positions() * panel.width;
    }
  }
  // The rows of one tile, image by image.
  void pack_rows(A* to, const Block& b, const Tile& t) const {
    View<A> view = rows;
    view.data += b.row0 * view.channel;
    for (int64_t n = 0; n < t.images; ++n)
      pack_tile(to + n * own.image_pitch, PackedTile{1, tables.columns.longest, own.channel_pitch}, view, b.channels,
                t.n0 + n, t.n0 + n + 1, tables.rows, tables.columns, t.i0, t.j0, t.height);
  }
  // The lines of memory that a tile of so many outputs reads of some channels of an operand.
  void list_lines(LinesAhead* lines, const View<A>& view, int64_t channels, const Tile& t) const {
    constexpr int64_t kBytes = sizeof(A);
    const int64_t run = t.run_in(view), runs = t.height * t.width / run;
    for (int64_t n = 0; n < t.images; ++n)
      for (int64_t i = 0; i < runs; ++i) {
        const int64_t first = (n * view.n + i * view.row) * kBytes;
        if (view.channel == 1) {
          for (int64_t j = 0; j < run; ++j) lines->add_run(first + j * view.column * kBytes, channels * kBytes);
        } else {
          for (int64_t c = 0; c < channels; ++c)
            lines->add_run(first + c * view.channel * kBytes, run * view.column * kBytes);
        }
      }
    lines->finish();
  }

  // One block of K x C in one part of the reduction.
  void run_task(int64_t index, void* scratch) const {
    Carver memory(scratch);
    PanelsGradScratch<A> local = panels_grad_scratch<A>(z, own, memory);
    const Block b = block_at(index % blocks());
    const int64_t split = index / blocks();
    const A* const base = own.in_place ? rows.data + b.row0 * rows.channel : local.rows;
    const int64_t pitch = own.in_place ? rows.channel : own.channel_pitch;
    for (int64_t c = 0; c < b.channels; ++c)
      for (int64_t t = 0; t < taps(); ++t)
        local.row[row_of(b, c, tables.taps.tap[t])] = base + c * pitch + tables.offset[t];

    const int64_t first = part_begin(tiles(), own.splits, split), last = part_begin(tiles(), own.splits, split + 1);
    if (last - first > 1 && own.prefetches) {
      list_lines(&local.ahead[0], lanes, b.lanes, tile_at(first));
      if (own.in_place) list_lines(&local.ahead[1], rows, b.channels, tile_at(first));
    }
    A* const out = sums + index * panels_grad_block(z, own);
    for (int64_t i = first; i < last; ++i) {
      const Tile t = tile_at(i);
      pack_lanes(local.lanes, b, t);
      if (!own.in_place) pack_rows(local.rows, b, t);
      PanelArguments<A> a = scalars_of(local, t);
      a.panel = local.lanes;
      a.start = nullptr;
      a.add = i > first;
      a.zero = -A(0);
      a.out = out;
      const Tile next = tile_at(i + 1 < last ? i + 1 : i);
      run_tile(local, b, t, i + 1 < last ? &next : nullptr, a);
    }
  }
  // Where the scalars of a tile lie: as one run where nothing lies between two of its rows, and between two images.
  PanelArguments<A> scalars_of(const PanelsGradScratch<A>& local, const Tile& t) const {
    PanelArguments<A> a;
    const int64_t image = own.in_place ? rows.n : own.image_pitch;
    const int64_t line = own.in_place ? rows.row : tables.columns.longest;
    a.step = own.in_place ? rows.column : 1;
    const bool rows_joined = t.height == 1 || line == t.width * a.step;
    const bool images_joined = rows_joined && (t.images == 1 || image == t.height * t.width * a.step);
    a.segments = images_joined ? 1 : rows_joined ? t.images : t.images * t.height;
    a.count = t.positions() / a.segments;
    for (int64_t s = 0; s < a.segments; ++s)
      local.offset[s] = (own.in_place ? t.place_in(rows) : 0) +
                        (rows_joined ? s * image : s / t.height * image + s % t.height * line);
    a.offset = local.offset;
    a.rows_step = 0;
    return a;
  }
  // All panels and rows of a tile. What the next one reads is on its way meanwhile.
  void run_tile(const PanelsGradScratch<A>& local, const Block& b, const Tile& t, const Tile* next,
                PanelArguments<A> a) const {
    const int64_t count = b.channels * taps();
    LinesAhead of_lanes = local.ahead[0], of_rows = local.ahead[1];
    if (next == nullptr) of_lanes.count = of_rows.count = 0;
    const Tile& ahead = next != nullptr ? *next : t;
    const A *const next_lanes = lanes_at(b, ahead), *const next_rows = rows_at(b, ahead);
    for (int64_t p = 0; p < b.panels; ++p) {
      const int64_t width = panel_at(b, p).width;
      const int v = int(width / L);
      const int64_t parts = ceil_div(count, panel_rows(v));
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t from = part_begin(count, parts, part), m = part_begin(count, parts, part + 1) - from;
        if (!a.look_ahead(next_lanes, &of_lanes, t.positions()) && !a.look_ahead(next_rows, &of_rows, t.positions()))
          a.nothing_ahead();
        a.rows = local.row + from;
        a.out_row = width;
        select_panel_tile<A>(int(m), v)(a);
        a.out += m * width;
      }
      a.panel += t.positions() * width;
    }
  }

  // Adds the parts of the reduction to the first one, in order, and writes a block.
  void write_block(int64_t index) const {
    const Block b = block_at(index);
    const int64_t count = b.channels * taps(), size = panels_grad_block(z, own), split_size = blocks() * size;
    for (int64_t p = 0; p < b.panels; ++p) {
      const Panel panel = panel_at(b, p);
      A* const from = sums + index * size + panel.first * count;
      add_parts(from, count * panel.width, own.splits, split_size);
      write_panel(b, panel, from);
    }
  }
  // The result's lanes are K, numbered through all groups, and its rows C within the group, or the other way round.
  void write_panel(const Block& b, const Panel& panel, const A* from) const {
    const int64_t lane = own.along_input ? b.group_lane0 : b.lane0, row = own.along_input ? b.row0 : b.group_row0;
    A* const to = result.data + (lane + panel.first) * result.n + row * result.channel;
    const int64_t count = b.channels * taps(), width = panel.width, column = result.column;
    if (result.n == 1 && taps() == 1) return pack_block(to, result.channel, 1, from, width, 1, count, panel.used);
    const bool dense = result.row == z.s * column && (b.channels == 1 || result.channel == z.r * result.row);
    if (!own.taps_first && dense)
      return pack_block(to, result.n, column, from, 1, width, panel.used, count);  // (channels, taps) without gaps
    for (int64_t t = 0; t < taps(); ++t)
      pack_block(to + t / z.s * result.row + t % z.s * column, result.n, result.channel, from + row_of(b, 0, t) * width,
                 1, (row_of(b, 1, t) - row_of(b, 0, t)) * width, panel.used, b.channels);
  }
};

template <class A>
void run_panels_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const PanelsGradPlan& own = plan.own<PanelsPlan>().grad;
  Carver memory(b.workspace);
  PanelsGradWorkspace<A> workspace = panels_grad_workspace<A>(z, own, plan.tasks, memory);
  workspace.tables.build(own.tile_h, own.tile_w, 1);
  View<A> input = view_of<A>(b.input, 1), weight = view_of<A>(b.weight, 1);
  const View<A> grad = view_of<A>(b.output, 1);
  if (own.in_place) {  // seen from the outputs
    input.row *= z.stride_h;
    input.column *= z.stride_w;
  }
  if (own.along_input) weight = {weight.data, weight.channel, weight.n, weight.row, weight.column};
  const PanelsGrad<A> task{
      z, own, workspace.tables, own.along_input ? input : grad, own.along_input ? grad : input, weight, workspace.sums};
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });
  parallel_for(executor, task.blocks(), 0, [&](int64_t index, void*) { task.write_block(index); });
}

}  // namespace conv_ext
