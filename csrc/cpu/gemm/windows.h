// forward and input_grad over a packed source.
//
//   pack all weights as panels of channels
//   for each tile of outputs (in parallel):
//     for each block of channels and taps, which is one chain of products:
//       pack the source that it reads
//       for each few rows of outputs, for each panel of weights, for each run of outputs: window_tile
//     write the results
//
// The source is packed so that neighbouring outputs find their numbers side by side, whatever the layout, stride and
// dilation; where rows are short the neighbours are images. Of the two operands of a register tile one is read as
// vectors, the other one number by number: the weights and the source, where lanes are channels of the result, or the
// source and the weights, where lanes are positions. Taps that read nothing but padding are left out. Start reading at
// run_windows.
#pragma once

#include "operands.h"
#include "window_tile.h"

namespace conv_ext {

template <class T, class A, bool along_channels>
struct Windows {
  static constexpr int L = kLanes<A>;

  const WindowsPlan& own;
  const GatherOperands<T, A>& op;
  const PackedTaps& tables;
  A* packed_bias;  // (groups, padded_m)

  struct Tile {
    int64_t n0, n1, i0, j0, height, width;
    int64_t group0, groups;
    int64_t s0, s1;                      // panels of weights
    int64_t packed_first, packed_count;  // channels whose source is packed
    struct {
      int64_t rows, channels, count;  // what the list of runs was made for, and how many it has
    } cut;
    WindowsScratch<A> local;
    int64_t images() const { return n1 - n0; }
  };
  // What stays the same for the rows of a phase with one panel of weights.
  struct Chain {
    int64_t group;
    WeightPanel s;
    ProductChain b;
    int64_t taps_w;
    const A* source;
    A* sums;
    bool begin, end;
  };

  RowsOfSums rows_of_sums(const Tile& t, int64_t rows) const {
    return RowsOfSums::of(own, rows, t.width, tables.columns.longest, L);
  }

  // Of `count` taps, offset[i * step], those that lead outputs [first, last) to the source: they are neighbours.
  Range taps_of(const Axis& axis, const int64_t* offset, int64_t step, int64_t count, int64_t first,
                int64_t last) const {
    if (*op.adds_padding != 0) return {0, count};
    const auto reads = [&](int64_t i) {
      const int64_t low = first * axis.step() + offset[i * step], high = (last - 1) * axis.step() + offset[i * step];
      return high >= 0 && low < axis.source;
    };
    Range range{0, count};
    while (range.first < count && !reads(range.first)) ++range.first;
    while (range.last > range.first && !reads(range.last - 1)) --range.last;
    return range;
  }

  // Cuts a row of outputs, or `rows` rows that are one run of lanes, into what register tiles take; returns how many.
  int64_t cut_row(Tile& t, const GatherPhase& f, int64_t taps_w, int64_t rows, int64_t channels) const {
    if (t.cut.rows != rows || t.cut.channels != channels)
      t.cut = {rows, channels, list_runs(t, f, taps_w, rows, channels)};
    return t.cut.count;
  }
  int64_t list_runs(const Tile& t, const GatherPhase& f, int64_t taps_w, int64_t rows, int64_t channels) const {
    int64_t count = 0;
    // Of columns [first, last), from an image of the first one on.
    const auto add = [&](int64_t at, int64_t taken, int64_t first, int64_t last) {
      t.local.runs[count++] = {first, at - first * own.images, at, taken,
                               taps_of(op.horizontal, f.column, 1, taps_w, t.j0 + first, t.j0 + last)};
    };
    if constexpr (!along_channels) {
      const int64_t vectors = ceil_div(own.flat ? rows_of_sums(t, rows).all : t.width * own.images, L),
                    parts = ceil_div(vectors, window_vectors(kMachine, channels));
      for (int64_t i = 0; i < parts; ++i) {
        const Range part = part_of(vectors, parts, i);
        const int64_t first = own.flat ? 0 : part.first * L / own.images,
                      last = own.flat ? t.width : min_of(t.width, ceil_div(part.last * L, own.images));
        add(part.first * L, part.count(), first, last);
      }
      return count;
    }
    const int64_t longest = window_outputs(kMachine, channels / L);
    if (own.images == 1) {
      const int64_t parts = ceil_div(t.width, longest);
      for (int64_t i = 0; i < parts; ++i) {
        const Range part = part_of(t.width, parts, i);
        add(part.first, part.count(), part.first, part.last);
      }
      return count;
    }
    const int64_t parts = ceil_div(t.images(), longest);
    for (int64_t column = 0; column < t.width; ++column)
      for (int64_t i = 0; i < parts; ++i) {
        const Range part = part_of(t.images(), parts, i);
        add(column * own.images + part.first, part.count(), column, column + 1);
      }
    return count;
  }

