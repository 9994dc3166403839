// weight_grad by panels, for every type and layout: a matrix product over the positions of the output.
//
//   for each block of K x C and each part of the reduction (in parallel):
//     for each tile of outputs:
//       lanes are channels                             lanes are positions
//         pack the upstream gradient position by         pack rows of the upstream gradient, and the input
//         position, a panel for every few vectors        for each few K:
//         of K, and the input                              for each few rows of (C, taps): dot_tile, added
//         for each panel:
//           for each few rows of (C, taps):
//             panel_tile, added to the sums
//   add the parts in order, turn the sums round, write
//
// Lanes are channels where they fill vectors: no sums across lanes, none lost to narrow maps. A 1x1 kernel without
// padding reads the input where it lies, and where K is larger than C the two change places, so that the smaller one is
// packed. Where the channels of both operands are neighbours it is an outer product for each position: the larger one
// has the lanes, and where they meet few rows (run_outer), nothing is packed at all. Few output channels do not repay
// turning positions round: then lanes are positions. Both parts of complex numbers are channels of the product. Start
// reading at run_panels_grad.
#pragma once

#include "../base/pack.h"
#include "../base/reduction.h"
#include "grad_tile.h"
#include "tile.h"
#include "layout.h"

namespace conv_ext {

template <class T, class A>
struct PanelsGrad {
  const ConvProblem& z;
  const PanelsGradPlan& own;
  PackedTaps tables;
  // The operand whose channels (or positions) are lanes, and the one whose channels (and taps) are rows; the weights in
  // these roles.
  View<T> lanes, rows, result;
  int64_t parts;  // real numbers of an element
  A* sums;        // (splits, blocks), each (panels, rows, width of the panel), or (groups, lanes, rows)

  static constexpr int L = kLanes<A>;
  static constexpr bool kInPlace = is_same<T, A>;  // what can be read where it lies
  bool along_input() const { return own.lanes_are == GradLanes::InputChannels; }
  bool along_positions() const { return own.lanes_are == GradLanes::Positions; }

  int64_t taps() const { return z.r * z.s; }
  int64_t lane_channels() const { return along_input() ? z.group_c() : z.group_k(); }
  int64_t row_channels() const { return along_input() ? z.group_k() : z.group_c(); }
  int64_t tile_lanes() const { return along_input() ? own.tile_c : own.tile_k; }
  int64_t tile_rows() const { return along_input() ? own.tile_k : own.tile_c; }
  int64_t blocks_of_lanes() const { return ceil_div(lane_channels(), tile_lanes()); }
  int64_t blocks_of_rows() const { return ceil_div(row_channels(), tile_rows()); }
  int64_t blocks() const { return ceil_div(z.groups, own.task_groups) * blocks_of_lanes() * blocks_of_rows(); }

  struct Block {
    int64_t group, groups;  // the first one, and how many
    int64_t lane0, row0;    // first channels within the group
    int64_t lanes, rows;    // numbers of the channels of a group
    int64_t vectors, panels;
  };
  Block block_at(int64_t index) const {
    Block b;
    b.row0 = index % blocks_of_rows() * tile_rows();
    index /= blocks_of_rows();
    b.lane0 = index % blocks_of_lanes() * tile_lanes();
    b.group = index / blocks_of_lanes() * own.task_groups;
    b.groups = min_of(own.task_groups, z.groups - b.group);
    b.lanes = min_of(tile_lanes(), lane_channels() - b.lane0) * parts;
    b.rows = min_of(tile_rows(), row_channels() - b.row0) * parts;
    b.vectors = ceil_div(b.lanes, L);
    b.panels = ceil_div(b.vectors, own.panel_vectors);
    return b;
  }
  struct Panel {
    int64_t first, width, used;  // lanes of a block: width is whole vectors, of which so many lanes are used
  };
  Panel panel_at(const Block& b, int64_t i) const {
    const int64_t first = part_begin(b.vectors, b.panels, i) * L, last = part_begin(b.vectors, b.panels, i + 1) * L;
    return {first, last - first, min_of(b.lanes, last) - first};
  }
  int64_t row_of(const Block& b, int64_t row, int64_t tap) const {
    return own.taps_first ? tap * b.rows + row : row * taps() + tap;
  }

