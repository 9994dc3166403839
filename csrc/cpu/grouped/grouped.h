// The algorithm for small groups: forward and input_grad; weight_grad.h has weight_grad. Tensors of type T are
// computed in A: bfloat16 is widened when a window is copied, and rounded once when a result is written.
//
//   pack all weights, lane by lane
//   for each block of rows of an image, each few units of groups (in parallel):
//     for each unit:
//       copy the window of the source that the rows read, kLanes channels of a position together
//       for each phase, vector of the result, chain of taps, tile of outputs: group_tile
//       write the rows, where they are not computed in place
//
// A unit is as many groups as fit a vector, or one larger group. From the window on the layout is forgotten; channels
// that are neighbours are copied as they lie, others turned round in squares. Start reading at run_grouped_gather.
#pragma once

#include "layout.h"
#include "tile.h"
#include "../base/lanes.h"
#include "../base/roles.h"

namespace conv_ext {

template <class A, class T>
struct GroupedTask {
  static constexpr int L = kLanes<A>;
  ConvProblem z;
  Pass pass;
  GroupedPlan own;
  Axis vertical, horizontal;
  GroupUnits units;
  Reach down, across;
  View<T> source, result;
  GroupedWorkspace<A> memory;
  GroupChain* chain;
  int64_t *offset, *tap, *chain_begin;
  LaneIndex<A> index[L];

  void prepare(const ConvProblem& problem, Pass its_pass, const Plan& plan, const Buffers& b) {
    z = problem;
    pass = its_pass;
    own = plan.own<GroupedPlan>();
    vertical = vertical_axis(z, pass);
    horizontal = horizontal_axis(z, pass);
    units = group_units(z, pass, L);
    down = reach_of(vertical);
    across = reach_of(horizontal);
    source = view_of<T>(source_of(pass, b), 1);
    result = view_of<T>(result_of(pass, b), 1);
    Carver carver(b.workspace);
    memory = grouped_workspace<A>(z, pass, own, L, carver);
    make_tables();
  }
  GroupedScratch<A> scratch_of(void* block) const {
    Carver local(block);
    return grouped_scratch<A>(z, pass, own, L, local);
  }

  // Tables of a phase's chains: neighbouring taps are taken together, up to three, of as many rows as a chain allows.
  void make_tables() {
    chain = memory.chain;
    offset = memory.offset;
    tap = memory.tap;
    chain_begin = memory.chain_begin;
    int64_t chains = 0, offsets = 0, next = 0;
    for (int64_t phase = 0; phase < phases(); ++phase) {
      chain_begin[phase] = chains;
      const PhaseTaps rows = PhaseTaps::of(vertical, phase / horizontal.phases());
      const PhaseTaps columns = PhaseTaps::of(horizontal, phase % horizontal.phases());
      for (int64_t j = 0, width; j < columns.count; j += width) {
        width = columns.offset_step == 1 ? group_taps(columns.count - j, horizontal.step()) : 1;
        const int64_t parts = ceil_div(rows.count, max_of(1, kGroupChain / (width * units.source)));
        for (int64_t part = 0; part < parts; ++part) {
          const Range its = part_of(rows.count, parts, part);
          chain[chains++] = {width, its.count(), offsets + its.first, next + its.first * width};
        }
        for (int64_t i = 0; i < rows.count; ++i) {
          offset[offsets++] =
              ((rows.offset_at(i) - down.low) * window_columns() + columns.offset_at(j) - across.low) * L;
          for (int64_t s = 0; s < width; ++s) tap[next++] = rows.tap_at(i) * z.s + columns.tap_at(j + s);
        }
      }
    }
    chain_begin[phases()] = chains;
    for (int64_t c = 0; c < L; ++c)
      for (int64_t l = 0; l < L; ++l) {
        const int64_t from = l / units.result * units.source + c;
        index[c][l] = typename IntegerOf<A>::type(from < L ? from : 0);
      }
  }