  // The last panel may have lanes without channels, and is then summed in the scratch and copied.
  bool is_in_place(const WeightPanel& s) const { return is_same<T, A> && own.in_place && s.m == s.width; }

  static WindowTile<A> tile_for(const WeightPanel& s, int64_t count) {
    if constexpr (along_channels)
      return select_window_tile<A, true>(count, s.width / L);
    else
      return select_window_tile<A, false>(s.width, count);
  }
  // Elements between the sums of neighbouring outputs.
  int64_t output_step(const WeightPanel& s) const { return along_channels ? s.width : 1; }

  // A block of channels for rows [first, last) of a tile, with one panel of weights.
  void run_rows(Tile& t, const GatherPhase& f, const Chain& chain, int64_t first, int64_t last) const {
    const WeightPanel& s = chain.s;
    const int64_t row_outputs = tables.columns.longest * own.images, taps_w = chain.taps_w;
    const int64_t channel = chain.group * op.group_m + s.m0;
    const int64_t runs = cut_row(t, f, taps_w, last - first, s.width);
    const RowsOfSums sums = rows_of_sums(t, last - first);
    const A* const weight = op.packed_at(chain.group, f, s, chain.b);
    const bool in_place = is_in_place(s);
    WindowArguments<A> a;
    a.start = chain.begin && op.buffers.bias != nullptr ? packed_bias + chain.group * op.plan.padded_m + s.m0 : nullptr;
    a.add = !chain.begin;
    // A sum of products that round to zero may be -0, and padding would make it +0: it is, whatever is left out. Where
    // nothing is, -0 changes nothing.
    a.zero = *op.adds_padding != 0 ? -A(0) : A(0);
    a.segment_step = taps_w * chain.b.c;
    if constexpr (is_same<T, A>) {
      if (chain.end) a.finish = in_place ? op.finish_sums.as_they_lie() : op.finish_sums.elsewhere();
    }
    WindowTile<A> tile = nullptr;
    int64_t tile_count = 0;
    for (int64_t i = first; i < last; i += own.flat ? last - first : 1) {
      const Range down = t.local.rows[i];
      for (int64_t q = 0; q < runs; ++q) {
        const OutputRun& run = t.local.runs[q];
        const int64_t skipped = (down.first * taps_w + run.taps.first) * chain.b.c;
        a.count = run.taps.count() * chain.b.c;
        a.segments = down.count();
        if (a.count == a.segment_step) {
          a.count *= a.segments;
          a.segments = 1;
        }
        a.x = chain.source + i * row_outputs + run.at;
        a.offset = t.local.offset + skipped;
        a.weight = weight + skipped * s.width;
        a.out = chain.sums + ((i - first) * sums.row + run.at) * output_step(s);
        a.out_pitch = along_channels ? s.width : sums.all;
        if constexpr (is_same<T, A>) {
          if (in_place) {
            a.out = op.result_at(channel, f, t.n0 + run.image, t.i0 + i, t.j0 + run.column);
            a.out_pitch = !along_channels ? op.result.channel : own.images > 1 ? op.result.n : op.column_step();
          }
        }
        if (run.count != tile_count) tile = tile_for(s, tile_count = run.count);
        tile(a);
      }
    }
    if (!chain.end) return;
    const bool finished = in_place || scatter(t, f, channel, s, chain.sums, first, last);
    for (int64_t n = t.n0; n < t.n1; ++n)
      op.finish({n, channel, s.m, t.i0 + first, last - first, t.j0, t.width}, finished);
  }

