// The depthwise algorithm where lanes are columns: blocks of rows of outputs, for each block all the columns. Start
// reading at run, at the end.
//
// Operands are read and written where they lie; what lies otherwise, is of another type or has a larger stride is
// copied into rows of the accumulator's type, a block of rows at a time, and the result back.
#pragma once

#include "columns_rows.h"

namespace conv_ext {

template <class T, class A, Pass pass>
struct DepthwiseColumns {
  static constexpr int L = kLanes<A>;
  static constexpr bool input_grad = pass == Pass::InputGrad, weight_grad = pass == Pass::WeightGrad;
  static constexpr bool same_type = sizeof(T) == sizeof(A);
  typedef DepthwiseColumnsScratch<A> Scratch;

  const ConvProblem& z;
  const Plan& plan;
  const DepthwisePlan& own;
  const Axis vertical, horizontal;
  const View<T> source, result, weight;  // weight_grad: `result` is the upstream gradient
  const Buffers& buffers;
  const Finish<T, A> finish_sums;
  DepthwiseColumnsWorkspace<A> shared;  // by all tasks
  SourceRows<T, A> rows;

  DepthwiseColumns(const ConvProblem& problem, const Plan& p, const Buffers& b)
      : z(problem),
        plan(p),
        own(p.own<DepthwisePlan>()),
        vertical(vertical_axis(problem, pass)),
        horizontal(horizontal_axis(problem, pass)),
        source(view_of<T>(source_of(pass, b), 1)),
        result(view_of<T>(result_of(pass, b), 1)),
        weight(view_of<T>(b.weight, 1)),
        buffers(b),
        finish_sums(problem, b),
        shared(workspace_of(b)),
        rows{own, vertical, horizontal, source, shared.zeros} {
    fill_tables();
    if (!weight_grad) fill_weights(b);
  }

  int64_t taps() const { return z.r * z.s; }

  // ---- tables

  DepthwiseColumnsWorkspace<A> workspace_of(const Buffers& b) const {
    Carver memory(b.workspace);
    return lay_out_columns_workspace<A>(z, pass, own, &memory);
  }

  void fill_tables() const {
    const int64_t zeros = own.columns.row_pitch + (own.columns.call_channels - 1) * vertical.source * horizontal.source;
    memset(static_cast<void*>(shared.zeros), 0, size_t(zeros) * sizeof(A));
    for (int64_t f = 0; f < vertical.phases(); ++f) shared.rows[f] = PhaseTaps::of(vertical, f);
    for (int64_t f = 0; f < horizontal.phases(); ++f)
      list_segments_of(f, PhaseTaps::of(horizontal, f), horizontal.count(f));
    // One list for both phases: the odd outputs read what the even ones do, and the next position.
    if (own.columns.spreads) list_segments_of(2, PhaseTaps::of(horizontal, 1), horizontal.count(0));
  }
  void list_segments_of(int64_t list, const PhaseTaps& taps, int64_t count) const {
    const DepthwiseSegments& to = shared.segments;
    to.list[list] = list_segments<A>(horizontal, own.columns, taps, count, to.segment + list * to.most,
                                     to.tap + list * to.most * to.most_taps);
  }

  void fill_weights(const Buffers& b) const {
    pack_bias<T>(shared.biases, b, 0, z.c, z.c);
    if (same_type) return;
    A* to = shared.weights;
    for (int64_t c = 0; c < z.c; ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s, ++to)
          *to = read<A>(weight.data + c * weight.n + r * weight.row + s * weight.column);
  }

  // ---- forward and input_grad