  int64_t phases() const { return vertical.phases() * horizontal.phases(); }
  int64_t window_columns() const { return across.extent(horizontal.longest_count()); }
  int64_t window_block() const { return window_rows(vertical, down, own.tile_h) * window_columns() * L; }

  // Groups [first, last) of a unit; lanes of its v-th vector.
  int64_t unit_groups(int64_t unit) const {
    return min_of(z.groups, (unit + 1) * units.together) - unit * units.together;
  }
  int64_t unit_lanes(int64_t unit, int64_t v) const { return min_of(L, unit_groups(unit) * units.result - v * L); }
  int64_t first_result(int64_t unit, int64_t v) const { return unit * units.together * units.result + v * L; }

  void copy_window(A* to, const T* from, int64_t first, int64_t rows, int64_t channels) const {
    const int64_t columns = window_columns();
    const Range inside = range_inside(across.low, 1, columns, horizontal.source);
    for (int64_t i = first; i < first + rows; ++i) {
      const bool outside = i < 0 || i >= vertical.source;
      const T* at = from + i * source.row + (across.low + inside.first) * source.column;
      int64_t j = 0;
      for (; j < (outside ? columns : inside.first); ++j, to += L) store(to, Vec<A>{});
      for (; j < inside.last; ++j, to += L, at += source.column) {
        __builtin_prefetch(at + L, 0, 2);
        store(to, channels == L ? read_lanes<A>(at) : read_lanes<A>(at, channels));
      }
      for (; j < columns; ++j, to += L) store(to, Vec<A>{});
    }
  }

  // The source of a unit for outputs from row o0 on, (blocks, rows, columns, kLanes).
  void pack_window(A* window, int64_t n, int64_t unit, int64_t o0, int64_t rows) const {
    const int64_t channels = unit_groups(unit) * units.source;
    View<T> view = source;
    view.data += n * source.n + unit * units.together * units.source * source.channel;
    if (source.channel == 1) {
      for (int64_t b = 0; b < units.blocks; ++b, window += window_block(), view.data += L) {
        const int64_t here = min_of(L, channels - b * L);
        if (here <= 0) break;
        copy_window(window, view.data, o0 / vertical.output_step() * vertical.step() + down.low, rows, here);
      }
      return;
    }
    for (int64_t b = 0; b < units.blocks; ++b, window += window_block(), view.data += L * source.channel) {
      const int64_t here = min_of(L, channels - b * L);
      if (here <= 0) break;
      window_to_lanes<A>(window, view, vertical.source, horizontal.source,
                         o0 / vertical.output_step() * vertical.step() + down.low, across.low, rows, window_columns(),
                         here);
    }
  }
};

template <class A, class T>
struct GroupedGather : GroupedTask<A, T> {
  using Base = GroupedTask<A, T>;
  using Base::across, Base::chain, Base::chain_begin, Base::down, Base::first_result, Base::horizontal, Base::index,
      Base::L, Base::offset, Base::pack_window, Base::own, Base::result, Base::tap, Base::unit_groups, Base::unit_lanes,
      Base::units, Base::vertical, Base::window_block, Base::window_columns, Base::z;
  View<T> weight;        // seen as (channels of a group's result, of its source, R, S)
  int64_t weight_group;  // elements between the weights of two groups
  A *packed_weight, *biases;
  const Buffers* buffers;
  Finish<T, A> finish_sums;

  int64_t taps() const { return z.r * z.s; }
  // (taps in the order of the chains, but of each segment (channels, taps), kLanes)
  int64_t vector_weights() const { return taps() * units.source * L; }

