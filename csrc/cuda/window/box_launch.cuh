// From the plan's box to what a kernel is told of it.
#pragma once

#include "box.cuh"
#include "../launch.cuh"

namespace conv_ext {
namespace cuda {

template <class T>
Box box_of(const ConvProblem& z, const WindowBox& shape, const TensorRef& t, int64_t copy_bytes) {
  const int64_t size = int64_t(sizeof(T));
  Box box{};
  box.rows = int32_t(shape.rows);
  box.columns = int32_t(shape.columns);
  box.channels_last = z.channels_last;
  box.middle = divider(z.channels_last ? shape.columns : shape.rows);
  box.line = int32_t(shape.line);
  box.pitch_w = z.channels_last ? box.line : 1;
  box.pitch_h = z.channels_last ? box.columns * box.line : box.line;
  box.pitch_c = z.channels_last ? 1 : box.rows * box.line + int32_t(shape.pad);
  box.from_c = t.stride[1];
  box.from_h = t.stride[2];
  box.from_w = t.stride[3];
  box.copy_bytes = int32_t(copy_bytes);
  const int64_t copies = shape.line * size / copy_bytes;
  while (box.lanes_log < 5 && (int64_t(1) << box.lanes_log) < copies) ++box.lanes_log;
  return box;
}

}  // namespace cuda
}  // namespace conv_ext