  // Copies the sums of rows [first, last) to their places; returns whether they were finished.
  bool scatter(const Tile& t, const GatherPhase& f, int64_t channel, const WeightPanel& s, A* sums, int64_t first,
               int64_t last) const {
    const int64_t rows = last - first;
    const RowsOfSums held = rows_of_sums(t, rows);
    const int64_t channel_step = along_channels ? 1 : held.all;
    if constexpr (!is_same<T, A>) op.finish_sums.in_scratch(sums, held.all * s.width);
    bool finished = true;
    const bool joined = op.vertical.output_step() == 1 && op.result.row == t.width * op.column_step() &&
                        held.row == t.width * own.images;
    for (int64_t n = t.n0; n < t.n1; ++n)
      for (int64_t i = first; i < last; i += joined ? rows : 1)
        finished &= op.write_sums(op.result_at(channel, f, n, t.i0 + i, t.j0),
                                  sums + ((i - first) * held.row + (n - t.n0)) * output_step(s), channel_step,
                                  own.images * output_step(s), s.m, joined ? rows * t.width : t.width);
    return finished;
  }

  // One phase of a tile.
  void run_phase(Tile& t, const GatherPhase& f, int64_t packed_height) const {
    t.height = min_of(own.tile_h, f.height - t.i0);
    t.width = min_of(own.tile_w, f.width - t.j0);
    if (t.height <= 0 || t.width <= 0) return;
    Chain chain{};
    for (int64_t tap = 0; tap < op.z.s; ++tap) chain.taps_w += op.horizontal.phase_of(tap) == f.w;
    const int64_t taps_h = chain.taps_w > 0 ? f.taps / chain.taps_w : 0;
    for (int64_t i = 0; i < t.height; ++i)
      t.local.rows[i] = taps_of(op.vertical, f.row, chain.taps_w, taps_h, t.i0 + i,
                                t.i0 + min_of(t.height, i + (own.flat ? own.rows : 1)));
    t.cut = {};
    for (int64_t group = 0; group < t.groups; ++group) run_group(t, f, chain, group, packed_height);
  }
  // One of its groups. Where there are several blocks of channels, each is packed when its turn comes, and the sums of
  // all panels are kept; else they are written by a few rows at a time.
  void run_group(Tile& t, const GatherPhase& f, Chain& chain, int64_t index_g, int64_t packed_height) const {
    const int64_t blocks = f.blocks.count(), panel_sums = rows_of_sums(t, own.rows).all;
    chain.group = t.group0 + index_g;
    chain.source = t.local.source + index_g * own.tile_c * own.channel_pitch;
    for (int64_t index = 0; index < blocks; ++index) {
      chain.b = op.block_at(f, index);
      chain.begin = index == 0;
      chain.end = index + 1 == blocks;
      if (f.taps > 0) pack_source(t, chain.b, packed_height);
      for (int64_t tap = 0; tap < f.taps && (index_g == 0 || blocks > 1); ++tap)
        for (int64_t c = 0; c < chain.b.c; ++c)
          t.local.offset[tap * chain.b.c + c] = tables.offset[f.begin + tap] + c * own.channel_pitch;
      for (int64_t i = 0; i < t.height; i += own.rows)
        for (int64_t index_s = t.s0; index_s < t.s1; ++index_s) {
          chain.s = op.slice_at(index_s);
          chain.sums = t.local.sums + (blocks == 1 ? 0 : panel_sums * (chain.s.m0 - op.slice_at(t.s0).m0));
          run_rows(t, f, chain, i, min_of(t.height, i + own.rows));
        }
    }
  }
  // Lanes that belong to no output are multiplied, too: they must not be what happened to lie there, for subnormal
  // numbers take a hundred times as long on some processors. Several regions may have rows of different lengths.
  void clear_source(const Tile& t, int64_t height, int64_t width) const {
    const int64_t channels = own.task_groups * own.tile_c, pitch = own.channel_pitch;
    const bool whole = height == own.tile_h && width == own.tile_w && t.images() == own.images;
    if (own.clears || !whole || tables.columns.regions > 1) {
      memset(static_cast<void*>(t.local.source), 0, size_t(channels * pitch) * sizeof(A) + kOverread);
      return;
    }
    const int64_t packed = tables.columns.regions * tables.rows.positions * tables.columns.longest * own.images;
    for (int64_t c = 0; c < channels; ++c)
      memset(static_cast<void*>(t.local.source + c * pitch + packed), 0, size_t(pitch - packed) * sizeof(A));
    memset(static_cast<void*>(t.local.source + channels * pitch), 0, kOverread);
  }
  // Packs the source of a block of channels of all groups, unless it is there.
  void pack_source(Tile& t, const ProductChain& b, int64_t height) const {
    if (t.packed_first == b.c0 && t.packed_count == b.c) return;
    t.packed_first = b.c0;
    t.packed_count = b.c;
    View<T> from = op.source;
    from.data += (t.group0 * op.channels() + b.c0) / op.parts * from.channel;
    const PackedTile tile{own.images, tables.columns.longest, own.channel_pitch * op.parts};
    for (int64_t part = 0; part < op.parts; ++part, ++from.data)
      pack_tile(t.local.source + part * own.channel_pitch, tile, from, t.groups * b.c / op.parts, t.n0, t.n1,
                tables.rows, tables.columns, t.i0, t.j0, height, !own.clears);
  }

