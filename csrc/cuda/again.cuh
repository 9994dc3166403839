// Sums formed again, in fused multiply-adds by one thread, from the tensors as they lie: what three_tf32 cannot say.
//
// A sum over parts of numbers is NaN where an infinity takes part, and infinite where the parts alone overflow. Such
// sums are found when they are complete, and formed again: so what stands in the result is what multiply_add gives. It
// is slow, and rare; NaN, which spreads, is found at its first product.
#pragma once

#include "math.cuh"
#include "pack.cuh"

namespace conv_ext {
namespace cuda {

// Where it does not happen.
struct NotAgain {
  CONV_EXT_DEVICE float sum(const int64_t (&)[4]) const { return 0; }
};

// forward and input_grad, for an element (n, channel, h, w) of the result.
struct GatherAgain {
  Axis vertical, horizontal;
  Patches<float> source;
  Strides from;
  const float* weights;
  int32_t rows, channels;  // of a group: of the result and of the source
  int64_t stride_group, stride_m, stride_c, stride_h, stride_w;

  CONV_EXT_DEVICE float sum(const int64_t (&at)[4]) const {
    const int32_t y = int32_t(at[2]), x = int32_t(at[3]);
    const int64_t group = at[1] / rows;
    const PhaseAxis down = phase_of(vertical, vertical.inverse ? y % vertical.stride : 0),
                    across = phase_of(horizontal, horizontal.inverse ? x % horizontal.stride : 0);
    const int32_t h0 = y / down.output_step * down.step + down.first,
                  w0 = x / across.output_step * across.step + across.first;
    const float* data = source.data + at[0] * from.n + group * channels * from.c;
    const float* row = weights + group * stride_group + at[1] % rows * stride_m + down.first_tap * stride_h +
                       across.first_tap * stride_w;
    float sum = 0;
    for (int32_t r = 0; r < down.taps; ++r)
      for (int32_t s = 0; s < across.taps; ++s) {
        const int32_t h = h0 + r * down.delta, w = w0 + s * across.delta;
        const bool inside = uint32_t(h) < uint32_t(source.h) && uint32_t(w) < uint32_t(source.w);
        const float* from_tap = data + (inside ? h * from.h + w * from.w : 0);
        const float* tap = row + r * down.tap_step * stride_h + s * across.tap_step * stride_w;
        for (int32_t c = 0; c < channels; ++c)
          sum = fused(inside ? from_tap[c * from.c] : 0.0f, tap[c * stride_c], sum);
        if (sum != sum) return sum;
      }
    return sum;
  }
};

// weight_grad, for an element (k, c, r, s) of the result.
struct CorrelateAgain {
  Axis vertical, horizontal;
  Patches<float> grad, input;
  Strides from_grad, from_input;
  int32_t images, rows, channels;  // of a group: of the upstream gradient and of the input

  CONV_EXT_DEVICE float sum(const int64_t (&at)[4]) const {
    const float* from = input.data + (at[0] / rows * channels + at[1]) * from_input.c;
    const float* upstream = grad.data + at[0] * from_grad.c;
    float sum = 0;
    for (int32_t n = 0; n < images; ++n)
      for (int32_t p = 0; p < vertical.output; ++p) {
        for (int32_t q = 0; q < horizontal.output; ++q) {
          const int64_t h = int64_t(p) * vertical.stride - vertical.pad + at[2] * vertical.dilation,
                        w = int64_t(q) * horizontal.stride - horizontal.pad + at[3] * horizontal.dilation;
          const bool inside = h >= 0 && h < input.h && w >= 0 && w < input.w;
          const float value = inside ? from[n * from_input.n + h * from_input.h + w * from_input.w] : 0.0f;
          sum = fused(value, upstream[n * from_grad.n + p * from_grad.h + q * from_grad.w], sum);
        }
        if (sum != sum) return sum;
      }
    return sum;
  }
};

}  // namespace cuda
}  // namespace conv_ext