  // Rows [first, last) of outputs.
  void run_plane(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c * source.channel;
    T* const to = result.data + n * result.n + c * result.channel;
    const int64_t step = vertical.output_step();
    for (int64_t f = 0; f < vertical.phases(); ++f) {
      const PhaseTaps& taps = shared.rows[f];
      const int64_t begin = first > f ? ceil_div(first - f, step) : 0, end = last > f ? ceil_div(last - f, step) : 0;
      for (int64_t i = begin; i < end;) {
        const int block = next_rows(end - i, kColumnsRows);
        rows.list(taps, from, i, block, scratch.source_rows, scratch.packed_source);
        run_block(taps, c, channels, block, to + (f + i * step) * result.row, rows.ahead_of(from, i), scratch);
        if constexpr (!input_grad)
          finish_results(finish_sums, own.result_in_place, buffers, 1,
                         {n, c, channels, i, block, 0, horizontal.output});
        i += block;
      }
    }
  }
  // The same, four outputs at a time.
  void run_plane_spread(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last,
                        const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c * source.channel;
    T* const to = result.data + n * result.n + c * result.channel;
    const T* const middle = weight.data + c * weight.n + weight.row + weight.column;
    const SegmentList& list = shared.segments.list[2];
    for (int64_t row = first; row < last; row += 2 * kColumnsRows) {
      const int64_t here = min_of(2 * kColumnsRows, last - row);
      rows.list(shared.rows[1], from, row / 2, int(ceil_div(here, 2)), scratch.source_rows, scratch.packed_source);
      columns_spread<A>({scratch.source_rows, list.segment, list.count, reinterpret_cast<const A*>(middle), -weight.row,
                         -weight.column, reinterpret_cast<A*>(to + row * result.row), result.row, here,
                         horizontal.output, channels, source.channel, weight.n, result.channel});
    }
  }

  void run_block(const PhaseTaps& down, int64_t c, int64_t channels, int block, T* to, const A* ahead,
                 const Scratch& scratch) const {
    const int64_t step = vertical.step(), to_row = vertical.output_step() * result.row;
    const int64_t phase_pitch = block * scratch.result_pitch;
    const int64_t packed_channel = horizontal.phases() * phase_pitch;
    const int chunk_r = rows.chunk_taps(down);
    ColumnsArguments<A> a;
    a.rows = scratch.source_rows;
    a.row_step = rows.list_step(down);
    a.chunks = down.count / chunk_r;
    a.out_row = own.result_in_place ? to_row : scratch.result_pitch;
    a.channels = channels;
    a.ahead = ahead;
    a.ahead_row = source.row;
    a.x_channel = source.channel;
    a.weight_channel = same_type ? weight.n : taps();
    a.out_channel = own.result_in_place ? result.channel : packed_channel;
    a.bias = shared.biases + c;
    a.finish = nullptr;
    if constexpr (same_type) a.finish = own.result_in_place && finish_sums.any() ? &finish_sums : nullptr;
    for (int64_t f = 0; f < horizontal.phases(); ++f) {
      const SegmentList& list = shared.segments.list[f];
      const PhaseTaps& across = list.taps;
      a.columns = across.count;
      if (same_type) {
        a.weight =
            reinterpret_cast<const A*>(weight.data + c * weight.n + down.tap * weight.row + across.tap * weight.column);
        a.weight_r = down.tap_step * weight.row;
        a.weight_s = across.tap_step * weight.column;
      } else {
        a.weight = shared.weights + c * taps() + down.tap * z.s + across.tap;
        a.weight_r = down.tap_step * z.s;
        a.weight_s = across.tap_step;
      }
      a.segment = list.segment;
      a.segments = list.count;
      a.out = own.result_in_place ? reinterpret_cast<A*>(to) : scratch.packed_result + f * phase_pitch;
      (own.columns.column_step == 2 ? select_columns_run<A, !input_grad, 2>(chunk_r, step, block)
                                    : select_columns_run<A, !input_grad, 1>(chunk_r, step, block))(a);
    }
    if (own.result_in_place) return;
    finish_sums.in_scratch(scratch.packed_result, channels * packed_channel);
    for (int64_t i = 0; i < channels; ++i)
      for (int b = 0; b < block; ++b)
        write_row(to + i * result.channel + b * to_row,
                  scratch.packed_result + i * packed_channel + b * scratch.result_pitch, phase_pitch);
  }

