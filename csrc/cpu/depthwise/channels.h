// The depthwise algorithm where lanes are channels (channels_last): rows of outputs from the first to the last, in each
// all the columns, for each block of columns all the channels. Start reading at run, at the end.
//
// Operands are read and written where they lie, except float16, which is copied into rows of float32, and back. These
// layers are bound by memory. What fits the last cache is done in the order that loads each vector least often, what
// does not in an order in which little lies between the rows that meet, and the next are prefetched.
#pragma once

#include "channels_tile.h"
#include "padding.h"
#include "../base/lanes.h"

namespace conv_ext {

template <bool in_place, class T, class A>
struct ElementOf {
  typedef T type;
};
template <class T, class A>
struct ElementOf<false, T, A> {
  typedef A type;
};

template <class T, class A, Pass pass>
struct DepthwiseChannels {
  static constexpr int L = kLanes<A>;
  static constexpr bool input_grad = pass == Pass::InputGrad, weight_grad = pass == Pass::WeightGrad;
  static constexpr bool in_place = !is_same<T, float16>;  // as the plan has it, too
  typedef typename ElementOf<in_place, T, A>::type E;     // what the loops read and write
  typedef T Element;
  typedef A Sum;
  typedef DepthwiseChannelsScratch<E> Scratch;

  const ConvProblem& z;
  const Plan& plan;
  const DepthwisePlan& own;
  const DepthwiseByChannels& by;
  const Axis vertical, horizontal;
  const View<T> source, result, weight;  // weight_grad: `result` is the upstream gradient
  const Buffers& buffers;
  const Finish<T, A> finish_sums;
  const int64_t x_column, result_column;       // elements between columns, of a copy or where they lie
  const DepthwiseChannelsWorkspace<A> shared;  // by all tasks
  bool padding_may_show = false;               // forward, input_grad: some weight is not finite, or some bias is -0

  int64_t taps() const { return z.r * z.s; }
  int64_t padded_c() const { return round_up(z.c, L); }

  DepthwiseChannels(const ConvProblem& problem, const Plan& p, const Buffers& b)
      : z(problem),
        plan(p),
        own(p.own<DepthwisePlan>()),
        by(own.channels),
        vertical(vertical_axis(problem, pass)),
        horizontal(horizontal_axis(problem, pass)),
        source(view_of<T>(source_of(pass, b), 1)),
        result(view_of<T>(result_of(pass, b), 1)),
        weight(view_of<T>(b.weight, 1)),
        buffers(b),
        finish_sums(problem, b),
        x_column(in_place ? source.column : own.tile_c),
        result_column(in_place ? result.column : own.tile_c),
        shared(workspace_of(b)) {
    for (int64_t f = 0; f < vertical.phases(); ++f) shared.rows[f] = PhaseTaps::of(vertical, f);
    for (int64_t f = 0; f < horizontal.phases(); ++f) shared.columns[f] = columns_of(f);
    if constexpr (!weight_grad) {
      pack_bias<T>(shared.biases, b, 0, z.c, padded_c());
      pack_weights();
      padding_may_show = !all_finite(shared.weights, padded_c() * taps());
      for (int64_t c = 0; c < z.c; ++c) padding_may_show |= is_minus_zero(shared.biases[c]);
    }
  }

  DepthwiseChannelsWorkspace<A> workspace_of(const Buffers& b) const {
    Carver memory(b.workspace);
    return lay_out_channels_workspace<A>(z, pass, own, kMachine, &memory);
  }

  PhaseColumns columns_of(int64_t phase) const {
    PhaseColumns p{PhaseTaps::of(horizontal, phase), horizontal.count(phase), 0, 0, false};
    const int64_t step = horizontal.step(), count = p.count;
    const bool any = p.taps.count > 0;
    p.inside_begin = any ? range_inside(p.taps.offset, step, count, horizontal.source).first : 0;
    p.inside_end = any ? range_inside(p.taps.last_offset(), step, count, horizontal.source).last : count;
    p.share_loads = taps_share_loads(p.taps.count, p.taps.offset_step, step);
    return p;
  }

  // (C / L, R S, L)
  void pack_weights() {
    for_each_kernel_row<L>(z, weight, [&](int64_t c, int64_t tap, int64_t count, int64_t lanes, const T* row) {
      positions_to_lanes<A>(shared.weights + (c * taps() + tap * L), row, weight.n, weight.column, lanes, count);
    });
  }

  // Which of `count` positions, `distance` from one another, lie in the source.
  uint32_t inside_of(int64_t first, int64_t count, int64_t distance) const {
    const Range inside = range_inside(first, distance, count, horizontal.source);
    return uint32_t((uint64_t(1) << inside.last) - (uint64_t(1) << inside.first));
  }

  // ---- rows of the source

