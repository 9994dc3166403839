// Rows for the depthwise loops whose lanes are columns: which of the source's they read, with which taps and masks, and
// the copies of those that cannot be read where they lie.
#pragma once

#include "columns_tile_backward.h"

namespace conv_ext {

// The taps that the outputs of one phase of an axis read, in the order of the positions: with tap number
// tap + j * tap_step output i reads the position  i * axis.step() + offset + j * offset_step.
struct PhaseTaps {
  int64_t count, tap, tap_step, offset, offset_step;

  static PhaseTaps of(const Axis& axis, int64_t phase) {
    PhaseTaps p{0, 0, 1, 0, 1};
    int64_t last = 0;
    for (int64_t t = 0; t < axis.taps; ++t) {
      if (axis.phase_of(t) != phase) continue;
      if (p.count == 0) p.tap = t;
      if (p.count == 1) p.tap_step = t - p.tap;
      last = t;
      ++p.count;
    }
    if (axis.inverse && p.count > 0) {
      p.tap = last;
      p.tap_step = -p.tap_step;
    }
    p.offset = axis.offset(p.tap);
    if (p.count > 1) p.offset_step = axis.offset(p.tap + p.tap_step) - p.offset;
    return p;
  }
};

// Of any type to the accumulator's, and back.
template <class A, class T>
inline void copy_lanes(A* to, const T* from, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, read_lanes<A>(from + i));
  if (i < count) store_first(to + i, read_lanes<A>(from + i, count - i), count - i);
}
template <class A, class T>
inline void copy_back(T* to, const A* from, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= count; i += L) write_lanes<T, A>(to + i, load(from + i));
  if (i < count) write_lanes<T, A>(to + i, load_first(from + i, count - i), count - i);
}

// What is small is one task: a second thread would cost more than it brings.
template <class Body>
inline void for_each_unit(const Executor& executor, const Plan& plan, int64_t units, Body body) {
  const int64_t tasks = plan.tasks == 1 ? 1 : units;
  parallel_for(executor, tasks, plan.scratch_bytes, [&](int64_t index, void* memory) {
    for (int64_t unit = units * index / tasks; unit < units * (index + 1) / tasks; ++unit) body(unit, memory);
  });
}

struct SegmentList {
  PhaseTaps taps;
  ColumnSegment* segment;
  int64_t count;
};

// What the units of a call share: where the operands lie, the tables of taps, and how rows are fetched.
template <class T, class A, Pass pass>
struct DepthwiseRows {
  static constexpr int L = kLanes<A>;
  static constexpr bool input_grad = pass == Pass::InputGrad, weight_grad = pass == Pass::WeightGrad;
  static constexpr bool same_type = sizeof(T) == sizeof(A);

  const ConvProblem& z;
  const Plan& plan;
  const DepthwisePlan& own;
  const Axis vertical, horizontal;
  const View<T> source, result, weight;  // weight_grad: `result` is the upstream gradient
  const bool source_in_place, result_in_place;
  const bool relu;
  const bool pairs;                // the taps of a row share a pair of loads
  bool spreads = false;            // input_grad: four outputs at a time
  int64_t column_step = 1;         // with which the loops read
  int64_t residue_columns = 0;     // a packed row has the columns of each residue of the stride side by side
  int64_t source_row = 0;          // elements of a row that the loops read
  int64_t together = 1;            // channels that one call of the loops computes
  PhaseTaps* rows = nullptr;       // (vertical phases)
  SegmentList* columns = nullptr;  // (horizontal phases)
  A *zeros = nullptr, *weights = nullptr, *biases = nullptr, *sums = nullptr;

  int64_t taps() const { return z.r * z.s; }

  DepthwiseRows(const ConvProblem& problem, const Plan& p, const Buffers& b)
      : z(problem),
        plan(p),
        own(p.own<DepthwisePlan>()),
        vertical(vertical_axis(problem, pass)),
        horizontal(horizontal_axis(problem, pass)),
        source(view_of<T>(input_grad ? b.output : b.input, 1)),
        result(view_of<T>(input_grad ? b.input : b.output, 1)),
        weight(view_of<T>(b.weight, 1)),
        source_in_place(
            same_type && source.column == 1 &&
            (horizontal.step() == 1 || (horizontal.step() == 2 && vertical.step() == 2 && horizontal.dilation == 1))),
        result_in_place(same_type && result.column == 1 && horizontal.output_step() == 1),
        relu(b.relu),
        pairs(source_in_place && horizontal.step() == 2 && z.r == 3 && z.s == 3 && vertical.dilation == 1) {
    if (source_in_place) {
      column_step = horizontal.step();
      source_row = horizontal.source;
    } else {
      residue_columns = ceil_div(horizontal.source, horizontal.step());
      source_row = residue_columns * horizontal.step();
    }
    build_tables(b);
  }

  // ---- tables

