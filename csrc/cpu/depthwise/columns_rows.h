// Rows for the depthwise loops whose lanes are columns: which of the source's they read, with which taps and masks, and
// the copies of those that cannot be read where they lie.
#pragma once

#include "columns_tile_backward.h"

namespace conv_ext {

// A row with the columns of each residue of `step` side by side.
template <class A, class T>
inline void pack_row(A* to, const T* from, int64_t column_stride, int64_t count, int64_t step) {
  const int64_t residue_columns = ceil_div(count, step);
  for (int64_t residue = 0; residue < min_of(step, count); ++residue) {
    const int64_t each = ceil_div(count - residue, step);
    A* const line = to + residue * residue_columns;
    const T* const start = from + residue * column_stride;
    if (step * column_stride == 1) {
      copy_lanes(line, start, each);
    } else {
      for (int64_t w = 0; w < each; ++w) line[w] = read<A>(start + w * step * column_stride);
    }
  }
}

// How the rows of the source are read.
template <class T, class A>
struct SourceRows {
  const DepthwisePlan& own;
  const Axis vertical, horizontal;
  const View<T> source;
  const A* zeros;

  // Lists the rows that outputs [i, i + block) of a phase read; packs them where they are not read in place.
  void list(const PhaseTaps& taps, const T* plane, int64_t i, int block, const A** list, A* packed) const {
    const int64_t step = vertical.step(), row_pitch = own.columns.row_pitch;
    const bool shared = outputs_share_rows(taps, step);
    const int64_t lines = shared ? 1 : block, each = shared ? (block - 1) * step + taps.count : taps.count;
    for (int64_t b = 0; b < lines; ++b)
      for (int64_t j = 0; j < each; ++j, ++list, packed += row_pitch) {
        const int64_t row = (i + b) * step + taps.offset_at(j);
        if (row < 0 || row >= vertical.source) {
          *list = zeros;
        } else if (own.source_in_place) {
          *list = reinterpret_cast<const A*>(plane + row * source.row);
        } else {
          pack_row(packed, plane + row * source.row, source.column, horizontal.source, horizontal.step());
          *list = packed;
        }
      }
  }
  // How far apart in the list two neighbouring outputs' first rows are.
  int64_t list_step(const PhaseTaps& taps) const {
    return outputs_share_rows(taps, vertical.step()) ? vertical.step() : taps.count;
  }
  // Taps of a column that the loops compute together.
  int chunk_taps(const PhaseTaps& taps) const {
    return outputs_share_rows(taps, vertical.step()) ? chunk_of(taps.count) : 1;
  }

  // What is prefetched while outputs from the i-th row on are computed: the rows that they lie over, further on.
  const A* ahead_of(const T* plane, int64_t i) const {
    return own.columns.prefetches ? reinterpret_cast<const A*>(plane + i * vertical.step() * source.row) + kPrefetch
                                  : nullptr;
  }
};

// Cuts a row of `count` outputs of one phase into segments. `segment` and `tap` are memory for as many as there may be.
template <class A>
SegmentList list_segments(const Axis& horizontal, const DepthwiseByColumns& plan, const PhaseTaps& taps, int64_t count,
                          ColumnSegment* segment, ColumnTap* tap) {
  constexpr int64_t L = kLanes<A>;
  const int64_t step = horizontal.step(), outputs = plan.shares_pairs ? L - 1 : L;
  const int64_t furthest = taps.count ? taps.last_offset() : 0;
  const int64_t reach =
      plan.shares_pairs ? taps.offset + 2 * L - 1 : (outputs - 1) * step + furthest + (plan.column_step - 1);
  SegmentList list{taps, segment, 0};
  for (int64_t first = 0; first < count; first += outputs) {
    ColumnSegment next{first, 1, lanes_between<A>(0, min_of(outputs, count - first)), false, tap};
    next.all_inside =
        count - first >= outputs &&
        (taps.count == 0 || (first * step + taps.offset >= 0 && first * step + reach < horizontal.source));
    ColumnSegment* const last = list.count ? segment + list.count - 1 : nullptr;
    if (last && last->all_inside && next.all_inside) {
      ++last->count;
      continue;
    }
    for (int64_t j = 0; j < taps.count; ++j, ++tap) {
      const int64_t offset = taps.offset_at(j), position = first * step + offset;
      if (plan.column_step == 2) {
        // What lies behind the last output's position is not read, as it is not where the step is 1.
        const int64_t behind = plan.shares_pairs ? horizontal.source : min_of(horizontal.source, 2 * count + offset);
        const int64_t end = behind - position;
        *tap = {position, lanes_between<A>(-position, end), lanes_between<A>(-position - L, end - L)};
      } else {
        const int64_t residue = floor_mod(offset, step), index = first + floor_div(offset, step);
        const int64_t length = ceil_div(max_of(0, horizontal.source - residue), step);
        const int64_t residue_columns = ceil_div(horizontal.source, step);
        *tap = {residue * residue_columns + index, lanes_between<A>(-index, length - index) & next.lanes, 0};
      }
    }
    segment[list.count++] = next;
  }
  return list;
}

}  // namespace conv_ext