  // Lists the `lines` rows that outputs from the i-th on read, nullptr for what lies outside, copied where they have to
  // be.
  void list_rows(const PhaseTaps& taps, int64_t lines, const T* plane, int64_t i, int64_t channels,
                 const Scratch& scratch) const {
    for (int64_t j = 0; j < lines; ++j) {
      const int64_t at = i * vertical.step() + taps.offset_at(j);
      const T* const row = plane + at * source.row;
      if (at < 0 || at >= vertical.source) {
        scratch.source_rows[j] = nullptr;
      } else if constexpr (in_place) {
        scratch.source_rows[j] = row;
      } else {
        E* const to = scratch.packed_source + j * horizontal.source * own.tile_c;
        copy_row(to, row, source, horizontal.source, channels);
        scratch.source_rows[j] = to;
      }
    }
  }
  void copy_row(E* to, const T* from, const View<T>& view, int64_t columns, int64_t channels) const {
    for (int64_t i = 0; i < columns; ++i) copy_lanes(to + i * own.tile_c, from + i * view.column, channels);
  }

  // ---- forward and input_grad

  // Rows [first, last), strip by strip.
  void run_plane(int64_t n, int64_t c0, int64_t channels, int64_t first, int64_t last, const Scratch& scratch) const {
    const int64_t longest = horizontal.longest_count(), c1 = c0 + channels;
    for (int64_t c = c0; c < c1; c += by.strip_c)
      for (int64_t begin = 0; begin < longest; begin += by.strip_w)
        run_strip(n, c, min_of(by.strip_c, c1 - c), first, last, begin, min_of(longest, begin + by.strip_w), scratch);
  }

  // So that a block of three rows leaves no single one.
  int rows_of_block(int64_t rest) const {
    return by.block_rows == 1 || rest == 1 ? 1 : rest == 2 || rest == 4 ? 2 : kChannelsRows;
  }

  // Columns [begin, end) of each phase.
  void run_strip(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, int64_t begin, int64_t end,
                 const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c;
    T* const to = result.data + n * result.n + c;
    const int64_t step = vertical.step(), out_step = vertical.output_step();
    ChannelsArguments<E> a{};
    a.bias = shared.biases + c;
    a.weight_vector = taps() * L;
    if constexpr (in_place) a.finish = finish_sums.any() ? &finish_sums : nullptr;
    a.out_row = result.row;
    a.out_column = horizontal.output_step() * result_column;
    a.out_ahead = by.beyond_cache ? result.row : 0;
    for (int64_t row = first; row < last;) {
      const PhaseTaps& rows = shared.rows[row % out_step];
      const int block = rows_of_block(last - row);
      list_rows(rows, rows.count + (block - 1) * step, from, row / out_step, channels, scratch);
      a.rows = scratch.source_rows;
      a.row_count = rows.count;
      a.weight_r = rows.tap_step * z.s * L;
      // Of all phases the last one reads the newest rows.
      a.first_new_row = row % out_step + 1 == out_step ? rows.count - step : rows.count;
      T* const line = to + row * result.row;
      E* const out = in_place ? reinterpret_cast<E*>(line) : scratch.packed_result;
      run_phases(a, block, shared.weights + c * taps() + rows.tap * z.s * L, begin, end, channels, out);
      if constexpr (!in_place) write_row(line, scratch.packed_result, channels);
      row += block;
    }
  }

  // The phases of a few columns after one another: their results are neighbours.
  void run_phases(ChannelsArguments<E>& a, int block, const A* weights, int64_t begin, int64_t end, int64_t channels,
                  E* out) const {
    for (int64_t j = begin; j < end; j += by.phase_w)
      for (int64_t f = 0; f < horizontal.phases(); ++f) {
        const PhaseColumns& phase = shared.columns[f];
        a.ahead = by.beyond_cache && f + 1 == horizontal.phases() ? source.row * vertical.step() : 0;
        a.weight = weights + phase.taps.tap * L;
        run_columns(a, block, phase, j, min_of(j + by.phase_w, min_of(end, phase.count)), channels,
                    out + f * result_column);
      }
  }

