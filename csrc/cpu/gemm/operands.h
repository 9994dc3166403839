// The operands of forward and input_grad: how channels, taps and phases are cut, the packing of weights, the writing of
// results.
#pragma once

#include "../base/roles.h"
#include "tile.h"
#include "layout.h"

namespace conv_ext {

// Where positions [first, last) of a phase lie, row by row of the output: visit(first position, n, i, j, count).
template <class Visit>
inline void visit_runs(int64_t first, int64_t last, int64_t height, int64_t width, Visit visit) {
  int64_t j = first % width, i = first / width % height, n = first / width / height;
  while (first < last) {
    const int64_t count = min_of(width - j, last - first);
    visit(first, n, i, j, count);
    first += count;
    j = 0;
    if (++i == height) i = 0, ++n;
  }
}

// A panel: some vectors of a group's channels, or rows of them where the vectors run along positions.
struct WeightPanel {
  int64_t m0, m, width;  // first channel, how many, and with those that fill up the last vector
};
struct GatherPhase {
  int64_t h, w, height, width, positions;
  const int64_t *row, *column, *weight;  // of each of its taps
  int64_t begin, taps;
  ChainCuts blocks;
};
// One block of channels and taps, which is summed in one chain.
struct ProductChain {
  int64_t c0, c, t0, t;
  int64_t before;  // products of the blocks before it
};

// Both parts of complex numbers are channels: all channels are counted in real numbers.
template <class T, class A = T>
struct GatherOperands {
  const ConvProblem& z;
  const WeightPanels& plan;
  Axis vertical, horizontal;
  TapTable table;
  PanelsOfWeights<A> packed_weight;
  // Not 0: products of the padding may show, and are added too, for a weight is not finite, or a bias is -0. Else taps
  // that read nothing but padding may be left out.
  int32_t* adds_padding;
  int64_t parts;                   // real numbers of an element
  View<T> source, result, weight;  // weight seen as (gemm_m, channels, R, S)
  int64_t weight_group;            // elements between the weights of two groups
  int64_t group_m;                 // channels of a group's result
  const Buffers& buffers;
  Finish<T, A> finish_sums;
  int64_t joined_width = 0;  // where all rows of an image are taken for one: of the rows that they are

  static constexpr int L = kLanes<A>;

  GatherOperands(const ConvProblem& problem, Pass pass, const WeightPanels& panels, const TapTable& taps,
                 const PanelsOfWeights<A>& packed, int32_t* padding, const Buffers& b)
      : z(problem),
        plan(panels),
        vertical(vertical_axis(problem, pass)),
        horizontal(horizontal_axis(problem, pass)),
        table(taps),
        packed_weight(packed),
        adds_padding(padding),
        parts(parts_of(problem.dtype)),
        source(view_of<T>(source_of(pass, b), parts)),
        result(view_of<T>(result_of(pass, b), parts)),
        weight(weights_by_role<T>(pass, b, parts)),
        weight_group(group_step(problem, pass, weight)),
        group_m(result_channels(problem, pass) * parts),
        buffers(b),
        finish_sums(problem, b) {
    // Joined taps are as far apart as the plan says, whatever the strides of a single column or channel.
    if (plan.joined_taps > 1) source.channel = weight.channel = 1, source.column = problem.c;
  }

  int64_t taps() const { return z.r * z.s; }
  int64_t phases() const { return vertical.phases() * horizontal.phases(); }
  int64_t channels() const { return plan.channels; }

  WeightPanel slice_at(int64_t i) const {
    const int64_t units = plan.padded_m / plan.unit;
    const int64_t first = part_begin(units, plan.panels, i) * plan.unit,
                  last = part_begin(units, plan.panels, i + 1) * plan.unit;
    return {first, min_of(group_m, last) - first, last - first};
  }

