// forward and input_grad of few channels: depthwise layers, small groups, first layers.
//
// A block brings the box of the source that its outputs read into shared memory, and their weights. A thread then forms
// the sums of kRows neighbouring channels at kHeight outputs below one another. Each sum runs over source channels and
// taps in their order, whatever the tiles are.
#pragma once

#include "box.cuh"
#include "../epilogue.cuh"

namespace conv_ext {
namespace cuda {

constexpr int kWindowThreads = 128;  // at most

template <class T, class Sum>
struct WindowParameters {
  Axis vertical, horizontal;
  Box box;
  Patches<T> source;
  int64_t from_n;
  int32_t groups, rows, channels;                         // of the result and of the source, in a group
  int32_t height, width;                                  // of the result
  int32_t tile_groups, tile_rows, tile_h, tile_w, chunk;  // of a block; chunk: channels that it stages at once
  int32_t tiles_g, tiles_m, tiles_h, tiles_w;             // blocks of an image
  int32_t origin_h, origin_w;                             // where the first tile begins
  int32_t items, threads;                                 // what threads compute, one after the other
  Divider first, second, phase_h, phase_w, group, pitch_m, taps, taps_w;
  int32_t weights_at, phases_at;  // bytes in shared memory
  const T* weights;
  int64_t weight_group, weight_m, weight_c, weight_h, weight_w;  // between groups, result and source channels, taps
  int64_t to_n, to_h, to_w;
  int32_t vectors;  // neighbouring channels may be written at once
  Result<T, Sum> result;
};

// What a thread computes: row of the box's weights, and outputs by their number in the tile.
struct WindowItem {
  int32_t m, x, y;
};
template <class T, class Sum>
CONV_EXT_DEVICE WindowItem window_item(const WindowParameters<T, Sum>& p, int32_t item, int rows) {
  const int32_t rest = p.first.quotient(item), low = item - rest * int32_t(p.first.by);
  const int32_t high = p.second.quotient(rest), middle = rest - high * int32_t(p.second.by);
  if (p.box.channels_last) return {low * rows, middle, high};  // neighbouring threads: neighbouring channels
  return {high * rows, low, middle};
}

// Any taps, strides and dilations; outputs of a thread belong to one phase of the stride.
template <class T, class Sum, int kRowsOfThread, int kHeightOfThread>
struct AnyWindow {
  static constexpr int kRows = kRowsOfThread, kHeight = kHeightOfThread, kWidth = 1;
  static constexpr bool kPhases = true;
  static constexpr int kBlocks = 4;  // resident on a multiprocessor, for which registers must do
  struct alignas(kRows * sizeof(Sum) < 16 ? kRows * sizeof(Sum) : 16) Weights {
    Sum row[kRows];
  };
  Sum sums[kRows][kHeight][kWidth];
  PhaseAxis down, across;
  int32_t y, x, row, column;

  CONV_EXT_DEVICE int32_t step() const { return down.output_step; }