  void run_columns(ChannelsArguments<E>& a, int block, const PhaseColumns& p, int64_t begin, int64_t end,
                   int64_t channels, E* out) const {
    const int64_t step = horizontal.step(), count = p.taps.count, distance = count == 1 ? step : p.taps.offset_step;
    a.taps = count;
    a.weight_s = p.taps.tap_step * L;
    a.x = {0, distance * x_column, 0, step * x_column, 0, step, distance, horizontal.source};
    a.x_block = kChannelsColumns * step * x_column;
    a.out_block = kChannelsColumns * a.out_column;
    for (int64_t j = begin, wide; j < end; j += wide * a.blocks) {
      wide = end - j >= kChannelsColumns ? kChannelsColumns : end - j >= 2 ? 2 : 1;
      const bool margins = wide < kChannelsColumns || j < p.inside_begin || j + wide > p.inside_end;
      a.blocks = margins ? 1 : (min_of(end, p.inside_end) - j) / kChannelsColumns;
      a.x.first = j * step + p.taps.offset;
      a.x.at = a.x.first * x_column;
      if (p.share_loads && margins)
        a.x.inside = inside_of(a.x.first, count == 1 ? wide : (wide - 1) * step + count, distance);
      a.out = out + j * a.out_column;
      if (block > 1 && wide == kChannelsColumns) {
        run_all_channels(select_channels_rows<E>(step, block, margins), a, channels);
        continue;
      }
      const auto run = select_channels_run<E>(count, p.taps.offset_step, step, int(wide), margins);
      run_all_channels(run, a, channels);
      for (int b = 1; b < block; ++b) {
        a.rows += vertical.step();
        a.out += result.row;
        run_all_channels(run, a, channels);
      }
      a.rows -= (block - 1) * vertical.step();
    }
  }

  // Whole vectors, and the last channels.
  static void run_all_channels(ChannelsRun<E> run, ChannelsArguments<E>& a, int64_t channels) {
    const int64_t vectors = channels / L, rest = channels % L;
    a.lanes = kAllLanes<A>;
    a.vectors = vectors;
    if (vectors > 0) run(a);
    if (rest == 0) return;
    ChannelsArguments<E> last = a;
    last.lanes = lanes_between<A>(0, rest);
    last.vectors = 1;
    last.x.at += vectors * L;
    last.out += vectors * L;
    last.bias += vectors * L;
    last.weight += vectors * a.weight_vector;
    run(last);
  }

  void write_row(T* to, A* from, int64_t channels) const {
    for (int64_t i = 0; i < horizontal.output; ++i) {
      A* const position = from + i * own.tile_c;
      finish_sums.in_scratch(position, channels);
      copy_back(to + i * result.column, position, channels);
    }
  }

  // ---- weight_grad

  // Adds the share of rows [first, last) of one image to sum: (channels / L, R S, L).
  void add_plane(int64_t n, int64_t c, int64_t channels, int64_t first, int64_t last, A* sum,
                 const Scratch& scratch) const {
    const T* const from = source.data + n * source.n + c;
    const T* const grad = result.data + n * result.n + c;
    const int64_t strip_w = c + own.tile_c < z.c ? by.strip_w : by.last_strip_w;
    for (int64_t begin = 0; begin < horizontal.output; begin += strip_w)
      for (int64_t i = first; i < last;) {
        const int block = last - i >= by.block_rows ? int(by.block_rows) : 1;
        list_rows(shared.rows[0], z.r + (block - 1) * vertical.step(), from, i, channels, scratch);
        const T* const line = grad + i * result.row;
        if constexpr (!in_place) copy_row(scratch.packed_result, line, result, horizontal.output, channels);
        add_rows(in_place ? reinterpret_cast<const E*>(line) : scratch.packed_result, block, begin,
                 min_of(horizontal.output, begin + strip_w), channels, sum, scratch);
        i += block;
      }
  }

  // Columns [begin, end) of `block` rows of the gradient, for all taps.
  void add_rows(const E* grad, int block, int64_t begin, int64_t end, int64_t channels, A* sum,
                const Scratch& scratch) const {
    const PhaseTaps& across = shared.columns[0].taps;
    const int64_t step = horizontal.step();
    const bool neighbours = across.offset_step == 1 && step <= 2 && z.s > 1;
    ChannelsDotArguments<E> a{};
    a.grad_column = result_column;
    a.grad_row = result.row;
    a.sum_r = z.s * L;
    a.sum_s = L;
    a.sum_vector = taps() * L;
    a.ahead = by.beyond_cache ? block * vertical.step() * source.row : 0;
    a.grad_ahead = by.beyond_cache ? block * result.row : 0;
    for (int64_t s = 0, taps_s; s < z.s; s += taps_s) {
      const int64_t rest = z.s - s;
      taps_s = !neighbours ? 1 : rest == 5 || (rest == 7 && step == 1) ? rest : rest >= 3 ? 3 : 1;
      for (int64_t r = 0, taps_r; r < z.r; r += taps_r) {
        taps_r = z.r - r >= 3 && taps_s < 5 ? 3 : 1;
        a.rows = scratch.source_rows + r;
        a.sum = sum + (r * z.s + s) * L;
        add_taps(a, taps_r, taps_s, across.offset_at(s), block, grad, begin, end, channels);
      }
    }
  }