  GatherPhase phase_at(int64_t index) const {
    GatherPhase f;
    f.h = index / horizontal.phases();
    f.w = index % horizontal.phases();
    f.height = vertical.count(f.h);
    f.width = horizontal.count(f.w);
    f.positions = z.n * f.height * f.width;
    f.begin = table.begin[index];
    f.taps = table.count(index);
    f.row = table.row + f.begin;
    f.column = table.column + f.begin;
    f.weight = table.tap + f.begin;
    f.blocks = plan.blocks(f.taps);
    return f;
  }
  ProductChain block_at(const GatherPhase& f, int64_t index) const {
    const ChainCuts& p = f.blocks;
    const int64_t ic = index / p.taps, it = index % p.taps;
    ProductChain b;
    b.c0 = part_begin(channels() / parts, p.channels, ic) * parts;
    b.c = part_begin(channels() / parts, p.channels, ic + 1) * parts - b.c0;
    b.t0 = part_begin(f.taps, p.taps, it);
    b.t = part_begin(f.taps, p.taps, it + 1) - b.t0;
    b.before = b.c0 * f.taps + b.t0 * b.c;
    return b;
  }
  // (taps, channels, width) of a block.
  A* packed_at(int64_t group, const GatherPhase& f, const WeightPanel& s, const ProductChain& b) const {
    return packed_weight.weights + (group * taps() + f.begin) * plan.padded_m * channels() +
           s.m0 * f.taps * channels() + b.before * s.width;
  }
  // Channels of elements, not of their parts.
  const T* weight_at(int64_t group, int64_t m, int64_t c, int64_t tap) const {
    return weight.data + group * weight_group + m * weight.n + c * weight.channel + tap / z.s * weight.row +
           tap % z.s * weight.column;
  }
  // A complex weight as four real ones, of both parts of the source: (wr, wi) and (-wi, wr), for
  // (out_re, out_im) = (wr xr - wi xi, wr xi + wi xr).
  void pack_complex(A* to, int64_t to_channel, const T* from, int64_t channels, int64_t m) const {
    for (int64_t c = 0; c < channels; ++c, to += 2 * to_channel, from += weight.channel)
      for (int64_t i = 0; i < m; ++i) {
        const T* const w = from + i * weight.n;
        const A re = read<A>(w), im = read<A>(w + 1);
        to[2 * i] = re;
        to[2 * i + 1] = im;
        to[to_channel + 2 * i] = -im;
        to[to_channel + 2 * i + 1] = re;
      }
  }
  T* result_at(int64_t channel, const GatherPhase& f, int64_t n, int64_t i, int64_t j) const {
    return result.data + n * result.n + channel / parts * result.channel + channel % parts +
           (f.h + i * vertical.output_step()) * result.row + (f.w + j * horizontal.output_step()) * result.column;
  }
  // Elements between neighbouring results of a phase.
  int64_t column_step() const { return horizontal.output_step() * result.column; }
  // Sums with their bias, `channel_step` and `position_step` apart, to `count` neighbouring results of `m` channels,
  // the first of which begins an element. Memory is written along what is neighbours there; of a few channels by
  // vectors of positions.
  //
  // Returns whether they were finished as they were written: what lies there as it does here, if something is added.
  bool write_sums(T* to, const A* from, int64_t channel_step, int64_t position_step, int64_t m, int64_t count) const {
    if (finish_sums.adds && parts == 1) {
      if (channel_step == 1 && result.channel == 1)
        return write_finished(to, column_step(), from, position_step, count, m), true;
      if (position_step == 1 && column_step() == 1)
        return write_finished(to, result.channel, from, channel_step, m, count), true;
    }
    const bool few = position_step == 1 && column_step() <= 4;
    for (int64_t part = 0; part < parts; ++part, ++to, from += channel_step) {
      if (result.channel == 1 && !few)
        pack_block(to, column_step(), 1, from, position_step, channel_step, count, m);
      else
        pack_block(to, result.channel, column_step(), from, channel_step * parts, position_step, m / parts, count);
    }
    return false;
  }
  void write_finished(T* to, int64_t to_step, const A* from, int64_t from_step, int64_t rows, int64_t count) const {
    for (int64_t row = 0; row < rows; ++row, to += to_step, from += from_step)
      for (int64_t i = 0; i < count; i += L)
        write_some<T, A>(to + i, finish_sums(read_some<A>(from + i, count - i), to + i, count - i), count - i);
  }

  // The epilogue of what has been written, as far as it was not finished then; channels are counted in real numbers.
  void finish(ResultBox box, bool as_written) const {
    box.channel /= parts;
    box.channels /= parts;
    if (joined_width == 0) return finish_results(finish_sums, as_written, buffers, parts, box);
    finish_positions(finish_sums, as_written, buffers, parts, box.n, box.channel, box.channels, joined_width,
                     box.column, box.column + box.columns);
  }

