// The gradient of the weights of small groups: lanes are output channels, sums over positions stay in registers.
//
//   for each unit of groups and each part of the reduction (in parallel):
//     for each few rows of an image: copy the input's window, and the upstream gradient where it cannot be read in
//     place
//       for each row of taps, few channels: group_dot, added to the sums
//   add the parts in order, turn the lanes round, write
#pragma once

#include "grouped.h"
#include "../base/reduction.h"

namespace conv_ext {

template <class A, class T>
struct GroupedGrad : GroupedTask<A, T> {
  using Base = GroupedTask<A, T>;
  using Base::across, Base::chain, Base::chain_begin, Base::down, Base::first_result, Base::horizontal, Base::index,
      Base::L, Base::offset, Base::pack_window, Base::own, Base::result, Base::tap, Base::unit_groups, Base::unit_lanes,
      Base::units, Base::vertical, Base::window_block, Base::window_columns, Base::z;
  View<T> weight;   // the result
  A* sums;          // (splits, units, vectors), each (C, taps, kLanes), or (taps, C, kLanes)
  bool taps_first;  // the latter: in the order in which the result lies

  int64_t taps() const { return z.r * z.s; }
  int64_t vector_sums() const { return taps() * units.source * L; }
  int64_t sum_channel() const { return taps_first ? L : taps() * L; }
  int64_t sum_tap() const { return taps_first ? units.source * L : L; }

  // Rows [p0, p1) of an image.
  void add_rows(int64_t n, int64_t unit, int64_t p0, int64_t p1, A* sum, A* window, A* grads) const {
    pack_window(window, n, unit, p0, window_rows(vertical, down, p1 - p0));
    const int64_t step = horizontal.step();
    GroupDotArguments<A> a;
    a.x_row = vertical.step() * window_columns() * L;
    a.x_column = step * L;
    a.rows = p1 - p0;
    a.columns = z.q;
    a.sum_channel = sum_channel();
    a.sum_tap = sum_tap();
    for (int64_t v = 0; v < units.vectors; ++v, sum += vector_sums()) {
      const int64_t lanes = unit_lanes(unit, v);
      if (lanes <= 0) break;
      // `result` is the upstream gradient here.
      const T* const from = result.data + n * result.n + first_result(unit, v) * result.channel + p0 * result.row;
      if (is_same<A, T> && result.channel == 1 && lanes == L) {
        a.g = reinterpret_cast<const A*>(from);
        a.g_row = result.row;
        a.g_column = result.column;
        a.ahead = true;
      } else {
        const bool joined = result.row == z.q * result.column;
        for (int64_t i = 0; i < a.rows; i += joined ? a.rows : 1)
          positions_to_lanes<A>(grads + i * z.q * L, from + i * result.row, result.channel, result.column, lanes,
                                joined ? a.rows * z.q : z.q);
        a.g = grads;
        a.g_row = z.q * L;
        a.g_column = L;
        a.ahead = false;
      }
      for (const GroupChain* k = chain; k < chain + chain_begin[1]; ++k)
        for (int64_t segment = 0; segment < k->segments; ++segment)
          for (int64_t s = 0; s < k->width;) {
            const int64_t width = k->width - s >= kGroupTaps ? kGroupTaps : 1;
            add_taps(a, window + offset[k->offset + segment] + s * L, width,
                     sum + tap[k->tap + segment * k->width + s] * sum_tap());
            s += width;
          }
    }
  }
  void add_taps(GroupDotArguments<A>& a, const A* x, int64_t width, A* sum) const {
    const int64_t step = horizontal.step();
    for (int64_t c0 = 0; c0 < units.source; c0 += L, x += window_block())
      for (int64_t c = c0, end = min_of(units.source, c0 + L); c < end;) {
        const int64_t channels = block_rows(end - c, kGroupChannels);
        a.index = index + (c - c0);
        a.x = units.several() ? x : x + (c - c0);
        a.sum = sum + c * sum_channel();
        (units.several() ? select_group_dot<A, true>(channels, width, step)
                         : select_group_dot<A, false>(channels, width, step))(a);
        a.ahead = false;
        c += channels;
      }
  }

  // Adds the parts of the reduction to the first one, in order, and writes the weights of a vector.
  void write_vector(int64_t vector) const {
    A* const sum = sums + vector * vector_sums();
    add_parts(sum, vector_sums(), own.splits, units.units * units.vectors * vector_sums());
    const int64_t unit = vector / units.vectors, v = vector % units.vectors, lanes = unit_lanes(unit, v);
    if (lanes <= 0) return;
    T* const to = weight.data + first_result(unit, v) * weight.n;
    const bool dense = taps_first ? weight.column == units.source && weight.row == z.s * units.source
                                  : weight.column == 1 && weight.row == z.s && weight.channel == taps();
    // What lies behind are the next vector's sums, which another thread may be adding up.
    if (dense) return lanes_to_positions_within(sum, to, weight.n, 1, lanes, units.source * taps());
    for (int64_t t = 0; t < taps(); ++t)
      for (int64_t c = 0; c < units.source; ++c) {
        const A* const from = sum + t * sum_tap() + c * sum_channel();
        T* const at = to + t / z.s * weight.row + t % z.s * weight.column + c * weight.channel;
        for (int64_t l = 0; l < lanes; ++l) write<T, A>(at + l * weight.n, from[l]);
      }
  }
};

template <class A, class T>
void run_grouped_grad(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const GroupedPlan& own = plan.own<GroupedPlan>();
  GroupedGrad<A, T> task{};
  task.prepare(z, Pass::WeightGrad, plan, b);
  task.weight = view_of<T>(b.weight, 1);
  task.taps_first = task.weight.channel == 1 && task.taps() > 1;
  const GroupUnits& units = task.units;
  const int64_t unit_sums = units.vectors * task.vector_sums();
  task.sums = task.memory.sums;
  const int64_t blocks = ceil_div(z.p, own.tile_h), pieces = z.n * blocks,
                parts = ceil_div(units.units, own.task_groups);
  parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t i, void* scratch) {
    const int64_t first = i % parts * own.task_groups, last = min_of(units.units, first + own.task_groups),
                  split = i / parts;
    const auto [window, grads] = task.scratch_of(scratch);
    A* const sum = task.sums + split * units.units * unit_sums;
    memset(static_cast<void*>(sum + first * unit_sums), 0, size_t((last - first) * unit_sums) * sizeof(A));
    for (int64_t piece = part_begin(pieces, own.splits, split); piece < part_begin(pieces, own.splits, split + 1);
         ++piece) {
      const int64_t p0 = piece % blocks * own.tile_h;
      for (int64_t unit = first; unit < last; ++unit)
        task.add_rows(piece / blocks, unit, p0, min_of(z.p, p0 + own.tile_h), sum + unit * unit_sums, window, grads);
    }
  });
  parallel_for(executor, units.units * units.vectors, 0, [&](int64_t i, void*) { task.write_vector(i); });
}

template <class A, class T, Pass pass>
void run_grouped(const ConvProblem& problem, const Plan& plan, const Buffers& buffers, const Executor& executor) {
  if constexpr (pass == Pass::WeightGrad) {
    run_grouped_grad<A, T>(problem, plan, buffers, executor);
  } else {
    run_grouped_gather<A, T>(problem, pass, plan, buffers, executor);
  }
}

}  // namespace conv_ext
