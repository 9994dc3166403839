// The one map between output and source positions, and how a tile of the source is packed along an axis.
//
// Every pass reads its source along an axis as a gather:  position = i * step + offset(tap).
//   forward      i = p, source = input rows:            h = p * stride + r * dilation - pad
//   weight_grad  the same reads as forward
//   input_grad   the inverse: h receives from p where   h + pad = p * stride + r * dilation.
//                The outputs h fall into `stride` phases; the outputs of one phase f are h = f + i * stride,
//                and they read p = i + offset(r) for those taps r that belong to the phase: step = 1.
#pragma once

#include "plan_steps.h"
#include "problem.h"

namespace conv_ext {

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
inline int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t first, last;  // the last one is not of it
  int64_t count() const { return last - first; }
};

// `total` things are cut into so many parts, evenly: part i begins here.
inline int64_t part_begin(int64_t total, int64_t parts, int64_t i) { return total * i / parts; }
inline Range part_of(int64_t total, int64_t parts, int64_t i) {
  return {part_begin(total, parts, i), part_begin(total, parts, i + 1)};
}
// Of `count` positions, `step` apart from `at` on, those that lie in [0, size): others read the padding.
inline Range range_inside(int64_t at, int64_t step, int64_t count, int64_t size) {
  const int64_t first = min_of(at < 0 ? ceil_div(-at, step) : 0, count);
  return {first, max_of(first, min_of(at < size ? ceil_div(size - at, step) : 0, count))};
}

// Rows of the next block when `rest` rows are left: the largest power of two that fits the register tile.
inline int block_rows(int64_t rest, int largest) {
  int m = largest;
  while (m > rest) m /= 2;
  return m;
}

// Products of sizes, none of them negative, that stop at kHuge instead of overflowing: what is so large is beyond every
// limit, and several of them can still be added.
constexpr int64_t kHuge = int64_t(1) << 56;
inline int64_t product(int64_t a, int64_t b) {
  int64_t result = 0;
  return !checked_mul(a, b, &result) || result > kHuge ? kHuge : result;
}
template <class... Rest>
inline int64_t product(int64_t a, int64_t b, Rest... rest) {
  return product(product(a, b), rest...);
}

