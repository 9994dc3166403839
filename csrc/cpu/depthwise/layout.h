// What the plan of the depthwise algorithm says, and the extents of its tables.
#pragma once

#include "../../common/indexing.h"

namespace conv_ext {

struct DepthwisePlan {
  int64_t tile_h, tile_w;  // outputs of a task
  int64_t task_groups;     // channels of a task, where lanes are columns
  int64_t tile_c;          // channels of a task, where lanes are channels and rows are packed
  int64_t splits;          // weight_grad: into how many parts, added in order, the reduction is cut
};

// How many taps of an axis one phase has at most; how many source rows are listed for a block of outputs;
// how many segments a row of outputs is cut into.
inline int64_t depthwise_phase_taps(const Axis& axis) {
  return axis.inverse ? ceil_div(axis.taps, axis.stride / greatest_common_divisor(axis.stride, axis.dilation))
                      : axis.taps;
}
inline int64_t depthwise_listed_rows(const Axis& vertical, int64_t block) {
  const int64_t taps = depthwise_phase_taps(vertical);
  return vertical.dilation == 1 && vertical.step() <= 2 ? max_of(block, (block - 1) * vertical.step() + taps)
                                                        : block * taps;
}
// Where lanes are channels: rows that the outputs of a call of the loops read, three of 3x3 or one.
inline int64_t depthwise_lines(const Axis& vertical) {
  return max_of(depthwise_phase_taps(vertical), 2 * vertical.step() + 3);
}
// Channels of small maps that are computed by one call of the loops.
inline int64_t depthwise_together(const Axis& vertical, const Axis& horizontal) {
  return min_of(16, max_of(1, 4096 / max_of(1, product(vertical.source, horizontal.source))));
}
inline int64_t depthwise_segments(const Axis& horizontal, int64_t phase) {
  // Outputs that a tap takes beyond the source, the whole ones in the middle, and the last vector's on either side.
  const int64_t count = horizontal.count(phase),
                reach = (horizontal.taps - 1) * horizontal.dilation + horizontal.stride;
  const int64_t before = horizontal.inverse ? reach : horizontal.pad;
  const int64_t furthest = (count - 1) * horizontal.stride + reach - horizontal.pad;
  const int64_t behind = horizontal.inverse ? reach : max_of(0, furthest - horizontal.source);
  return min_of(count, before + behind + 4);
}

}  // namespace conv_ext
