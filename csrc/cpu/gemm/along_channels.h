// A task of forward or input_grad by panels whose vectors run along the result's channels: the source is read where it
// lies, and the weights are panels. Start reading at run.
#pragma once

#include "operands.h"

namespace conv_ext {

template <class A>
struct PanelsAlongChannels {
  static constexpr int L = kLanes<A>;

  const GatherOperands<A>& op;
  const PanelsTask& task;
  AlongChannelsScratch<A> local;
  const GatherPhase& f;
  int64_t positions, tiles;
  // Where no padding is read the taps are offsets that all positions share; else each position has its own sources, and
  // those in the padding lead to zeros. A property of the phase, that changes nothing but the addresses.
  bool reads_padding;
  // Elements between the results of neighbouring positions, throughout all images, where these lie evenly and
  // neighbouring channels do too: whole vectors of channels are then summed where they belong. Else 0. A property of
  // the phase as well: sums have room in the scratch either way.
  int64_t result_step;

  PanelsAlongChannels(const GatherOperands<A>& operands, const PanelsGatherPlan& own, const PanelsTask& its_task,
                      void* scratch)
      : op(operands), task(its_task), f(its_task.f), positions(its_task.last - its_task.first) {
    Carver memory(scratch);
    local = along_channels_scratch<A>(op.z, own, memory);
    tiles = its_task.tiles();
    reads_padding = phase_reads_padding();
    result_step = even_result_step();
    for (int64_t c = 0; reads_padding && c < own.zeros; ++c) local.zeros[c] = A(0);
  }

  void run() const {
    CONV_EXT_RUNS("channels");
    A* windows = local.windows;
    for (int64_t tile = 0; tile < tiles; ++tile) windows = find_sources(tile_at(tile), local.reads + tile, windows);
    for (int64_t index = task.s0; index < task.s1; ++index) run_panel(op.slice_at(index));
  }

 private:
  struct Tile {
    int64_t first, count;  // positions of a register tile, from the first one of the task on
  };
  Tile tile_at(int64_t i) const {
    const int64_t first = task.begin_of(i);
    return {first - task.first, task.begin_of(i + 1) - first};
  }
  int64_t joined() const { return op.plan.joined_taps; }
  // Sources that are listed for each position.
  int64_t sources() const { return reads_padding ? f.taps : 1; }

  bool phase_reads_padding() const {
    bool padded = false;
    for (int64_t t = 0; t < f.taps; ++t)
      padded = padded || f.row[t] < 0 || f.row[t] + (f.height - 1) * op.vertical.step() >= op.vertical.source ||
               f.column[t] < 0 || f.column[t] + (f.width - 1) * op.horizontal.step() + joined() > op.horizontal.source;
    return padded;
  }
  int64_t even_result_step() const {
    const int64_t step = op.column_step(), row = op.vertical.output_step() * op.result.row;
    const bool even =
        (f.height == 1 || row == f.width * step) && (op.z.n == 1 || op.result.n == f.height * f.width * step);
    return even && op.result.channel == 1 ? step : 0;
  }

  // The joined taps of one row where some of them lie in the padding. Returns the end of the copy.
  A* copy_window(A* to, const A* from, int64_t w) const {
    const int64_t each = op.channels() / joined();
    for (int64_t s = 0; s < joined(); ++s, ++w, from += each)
      for (int64_t c = 0; c < each; ++c) *to++ = w >= 0 && w < op.horizontal.source ? load_one(from + c) : A(0);
    return to;
  }
  // Lists what the positions of a tile read. Windows are copied to the given place; returns their end.
  A* find_sources(const Tile& tile, Range* reads, A* windows) const {
    *reads = {f.taps, 0};
    const int64_t step = op.horizontal.step(), first = task.first + tile.first;
    const A* const base = op.source.data + task.group * op.channels() * op.source.channel;
    const A** const to = local.source + tile.first * sources();
    visit_runs(first, first + tile.count, f.height, f.width,
               [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
                 const A** const run = to + (at - first);
                 const A* const image = base + n * op.source.n;
                 for (int64_t t = 0; t < sources(); ++t) {
                   const int64_t h = i * op.vertical.step() + (reads_padding ? f.row[t] : 0);
                   const int64_t columns = h >= 0 && h < op.vertical.source ? op.horizontal.source : 0;
                   if (columns > 0) *reads = {min_of(reads->first, t), max_of(reads->last, t + 1)};
                   int64_t w = j * step + (reads_padding ? f.column[t] : 0);
                   const A* from = image + h * op.source.row + w * op.source.column;
                   for (int64_t l = 0; l < count; ++l, w += step, from += step * op.source.column) {
                     if (joined() > 1 && columns > 0 && (w < 0 || w + joined() > columns)) {
                       run[t * tile.count + l] = windows;
                       windows = copy_window(windows, from, w);
                     } else {
                       run[t * tile.count + l] = !reads_padding || uint64_t(w) < uint64_t(columns) ? from : local.zeros;
                     }
                   }
                 }
               });
    return windows;
  }