  // row, column: in the box, of what tap 0 reads at the first output.
  CONV_EXT_DEVICE void start(const WindowParameters<T, Sum>& p, const WindowItem& item, const PhaseAxis* phases,
                             int32_t y0, int32_t x0, int32_t h0, int32_t w0, int32_t) {
    const int32_t fy = p.phase_h.quotient(item.y * kHeight), fx = p.phase_w.quotient(item.x);
    down = phases[fy];
    across = phases[(p.vertical.inverse ? p.vertical.stride : 1) + fx];
    const int32_t i = y0 / down.output_step + item.y * kHeight - fy * int32_t(p.phase_h.by),
                  j = x0 / across.output_step + item.x - fx * int32_t(p.phase_w.by);
    y = fy + i * down.output_step;
    x = fx + j * across.output_step;
    row = i * down.step + down.first - h0;
    column = j * across.step + across.first - w0;
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int e = 0; e < kHeight; ++e) sums[m][e][0] = 0;
  }
  template <bool kColumns>
  CONV_EXT_DEVICE void add(const WindowParameters<T, Sum>& p, const T* box, const Sum* weights, int32_t channels) {
    const int32_t pitch_c = p.box.pitch_c, pitch_h = p.box.pitch_h, pitch_w = kColumns ? 1 : p.box.pitch_w,
                  pitch_m = int32_t(p.pitch_m.by);
    const int32_t between = down.step * pitch_h;
    for (int32_t c = 0; c < channels; ++c)
      for (int32_t r = 0; r < down.taps; ++r) {
        const T* from = box + c * pitch_c + (row + r * down.delta) * pitch_h + column * pitch_w;
        const int32_t tap = (c * p.vertical.taps + down.first_tap + r * down.tap_step) * p.horizontal.taps;
        const Sum* weight = weights + (tap + across.first_tap) * pitch_m;
        for (int32_t s = 0; s < across.taps; ++s) {
          const Weights w = *reinterpret_cast<const Weights*>(weight);
#pragma unroll
          for (int e = 0; e < kHeight; ++e) {
            const Sum value = Sum(widen(from[e * between]));
#pragma unroll
            for (int m = 0; m < kRows; ++m) sums[m][e][0] = fused(value, w.row[m], sums[m][e][0]);
          }
          from += across.delta * pitch_w;
          weight += across.tap_step * pitch_m;
        }
      }
  }
};

// The same where channels lie together: four source channels are read at once, within each tap.
template <class T, class Sum, int kRowsOfThread, int kHeightOfThread>
struct ChannelsWindow : AnyWindow<T, Sum, kRowsOfThread, kHeightOfThread> {
  using Any = AnyWindow<T, Sum, kRowsOfThread, kHeightOfThread>;
  static constexpr int kBlocks = kRowsOfThread > 4 ? 3 : 4;
  struct alignas(4 * sizeof(T)) Four {
    T number[4];
  };
  struct alignas(16) Weights {
    Sum row[4];
  };

  template <bool kColumns>
  CONV_EXT_DEVICE void add(const WindowParameters<T, Sum>& p, const T* box, const Sum* weights, int32_t channels) {
    const PhaseAxis &down = this->down, &across = this->across;
    const int32_t pitch_h = p.box.pitch_h, pitch_w = p.box.pitch_w, pitch_m = int32_t(p.pitch_m.by);
    const int32_t between = down.step * pitch_h, between_c = int32_t(p.taps.by) * pitch_m;
    for (int32_t r = 0; r < down.taps; ++r)
      for (int32_t s = 0; s < across.taps; ++s) {
        const T* from = box + (this->row + r * down.delta) * pitch_h + (this->column + s * across.delta) * pitch_w;
        const int32_t tap =
            (down.first_tap + r * down.tap_step) * p.horizontal.taps + across.first_tap + s * across.tap_step;
        const Sum* weight = weights + tap * pitch_m;
        for (int32_t c = 0; c < channels; c += 4, from += 4, weight += 4 * between_c) {
#pragma unroll
          for (int half = 0; half < Any::kRows; half += 4) {  // more weights would not fit into registers
            Weights w[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) w[i] = *reinterpret_cast<const Weights*>(weight + i * between_c + half);
#pragma unroll
            for (int e = 0; e < Any::kHeight; ++e) {
              const Four four = *reinterpret_cast<const Four*>(from + e * between);
#pragma unroll
              for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int m = 0; m < 4; ++m)
                  this->sums[half + m][e][0] =
                      fused(Sum(widen(four.number[i])), w[i].row[m], this->sums[half + m][e][0]);
            }
          }
        }
      }
  }
};

// kTaps x kTaps without dilation, a row of one result channel: the weights and one row of the window are in registers.
// With a strided input_grad a thread forms kStep outputs side by side, of which each phase is known when compiling.
template <class T, class Sum, int kTaps, int kStep, bool kInverse, int kHeightOfThread>
struct FixedWindow {
  static constexpr int kRows = 1, kHeight = kHeightOfThread, kWidth = kInverse ? kStep : 1;
  static constexpr bool kPhases = false;
  static constexpr int kBlocks = 4;
  static constexpr int kBefore = kInverse ? (kTaps - 1) / kStep : 0;  // sources before that of the first output
  static constexpr int kDown = kInverse ? kBefore + (kHeight - 1) / kStep + 1 : (kHeight - 1) * kStep + kTaps;
  static constexpr int kAcross = kInverse ? kBefore + (kWidth - 1) / kStep + 1 : (kWidth - 1) * kStep + kTaps;
  Sum sums[kRows][kHeight][kWidth];
  int32_t y, x, row, column;

  CONV_EXT_DEVICE int32_t step() const { return 1; }