  void build_tables(const Buffers& b) {
    Carver memory(b.workspace);
    rows = memory.take<PhaseTaps>(vertical.phases());
    columns = memory.take<SegmentList>(horizontal.phases() + 1);
    for (int64_t f = 0; f < vertical.phases(); ++f) rows[f] = PhaseTaps::of(vertical, f);
    const int64_t plane = vertical.source * horizontal.source;
    if (source_in_place && source.channel == plane && (result_in_place || !weight_grad))
      together = depthwise_together(vertical, horizontal);
    const int64_t zero_row = source_row + (together - 1) * plane;
    zeros = memory.take<A>(zero_row);
    memset(static_cast<void*>(zeros), 0, size_t(zero_row) * sizeof(A));
    if constexpr (weight_grad) {
      sums = memory.take<A>(own.splits * z.c * taps());
    } else {
      weights = memory.take<A>(same_type ? 0 : z.c * taps());
      biases = memory.take<A>(z.c);
      for (int64_t c = 0; c < z.c; ++c)
        biases[c] = b.bias ? read<A>(static_cast<const T*>(b.bias) + c * b.bias_stride) : A(0);
      if (!same_type) pack_weights();
    }
    for (int64_t f = 0; f < horizontal.phases(); ++f) {
      columns[f].taps = PhaseTaps::of(horizontal, f);
      list_segments(&columns[f], horizontal.count(f), depthwise_segments(horizontal, f), memory);
    }
    if constexpr (input_grad) {
      spreads = same_type && result.column == 1 && z.r == 3 && z.s == 3 && vertical.phases() == 2 &&
                horizontal.phases() == 2 && z.stride_h == 2 && z.stride_w == 2 && spreads_along(rows[0], rows[1]) &&
                spreads_along(columns[0].taps, columns[1].taps);
      if (spreads) {
        SegmentList& all = columns[2];
        all.taps = columns[1].taps;
        list_segments(&all, horizontal.count(0), depthwise_segments(horizontal, 0), memory);
      }
    }
  }
  // One position for the even outputs, and it and the next for the odd.
  static bool spreads_along(const PhaseTaps& even, const PhaseTaps& odd) {
    return even.count == 1 && odd.count == 2 && odd.offset == even.offset && odd.offset_step == 1;
  }

  // (C, R S)
  void pack_weights() {
    A* to = weights;
    for (int64_t c = 0; c < z.c; ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s, ++to)
          *to = read<A>(weight.data + c * weight.n + r * weight.row + s * weight.column);
  }

  void list_segments(SegmentList* list, int64_t count, int64_t most, Carver& memory) const {
    const PhaseTaps& taps = list->taps;
    const int64_t step = horizontal.step(), at_once = pairs ? L - 1 : L;
    const int64_t furthest = taps.count ? taps.offset + (taps.count - 1) * taps.offset_step : 0;
    const int64_t reach = pairs ? taps.offset + 2 * L - 1 : (at_once - 1) * step + furthest + (column_step - 1);
    list->segment = memory.take<ColumnSegment>(most);
    list->count = 0;
    for (int64_t first = 0; first < count; first += at_once) {
      ColumnSegment next{first, 1, lanes_between<A>(0, min_of(at_once, count - first)), false, nullptr};
      next.whole = count - first >= at_once &&
                   (taps.count == 0 || (first * step + taps.offset >= 0 && first * step + reach < horizontal.source));
      ColumnSegment* const last = list->count ? list->segment + list->count - 1 : nullptr;
      if (last && last->whole && next.whole) {
        ++last->count;
        continue;
      }
      next.tap = memory.take<ColumnTap>(taps.count);
      for (int64_t j = 0; j < taps.count; ++j) {
        const int64_t offset = taps.offset + j * taps.offset_step, position = first * step + offset;
        ColumnTap& tap = next.tap[j];
        if (column_step == 2) {
          // What lies behind the last output's position is not read, as it is not where the step is 1.
          const int64_t end = (pairs ? horizontal.source : min_of(horizontal.source, 2 * count + offset)) - position;
          tap = {position, lanes_between<A>(-position, end), lanes_between<A>(-position - L, end - L)};
        } else {
          const int64_t residue = floor_mod(offset, step), index = first + floor_div(offset, step);
          const int64_t length = ceil_div(max_of(0, horizontal.source - residue), step);
          tap = {residue * residue_columns + index, lanes_between<A>(-index, length - index) & next.lanes, 0};
        }
      }
      list->segment[list->count++] = next;
    }
  }

  // ---- rows

  static bool shared(const PhaseTaps& taps, int64_t step) {
    return taps.count > 1 && taps.offset_step == 1 && (step == 1 || step == 2);
  }
  static int chunk_taps(const PhaseTaps& taps, int64_t step) { return shared(taps, step) ? chunk_of(taps.count) : 1; }
  // How far apart in the list of rows two neighbouring outputs' first rows are: list_rows lists a shared row once.
  static int64_t list_step(const PhaseTaps& taps, int64_t step) { return shared(taps, step) ? step : taps.count; }

  // Lists the source rows that outputs [i, i + block) of a phase read; packs them where they are not read in place.
  void list_rows(const PhaseTaps& taps, const T* plane, int64_t i, int block, const A** list, A* packed) const {
    const int64_t step = vertical.step();
    const bool together = shared(taps, step);
    const int64_t lines = together ? 1 : block, each = together ? (block - 1) * step + taps.count : taps.count;
    for (int64_t b = 0; b < lines; ++b)
      for (int64_t j = 0; j < each; ++j, ++list, packed += source_row) {
        const int64_t row = (i + b) * step + taps.offset + j * taps.offset_step;
        if (row < 0 || row >= vertical.source) {
          *list = zeros;
        } else if (source_in_place) {
          *list = reinterpret_cast<const A*>(plane + row * source.row);
        } else {
          pack_row(packed, plane + row * source.row, source, horizontal.source, horizontal.step());
          *list = packed;
        }
      }
  }

  void pack_row(A* to, const T* from, const View<T>& view, int64_t count, int64_t step) const {
    for (int64_t residue = 0; residue < min_of(step, count); ++residue) {
      const int64_t each = ceil_div(count - residue, step);
      A* const line = to + residue * residue_columns;
      const T* const start = from + residue * view.column;
      if (step * view.column == 1) {
        copy_lanes(line, start, each);
      } else {
        for (int64_t w = 0; w < each; ++w) line[w] = read<A>(start + w * step * view.column);
      }
    }
  }
};

}  // namespace conv_ext