  void run_task(int64_t index, void* scratch) const {
    const int64_t count_h = op.vertical.longest_count(), count_w = op.horizontal.longest_count();
    const int64_t tiles_h = ceil_div(count_h, own.tile_h), tiles_w = ceil_div(count_w, own.tile_w);
    const int64_t part = index % own.parts_m, blocks = ceil_div(op.z.groups, own.task_groups);
    index /= own.parts_m;
    Tile t;
    t.j0 = index % tiles_w * own.tile_w;
    index /= tiles_w;
    t.i0 = index % tiles_h * own.tile_h;
    index /= tiles_h;
    t.group0 = index % blocks * own.task_groups;
    t.groups = min_of(own.task_groups, op.z.groups - t.group0);
    t.n0 = index / blocks * own.images;
    t.n1 = min_of(op.z.n, t.n0 + own.images);
    t.s0 = part_begin(op.plan.panels, own.parts_m, part);
    t.s1 = part_begin(op.plan.panels, own.parts_m, part + 1);
    t.packed_first = t.packed_count = -1;
    Carver memory(scratch);
    t.local = windows_scratch<A>(own, memory);
    clear_source(t, min_of(own.tile_h, count_h - t.i0), min_of(own.tile_w, count_w - t.j0));
    for (int64_t phase = 0; phase < op.phases(); ++phase)
      run_phase(t, op.phase_at(phase), min_of(own.tile_h, count_h - t.i0));
  }
};

template <class T, class A, bool along_channels>
void run_windows(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  const WindowsPlan& own = plan.own<WindowsPlan>();
  Carver memory(b.workspace);
  WindowsWorkspace<A> workspace = windows_workspace<A>(z, pass, own, memory, b.kept);
  workspace.tables.build(own.tile_h, own.tile_w, own.images);
  const GatherOperands<T, A> op(z, pass, own.weights, workspace.tables.taps, workspace.packed, workspace.adds_padding,
                                b);
  if (!op.pack_weights(executor)) return;
  for (int64_t group = 0; group < z.groups; ++group)
    pack_bias<T>(workspace.bias + group * own.weights.padded_m, b, group * op.group_m, op.group_m, own.weights.padded_m,
                 op.parts);
  const Windows<T, A, along_channels> task{own, op, workspace.tables, workspace.bias};
  parallel_for(executor, plan.tasks, plan.scratch_bytes,
               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });
}

}  // namespace conv_ext