// The smallest number from `low` to `high` that fits, where larger ones fit once one does; `high` if none does. A
// search by halves: at most 63 steps.
template <class Fits>
inline int64_t smallest_that_fits(int64_t low, int64_t high, Fits fits) {
  while (low < high) {
    CONV_EXT_PLAN_STEP();
    const int64_t middle = low + (high - low) / 2;
    if (fits(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Makes a plan smaller until it fits: shrink() halves something, or says that nothing is left to halve. No number of 64
// bits is halved more often than this bound allows for four of them.
template <class Fits, class Shrink>
inline void shrink_until(Fits fits, Shrink shrink) {
  for (int step = 0; step < 4 * 64 && !fits(); ++step) {
    CONV_EXT_PLAN_STEP();
    if (!shrink()) return;
  }
}

struct Axis {
  bool inverse;                   // input_grad
  int64_t taps;                   // R or S
  int64_t source;                 // extent that is read:    H or W; P or Q for input_grad
  int64_t output;                 // extent that is written: P or Q; H or W for input_grad
  int64_t stride, dilation, pad;  // pad: before the first position

  int64_t step() const { return inverse ? 1 : stride; }
  int64_t phases() const { return inverse ? max_of(1, min_of(stride, output)) : 1; }
  int64_t output_step() const { return inverse ? stride : 1; }
  int64_t count(int64_t phase) const { return inverse ? (output - 1 - phase) / stride + 1 : output; }
  int64_t longest_count() const { return output > 0 ? count(0) : 0; }
  // The phase that a tap belongs to; phases() or more: it touches no output.
  int64_t phase_of(int64_t tap) const { return inverse ? floor_mod(tap * dilation - pad, stride) : 0; }
  int64_t offset(int64_t tap) const {
    return inverse ? -floor_div(tap * dilation - pad, stride) : tap * dilation - pad;
  }
};

inline Axis vertical_axis(const ConvProblem& z, Pass pass) {
  bool inverse = pass == Pass::InputGrad;
  return Axis{inverse, z.r, inverse ? z.p : z.h, inverse ? z.h : z.p, z.stride_h, z.dilation_h, z.pad_top};
}
inline Axis horizontal_axis(const ConvProblem& z, Pass pass) {
  bool inverse = pass == Pass::InputGrad;
  return Axis{inverse, z.s, inverse ? z.q : z.w, inverse ? z.w : z.q, z.stride_w, z.dilation_w, z.pad_left};
}

// How many source rows a tile of `rows` outputs spans at most, the padding included.
inline int64_t span_rows(const Axis& a, int64_t rows) {
  const int64_t reach = (a.taps - 1) * a.dilation;
  return a.inverse ? (rows - 1 + reach) / a.stride + 1 : (rows - 1) * a.stride + reach + 1;
}

inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    CONV_EXT_PLAN_STEP();
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// A run of neighbouring packed positions: position j holds the source at (first + i0 + j) * step + residue, for a
// tile whose first output is i0. With a stride each residue has runs of its own, so that neighbouring outputs always
// find their operands side by side; with a large dilation the gaps between the taps are not packed.
struct Region {
  int64_t first, residue, length;
};

struct PackedExtent {
  int64_t regions, positions, longest;
};

// Visits every tap once with the region it falls into: visit(tap, region index, region so far, position in it).
template <class Visit>
inline PackedExtent walk_regions(const Axis& axis, int64_t tile, Visit visit) {
  PackedExtent extent{0, 0, 0};
  const int64_t step = axis.step();
  // Taps of one residue are `period` apart; along such a chain their positions ascend.
  const int64_t period = step / greatest_common_divisor(step, axis.dilation);
  for (int64_t start = 0; start < min_of(period, axis.taps); ++start) {
    Region region{0, 0, 0};
    for (int64_t j = start; j < axis.taps; j += period) {
      CONV_EXT_PLAN_STEP();
      const int64_t tap = axis.inverse ? axis.taps - 1 - j : j;
      const int64_t offset = axis.offset(tap);
      const int64_t index = floor_div(offset, step);
      const bool opens = j == start || index - region.first > region.length;
      if (opens) {
        extent.positions += region.length;
        extent.regions += 1;
        region = Region{index, floor_mod(offset, step), tile};
      } else {
        region.length = max_of(region.length, index - region.first + tile);
      }
      extent.longest = max_of(extent.longest, region.length);
      visit(tap, extent.regions - 1, region, index - region.first);
    }
    extent.positions += region.length;
  }
  return extent;
}

// What a walk over the taps adds up to, without the walk where that can be said at once: taps that lie further apart
// than a tile have a region each, others share one with their chain.
inline PackedExtent packed_extent(const Axis& axis, int64_t tile) {
  const PackedExtent apart{axis.taps, product(axis.taps, tile), tile};
  if (axis.inverse) {
    // One chain; neighbours are dilation / stride apart, rounded down or up.
    if (axis.dilation / axis.stride > tile) return apart;
    const int64_t reach = axis.offset(0) - axis.offset(axis.taps - 1);
    if (ceil_div(axis.dilation, axis.stride) > tile) {  // by `tile`, or by one more, which ends a region
      constexpr int64_t kFewTaps = 512;
      if (axis.taps <= kFewTaps) return walk_regions(axis, tile, [](int64_t, int64_t, const Region&, int64_t) {});
      const int64_t joined = ceil_div(axis.stride, axis.dilation % axis.stride);  // at most
      return {reach - (axis.taps - 1) * tile + 1, product(axis.taps, tile), product(min_of(axis.taps, joined), tile)};
    }
    const int64_t length = reach + tile;
    return {1, length, length};
  }
  const int64_t common = greatest_common_divisor(axis.stride, axis.dilation);
  const int64_t residues = axis.stride / common, distance = axis.dilation / common;  // of neighbours in one chain
  if (distance > tile) return apart;
  const int64_t chains = min_of(residues, axis.taps), longest = ceil_div(axis.taps, chains);
  return {chains, product(chains, tile) + product(axis.taps - chains, distance), product(longest - 1, distance) + tile};
}

}  // namespace conv_ext
