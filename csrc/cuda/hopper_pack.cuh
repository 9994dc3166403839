// What hopper.cuh multiplies, and its operands as TMA wants them: channels together, padded, rounded, in parts.
#pragma once

#include "device_sm90.h"
#include "math.cuh"
#include "passes.cuh"

namespace conv_ext {
namespace cuda {

// Each Group is a kind of number that warpgroups multiply:
//   Source   the numbers of the tensors
//   Element  what stands for them in shared memory
//   kParts   tensors of Element that stand for one: more where a number is the sum of several
//   part     what of a number goes into which part
//   kChain   so many k are summed on the tensor cores before the sum is added to another one, in float32
template <class T>
struct SixteenBitGroup {
  using Source = T;
  using Element = T;
  static constexpr int kParts = 1, kChain = 128;
  CONV_EXT_DEVICE static T part(T value, int) { return value; }
};
struct TF32Group {
  using Source = float;
  using Element = float;
  static constexpr int kParts = 1, kChain = 128;
  // To nearest: the tensor cores would cut off.
  CONV_EXT_DEVICE static float part(float value, int) { return float_of(round_tf32(value)); }
};
// float32 in three parts of bfloat16, of whose products six count (parts.h): float32's accuracy, if sums are handed
// over every 64 k. A product of TF32 takes as long as two of bfloat16, so that they cost no more than the three that
// two parts of TF32 would want; they lose less to the tensor cores' cutting off (1.3 roundings of float32 where all is
// positive, not 8), for a large product has 16 bits, not 22; and operands may lie across the sum.
struct ThreeBF16Group {
  using Source = float;
  using Element = bfloat16;
  static constexpr int kParts = 3, kChain = 64;
  // Of what is not finite, or scaled no longer is, parts and sums are not finite: such sums are formed again.
  CONV_EXT_DEVICE static bfloat16 part(float value, int part) {
    float rest = value * kPartScale;
    bfloat16 nearest;
    narrow(rest, &nearest);
    for (int i = 0; i < part; ++i) {
      rest -= widen(nearest);
      narrow(rest, &nearest);
    }
    return nearest;
  }
};

constexpr int kMostParts = 3;

// Calls multiply(part of the left operand, part of the right one, whether it is the first) for each product of parts.
template <int parts, int product = kSplitProducts - parts * (parts + 1) / 2, class Multiply>
CONV_EXT_DEVICE void each_product(const Multiply& multiply) {
  constexpr int left = kSplitProduct[product][0], right = kSplitProduct[product][1];
  multiply(left, right, product == kSplitProducts - parts * (parts + 1) / 2);
  if constexpr (product + 1 < kSplitProducts) each_product<parts, product + 1>(multiply);
}

// Numbers of one step along k, those of one product, and products of a step.
template <class Group>
constexpr int kChunk = kRowBytes / int(sizeof(typename Group::Element));
template <class Group>
constexpr int kProduct = 32 / int(sizeof(typename Group::Element));
constexpr int kProducts = 4;

// A phase of a pass that gathers: its outputs, its taps, and the box of the source's positions that it reads.
struct GatherPhase {
  int32_t taps_h, taps_w, first_tap_h, first_tap_w, tap_step_h, tap_step_w;  // of the kernel
  int32_t lower_h, lower_w;                                                  // where the first output reads at offset 0
  int32_t offset_h, offset_w, delta_h, delta_w;                              // of the first tap; from tap to tap
  int32_t count_h, count_w, first_output_h, first_output_w;
};
constexpr int kMostGatherPhases = 16;

constexpr int kGroupPackThreads = 256, kPackTile = 32;

// The weights as [part][phase][group][row][pitch]: a phase's taps in their order, each with its group's channels,
// filled up with zeros to whole steps.
template <class Group>
struct PackGroupWeights {
  GatherPhase phases[kMostGatherPhases];
  int32_t phase_count, groups, rows, channels, steps;  // steps: of a tap
  int64_t pitch;
  int64_t stride_group, stride_m, stride_c, stride_h, stride_w;
  const typename Group::Source* weights;
  typename Group::Element* packed;
};

template <class Group>
CONV_EXT_KERNEL(kGroupPackThreads)
pack_group_weights(CONV_EXT_GRID_CONSTANT PackGroupWeights<Group> p) {
  const int64_t each = int64_t(p.phase_count) * p.groups * p.rows * p.pitch;
  const int64_t index = block_index() * kGroupPackThreads + thread_index();
  if (index >= each) return;
  const int32_t width = p.steps * kChunk<Group>;
  const int64_t row_index = index / p.pitch, row = row_index % p.rows, group = row_index / p.rows % p.groups;
  const GatherPhase& phase = p.phases[row_index / p.rows / p.groups];
  typename Group::Source value{};
  const Digits d = digits_of(index % p.pitch, phase.taps_w > 0 ? phase.taps_w : 1, width);
  if (d.high < phase.taps_h && phase.taps_w > 0 && d.low < p.channels) {
    const int64_t r = phase.first_tap_h + int64_t(d.high) * phase.tap_step_h,
                  s = phase.first_tap_w + int64_t(d.middle) * phase.tap_step_w;
    value = p.weights[group * p.stride_group + row * p.stride_m + d.low * p.stride_c + r * p.stride_h + s * p.stride_w];
  }
#pragma unroll
  for (int part = 0; part < Group::kParts; ++part) p.packed[part * each + index] = Group::part(value, part);
}

// The source as [part][n][h][w][group][padded channels]: blocks exchange 32 positions by 32 channels in shared memory.
template <class Group>
struct PackGroupSource {
  int32_t images, h, w, channels, padded;  // channels of a group
  int64_t all_channels;                    // groups x padded
  Strides from;
  const typename Group::Source* source;
  typename Group::Element* packed;
};

template <class Group>
CONV_EXT_KERNEL(kGroupPackThreads)
pack_group_source(PackGroupSource<Group> p) {
  using T = typename Group::Source;
  T* const tile = reinterpret_cast<T*>(shared_memory());
  constexpr int kPitch = kPackTile + 1, kPasses = kPackTile * kPackTile / kGroupPackThreads;
  const int64_t positions = int64_t(p.images) * p.h * p.w;
  const int64_t across = (p.all_channels + kPackTile - 1) / kPackTile;
  const int64_t first_position = block_index() / across * kPackTile, first_channel = block_index() % across * kPackTile;
  const bool along_channels = p.from.c == 1;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int index = thread_index() + pass * kGroupPackThreads, fast = index % kPackTile, slow = index / kPackTile;
    const int place = along_channels ? slow : fast, lane = along_channels ? fast : slow;
    const int64_t position = first_position + place, channel = first_channel + lane;
    T value{};
    if (position < positions && channel < p.all_channels) {
      const Digits d = digits_of(position, p.h, p.w);
      const int64_t group = channel / p.padded, c = channel % p.padded;
      if (c < p.channels)
        value =
            p.source[d.high * p.from.n + d.middle * p.from.h + d.low * p.from.w + (group * p.channels + c) * p.from.c];
    }
    tile[place * kPitch + lane] = value;
  }
  barrier();
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int index = thread_index() + pass * kGroupPackThreads, lane = index % kPackTile, place = index / kPackTile;
    const int64_t position = first_position + place, channel = first_channel + lane;
    if (position < positions && channel < p.all_channels) {
#pragma unroll
      for (int part = 0; part < Group::kParts; ++part)
        p.packed[(part * positions + position) * p.all_channels + channel] =
            Group::part(tile[place * kPitch + lane], part);
    }
  }
}

}  // namespace cuda
}  // namespace conv_ext