  void pack_slice(int64_t group, const GatherPhase& f, const WeightPanel& s) const {
    // Of a phase with few of the taps, whole vectors of all taps would mostly be thrown away.
    const bool turned = plan.taps_are_neighbours && 4 * f.taps >= taps();
    for (int64_t i = 0; i < f.blocks.count(); ++i) {
      const ProductChain b = block_at(f, i);
      A* const to = packed_at(group, f, s, b);
      if (s.m < s.width)
        for (int64_t j = 0; j < b.t * b.c; ++j)
          for (int64_t m = s.m; m < s.width; ++m) to[j * s.width + m] = A(0);
      if (turned) pack_neighbouring_taps(to, group, f, s, b);
    }
    // Tap by tap through all channels, so that memory is read in long runs.
    for (int64_t t = 0; t < f.taps && !turned; ++t)
      for (int64_t i = 0; i < f.blocks.count(); ++i) {
        const ProductChain b = block_at(f, i);
        if (t < b.t0 || t >= b.t0 + b.t) continue;
        A* const to = packed_at(group, f, s, b) + (t - b.t0) * b.c * s.width;
        const T* const from = weight_at(group, s.m0 / parts, b.c0 / parts, f.weight[t]);
        if (parts == 1)
          pack_block(to, s.width, 1, from, weight.channel, weight.n, b.c, s.m);
        else
          pack_complex(to, s.width, from, b.c / parts, s.m / parts);
      }
  }
  // The taps of a channel, or of all channels, are neighbours in memory: they are turned round by whole vectors.
  void pack_neighbouring_taps(A* to, int64_t group, const GatherPhase& f, const WeightPanel& s,
                              const ProductChain& b) const {
    const bool joined = weight.channel == taps();
    const int64_t runs = joined ? 1 : b.c, length = joined ? b.c * taps() : taps();
    for (int64_t run = 0; run < runs; ++run) {
      const T* const from = weight_at(group, s.m0, b.c0 + run, 0);
      int64_t first_tap = 0, first_c = run;
      for (int64_t j = 0; j < length; j += L) {
        const int64_t count = min_of(L, length - j);
        int64_t tap = 0, c = 0;
        for (int64_t m = 0; m < s.m; m += L) {
          const int64_t rows = min_of(L, s.m - m);
          Vec<A> square[L];
          // Rows are read by turns, a line of each: too many streams for the processor to foresee.
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) {
            const T* const row = from + (m + l) * weight.n + j;
            square[l] = read_some<A>(row, l < rows ? count : 0);
            __builtin_prefetch(row + 2 * L);
          }
          transpose<A>(square);
          A row[L * L];
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) store(row + l * L, square[l]);
          tap = first_tap, c = first_c;
          for (int64_t l = 0; l < count; ++l) {
            const int64_t t = place_of(f, tap) - b.t0;
            if (t >= 0 && t < b.t) write_some<A, A>(to + (t * b.c + c) * s.width + m, load(row + l * L), rows);
            if (++tap == taps()) tap = 0, ++c;
          }
        }
        first_tap = tap, first_c = c;
      }
    }
  }
  // A tap's place in its phase; -1 if it belongs to another one.
  int64_t place_of(const GatherPhase& f, int64_t tap) const {
    if (f.taps == taps()) return tap;
    for (int64_t t = 0; t < f.taps; ++t)
      if (f.weight[t] == tap) return t;
    return -1;
  }

  void pack_checked(int64_t group, const GatherPhase& f, const WeightPanel& s) const {
    pack_slice(group, f, s);
    if (!plan.meets_padding) return;
    const A* const packed = packed_at(group, f, s, block_at(f, 0));
    const int64_t count = f.taps * channels() * s.width;
    Vec<A> zeros{};
    for (int64_t i = 0; i < count; i += L) zeros += read_some<A>(packed + i, count - i) * A(0);
    bool finite = true;
    for (int l = 0; l < L; ++l) finite = finite && zeros[l] == A(0);
    if (!finite) __atomic_store_n(packed_weight.not_finite, 1, __ATOMIC_RELAXED);
  }
  // Packs all weights, unless they were kept, and finds out whether products of the padding may show. False where this
  // is all that was asked for.
  bool pack_weights(const Executor& executor) const {
    if (buffers.packed != PackedWeights::Kept) pack_all(executor);
    if (buffers.packed == PackedWeights::Make) return false;
    *adds_padding = *packed_weight.not_finite;
    for (int64_t m = 0; m < z.groups * group_m && buffers.bias != nullptr; ++m) {
      const A bias = bias_at<T, A>(buffers, m, parts);
      if (bias == A(0) && __builtin_signbit(bias)) *adds_padding = 1;
    }
    return true;
  }
  void pack_all(const Executor& executor) const {
    *packed_weight.not_finite = 0;
    const int64_t count = z.groups * plan.panels;
    parallel_for(executor, plan.packing_tasks, 0, [&](int64_t task, void*) {
      for (int64_t i = task * plan.panels_per_task; i < min_of(count, (task + 1) * plan.panels_per_task); ++i)
        for (int64_t f = 0; f < phases(); ++f) pack_checked(i / plan.panels, phase_at(f), slice_at(i % plan.panels));
    });
  }
};

// A task: positions [first, last) of a phase (of them or of vectors of them), panels [s0, s1) of a group's weights.
struct PanelsTask {
  GatherPhase f;
  int64_t group, s0, s1;  // panels (or few rows) of weights from s0 to s1
  // Register tiles share out the positions of the phase, or vectors of them, evenly; the task has those from tile0 to
  // tile1, and with them the positions (or vectors) from first to last.
  int64_t units, all_tiles, tile0, tile1, first, last;

  int64_t tiles() const { return tile1 - tile0; }
  int64_t begin_of(int64_t tile) const { return part_begin(units, all_tiles, tile0 + tile); }
};

}  // namespace conv_ext