  // Writes a row of outputs, of which each phase lies `phase_pitch` elements after the one before.
  void write_row(T* to, const A* from, int64_t phase_pitch) const {
    const int64_t step = horizontal.output_step(), phases = horizontal.phases();
    if constexpr (same_type) {
      if (step == 2 && phases == 2 && result.column == 1)
        return interleave(reinterpret_cast<A*>(to), from, from + phase_pitch, horizontal.output);
    }
    for (int64_t f = 0; f < phases; ++f) {
      const int64_t count = horizontal.count(f);
      if (step * result.column == 1) {
        copy_back(to, from, count);
      } else {
        for (int64_t i = 0; i < count; ++i) write<T>(to + (f + i * step) * result.column, from[f * phase_pitch + i]);
      }
    }
  }
  // `count` elements, taken in turn from two rows.
  static void interleave(A* out, const A* evens, const A* odds, int64_t count) {
    Vec<typename IntegerOf<A>::type> low, high;
    for (int l = 0; l < L; ++l) {
      low[l] = l / 2 + l % 2 * L;
      high[l] = low[l] + L / 2;
    }
    for (int64_t done = 0; done < count; done += 2 * L) {
      const Vec<A> even = load(evens + done / 2), odd = load(odds + done / 2);
      const int64_t rest = count - done;
      const Vec<A> both[2] = {shuffle<A>(even, odd, low), shuffle<A>(even, odd, high)};
      for (int half = 0; half < 2 && rest > half * L; ++half) {
        if (rest >= (half + 1) * L)
          store(out + done + half * L, both[half]);
        else
          store_first(out + done + half * L, both[half], rest - half * L);
      }
    }
  }

  // ---- weight_grad

  // Adds the share of rows [first, last) of one image to sum: (channels, R S, L).
  void add_plane(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, A* sum,
                 const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c * source.channel;
    const T* const grad = result.data + n * result.n + c * result.channel;
    for (int64_t i = first; i < last;) {
      const int block = next_rows(last - i, kColumnsDotRows);
      rows.list(shared.rows[0], from, i, block, scratch.source_rows, scratch.packed_source);
      for (int b = 0; b < block; ++b) {
        const T* const row = grad + (i + b) * result.row;
        A* const to = scratch.packed_grad + b * scratch.grad_pitch;
        if (!own.result_in_place) pack_row(to, row, result.column, horizontal.output, 1);
        scratch.grad_rows[b] = own.result_in_place ? reinterpret_cast<const A*>(row) : to;
      }
      add_block(block, channels, sum, rows.ahead_of(from, i), scratch);
      i += block;
    }
  }

  void add_block(int block, int64_t channels, A* sum, const A* ahead, const Scratch& scratch) const {
    const SegmentList& list = shared.segments.list[0];
    const PhaseTaps& down = shared.rows[0];
    const DepthwiseByColumns& by = own.columns;
    const int chunk_r = rows.chunk_taps(down);
    ColumnsDotArguments<A> a;
    a.row_step = rows.list_step(down);
    a.grad = scratch.grad_rows;
    a.segment = list.segment;
    a.segments = list.count;
    a.sum_r = z.s * L;
    a.sum_s = L;
    a.channels = channels;
    a.ahead = ahead;
    a.ahead_row = source.row;
    a.x_channel = source.channel;
    a.g_channel = result.channel;
    a.sum_channel = taps() * L;
    for (int64_t s = 0; s < z.s;) {
      const int columns =
          chunk_r == 3 && by.column_step == 2 && !by.shares_pairs ? 1 : dot_tap_columns(chunk_r, z.s - s);
      const auto dot = by.column_step == 2 ? select_columns_dot<A, 2>(chunk_r, vertical.step(), columns, block)
                                           : select_columns_dot<A, 1>(chunk_r, vertical.step(), columns, block);
      a.tap = s;
      for (int64_t r = 0; r < z.r; r += chunk_r) {
        a.rows = scratch.source_rows + r;
        a.sum = sum + (r * z.s + s) * L;
        dot(a);
      }
      s += columns;
    }
  }

