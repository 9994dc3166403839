// A box of one image in shared memory: some channels, rows and columns, with zeros where it reaches beyond the tensor.
//
// Staging is a plain copy, so that neither the width of the copies nor where the tensor lies can change a result.
#pragma once

#include "../coordinates.cuh"

namespace conv_ext {
namespace cuda {

// Division by a number that is known before the launch: exact where both are below 2^16.
struct Divider {
  uint32_t by, factor;  // factor: 2^32 / by, rounded down, plus 1

  CONV_EXT_DEVICE int32_t quotient(int32_t i) const {
    return by == 1 ? i : int32_t(uint64_t(uint32_t(i)) * factor >> 32);
  }
};
inline Divider divider(int64_t by) {
  return {uint32_t(by), by == 1 ? 0 : uint32_t((uint64_t(1) << 32) / uint64_t(by) + 1)};
}

// Lies as [channel][row][column], or for channels_last as [row][column][channel]. A line is what runs fastest.
struct Box {
  int32_t channels_last;
  int32_t rows, columns;
  Divider middle;  // rows, or columns
  int32_t line;    // numbers of a line, whole copies of it
  int32_t pitch_c, pitch_h, pitch_w;
  int32_t lanes_log;               // so many threads copy a line together, as a power of 2
  int32_t copy_bytes;              // 16, 8, 4, or one number
  int64_t from_c, from_h, from_w;  // strides of the tensor
};

// The box of `channels` channels from source.data on whose first row and column are h and w. Each thread copies its
// share of kBytes at a time; what is copied asynchronously is not waited for here.
template <bool channels_last, int kBytes, class T>
CONV_EXT_DEVICE void stage_copies(T* to, const Box& box, const Patches<T>& source, int32_t h, int32_t w,
                                  int32_t channels, int threads) {
  constexpr int kVector = kBytes / int(sizeof(T)), kBatch = kBytes < 4 ? 4 : 1;
  const int32_t lanes = 1 << box.lanes_log, lane = thread_index() & (lanes - 1),
                first = thread_index() >> box.lanes_log, step = threads >> box.lanes_log;
  const int32_t lines = channels_last ? box.rows * box.columns : channels * box.rows;
  const int32_t vectors = channels_last ? (channels + kVector - 1) / kVector : box.line / kVector;
  for (int32_t v = lane; v < vectors; v += lanes)
    for (int32_t begin = first; begin < lines; begin += kBatch * step) {
      T waiting[kBatch];  // numbers too short for an asynchronous copy: several on their way at once
      int32_t place[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int32_t l = begin + u * step, high = box.middle.quotient(l), low = l - high * int32_t(box.middle.by);
        const int32_t row = channels_last ? h + high : h + low, column = channels_last ? w + low : w + v * kVector;
        const int32_t channel = channels_last ? v * kVector : high;
        place[u] = l < lines ? high * (channels_last ? box.pitch_h : box.pitch_c) +
                                   low * (channels_last ? box.pitch_w : box.pitch_h)
                             : -1;
        const bool inside = l < lines && uint32_t(row) < uint32_t(source.h) && uint32_t(column) < uint32_t(source.w);
        const T* from = source.data + (inside ? channel * box.from_c + row * box.from_h + column * box.from_w : 0);
        if constexpr (kBytes < 4) {
          waiting[u] = inside ? *from : T{};
        } else {
          if (l < lines) copy_async<kBytes>(to + place[u] + v * kVector, from, inside);
        }
      }
      if constexpr (kBytes < 4) {
#pragma unroll
        for (int u = 0; u < kBatch; ++u)
          if (place[u] >= 0) to[place[u] + v] = waiting[u];
      }
    }
}

template <bool channels_last, class T>
CONV_EXT_DEVICE void stage_layout(T* to, const Box& box, const Patches<T>& source, int32_t h, int32_t w,
                                  int32_t channels, int threads) {
  if (box.copy_bytes == 16) return stage_copies<channels_last, 16>(to, box, source, h, w, channels, threads);
  if constexpr (sizeof(T) < 8)
    if (box.copy_bytes == 8) return stage_copies<channels_last, 8>(to, box, source, h, w, channels, threads);
  if constexpr (sizeof(T) < 4)
    if (box.copy_bytes == 4) return stage_copies<channels_last, 4>(to, box, source, h, w, channels, threads);
  stage_copies<channels_last, int(sizeof(T))>(to, box, source, h, w, channels, threads);
}
// kColumns: the box is known to lie as [channel][row][column].
template <bool kColumns, class T>
CONV_EXT_DEVICE void stage(T* to, const Box& box, const Patches<T>& source, int32_t h, int32_t w, int32_t channels,
                           int threads) {
  if constexpr (!kColumns)
    if (box.channels_last) return stage_layout<true>(to, box, source, h, w, channels, threads);
  stage_layout<false>(to, box, source, h, w, channels, threads);
}

// Where a box for the outputs from `output` on begins: the first source that any tap reads.
CONV_EXT_DEVICE int32_t first_source(const Axis& axis, int32_t output) {
  if (!axis.inverse) return output * axis.stride - axis.pad;
  const int32_t least = output + axis.pad - (axis.taps - 1) * axis.dilation;
  return least >= 0 ? (least + axis.stride - 1) / axis.stride : -(-least / axis.stride);
}

// Columns begin at a multiple of 16 bytes of the tensor's row, so that whole vectors are inside the tensor or outside.
template <class T>
CONV_EXT_DEVICE int32_t first_column(const Box& box, int32_t w) {
  return box.channels_last ? w : w & ~(16 / int32_t(sizeof(T)) - 1);
}

}  // namespace cuda
}  // namespace conv_ext