  // One panel of weights for all positions of the task.
  void run_panel(const WeightPanel& s) const {
    const int64_t channel = task.group * op.group_m + s.m0;
    const bool in_place = result_step > 0 && s.m == s.width;
    A* const out = in_place ? op.result_at(channel, f, task.first / f.width / f.height, task.first / f.width % f.height,
                                           task.first % f.width)
                            : local.sums;
    const int64_t out_row = in_place ? result_step : s.width;
    if (op.buffers.bias != nullptr) pack_bias<A>(local.bias, op.buffers, channel, s.m, s.width);
    list_next_lines(s, out_row);
    for (int64_t i = 0; i < f.blocks.count(); ++i) run_block(s, i, out, out_row, in_place);
    if (in_place && !op.finish_sums.left) return;
    visit_runs(task.first, task.last, f.height, f.width,
               [&](int64_t at, int64_t n, int64_t i, int64_t j, int64_t count) {
                 const bool finished =
                     in_place || op.write_sums(op.result_at(channel, f, n, i, j),
                                               local.sums + (at - task.first) * s.width, 1, s.width, s.m, count);
                 op.finish({n, channel, s.m, i, 1, j, count}, finished);
               });
  }
  // Taps that read nothing but padding for all positions of a register tile are left out of its sums.
  bool leaves_out() const { return reads_padding && *op.adds_padding == 0; }
  Range taps_of(int64_t tile, const ProductChain& b) const {
    if (!leaves_out()) return {b.t0, b.t0 + b.t};
    const Range reads = local.reads[tile];
    const int64_t first = min_of(max_of(b.t0, reads.first), b.t0 + b.t);
    return {first, max_of(first, min_of(b.t0 + b.t, reads.last))};
  }
  void list_next_lines(const WeightPanel& s, int64_t out_row) const {
    const int v = int(s.width / L);
    for (int64_t l = 0; l < kMostProducts; ++l) {
      const int64_t element = (panel_rows(v) + l / v) * out_row + l % v * L;
      local.next_lines[l] = l < panel_rows(v) * v ? int32_t(element * int64_t(sizeof(A))) : 0;
    }
  }
  void run_block(const WeightPanel& s, int64_t index, A* out, int64_t out_row, bool in_place) const {
    const ProductChain b = op.block_at(f, index);
    for (int64_t t = 0; t < b.t; ++t)
      local.offset[t] = b.c0 * op.source.channel +
                        (reads_padding ? 0 : f.row[b.t0 + t] * op.source.row + f.column[b.t0 + t] * op.source.column);
    const A* const panel = op.packed_at(task.group, f, s, b);
    PanelArguments<A> a;
    a.count = b.c;
    a.step = op.source.channel;
    a.start = index == 0 && op.buffers.bias != nullptr ? local.bias : nullptr;
    a.start_row = 0;
    a.add = index > 0;
    // A sum of products that round to zero may be -0, and padding would make it +0: it is, whatever is left out.
    a.zero = leaves_out() ? A(0) : -A(0);
    a.out_row = out_row;
    PanelTile<A> panel_tile = nullptr;
    int64_t rows = 0;
    if (index + 1 == f.blocks.count()) a.finish = in_place ? op.finish_sums.as_they_lie() : op.finish_sums.elsewhere();
    for (int64_t i = 0; i < tiles; ++i) {
      const Tile tile = tile_at(i);
      if (tile.count != rows) panel_tile = select_panel_tile<A>(int(rows = tile.count), int(s.width / L));
      if (i + 2 < tiles) prefetch_sources(tile, b);
      const Range taps = taps_of(i, b);
      a.out = out + tile.first * out_row;
      if (taps.count() == 0 && index > 0 && a.finish == nullptr) continue;
      a.segments = taps.count();
      a.offset = local.offset + (taps.first - b.t0);
      a.panel = panel + (taps.first - b.t0) * b.c * s.width;
      a.rows = local.source + tile.first * sources() + (reads_padding ? taps.first * tile.count : 0);
      a.rows_step = reads_padding ? tile.count : 0;
      if (in_place && index == 0 && i + 1 < tiles) {
        a.look_ahead(a.out, local.next_lines);
      } else {
        a.nothing_ahead();
      }
      panel_tile(a);
    }
  }
  // What the next tile reads, on its way: its strides defeat the processor's own prefetching.
  void prefetch_sources(const Tile& tile, const ProductChain& b) const {
    if (op.source.channel != 1) return;
    const int64_t m = tile.count;
    const A** const next = local.source + (tile.first + m) * sources() + (reads_padding ? b.t0 * m : 0);
    for (int64_t l = 0; l < (reads_padding ? b.t * m : m); ++l)
      for (int64_t c = 0; c < b.c; c += 64 / int64_t(sizeof(A)))
        __builtin_prefetch(next[l] + (reads_padding ? 0 : local.offset[0]) + b.c0 + c);
  }
};

}  // namespace conv_ext
