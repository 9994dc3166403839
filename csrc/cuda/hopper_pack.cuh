// What hopper.cuh multiplies, and its operands as TMA wants them: channels together, padded, rounded, in parts.
#pragma once

#include "device_sm90.h"
#include "math.cuh"
#include "passes.cuh"

namespace conv_ext {
namespace cuda {

// Each Group is a kind of number that warpgroups multiply, a Kind of pack.cuh, with
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
struct ThreeTF32Group {
  using Source = float;
  using Element = float;
  static constexpr int kParts = 2, kChain = 64;
  CONV_EXT_DEVICE static float part(float value, int part) {
    uint32_t large, small;
    ThreeTF32::split(bits_of(value), large, small);
    return float_of(part == 0 ? large : small);
  }
};

// Numbers of one step along k, those of one product, and products of a step.
template <class Group>
constexpr int kChunk = kRowBytes / int(sizeof(typename Group::Element));
template <class Group>
constexpr int kProduct = 32 / int(sizeof(typename Group::Element));
constexpr int kProducts = 4;

// A phase of a pass that gathers: its outputs, its taps, and the box of the source's positions that it reads.
struct GatherPhase {
  int32_t taps_h, taps_w;
  int32_t lower_h, lower_w;                      // where the first output reads at offset 0
  int32_t offset_h, offset_w, delta_h, delta_w;  // of the first tap; from tap to tap
  int32_t count_h, count_w, first_output_h, first_output_w;
};
constexpr int kMostGatherPhases = 16;

}  // namespace cuda
}  // namespace conv_ext
