// The direct kernels: threads that form whole sums, for groups of so few channels that a matrix tile would stay empty.
//
// Depthwise layers, small groups, and whatever else is forced upon them. They read every operand in place.
#pragma once

#include "coordinates.cuh"
#include "epilogue.cuh"
#include "plan.h"

namespace conv_ext {
namespace cuda {

// forward and input_grad: a thread computes kChannels neighbouring channels of one position, which read the same
// source.
template <class T, class Sum>
struct DirectParameters {
  Axis vertical, horizontal;
  int64_t images;
  int32_t groups, result_channels, source_channels;  // channels of a group
  int32_t height, width;                             // of the result
  int32_t along_channels;  // neighbouring threads have neighbouring channels (channels_last), else columns
  Patches<T> source;
  int64_t from_n, from_c, from_h, from_w, to_n, to_h, to_w;
  const T* weights;
  int64_t weight_group, weight_m, weight_c, weight_h, weight_w;  // between groups, result and source channels, taps
  Result<T, Sum> result;
};

template <class T, class Sum, int kChannels>
CONV_EXT_KERNEL(kCudaDirectThreads)
direct_gather(DirectParameters<T, Sum> p) {
  const int64_t blocks_m = int64_t(p.groups) * (p.result_channels / kChannels), positions = int64_t(p.height) * p.width;
  const int64_t index = block_index() * kCudaDirectThreads + thread_index();
  if (index >= p.images * blocks_m * positions) return;
  const int64_t low = p.along_channels ? blocks_m : positions, high = p.along_channels ? positions : blocks_m;
  const int64_t block = p.along_channels ? index % low : index / low % high;
  const int64_t position = p.along_channels ? index / low % high : index % low, n = index / low / high;
  const int32_t y = int32_t(position / p.width), x = int32_t(position % p.width);
  const int32_t in_group = p.result_channels / kChannels;
  const int64_t group = block / in_group, m = block % in_group * kChannels;

  const PhaseAxis down = phase_of(p.vertical, p.vertical.inverse ? y % p.vertical.stride : 0),
                  across = phase_of(p.horizontal, p.horizontal.inverse ? x % p.horizontal.stride : 0);
  const int32_t h0 = y / down.output_step * down.step + down.first,
                w0 = x / across.output_step * across.step + across.first;
  const T* source = p.source.data + n * p.from_n + group * p.source_channels * p.from_c;
  const T* weights =
      p.weights + group * p.weight_group + m * p.weight_m + down.first_tap * p.weight_h + across.first_tap * p.weight_w;
  Sum sums[kChannels] = {};
  for (int32_t c = 0; c < p.source_channels; ++c)
    for (int32_t r = 0; r < down.taps; ++r)
      for (int32_t s = 0; s < across.taps; ++s) {
        const int32_t h = h0 + r * down.delta, w = w0 + s * across.delta;
        const bool inside = uint32_t(h) < uint32_t(p.source.h) && uint32_t(w) < uint32_t(p.source.w);
        // Outside is zero, which is multiplied as well: a weight that is not finite shows there too.
        const Sum value = inside ? Sum(widen(source[c * p.from_c + h * p.from_h + w * p.from_w])) : Sum(0);
        const T* weight = weights + c * p.weight_c + r * down.tap_step * p.weight_h + s * across.tap_step * p.weight_w;
#pragma unroll
        for (int j = 0; j < kChannels; ++j) sums[j] = fused(value, Sum(widen(weight[j * p.weight_m])), sums[j]);
      }
  const int64_t first = group * p.result_channels + m;
#pragma unroll
  for (int j = 0; j < kChannels; ++j) p.result.write(first + j, n * p.to_n + y * p.to_h + x * p.to_w, sums[j]);
}

// weight_grad: a block computes up to kCudaDirectTaps weights of kPairs pairs (k, c): its threads share the positions,
// and their sums are added as a tree.
template <class T, class Sum>
struct DirectGradParameters {
  Axis vertical, horizontal;
  int64_t positions, step;  // all of them, and those of a split
  int64_t pairs;
  int32_t group_k, group_c;
  int32_t tap_blocks, splits;
  Patches<T> input;
  const T* grad;
  int64_t grad_n, grad_c, grad_h, grad_w, from_n, from_c, from_h, from_w, to_c, to_h, to_w;
  Result<T, Sum> result;
  int64_t split_elements;
};

template <class T, class Sum, int kPairs>
CONV_EXT_KERNEL(kCudaDirectThreads)
direct_weight_grad(DirectGradParameters<T, Sum> p) {
  constexpr int kLanes = kCudaDirectThreads / kPairs;  // threads that share the positions
  Sum* const shared = reinterpret_cast<Sum*>(shared_memory());
  int64_t rest = block_index();
  const int32_t tap_block = int32_t(rest % p.tap_blocks);
  rest /= p.tap_blocks;
  const int32_t split = int32_t(rest % p.splits);
  rest /= p.splits;
  const int column = thread_index() % kPairs, lane = thread_index() / kPairs;
  const int64_t pair = rest * kPairs + column;
  const bool there = pair < p.pairs;
  const int64_t k = there ? pair / p.group_c : 0, c = there ? pair % p.group_c : 0;
  const int32_t taps = p.vertical.taps * p.horizontal.taps, first_tap = tap_block * kCudaDirectTaps;
  const T* grad = p.grad + k * p.grad_c;
  const T* input = p.input.data + (k / p.group_k * p.group_c + c) * p.from_c;

  Sum sums[kCudaDirectTaps] = {};
  const int64_t begin = split * p.step, limit = begin + p.step, end = limit < p.positions ? limit : p.positions;
  for (int64_t i = begin + lane; there && i < end; i += kLanes) {
    const Digits d = digits_of(i, p.vertical.output, p.horizontal.output);
    const Sum g = Sum(widen(grad[d.high * p.grad_n + d.middle * p.grad_h + d.low * p.grad_w]));
    const T* image = input + d.high * p.from_n;
    const int32_t h0 = d.middle * p.vertical.stride - p.vertical.pad,
                  w0 = d.low * p.horizontal.stride - p.horizontal.pad;
    int32_t r = first_tap / p.horizontal.taps, s = first_tap % p.horizontal.taps;
#pragma unroll
    for (int t = 0; t < kCudaDirectTaps; ++t) {
      const int32_t h = h0 + r * p.vertical.dilation, w = w0 + s * p.horizontal.dilation;
      const bool inside =
          first_tap + t < taps && uint32_t(h) < uint32_t(p.input.h) && uint32_t(w) < uint32_t(p.input.w);
      const Sum value = inside ? Sum(widen(image[h * p.from_h + w * p.from_w])) : Sum(0);
      sums[t] = fused(g, value, sums[t]);
      if (++s == p.horizontal.taps) {
        s = 0;
        ++r;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kCudaDirectTaps; ++t) {
    if (first_tap + t >= taps) break;  // for all threads alike
    shared[lane * kPairs + column] = sums[t];
    barrier();
    for (int half = kLanes / 2; half > 0; half /= 2) {
      if (lane < half) shared[lane * kPairs + column] += shared[(lane + half) * kPairs + column];
      barrier();
    }
    if (lane == 0 && there) {
      const int32_t tap = first_tap + t, r = tap / p.horizontal.taps, s = tap % p.horizontal.taps;
      Result<T, Sum> result = p.result;
      if (result.partial != nullptr) result.partial += split * p.split_elements;
      result.write(k, c * p.to_c + r * p.to_h + s * p.to_w, shared[column]);
    }
    barrier();  // the next tap's sums go to the same places
  }
}

}  // namespace cuda
}  // namespace conv_ext