  struct Tile {  // of outputs
    int64_t n0, i0, j0, images, height, width;
    int64_t positions() const { return images * height * width; }
    // Elements between its first position and that of the whole operand.
    int64_t place_in(const View<T>& view) const { return n0 * view.n + i0 * view.row + j0 * view.column; }
    // Positions that follow one another evenly in an operand: a row's, or an image's where its rows do.
    int64_t run_in(const View<T>& view) const { return view.row == width * view.column ? height * width : width; }
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
  // A block's first channels of the two operands.
  View<T> lanes_of(const Block& b) const { return from_channel(lanes, b.group * lane_channels() + b.lane0); }
  View<T> rows_of(const Block& b) const { return from_channel(rows, b.group * row_channels() + b.row0); }
  static View<T> from_channel(View<T> view, int64_t channel) {
    view.data += channel * view.channel;
    return view;
  }
  // What a block reads of the two operands for a tile.
  const T* lanes_at(const Block& b, const Tile& t) const { return lanes_of(b).data + t.place_in(lanes); }
  const T* rows_at(const Block& b, const Tile& t) const { return rows_of(b).data + t.place_in(rows); }

  // The lanes of one tile: panel by panel, (positions, width of the panel).
  void pack_lanes(A* to, const Block& b, const Tile& t) const {
    const int64_t run = t.run_in(lanes);
    for (int64_t p = 0; p < b.panels; ++p) {
      const Panel panel = panel_at(b, p);
      const T* const from = lanes_at(b, t) + panel.first / parts * lanes.channel;
      A* at = to;
      for (int64_t n = 0; n < t.images; ++n)
        for (int64_t i = 0; i < t.height; i += run / t.width) {
          pack_run(at, panel, from + n * lanes.n + i * lanes.row, run);
          at += run * panel.width;
        }
      if (panel.used < panel.width)
        for (int64_t i = 0; i < t.positions(); ++i)
          for (int64_t l = panel.used; l < panel.width; ++l) to[i * panel.width + l] = A(0);
      to += t.positions() * panel.width;
    }
  }
  // Neighbouring positions of a panel. Both parts of a number move at once: as neighbours where channels are, or as one
  // number of twice the bytes.
  void pack_run(A* to, const Panel& panel, const T* from, int64_t run) const {
    const int64_t step = lanes.channel == parts ? 1 : parts;
    if constexpr (kInPlace && sizeof(A) == 4) {
      if (step == 2)
        return pack_block(reinterpret_cast<double*>(to), panel.width / 2, 1, reinterpret_cast<const double*>(from),
                          lanes.column / 2, lanes.channel / 2, run, panel.used / 2);
    }
    for (int64_t part = 0; part < step; ++part)
      pack_block(to + part, panel.width, step, from + part, lanes.column, lanes.channel / parts * step, run,
                 panel.used / step);
  }
  // The channels of one tile, image by image or several side by side.
  void pack_rows(A* to, const Block& b, const Tile& t) const {
    View<T> view = rows_of(b);
    const PackedTile packed{own.images, tables.columns.longest, own.channel_pitch * parts};
    for (int64_t part = 0; part < parts; ++part, ++view.data)
      for (int64_t n = 0; n < t.images; n += own.images)
        pack_tile(to + part * own.channel_pitch + n / own.images * own.image_pitch, packed, view,
                  b.groups * b.rows / parts, t.n0 + n, min_of(t.n0 + n + own.images, t.n0 + t.images), tables.rows,
                  tables.columns, t.i0, t.j0, t.height);
  }
  // The lines of memory that a tile of so many outputs reads of some numbers of an operand.
  void list_lines(LinesAhead* lines, const View<T>& view, int64_t numbers, const Tile& t) const {
    constexpr int64_t kBytes = sizeof(T);
    const int64_t run = t.run_in(view), runs = t.height * t.width / run;
    for (int64_t n = 0; n < t.images; ++n)
      for (int64_t i = 0; i < runs; ++i) {
        const int64_t first = (n * view.n + i * view.row) * kBytes;
        if (view.channel == parts) {
          for (int64_t j = 0; j < run; ++j) lines->add_run(first + j * view.column * kBytes, numbers * kBytes);
        } else {
          for (int64_t c = 0; c < numbers / parts; ++c)
            lines->add_run(first + c * view.channel * kBytes, run * view.column * kBytes);
        }
      }
    lines->finish();
  }