  // The sum of the lanes of every tap: (channels, R S).
  void sum_lanes(const A* lanes, int64_t channels, A* to) const {
    const int64_t count = channels * taps();
    int64_t i = 0;
    for (; i + L <= count; i += L) {
      Vec<A> each[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) each[l] = load(lanes + (i + l) * L);
      store(to + i, sum_each<A>(each));
    }
    if (i == count) return;
    Vec<A> each[L] = {};
    for (int64_t l = 0; l < count - i; ++l) each[l] = load(lanes + (i + l) * L);
    store_first(to + i, sum_each<A>(each), count - i);
  }

  // Adds the splits in order.
  void finish(int64_t c0, int64_t c1) const {
    A* at = shared.sums + c0 * taps();
    add_parts(at, (c1 - c0) * taps(), own.splits, z.c * taps());
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s, ++at)
          write<T>(weight.data + c * weight.n + r * weight.row + s * weight.column, *at);
  }

  // ---- units of work

  void run_tile(int64_t unit, const Scratch& scratch) const {
    const int64_t c0 = unit % own.channel_tiles * own.tile_c, c1 = min_of(z.c, c0 + own.tile_c);
    const int64_t map_tile = unit / own.channel_tiles;
    const int64_t n = map_tile / own.row_tiles, first = map_tile % own.row_tiles * own.tile_h;
    const int64_t last = min_of(vertical.output, first + own.tile_h);
    for (int64_t c = c0; c < c1; c += own.columns.call_channels) {
      const int64_t channels = min_of(own.columns.call_channels, c1 - c);
      if (own.columns.spreads) {
        if constexpr (input_grad && same_type) run_plane_spread(n, c, channels, first, last, scratch);
      } else {
        run_plane(n, c, channels, first, last, scratch);
      }
    }
  }

  // One part of the sums of some channels.
  void add_part(int64_t unit, const Scratch& scratch) const {
    const int64_t split = unit / own.channel_tiles;
    const int64_t c0 = unit % own.channel_tiles * own.tile_c, c1 = min_of(z.c, c0 + own.tile_c);
    const int64_t map_tiles = z.n * own.row_tiles, tap_lanes = taps() * L;
    A* const sum = scratch.lane_sums;
    memset(static_cast<void*>(sum), 0, size_t((c1 - c0) * tap_lanes) * sizeof(A));
    const int64_t end = part_begin(map_tiles, own.splits, split + 1);
    for (int64_t tile = part_begin(map_tiles, own.splits, split); tile < end; ++tile) {
      const int64_t n = tile / own.row_tiles, first = tile % own.row_tiles * own.tile_h;
      const int64_t last = min_of(z.p, first + own.tile_h);
      for (int64_t c = c0; c < c1; c += own.columns.call_channels)
        add_plane(n, c, min_of(own.columns.call_channels, c1 - c), first, last, sum + (c - c0) * tap_lanes, scratch);
    }
    sum_lanes(sum, c1 - c0, shared.sums + (split * z.c + c0) * taps());
    if (own.splits == 1) finish(c0, c1);
  }

  void run(const Executor& executor) const {
    CONV_EXT_RUNS("columns");
    for_each_unit(executor, plan.tasks, plan.scratch_bytes, own.units, [&](int64_t unit, void* memory) {
      Carver local(memory);
      const Scratch scratch = lay_out_columns_scratch<A>(z, pass, own, kMachine, &local);
      if constexpr (weight_grad)
        add_part(unit, scratch);
      else
        run_tile(unit, scratch);
    });
    if (weight_grad && own.splits > 1) finish(0, z.c);
  }
};

}  // namespace conv_ext