  // The weights of one vector of the result.
  void pack_weights(int64_t unit, int64_t v) const {
    A* const to = packed_weight + (unit * units.vectors + v) * vector_weights();
    const int64_t lanes = unit_lanes(unit, v), groups = units.together > 1 ? unit_groups(unit) : 1;
    // Lanes that are evenly apart are read together, those of other groups one after the other.
    const bool even = groups == 1 || weight_group == units.result * weight.n;
    const int64_t runs = even ? 1 : groups, run_lanes = even ? lanes : units.result;
    const int64_t chains = chain_begin[Base::phases()];
    if (runs * run_lanes < L && runs > 1) memset(static_cast<void*>(to), 0, size_t(vector_weights()) * sizeof(A));
    for (int64_t run = 0; run < runs; ++run) {
      const T* const from = weight.data + (unit * units.together + run) * weight_group + v * L * weight.n;
      const auto place = [&](const auto& visit) {
        for (const GroupChain* k = chain; k < chain + chains; ++k)
          for (int64_t segment = 0; segment < k->segments; ++segment)
            for (int64_t s = 0; s < k->width; ++s) {
              const int64_t first = k->tap + segment * k->width;
              visit(tap[first + s], to + (first * units.source + s) * L + run * run_lanes, k->width * L);
            }
      };
      if (even && weight.column == 1 && weight.row == z.s && taps() <= 4 * L) {
        for (int64_t c = 0; c < units.source; ++c) {
          A row[4 * L * L];
          positions_to_lanes<A>(row, from + c * weight.channel, weight.n, 1, lanes, taps());
          place([&](int64_t t, A* at, int64_t pitch) { store(at + c * pitch, load(row + t * L)); });
        }
        continue;
      }
      place([&](int64_t t, A* at, int64_t pitch) {
        const T* const w = from + t / z.s * weight.row + t % z.s * weight.column;
        for (int64_t c0 = 0; c0 < units.source; c0 += L) {
          const int64_t count = min_of(L, units.source - c0);
          A row[L * L];
          positions_to_lanes<A>(row, w + c0 * weight.channel, weight.n, weight.channel, run_lanes, count);
          for (int64_t c = 0; c < count; ++c) {
            A* const lane = at + (c0 + c) * pitch;
            if (runs == 1) {
              store(lane, load(row + c * L));
            } else {
              write_some<A, A>(lane, load(row + c * L), run_lanes);
            }
          }
        }
      });
    }
  }

  // Output rows [o0, o1) of a unit.
  void run_unit(int64_t n, int64_t unit, int64_t o0, int64_t o1, A* window, A* out) const {
    const int64_t i0 = o0 / vertical.output_step();
    pack_window(window, n, unit, o0, window_rows(vertical, down, o1 - o0));
    for (int64_t v = 0; v < units.vectors; ++v) {
      const int64_t lanes = unit_lanes(unit, v), channel = first_result(unit, v);
      if (lanes <= 0) break;
      T* const to = result.data + n * result.n + channel * result.channel + o0 * result.row;
      const bool in_place = is_same<A, T> && result.channel == 1 && lanes == L;
      const int64_t row = in_place ? result.row : horizontal.output * L, column = in_place ? result.column : L;
      for (int64_t fh = 0; fh < vertical.phases(); ++fh) {
        // Rows fh + i * step with o0 <= row < o1.
        const int64_t height = min_of(vertical.count(fh), ceil_div(max_of(0, o1 - fh), vertical.output_step())) - i0;
        for (int64_t fw = 0; fw < horizontal.phases() && height > 0; ++fw)
          run_phase(fh * horizontal.phases() + fw, height, horizontal.count(fw), window, unit * units.vectors + v,
                    in_place, (in_place ? reinterpret_cast<A*>(to) : out) + fh * row + fw * column,
                    vertical.output_step() * row, horizontal.output_step() * column);
      }
      if (!in_place) write_rows(out, to, o1 - o0, row, lanes);
      finish_results(finish_sums, true, *buffers, 1, {n, channel, lanes, o0, o1 - o0, 0, horizontal.output});
    }
  }
  void write_rows(A* out, T* to, int64_t rows, int64_t row, int64_t lanes) const {
    if (result.row == horizontal.output * result.column) {
      lanes_to_positions(out, to, result.channel, result.column, lanes, rows * horizontal.output, finish_sums);
    } else {
      for (int64_t o = 0; o < rows; ++o)
        lanes_to_positions(out + o * row, to + o * result.row, result.channel, result.column, lanes, horizontal.output,
                           finish_sums);
    }
  }

