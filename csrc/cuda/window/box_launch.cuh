// From the plan's box to what a kernel is told of it, with the width of its copies.
#pragma once

#include "box.cuh"
#include "../launch.cuh"

namespace conv_ext {
namespace cuda {

// Whether every position's first channel is aligned to 16 bytes, with its neighbours beside it.
inline bool channels_lie_in_vectors(const TensorRef& t, int64_t element_size) {
  const int64_t vector = 16 / element_size;
  return t.stride[1] == 1 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride[0] % vector == 0 &&
         t.stride[2] % vector == 0 && t.stride[3] % vector == 0;
}

// `width` and `channels` are those of the whole tensor: a copy of several numbers lies inside or outside as a whole.
template <class T>
Box box_of(const ConvProblem& z, const WindowBox& shape, const TensorRef& t, int64_t width, int64_t channels,
           int64_t together) {
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
  const auto whole = [&](int64_t bytes) {
    const int64_t vector = bytes / size;
    const bool along = z.channels_last ? t.stride[1] == 1 && channels % vector == 0 && together % vector == 0
                                       : t.stride[3] == 1 && width % vector == 0;
    const int64_t other = z.channels_last ? t.stride[3] : t.stride[1];
    return along && reinterpret_cast<uintptr_t>(t.data) % size_t(bytes) == 0 && t.stride[0] % vector == 0 &&
           t.stride[2] % vector == 0 && other % vector == 0;
  };
  box.copy_bytes = int32_t(size);
  for (int64_t bytes = 16; bytes > size; bytes /= 2)
    if (whole(bytes)) {
      box.copy_bytes = int32_t(bytes);
      break;
    }
  const int64_t vectors = shape.line * size / box.copy_bytes;
  while (box.lanes_log < 5 && (int64_t(1) << box.lanes_log) < vectors) ++box.lanes_log;
  return box;
}

}  // namespace cuda
}  // namespace conv_ext