  // Where the scalars of each row begin.
  void list_rows(const PanelsGradScratch<A>& local, const Block& b) const {
    for (int64_t row = 0; row < b.rows; ++row) {
      const A* at = local.rows + row * own.channel_pitch;
      if constexpr (kInPlace) {
        if (own.in_place) at = rows_of(b).data + row / parts * rows.channel + row % parts;
      }
      for (int64_t t = 0; t < taps(); ++t) local.row[row_of(b, row, tables.taps.tap[t])] = at + tables.offset[t];
    }
  }
  // One block of K x C in one part of the reduction.
  void run_task(int64_t index, void* scratch) const {
    Carver memory(scratch);
    PanelsGradScratch<A> local = panels_grad_scratch<A>(z, own, memory);
    const Block b = block_at(index % blocks());
    list_rows(local, b);
    const int64_t split = index / blocks();
    const int64_t first = part_begin(tiles(), own.splits, split), last = part_begin(tiles(), own.splits, split + 1);
    if (last - first > 1 && own.prefetches) {
      list_lines(&local.ahead[0], lanes, b.lanes, tile_at(first));
      if (own.in_place) list_lines(&local.ahead[1], rows, b.rows, tile_at(first));
    }
    A* const out = sums + index * panels_grad_block(z, own);
    for (int64_t i = first; i < last; ++i) {
      const Tile t = tile_at(i), next = tile_at(i + 1 < last ? i + 1 : i);
      if (!own.in_place) pack_rows(local.rows, b, t);
      if (along_positions()) {
        pack_grad(local.lanes, b, t);
        run_dots(local, b, t, i > first, out);
      } else {
        if (!own.lanes_in_place) pack_lanes(local.lanes, b, t);
        if (own.outer) {
          run_outer(local, b, t, i > first, out);
        } else {
          run_panels(local, b, t, i + 1 < last ? &next : nullptr, i > first, out);
        }
      }
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
  // The same where the channels of both operands are neighbours: runs of positions that are even in both.
  void run_outer(const PanelsGradScratch<A>& local, const Block& b, const Tile& t, bool add, A* out) const {
    OuterArguments<A> a;
    a.count = min_of(t.run_in(lanes), t.run_in(rows));
    if (a.count == t.positions() / t.images && lanes.n == a.count * lanes.column && rows.n == a.count * rows.column)
      a.count = t.positions();
    a.segments = t.positions() / a.count;
    int64_t* const of_rows = local.offset + a.segments;
    for (int64_t s = 0; s < a.segments; ++s) {
      const int64_t n = s * a.count / (t.height * t.width), i = s * a.count / t.width % t.height;
      local.offset[s] = n * lanes.n + i * lanes.row;
      of_rows[s] = n * rows.n + i * rows.row;
    }
    a.lanes_offset = local.offset;
    a.rows_offset = of_rows;
    a.rows_step = rows.column;
    a.add = add;
    a.out = out;
    const auto* const first_lanes = reinterpret_cast<const A*>(lanes_at(b, t));
    const auto* const first_rows = reinterpret_cast<const A*>(rows_at(b, t));
    for (int64_t p = 0; p < b.panels; ++p) {
      const Panel panel = panel_at(b, p);
      a.lanes = own.lanes_in_place ? first_lanes + panel.first : local.lanes + t.positions() * panel.first;
      a.lanes_step = own.lanes_in_place ? lanes.column : panel.width;
      if (!own.lanes_in_place)
        for (int64_t s = 0; s < a.segments; ++s) local.offset[s] = s * a.count * panel.width;
      a.out_row = panel.width;
      const int64_t tiles = ceil_div(b.rows, kOuterRows);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t from = part_begin(b.rows, tiles, tile), m = part_begin(b.rows, tiles, tile + 1) - from;
        a.rows = first_rows + from;
        select_outer_tile<A>(int(m), int(panel.width / L))(a);
        a.out += m * panel.width;
      }
    }
  }
  // All panels and rows of a tile. What the next one reads is on its way meanwhile.
  void run_panels(const PanelsGradScratch<A>& local, const Block& b, const Tile& t, const Tile* next, bool add,
                  A* out) const {
    PanelArguments<A> a = scalars_of(local, t);
    a.panel = local.lanes;
    a.start = nullptr;
    a.add = add;
    a.out = out;
    const int64_t count = b.rows * taps();
    LinesAhead of_lanes = local.ahead[0], of_rows = local.ahead[1];
    if (next == nullptr) of_lanes.count = of_rows.count = 0;
    const Tile& ahead = next != nullptr ? *next : t;
    const auto* const next_lanes = reinterpret_cast<const A*>(lanes_at(b, ahead));
    const auto* const next_rows = reinterpret_cast<const A*>(rows_at(b, ahead));
    for (int64_t p = 0; p < b.panels; ++p) {
      const int64_t width = panel_at(b, p).width;
      const int v = int(width / L);
      const int64_t tiles = ceil_div(count, panel_rows(v));
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t from = part_begin(count, tiles, tile), m = part_begin(count, tiles, tile + 1) - from;
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

  // Lanes are positions: the upstream gradient as rows of width * images lanes, filled up with zeros to whole vectors.
  void pack_grad(A* to, const Block& b, const Tile& t) const {
    const int64_t channel = own.tile_h * own.grad_pitch, count = t.width * own.images;
    const int64_t first_zero = t.images < own.images ? 0 : count;
    for (int64_t k = 0; k < b.groups * b.lanes; ++k)
      for (int64_t i = 0; i < t.height; ++i)
        for (int64_t j = first_zero; j < round_up(count, L); ++j) to[k * channel + i * own.grad_pitch + j] = A(0);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < t.height; ++i)
        for (int64_t n = 0; n < t.images; ++n)
          pack_block(to + part * channel + i * own.grad_pitch + n, channel * parts, own.images,
                     lanes_at(b, t) + n * lanes.n + i * lanes.row + part, lanes.channel, lanes.column,
                     b.groups * b.lanes / parts, t.width);
  }
  // All K and rows of a tile.
  void run_dots(const PanelsGradScratch<A>& local, const Block& b, const Tile& t, bool add, A* out) const {
    const int64_t count = t.width * own.images, pitch = tables.columns.longest, tap_rows = b.rows * taps();
    // Where no column lies between two rows, they are one.
    const bool joined = t.width == pitch && count == own.grad_pitch;
    DotArguments<A> a;
    a.g_channel = own.tile_h * own.grad_pitch;
    a.g_row = own.grad_pitch;
    a.x_row = pitch * own.images;
    a.rows = joined ? 1 : t.height;
    a.lanes = joined ? count * t.height : count;
    a.out_pitch = tap_rows;
    a.add = add;
    for (int64_t k = 0; k < b.groups * b.lanes;) {
      const int64_t group = k / b.lanes;
      const int block = block_rows((group + 1) * b.lanes - k, kGradTileK);
      a.g = local.lanes + k * a.g_channel;
      a.x_offset = group * b.rows * own.channel_pitch;
      for (int64_t row = 0; row < tap_rows;) {
        const int block_t = grad_tile_rows(tap_rows - row);
        a.x = local.row + row;
        a.out = out + k * tap_rows + row;
        select_dot_tile<A>(block, block_t)(a);
        row += block_t;
      }
      k += block;
    }
  }

  // Adds the parts of the reduction to the first one, in order, and writes a block.
  void write_block(int64_t index) const {
    const Block b = block_at(index);
    const int64_t count = b.rows * taps(), size = panels_grad_block(z, own), split_size = blocks() * size;
    A* const from = sums + index * size;
    add_parts(from, along_positions() ? b.groups * b.lanes * count : b.vectors * L * count, own.splits, split_size);
    for (int64_t group = 0; group < b.groups && along_positions(); ++group)
      write_sums(b, b.group + group, {0, b.lanes, b.lanes}, from + group * b.lanes * count, count, 1);
    for (int64_t p = 0; p < b.panels && !along_positions(); ++p) {
      const Panel panel = panel_at(b, p);
      write_sums(b, b.group, panel, from + panel.first * count, 1, panel.width);
    }
  }
  // Some lanes of a block, whose sums are `lane_step` apart, and those of neighbouring rows `row_step`. The result's
  // lanes are K, numbered through all groups, and its rows C within the group, or the other way round.
  void write_sums(const Block& b, int64_t group, const Panel& panel, const A* from, int64_t lane_step,
                  int64_t row_step) const {
    const int64_t lane = (along_input() ? 0 : group * lane_channels()) + b.lane0 + panel.first / parts;
    const int64_t row = (along_input() ? group * row_channels() : 0) + b.row0;
    T* const to = result.data + lane * result.n + row * result.channel;
    if constexpr (kInPlace) {
      if (parts == 1) return write_numbers(to, b, panel.used, from, lane_step, row_step);
    }
    const int64_t next_part = (row_of(b, 1, 0) - row_of(b, 0, 0)) * row_step;
    for (int64_t l = 0; l < panel.used; l += parts)
      for (int64_t c = 0; c < b.rows; c += parts)
        for (int64_t t = 0; t < taps(); ++t) {
          const A* const at = from + l * lane_step + row_of(b, c, t) * row_step;
          T* const number =
              to + l / parts * result.n + c / parts * result.channel + t / z.s * result.row + t % z.s * result.column;
          if (parts == 1) {
            write<T>(number, at[0]);
          } else {  // (re, im) = (gr xr - gi xi, gr xi + gi xr)
            write<T>(number, A(at[0] - at[lane_step + next_part]));
            write<T>(number + 1, A(at[next_part] + at[lane_step]));
          }
        }
  }
  // Real ones of the accumulator's type, in vectors.
  void write_numbers(A* to, const Block& b, int64_t lanes_used, const A* from, int64_t lane_step,
                     int64_t row_step) const {
    const int64_t count = b.rows * taps(), column = result.column;
    if (result.n == 1 && taps() == 1)
      return pack_block(to, result.channel, 1, from, row_step, lane_step, count, lanes_used);
    const bool dense = result.row == z.s * column && (b.rows == 1 || result.channel == z.r * result.row);
    if (!own.taps_first && dense)  // (channels, taps) without gaps
      return pack_block(to, result.n, column, from, lane_step, row_step, lanes_used, count);
    const int64_t channel_step = (row_of(b, 1, 0) - row_of(b, 0, 0)) * row_step;
    for (int64_t t = 0; t < taps(); ++t)
      pack_block(to + t / z.s * result.row + t % z.s * column, result.n, result.channel,
                 from + row_of(b, 0, t) * row_step, lane_step, channel_step, lanes_used, b.rows);
  }
};

template <class T, class A>
void run_panels_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const PanelsGradPlan& own = plan.own<PanelsPlan>().grad;
  const int64_t parts = parts_of(z.dtype);
  Carver memory(b.workspace);
  PanelsGradWorkspace<A> workspace = panels_grad_workspace<A>(z, own, plan.tasks, memory);
  workspace.tables.build(own.tile_h, own.tile_w, own.images);
  View<T> input = view_of<T>(b.input, parts), weight = view_of<T>(b.weight, parts);
  const View<T> grad = view_of<T>(b.output, parts);
  if (own.in_place) {  // seen from the outputs
    input.row *= z.stride_h;
    input.column *= z.stride_w;
  }
  const bool along_input = own.lanes_are == GradLanes::InputChannels;
  if (along_input) weight = {weight.data, weight.channel, weight.n, weight.row, weight.column};
  const PanelsGrad<T, A> task{z,      own,   workspace.tables, along_input ? input : grad, along_input ? grad : input,
                              weight, parts, workspace.sums};
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });
  parallel_for(executor, task.blocks(), 0, [&](int64_t index, void*) { task.write_block(index); });
}

}  // namespace conv_ext
