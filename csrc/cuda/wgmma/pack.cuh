// What wgmma.cuh multiplies, and its operands as TMA wants them: channels together, padded, rounded, in parts.
#pragma once

#include "device_sm90.h"
#include "../math.cuh"
#include "../passes.cuh"

namespace conv_ext {
namespace cuda {

// Each Group is a kind of number that warpgroups multiply, a Kind of pack.cuh, with
//   kChain   so many k are summed on the tensor cores before the sum is added to another one, in float32
//   kWeightsAcross   whether input_grad's weights are read in place, as K R S C: they run across k then
template <class T, bool across = false>
struct SixteenBitGroup {
  using Source = T;
  using Element = T;
  static constexpr int kParts = 1, kChain = 128;
  static constexpr bool kWeightsAcross = across;
  CONV_EXT_DEVICE static T part(T value, int) { return value; }
};
struct TF32Group {
  using Source = float;
  using Element = float;
  static constexpr int kParts = 1, kChain = 128;
  static constexpr bool kWeightsAcross = false;
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
  static constexpr bool kWeightsAcross = false;
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
// Of operands that run across k TMA brings boxes of 64 numbers by 64 k.
constexpr int kBox = 64, kBoxBytes = kBox * kRowBytes;

// A phase of a pass that gathers: its outputs, its taps, and the box of the source's positions that it reads.
struct GatherPhase {
  int32_t taps_h, taps_w;
  int32_t lower_h, lower_w;                      // where the first output reads at offset 0
  int32_t offset_h, offset_w, delta_h, delta_w;  // of the first tap; from tap to tap
  int32_t count_h, count_w, first_output_h, first_output_w;
  int32_t first_tap, next_tap_h, next_tap_w;  // of the kernel, r S + s: where the weights are read in place
};
constexpr int kMostGatherPhases = 16;

}  // namespace cuda
}  // namespace conv_ext
