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

#include "../direct/direct.h"
#include "tile.h"
#include "layout.h"

namespace conv_ext {

template <class A>
struct PanelsGrad {
  const ConvProblem& z;
  const PanelsPlan& own;
  Tables tables;
  // The operand whose channels are lanes, and the one whose channels (and taps) are rows.
  View<A> lanes, rows;
  bool in_place;    // the rows are read where they lie
  View<A> result;   // (lanes, rows, R, S)
  A* sums;          // (splits, groups, blocks of lanes, of rows), each (panels, rows, width of the panel)
  bool taps_first;  // the rows of a block: (taps, channels) if the result's channels are neighbours, else (channels,
                    // taps)

  static constexpr int L = kLanes<A>;

  int64_t taps() const { return z.r * z.s; }
  int64_t all_lanes() const { return own.along_input ? z.group_c() : z.group_k(); }
  int64_t all_rows() const { return own.along_input ? z.group_k() : z.group_c(); }
  int64_t tile_lanes() const { return own.along_input ? own.tile_c : own.tile_k; }
  int64_t tile_rows() const { return own.along_input ? own.tile_k : own.tile_c; }
  int64_t blocks_of_lanes() const { return ceil_div(all_lanes(), tile_lanes()); }
  int64_t blocks_of_rows() const { return ceil_div(all_rows(), tile_rows()); }
  int64_t block_sums() const { return round_up(tile_lanes(), L) * tile_rows() * taps(); }

  struct Block {
    int64_t lane0, row0;  // first channels, numbered through all groups
    int64_t lanes, channels, vectors, panels;
  };
  Block block_at(int64_t index) const {
    Block b;
    const int64_t row = index % blocks_of_rows() * tile_rows();
    index /= blocks_of_rows();
    const int64_t lane = index % blocks_of_lanes() * tile_lanes(), group = index / blocks_of_lanes();
    b.lane0 = group * all_lanes() + lane;
    b.row0 = group * all_rows() + row;
    b.lanes = min_of(tile_lanes(), all_lanes() - lane);
    b.channels = min_of(tile_rows(), all_rows() - row);
    b.vectors = ceil_div(b.lanes, L);
    b.panels = ceil_div(b.vectors, kPanelV);
    return b;
  }
  int64_t row_of(const Block& b, int64_t channel, int64_t tap) const {
    return taps_first ? tap * b.channels + channel : channel * taps() + tap;
  }

  struct Tile {  // of outputs
    int64_t n0, i0, j0, images, height, width;
    int64_t positions() const { return images * height * width; }
    // Elements between its first position and that of the whole operand.
    int64_t place_in(const View<A>& view) const { return n0 * view.n + i0 * view.row + j0 * view.column; }
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