  void run_phase(int64_t phase, int64_t height, int64_t width, const A* window, int64_t vector, bool ahead, A* out,
                 int64_t out_row, int64_t out_column) const {
    const int64_t step = horizontal.step(), row = down.output_step * window_columns() * L;
    const int64_t n = group_columns(width, step);
    GroupTileArguments<A> a;
    a.x_row = row;
    a.x_block = window_block();
    a.channels = units.source;
    a.index = index;
    a.out_row = out_row;
    a.out_column = out_column;
    a.ahead = ahead;
    const Finish<A, A>* finish = nullptr;  // what lies in the scratch is finished when it is written
    if constexpr (is_same<A, T>) finish = ahead && finish_sums.any() ? &finish_sums : nullptr;
    const GroupChain empty{1, 0, 0, 0}, *first = chain + chain_begin[phase], *last = chain + chain_begin[phase + 1];
    if (first == last) first = &empty, last = first + 1;
    const int64_t tiles = ceil_div(height, kGroupRows);
    for (int64_t part = 0; part < tiles; ++part) {
      const int64_t i = part_begin(height, tiles, part), m = part_begin(height, tiles, part + 1) - i;
      for (int64_t j = 0; j < width; j += n) {
        // The last tile of a row begins earlier: the outputs that it shares with its neighbour are the same.
        const int64_t at = min_of(j, width - n);
        a.x = window + i * row + at * step * L;
        a.out = out + i * out_row + at * out_column;
        for (const GroupChain* k = first; k < last; ++k) {
          a.segments = k->segments;
          a.offset = offset + k->offset;
          a.weight = packed_weight + vector * vector_weights() + k->tap * units.source * L;
          a.bias = k == first ? biases + vector * L : nullptr;
          a.finish = k + 1 < last ? nullptr : finish;
          (units.several() ? select_group_tile<A, true>(m, n, k->width, step)
                           : select_group_tile<A, false>(m, n, k->width, step))(a);
        }
      }
    }
  }
};

template <class A, class T>
void run_grouped_gather(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b, const Executor& executor) {
  constexpr int L = kLanes<A>;
  const GroupedPlan& own = plan.own<GroupedPlan>();
  GroupedGather<A, T> task{};
  task.prepare(z, pass, plan, b);
  task.weight = weights_by_role<T>(pass, b);
  task.weight_group = group_step(z, pass, task.weight);
  const GroupUnits& units = task.units;
  const int64_t vectors = units.units * units.vectors;
  task.buffers = &b;
  task.finish_sums = {z, b};
  task.biases = task.memory.biases;
  Carver kept(b.kept);
  task.packed_weight = own.kept ? grouped_weights<A>(z, pass, L, kept) : task.memory.packed_weight;
  const int64_t small = int64_t(1) << 15;  // elements worth a task of their own
  const int64_t each = max_of(1, small / task.vector_weights());
  parallel_for(executor, ceil_div(vectors, each), 0, [&](int64_t index, void*) {
    for (int64_t i = index * each; i < min_of(vectors, (index + 1) * each); ++i) {
      const int64_t unit = i / units.vectors, v = i % units.vectors;
      pack_bias<T>(task.biases + i * L, b, task.first_result(unit, v), task.unit_lanes(unit, v), L);
      if (b.packed != PackedWeights::Kept) task.pack_weights(unit, v);
    }
  });
  if (b.packed == PackedWeights::Make) return;
  const int64_t parts = ceil_div(units.units, own.task_groups), blocks = ceil_div(task.vertical.output, own.tile_h);
  parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
    const int64_t part = index % parts, o0 = index / parts % blocks * own.tile_h, n = index / parts / blocks;
    const auto [window, out] = task.scratch_of(scratch);
    for (int64_t unit = part * own.task_groups; unit < min_of(units.units, (part + 1) * own.task_groups); ++unit)
      task.run_unit(n, unit, o0, min_of(task.vertical.output, o0 + own.tile_h), window, out);
  });
}

}  // namespace conv_ext
