// weight_grad of few channels: depthwise layers, small groups, first layers.
//
// A block brings boxes of the input and of the upstream gradient into shared memory, tile after tile, the next one
// while it works on this one. A thread forms kRows x kColumns sums over its share of the positions: kRows channels of
// the gradient, kColumns taps and channels of the input. At the end the shares are added in their order, and the sums
// of blocks that have other tiles likewise by window_reduce.
#pragma once

#include "box.cuh"
#include "../epilogue.cuh"

namespace conv_ext {
namespace cuda {

constexpr int kGradThreads = 256;

template <class T, class Sum>
struct WindowGradParameters {
  Axis vertical, horizontal;
  Box input_box, grad_box;
  Patches<T> input, grad;
  int64_t input_n, grad_n;
  int32_t groups, rows, channels;                // K/g, C/g
  int32_t tile_groups, tile_rows, tile_columns;  // of a block: groups, rows and blocks of columns of each
  int32_t tiles_g, tiles_m, tiles_c, splits;     // blocks
  int32_t tile_h, tile_w, tiles_h, tiles_w;
  int64_t tiles, step;      // tiles of all images, and those of a split
  int32_t lanes;            // threads that share the positions
  int32_t blocks_m, items;  // blocks of rows in a tile; sums of threads
  Divider by_lanes, by_items, by_blocks_m, in_group, by_tile_w;
  int32_t stage_bytes, grad_at;
  int64_t to_c, to_h, to_w;
  Result<T, Sum> result;
  int64_t split_elements;
};

// Any taps: a thread goes through the positions of a tile one by one.
template <class T, class Sum, int kRowsOfThread>
struct AnyGrad {
  static constexpr int kRows = kRowsOfThread, kColumns = 9;
  Sum sums[kRows][kColumns];
  int32_t offset[kColumns];  // of this thread's columns in the input's box
  int32_t row, row_step;     // of its rows in the gradient's

  CONV_EXT_DEVICE void start(const WindowGradParameters<T, Sum>& p, int32_t first_row, int32_t between_rows,
                             int32_t first_channel, int32_t column) {
    const int32_t taps = p.vertical.taps * p.horizontal.taps;
    row = first_row * p.grad_box.pitch_c;
    row_step = between_rows * p.grad_box.pitch_c;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int32_t c = (column + j) / taps, tap = (column + j) % taps, r = tap / p.horizontal.taps,
                    s = tap % p.horizontal.taps;
      offset[j] = c >= p.channels
                      ? 0
                      : (first_channel + c) * p.input_box.pitch_c + r * p.vertical.dilation * p.input_box.pitch_h +
                            s * p.horizontal.dilation * p.input_box.pitch_w;
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i][j] = 0;
    }
  }
  CONV_EXT_DEVICE void add(const WindowGradParameters<T, Sum>& p, const T* input, const T* grad, int32_t lane,
                           int32_t rows, int32_t columns) {
    const int32_t input_h = p.vertical.stride * p.input_box.pitch_h,
                  input_w = p.horizontal.stride * p.input_box.pitch_w;
    for (int32_t i = lane; i < rows * p.tile_w; i += p.lanes) {
      const int32_t y = p.by_tile_w.quotient(i), x = i - y * p.tile_w;
      if (x >= columns) continue;
      const T* const from = input + y * input_h + x * input_w;
      const T* const times = grad + row + y * p.grad_box.pitch_h + x * p.grad_box.pitch_w;
      Sum g[kRows];
#pragma unroll
      for (int m = 0; m < kRows; ++m) g[m] = Sum(widen(times[m * row_step]));
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const Sum value = Sum(widen(from[offset[j]]));
#pragma unroll
        for (int m = 0; m < kRows; ++m) sums[m][j] = fused(g[m], value, sums[m][j]);
      }
    }
  }
};

// kTaps x kTaps without dilation, for one pair of channels: a thread takes strips of kHeight outputs below one another.
template <class T, class Sum, int kTaps, int kStep>
struct FixedGrad {
  static constexpr int kRows = 1, kColumns = kTaps * kTaps, kHeight = 8 / kStep;
  Sum sums[kRows][kColumns];
  int32_t row, channel;