  // The lanes of one tile: panel by panel, (positions, width of the panel).
  void pack_lanes(A* to, const Block& b, const Tile& t) const {
    // Rows that follow one another without a gap are copied as one.
    const bool joined = lanes.row == t.width * lanes.column;
    for (int64_t p = 0; p < b.panels; ++p) {
      const int64_t v0 = part_begin(b.vectors, b.panels, p), v1 = part_begin(b.vectors, b.panels, p + 1);
      const int64_t pitch = (v1 - v0) * L, used = min_of(b.lanes, v1 * L) - v0 * L;
      const A* const from = lanes.data + (b.lane0 + v0 * L) * lanes.channel + t.place_in(lanes);
      A* at = to;
      for (int64_t n = 0; n < t.images; ++n)
        for (int64_t i = 0; i < t.height; i += joined ? t.height : 1) {
          const int64_t count = joined ? t.height * t.width : t.width;
          pack_block(at, pitch, 1, from + n * lanes.n + i * lanes.row, lanes.column, lanes.channel, count, used);
          at += count * pitch;
        }
      if (used < pitch)
        for (int64_t i = 0; i < t.positions(); ++i)
          for (int64_t l = used; l < pitch; ++l) to[i * pitch + l] = A(0);
      to += t.positions() * pitch;
    }
  }
  // What a tile of so many outputs reads of some channels of an operand.
  void list_lines(LinesAhead* lines, const View<A>& view, int64_t channels, const Tile& t) const {
    constexpr int64_t kBytes = sizeof(A);
    lines->count = 0;
    const bool joined = view.row == t.width * view.column;
    const int64_t run = joined ? t.height * t.width : t.width, runs = t.height * t.width / run;
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

  void run_block(int64_t index, void* scratch) const {
    const int64_t all_blocks = z.groups * blocks_of_lanes() * blocks_of_rows();
    const int64_t split = index / all_blocks;
    const Block b = block_at(index % all_blocks);
    const int64_t count = b.channels * taps();
    Carver local(scratch);
    const A** const row = local.take<const A*>(count);
    int64_t* const offset = local.take<int64_t>(own.batch * own.tile_h);
    LinesAhead lines[2];
    for (LinesAhead& l : lines) l = {local.take<int32_t>(kLinesAhead + kMostProducts), 0};
    A* const packed_lanes = local.take<A>(round_up(b.lanes, L) * own.batch * own.tile_h * own.tile_w);
    A* const packed_rows = local.take<A>(in_place ? 0 : b.channels * own.channel_pitch);
    const A* const base = in_place ? rows.data + b.row0 * rows.channel : packed_rows;
    const int64_t row_pitch = in_place ? rows.channel : own.channel_pitch;
    for (int64_t c = 0; c < b.channels; ++c)
      for (int64_t t = 0; t < taps(); ++t)
        row[row_of(b, c, tables.tap_weight[t])] = base + c * row_pitch + tables.tap_offset[t];

    const int64_t first = tiles() * split / own.splits, last = tiles() * (split + 1) / own.splits;
    if (last - first > 1 && z.bytes() > kWorthPrefetching) {
      list_lines(&lines[0], lanes, b.lanes, tile_at(first));
      if (in_place) list_lines(&lines[1], rows, b.channels, tile_at(first));
    }
    for (int64_t index_of_tile = first; index_of_tile < last; ++index_of_tile) {
      const Tile t = tile_at(index_of_tile);
      pack_lanes(packed_lanes, b, t);
      for (int64_t n = 0; n < t.images && !in_place; ++n) {
        View<A> view = rows;
        view.data += b.row0 * view.channel;
        pack_tile(packed_rows + n * own.image_pitch, PackedTile{1, tables.columns.longest, own.channel_pitch}, view,
                  b.channels, t.n0 + n, t.n0 + n + 1, tables.rows, tables.columns, t.i0, t.j0, t.height);
      }
      PanelArguments<A> a;
      a.rows_step = 0;
      a.offset = offset;
      a.start = nullptr;
      a.add = index_of_tile > first;
      a.panel = packed_lanes;
      // One run of scalars where nothing lies between two rows, and nothing between two images.
      const int64_t image = in_place ? rows.n : own.image_pitch, line = in_place ? rows.row : tables.columns.longest;
      a.step = in_place ? rows.column : 1;
      const bool rows_joined = t.height == 1 || line == t.width * a.step;
      const bool images_joined = rows_joined && (t.images == 1 || image == t.height * t.width * a.step);
      a.segments = images_joined ? 1 : rows_joined ? t.images : t.images * t.height;
      a.count = t.positions() / a.segments;
      for (int64_t s = 0; s < a.segments; ++s)
        offset[s] =
            (in_place ? t.place_in(rows) : 0) + (rows_joined ? s * image : s / t.height * image + s % t.height * line);
      a.out = sums + index * block_sums();
      // What the next tile reads is on its way while this one is computed.
      const bool more = index_of_tile + 1 < last;
      const Tile next = tile_at(more ? index_of_tile + 1 : index_of_tile);
      const A* const ahead[] = {lanes.data + b.lane0 * lanes.channel + next.place_in(lanes),
                                rows.data + b.row0 * rows.channel + next.place_in(rows)};
      int64_t done[2] = {};
      for (int64_t p = 0; p < b.panels; ++p) {
        const int v = int(part_begin(b.vectors, b.panels, p + 1) - part_begin(b.vectors, b.panels, p));
        const int64_t parts = ceil_div(count, panel_rows(v));
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t from = part_begin(count, parts, part), m = part_begin(count, parts, part + 1) - from;
          const int which = done[0] < lines[0].count ? 0 : 1;
          if (more && done[which] < lines[which].count) {
            a.look_ahead(ahead[which], lines[which].offset + done[which]);
            done[which] += t.positions();
          } else {
            a.nothing_ahead();
          }
          a.rows = row + from;
          a.out_row = v * L;
          select_panel_tile<A>(int(m), v)(a);
          a.out += m * v * L;
        }
        a.panel += t.positions() * v * L;
      }
    }
  }