  CONV_EXT_DEVICE void start(const WindowParameters<T, Sum>&, const WindowItem& item, const PhaseAxis*, int32_t y0,
                             int32_t x0, int32_t, int32_t, int32_t shift) {
    y = y0 + item.y * kHeight;
    x = x0 + item.x * kWidth;
    row = kInverse ? item.y * (kHeight / kStep) : item.y * kHeight * kStep;
    column = (kInverse ? item.x : item.x * kStep) + shift;
#pragma unroll
    for (int e = 0; e < kHeight; ++e)
#pragma unroll
      for (int f = 0; f < kWidth; ++f) sums[0][e][f] = 0;
  }
  // The tap that output `out` takes from window place `at`; none if it is not within the kernel.
  CONV_EXT_DEVICE static constexpr int tap(int out, int at) {
    return kInverse ? out - (at - kBefore) * kStep : at - out * kStep;
  }
  template <bool kColumns>
  CONV_EXT_DEVICE void add(const WindowParameters<T, Sum>& p, const T* box, const Sum* weights, int32_t channels) {
    const int32_t pitch_c = p.box.pitch_c, pitch_h = p.box.pitch_h, pitch_w = kColumns ? 1 : p.box.pitch_w,
                  pitch_m = int32_t(p.pitch_m.by);
    for (int32_t c = 0; c < channels; ++c) {
      Sum weight[kTaps * kTaps];
#pragma unroll
      for (int t = 0; t < kTaps * kTaps; ++t) weight[t] = weights[(c * kTaps * kTaps + t) * pitch_m];
      const T* from = box + c * pitch_c + row * pitch_h + column * pitch_w;
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        Sum value[kAcross];
#pragma unroll
        for (int j = 0; j < kAcross; ++j) value[j] = Sum(widen(from[j * pitch_w]));
        from += pitch_h;
#pragma unroll
        for (int e = 0; e < kHeight; ++e) {
          const int r = tap(e, i);
          if (r < 0 || r >= kTaps) continue;
#pragma unroll
          for (int f = 0; f < kWidth; ++f)
#pragma unroll
            for (int j = 0; j < kAcross; ++j) {
              const int s = tap(f, j);
              if (s >= 0 && s < kTaps) sums[0][e][f] = fused(value[j], weight[r * kTaps + s], sums[0][e][f]);
            }
        }
      }
    }
  }
};

// The weights of a chunk of channels, as [source channel][tap][row of the block]; rows beyond a group's are zeros.
template <class T, class Sum>
CONV_EXT_DEVICE void stage_weights(Sum* to, const WindowParameters<T, Sum>& p, int32_t group, int32_t m, int32_t c,
                                   int32_t channels) {
  const int32_t count = channels * int32_t(p.taps.by) * int32_t(p.pitch_m.by);
  for (int32_t i = thread_index(); i < count; i += p.threads) {
    const int32_t column = p.pitch_m.quotient(i), row = i - column * int32_t(p.pitch_m.by);
    const int32_t g = p.group.quotient(row), in_group = row - g * int32_t(p.group.by);
    const int32_t channel = p.taps.quotient(column), tap = column - channel * int32_t(p.taps.by);
    const int32_t r = p.taps_w.quotient(tap), s = tap - r * int32_t(p.taps_w.by);
    Sum value = 0;
    if (group + g < p.groups && m + in_group < p.rows)
      value = Sum(widen(p.weights[(group + g) * p.weight_group + (m + in_group) * p.weight_m +
                                  (c + channel) * p.weight_c + r * p.weight_h + s * p.weight_w]));
    to[i] = value;
  }
}