  CONV_EXT_DEVICE void start(const WindowGradParameters<T, Sum>& p, int32_t first_row, int32_t, int32_t first_channel,
                             int32_t) {
    row = first_row * p.grad_box.pitch_c;
    channel = first_channel * p.input_box.pitch_c;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sums[0][j] = 0;
  }
  CONV_EXT_DEVICE void add(const WindowGradParameters<T, Sum>& p, const T* input, const T* grad, int32_t lane,
                           int32_t rows, int32_t columns) {
    const int32_t pitch_h = p.input_box.pitch_h, pitch_w = p.input_box.pitch_w;
    const int32_t strips = (rows + kHeight - 1) / kHeight * p.tile_w;
    for (int32_t i = lane; i < strips; i += p.lanes) {
      const int32_t strip = p.by_tile_w.quotient(i), x = i - strip * p.tile_w, y = strip * kHeight;
      if (x >= columns) continue;
      const T* from = input + channel + y * kStep * pitch_h + x * kStep * pitch_w;
      const T* const times = grad + row + y * p.grad_box.pitch_h + x * p.grad_box.pitch_w;
      Sum g[kHeight];
#pragma unroll
      for (int e = 0; e < kHeight; ++e) g[e] = Sum(widen(times[e * p.grad_box.pitch_h]));
#pragma unroll
      for (int k = 0; k < (kHeight - 1) * kStep + kTaps; ++k) {
        Sum value[kTaps];
#pragma unroll
        for (int s = 0; s < kTaps; ++s) value[s] = Sum(widen(from[s * pitch_w]));
        from += pitch_h;
#pragma unroll
        for (int e = 0; e < kHeight; ++e) {
          const int r = k - e * kStep;
          // Rows beyond the outputs add nothing, whatever lies there.
          if (r < 0 || r >= kTaps || y + e >= rows) continue;
#pragma unroll
          for (int s = 0; s < kTaps; ++s) sums[0][r * kTaps + s] = fused(g[e], value[s], sums[0][r * kTaps + s]);
        }
      }
    }
  }
};

// A tile of one image: its outputs that there are, where its boxes begin, and its first numbers in them.
struct WindowGradTile {
  int32_t image, rows, columns, h, w, y, x, input_at, grad_at;
};
template <class T, class Sum>
CONV_EXT_DEVICE WindowGradTile grad_tile(const WindowGradParameters<T, Sum>& p, int64_t index) {
  const Digits d = digits_of(index, p.tiles_h, p.tiles_w);
  const int32_t y = d.middle * p.tile_h, x = d.low * p.tile_w, w = first_source(p.horizontal, x);
  const int32_t rows = p.vertical.output - y, columns = p.horizontal.output - x;
  WindowGradTile tile{d.high,
                      rows < p.tile_h ? rows : p.tile_h,
                      columns < p.tile_w ? columns : p.tile_w,
                      first_source(p.vertical, y),
                      first_column<T>(p.input_box, w),
                      y,
                      first_column<T>(p.grad_box, x),
                      0,
                      0};
  tile.input_at = (w - tile.w) * p.input_box.pitch_w;
  tile.grad_at = (x - tile.x) * p.grad_box.pitch_w;
  return tile;
}

// What a block computes, and a thread of it.
struct WindowGradPlace {
  int32_t tile_c, m0, group0, split;     // of the block: blocks of columns, rows, groups, a part of the positions
  int32_t rows_here, groups_here;        // that there are
  int32_t item, lane, group, first_row;  // of the thread: its sums, its share of the positions
  int32_t column;
  bool there;
};
template <int kColumns, class T, class Sum>
CONV_EXT_DEVICE WindowGradPlace window_grad_place(const WindowGradParameters<T, Sum>& p) {
  WindowGradPlace at;
  uint32_t rest = uint32_t(block_index());
  at.tile_c = int32_t(rest % uint32_t(p.tiles_c));
  rest /= uint32_t(p.tiles_c);
  at.m0 = int32_t(rest % uint32_t(p.tiles_m)) * p.tile_rows;
  rest /= uint32_t(p.tiles_m);
  at.group0 = int32_t(rest % uint32_t(p.tiles_g)) * p.tile_groups;
  at.split = int32_t(rest / uint32_t(p.tiles_g));
  at.groups_here = p.groups - at.group0 < p.tile_groups ? p.groups - at.group0 : p.tile_groups;
  at.rows_here = p.rows - at.m0 < p.tile_rows ? p.rows - at.m0 : p.tile_rows;

  // Neighbouring threads: neighbouring channels in channels_last, else neighbouring positions.
  const int32_t thread = thread_index();
  const Divider& by = p.grad_box.channels_last ? p.by_items : p.by_lanes;
  const int32_t high = by.quotient(thread), low = thread - high * int32_t(by.by);
  at.item = p.grad_box.channels_last ? low : high;
  at.lane = p.grad_box.channels_last ? high : low;
  const int32_t column_block = p.by_blocks_m.quotient(at.item), block = at.item - column_block * p.blocks_m;
  at.group = p.in_group.quotient(block);
  at.first_row = block - at.group * int32_t(p.in_group.by);
  at.column = (at.tile_c * p.tile_columns + column_block) * kColumns;
  at.there = at.item < p.items && at.lane < p.lanes && at.group < at.groups_here;
  return at;
}

// Sends for the two boxes of a tile.
template <class T, class Sum>
CONV_EXT_DEVICE void stage_grad_tile(const WindowGradParameters<T, Sum>& p, const WindowGradPlace& at,
                                     const WindowGradTile& tile, T* to) {
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const bool input = i == 0;
    Patches<T> source = input ? p.input : p.grad;
    const Box box = input ? p.input_box : p.grad_box;
    source.data += tile.image * (input ? p.input_n : p.grad_n) +
                   (input ? int64_t(at.group0) * p.channels : int64_t(at.group0) * p.rows + at.m0) * box.from_c;
    const int32_t channels = input                ? at.groups_here * p.channels
                             : p.tile_groups == 1 ? at.rows_here
                                                  : at.groups_here * p.rows;
    stage<false>(to + (input ? 0 : p.grad_at), box, source, input ? tile.h : tile.y, input ? tile.w : tile.x, channels,
                 kGradThreads);
  }
}