  // Of taps_r x taps_s of them, the first of which lies `offset` columns from the output.
  void add_taps(ChannelsDotArguments<E>& a, int64_t taps_r, int64_t taps_s, int64_t offset, int block, const E* grad,
                int64_t begin, int64_t end, int64_t channels) const {
    const int64_t step = horizontal.step(), distance = taps_s == 1 ? step : 1;
    uint32_t inside[kChannelsDotBlocks];
    a.inside = inside;
    a.x_column = distance * x_column;
    for (int64_t j = begin; j < end;) {
      const int64_t wide = end - j >= kChannelsColumns ? kChannelsColumns : 1;
      a.blocks = min_of(kChannelsDotBlocks, (end - j) / wide);
      a.x_block = wide * step * x_column;
      a.grad_block = wide * a.grad_column;
      a.grad = grad + j * a.grad_column;
      const int64_t first = j * step + offset;
      a.x_at = first * x_column;
      const int64_t positions = taps_s == 1 ? wide : (wide - 1) * step + taps_s;
      for (int64_t i = 0; i < a.blocks; ++i) inside[i] = inside_of(first + i * wide * step, positions, distance);
      add_all_channels(select_channels_dot<E>(taps_r, taps_s, step, block, int(wide)), a, channels);
      j += wide * a.blocks;
    }
  }

  static void add_all_channels(ChannelsDot<E> dot, ChannelsDotArguments<E>& a, int64_t channels) {
    const int64_t vectors = channels / L, rest = channels % L;
    a.lanes = kAllLanes<A>;
    a.vectors = vectors;
    if (vectors > 0) dot(a);
    if (rest == 0) return;
    ChannelsDotArguments<E> last = a;
    last.lanes = lanes_between<A>(0, rest);
    last.vectors = 1;
    last.x_at += vectors * L;
    last.grad += vectors * L;
    last.sum += vectors * a.sum_vector;
    dot(last);
  }

  // Adds the splits in order, and writes the weights' gradient.
  void finish(const Executor& executor) const {
    A* const sums = shared.sums;
    const int64_t split_sums = padded_c() * taps();
    add_parts(sums, split_sums, own.splits, split_sums);
    if (padding_may_show_in(vertical, horizontal, sums, split_sums))
      for_each_unit(executor, min_of(plan.tasks, own.channel_tiles), 0, own.channel_tiles, [&](int64_t tile, void*) {
        const int64_t c = tile * own.tile_c;
        for (int64_t n = 0; n < z.n; ++n) add_padding(*this, n, c, min_of(own.tile_c, z.c - c), sums + c * taps());
      });
    for_each_kernel_row<L>(z, weight, [&](int64_t c, int64_t tap, int64_t count, int64_t lanes, T* row) {
      lanes_to_positions_within(sums + (c * taps() + tap * L), row, weight.n, weight.column, lanes, count);
    });
  }

  // ---- units of work

  void run_tile(int64_t unit, const Scratch& scratch) const {
    const int64_t c = unit % own.channel_tiles * own.tile_c, channels = min_of(own.tile_c, z.c - c);
    const int64_t map_tile = unit / own.channel_tiles;
    const int64_t n = map_tile / own.row_tiles, first = map_tile % own.row_tiles * own.tile_h;
    const int64_t last = min_of(vertical.output, first + own.tile_h);
    run_plane(n, c, channels, first, last, scratch);
    for (int64_t i = 0; i < channels && padding_may_show; ++i) sum_with_padding(*this, n, c + i, first, last);
    finish_results(finish_sums, in_place, buffers, 1, {n, c, channels, first, last - first, 0, horizontal.output});
  }

  // One part of the sums of some channels.
  void add_part(int64_t unit, const Scratch& scratch) const {
    const int64_t split = unit / own.channel_tiles, map_tiles = z.n * own.row_tiles;
    const int64_t c = unit % own.channel_tiles * own.tile_c, channels = min_of(own.tile_c, z.c - c);
    A* const sum = shared.sums + (split * padded_c() + c) * taps();
    memset(static_cast<void*>(sum), 0, size_t(round_up(channels, L) * taps()) * sizeof(A));
    const int64_t end = part_begin(map_tiles, own.splits, split + 1);
    for (int64_t tile = part_begin(map_tiles, own.splits, split); tile < end; ++tile) {
      const int64_t first = tile % own.row_tiles * own.tile_h;
      add_plane(tile / own.row_tiles, c, channels, first, min_of(z.p, first + own.tile_h), sum, scratch);
    }
  }

  void run(const Executor& executor) const {
    CONV_EXT_RUNS("channels");
    for_each_unit(executor, plan.tasks, plan.scratch_bytes, own.units, [&](int64_t unit, void* memory) {
      Carver local(memory);
      const Scratch scratch = lay_out_channels_scratch<E>(z, pass, own, &local);
      if constexpr (weight_grad)
        add_part(unit, scratch);
      else
        run_tile(unit, scratch);
    });
    if constexpr (weight_grad) finish(executor);
  }
};

}  // namespace conv_ext