  // Adds the parts of the reduction to the first one, in order, and writes a share of a block.
  void write_block(int64_t index) const {
    const Block b = block_at(index);
    const int64_t count = b.channels * taps(), stride = z.groups * blocks_of_lanes() * blocks_of_rows() * block_sums();
    for (int64_t p = 0; p < b.panels; ++p) {
      const int64_t v0 = part_begin(b.vectors, b.panels, p), v1 = part_begin(b.vectors, b.panels, p + 1);
      const int64_t width = (v1 - v0) * L, used = min_of(b.lanes, v1 * L) - v0 * L;
      A* const from = sums + index * block_sums() + v0 * L * count;
      for (int64_t split = 1; split < own.splits; ++split)
        for (int64_t i = 0; i < count * width; i += L)
          store(from + i, load(from + i) + load(from + split * stride + i));
      // The result's lanes are K and its rows C, or the other way round.
      const int64_t first_lane = b.lane0 - (own.along_input ? b.lane0 / all_lanes() * all_lanes() : 0);
      const int64_t first_row = b.row0 - (own.along_input ? 0 : b.row0 / all_rows() * all_rows());
      A* const to = result.data + (first_lane + v0 * L) * result.n + first_row * result.channel;
      const int64_t column = result.column, joined_row = z.s * column;
      if (result.n == 1 && taps() == 1) {
        pack_block(to, result.channel, 1, from, width, 1, count, used);
        continue;
      }
      if (!taps_first && result.row == joined_row && result.channel == z.r * joined_row) {
        pack_block(to, result.n, column, from, 1, width, used, count);  // (channels, taps) without gaps
        continue;
      }
      for (int64_t t = 0; t < taps(); ++t)
        pack_block(to + t / z.s * result.row + t % z.s * column, result.n, result.channel,
                   from + row_of(b, 0, t) * width, 1, (row_of(b, 1, t) - row_of(b, 0, t)) * width, used, b.channels);
    }
  }
};

template <class A>
void run_panels_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const PanelsPlan& own = plan.own<PanelsPlan>();
  Carver memory(b.workspace);
  const Tables tables = make_tables(z, Pass::WeightGrad, own.tile_h, own.tile_w, 1, memory);
  View<A> input = view_of<A>(b.input, 1), weight = view_of<A>(b.weight, 1);
  const View<A> grad = view_of<A>(b.output, 1);
  const bool in_place = reads_in_place(z);
  if (in_place) {
    input.row *= z.stride_h;
    input.column *= z.stride_w;
  }
  if (own.along_input) weight = {weight.data, weight.channel, weight.n, weight.row, weight.column};
  PanelsGrad<A> task{z,        own,    tables,  own.along_input ? input : grad,          own.along_input ? grad : input,
                     in_place, weight, nullptr, b.weight.stride[1] == 1 && z.r * z.s > 1};
  task.sums = memory.take<A>(plan.tasks * task.block_sums());
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_block(index, scratch); });
  parallel_for(executor, plan.tasks / own.splits, 0, [&](int64_t index, void*) { task.write_block(index); });
}

}  // namespace conv_ext