// Adds up the lanes' sums in their order, and writes them. In shared memory a row of sums lies after the other: of each
// item, the lanes' one after the other, an odd number of places apart.
template <class T, class Sum, class Window>
CONV_EXT_DEVICE void add_lanes(const WindowGradParameters<T, Sum>& p, const WindowGradPlace& at, const Window& window) {
  Sum* const shared = reinterpret_cast<Sum*>(shared_memory());
  const int32_t taps = p.vertical.taps * p.horizontal.taps, pitch = p.lanes | 1;
#pragma unroll
  for (int i = 0; i < Window::kRows; ++i) {
    if (at.item < p.items && at.lane < p.lanes) {
#pragma unroll
      for (int j = 0; j < Window::kColumns; ++j) shared[(j * p.items + at.item) * pitch + at.lane] = window.sums[i][j];
    }
    barrier();
    for (int32_t k = thread_index(); k < p.items * Window::kColumns; k += kGradThreads) {
      Sum sum = shared[k * pitch];
      for (int32_t l = 1; l < p.lanes; ++l) sum += shared[k * pitch + l];
      const int32_t j = p.by_items.quotient(k), of = k - j * p.items;
      const int32_t columns_of = p.by_blocks_m.quotient(of), block_of = of - columns_of * p.blocks_m;
      const int32_t group_of = p.in_group.quotient(block_of);
      const int32_t m = at.m0 + block_of - group_of * int32_t(p.in_group.by) + i * int32_t(p.in_group.by);
      const int32_t column_of = (at.tile_c * p.tile_columns + columns_of) * Window::kColumns + j;
      const int32_t c = column_of / taps, tap = column_of % taps;
      if (group_of >= at.groups_here || m >= p.rows || columns_of >= p.tile_columns || c >= p.channels) continue;
      Result<T, Sum> result = p.result;
      if (result.partial != nullptr) result.partial += at.split * p.split_elements;
      result.write(int64_t(at.group0 + group_of) * p.rows + m,
                   c * p.to_c + tap / p.horizontal.taps * p.to_h + tap % p.horizontal.taps * p.to_w, sum);
    }
    barrier();
  }
}

template <class T, class Sum, class Window>
CONV_EXT_CROWDED_KERNEL(kGradThreads, 2)
window_grad(WindowGradParameters<T, Sum> p) {
  const WindowGradPlace at = window_grad_place<Window::kColumns>(p);
  Window window;
  window.start(p, at.group * (p.tile_groups == 1 ? 0 : p.rows) + at.first_row, int32_t(p.in_group.by),
               at.group * p.channels, at.column);

  const int64_t begin = at.split * p.step, limit = begin + p.step, end = limit < p.tiles ? limit : p.tiles;
  for (int64_t next = begin; next <= end; ++next) {
    // The tile after this one, whose boxes go to the other half of the memory.
    T* const half = reinterpret_cast<T*>(shared_memory() + (next - begin) % 2 * p.stage_bytes);
    if (next < end) stage_grad_tile(p, at, grad_tile(p, next), half);
    commit_copies();
    if (next == begin) continue;
    wait_copies<1>();
    barrier();
    const WindowGradTile here = grad_tile(p, next - 1);
    const T* const now = reinterpret_cast<const T*>(shared_memory() + (next - 1 - begin) % 2 * p.stage_bytes);
    if (at.there) window.add(p, now + here.input_at, now + p.grad_at + here.grad_at, at.lane, here.rows, here.columns);
    barrier();  // all threads have done with this tile, whose place is filled anew
  }
  wait_copies<0>();
  barrier();
  add_lanes(p, at, window);
}

// Adds up the parts of splits: each sum's are shared by 8 threads, whose sums are added in their order.
constexpr int kSumLanes = 8, kSumThreads = 256;

template <class T, class Sum>
CONV_EXT_KERNEL(kSumThreads)
window_reduce(ReduceParameters<T, Sum> p) {
  constexpr int kElements = kSumThreads / kSumLanes;
  Sum* const shared = reinterpret_cast<Sum*>(shared_memory());
  const int64_t elements = p.size[0] * p.size[1] * p.size[2] * p.size[3];
  const int thread = thread_index(), element = thread % kElements;
  const int64_t index = block_index() * kElements + element;
  Sum sum = 0;
  if (index < elements)
    for (int split = thread / kElements; split < p.splits; split += kSumLanes)
      sum += p.partial[split * elements + index];
  shared[thread] = sum;
  barrier();
  if (thread >= kElements || index >= elements) return;
  for (int lane = 1; lane < kSumLanes; ++lane) sum += shared[lane * kElements + element];
  int64_t rest = index, offset = 0;
  for (int d = 3; d >= 0; --d) {
    offset += rest % p.size[d] * p.stride[d];
    rest /= p.size[d];
  }
  p.result.write_to(0, p.result.data + offset, sum);
}

}  // namespace cuda
}  // namespace conv_ext