template <class T, class Sum, class Window>
CONV_EXT_DEVICE void write_window(const WindowParameters<T, Sum>& p, const Window& w, int32_t n, int32_t group,
                                  int32_t m) {
  struct alignas(Window::kRows * sizeof(T) < 16 ? Window::kRows * sizeof(T) : 16) Vector {
    T number[Window::kRows];
  };
  if (m >= p.rows) return;  // the last tile's rows may end before
#pragma unroll
  for (int e = 0; e < Window::kHeight; ++e)
#pragma unroll
    for (int f = 0; f < Window::kWidth; ++f) {
      const int32_t y = w.y + e * w.step(), x = w.x + f;
      if (uint32_t(y) >= uint32_t(p.height) || uint32_t(x) >= uint32_t(p.width)) continue;
      const int64_t row = int64_t(group) * p.rows + m, offset = n * p.to_n + y * p.to_h + x * p.to_w;
      if (Window::kRows > 1 && p.vectors) {
        Vector vector{};
        T* const to = p.result.data + row + offset;
        T other[Window::kRows] = {};
        p.result.finish.read(to, other);
#pragma unroll
        for (int i = 0; i < Window::kRows; ++i)
          vector.number[i] = p.result.value(row + i, to + i, w.sums[i][e][f], other[i]);
        *reinterpret_cast<Vector*>(to) = vector;
      } else {
#pragma unroll
        for (int i = 0; i < Window::kRows; ++i)
          if (m + i < p.rows) p.result.write(row + i, offset, w.sums[i][e][f]);
      }
    }
}

template <class T, class Sum, class Window, bool kColumns>
CONV_EXT_CROWDED_KERNEL(kWindowThreads, Window::kBlocks)
window_gather(WindowParameters<T, Sum> p) {
  T* const box = reinterpret_cast<T*>(shared_memory());
  Sum* const weights = reinterpret_cast<Sum*>(shared_memory() + p.weights_at);
  PhaseAxis* const phases = reinterpret_cast<PhaseAxis*>(shared_memory() + p.phases_at);
  uint32_t rest = uint32_t(block_index());
  const int32_t tile_x = int32_t(rest % uint32_t(p.tiles_w));
  rest /= uint32_t(p.tiles_w);
  const int32_t tile_y = int32_t(rest % uint32_t(p.tiles_h));
  rest /= uint32_t(p.tiles_h);
  const int32_t m0 = int32_t(rest % uint32_t(p.tiles_m)) * p.tile_rows;
  rest /= uint32_t(p.tiles_m);
  const int32_t group0 = int32_t(rest % uint32_t(p.tiles_g)) * p.tile_groups, n = int32_t(rest / uint32_t(p.tiles_g));
  const int32_t y0 = p.origin_h + tile_y * p.tile_h, x0 = p.origin_w + tile_x * p.tile_w;
  const int32_t h0 = first_source(p.vertical, y0), unaligned = first_source(p.horizontal, x0);
  const int32_t w0 = first_column<T>(p.box, unaligned);
  const int32_t groups_here = p.groups - group0 < p.tile_groups ? p.groups - group0 : p.tile_groups;

  if constexpr (Window::kPhases) {
    const int32_t vertical = p.vertical.inverse ? p.vertical.stride : 1,
                  all = vertical + (p.horizontal.inverse ? p.horizontal.stride : 1);
    for (int32_t i = thread_index(); i < all; i += p.threads)
      phases[i] = i < vertical ? phase_of(p.vertical, i) : phase_of(p.horizontal, i - vertical);
  }
  Patches<T> source = p.source;
  source.data += n * p.from_n + int64_t(group0) * p.channels * p.box.from_c;
  for (int32_t begin = 0; begin < p.items; begin += p.threads) {
    const int32_t index = begin + thread_index();
    const WindowItem item = window_item(p, index < p.items ? index : 0, Window::kRows);
    const int32_t group = p.group.quotient(item.m);
    const bool there = index < p.items && group < groups_here;
    Window window;
    // A block stages all channels at once, or has one item for each thread.
    for (int32_t c = 0; c < p.channels; c += p.chunk) {
      const int32_t channels = p.channels - c < p.chunk ? p.channels - c : p.chunk;
      if (begin == 0) {
        if (c > 0) barrier();  // all threads have done with the chunk before
        stage<kColumns>(box, p.box, source, h0, w0, p.tile_groups == 1 ? channels : groups_here * p.channels,
                        p.threads);
        source.data += p.chunk * p.box.from_c;
        commit_copies();
        stage_weights(weights, p, group0, m0, c, channels);
        wait_copies<0>();
        barrier();
      }
      if (c == 0) window.start(p, item, phases, y0, x0, h0, w0, unaligned - w0);
      if (there) window.template add<kColumns>(p, box + group * p.chunk * p.box.pitch_c, weights + item.m, channels);
    }
    if (there) write_window(p, window, n, group0 + group, m0 + item.m - group * p.tile_rows);
  }
}

}  // namespace cuda
}  // namespace conv_ext
