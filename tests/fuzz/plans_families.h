// The problems that the fuzzer of plans draws: families that people use, and everything else that the validator allows.
#pragma once

#include <cstdint>

#include "problem_text.h"

namespace fuzz {

struct Case {
  ConvProblem problem;
  Pass pass;
};

constexpr int64_t kMostSize = int64_t(1) << 40;  // of a dimension that is drawn
// A tensor of more elements than that has no memory, and broadcasting one takes years to compute.
constexpr int kAttempts = 40;

inline int64_t prime(Random& random, int64_t high) {
  for (;;) {
    const int64_t n = random.between(2, high);
    bool is_prime = true;
    for (int64_t d = 2; d * d <= n && is_prime; ++d) is_prime = n % d != 0;
    if (is_prime) return n;
  }
}

// Sizes of layers in well-known networks, with kernels, strides and batches that occur beside them.
inline void draw_network(Random& random, ConvProblem* z) {
  z->n = random.pick({1, 1, 1, 2, 4, 8, 16, 32, 64, 65, 100, 128, 256, 512, 513});
  z->c = random.pick({1, 3, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024, 1152});
  z->k = random.pick({1, 2, 8, 10, 16, 24, 32, 48, 64, 96, 128, 176, 192, 256, 512, 768, 1000, 1024, 2048});
  z->h = z->w = random.pick({1, 4, 5, 7, 8, 10, 13, 14, 16, 19, 27, 28, 30, 32, 55, 56, 84, 112, 224, 600});
  if (random.chance(0.2)) z->w = random.pick({1, 2, 7, 28, 50, 80, 100, 1000});
  z->r = z->s = random.pick({1, 1, 2, 3, 3, 3, 4, 5, 7, 8, 11, 13, 14, 16, 31, 32});
  if (random.chance(0.15)) z->s = random.pick({1, 3, 5, 7, 15});
  if (random.chance(0.5)) z->stride_h = z->stride_w = random.pick({2, 2, 3, 4, z->r, z->r});
  if (random.chance(0.15)) z->dilation_h = z->dilation_w = random.pick({2, 4, 6, 12, 18});
  if (random.chance(0.6)) {
    z->pad_top = z->pad_bottom = random.chance(0.7) ? (z->r - 1) * z->dilation_h / 2 : random.between(0, z->r);
    z->pad_left = z->pad_right = (z->s - 1) * z->dilation_w / 2;
  }
}

inline void draw_tiny(Random& random, ConvProblem* z) {
  z->n = random.between(1, 5);
  z->c = random.between(1, 40);
  z->k = random.between(1, 40);
  z->h = random.between(1, 20);
  z->w = random.between(1, 20);
  z->r = random.between(1, 7);
  z->s = random.between(1, 7);
  z->stride_h = random.between(1, 5);
  z->stride_w = random.between(1, 5);
  z->dilation_h = random.between(1, 3);
  z->dilation_w = random.between(1, 3);
  z->pad_top = random.between(0, 4);
  z->pad_bottom = random.between(0, 4);
  z->pad_left = random.between(0, 4);
  z->pad_right = random.between(0, 4);
}

// Each size by its number of digits.
inline void draw_logarithmic(Random& random, int64_t sizes, int64_t taps, ConvProblem* z) {
  for (int64_t* size : {&z->n, &z->c, &z->h, &z->w, &z->k}) *size = random.logarithmic(sizes);
  for (int64_t* size : {&z->r, &z->s, &z->stride_h, &z->stride_w, &z->dilation_h, &z->dilation_w})
    *size = random.chance(0.4) ? 1 : random.logarithmic(taps);
  for (int64_t* pad : {&z->pad_top, &z->pad_bottom, &z->pad_left, &z->pad_right})
    *pad = random.chance(0.5) ? 0 : random.logarithmic(taps);
}

inline void draw_primes(Random& random, ConvProblem* z) {
  for (int64_t* size : {&z->n, &z->c, &z->k}) *size = prime(random, random.pick({10, 100, 600}));
  z->h = prime(random, random.pick({30, 300, 3000}));
  z->w = prime(random, random.pick({30, 300, 3000}));
  z->r = prime(random, random.pick({5, 20, 40}));
  z->s = random.chance(0.5) ? z->r : prime(random, 40);
  z->stride_h = random.chance(0.6) ? 1 : prime(random, 9);
  z->stride_w = random.chance(0.6) ? z->stride_h : prime(random, 9);
  z->pad_top = z->pad_bottom = random.between(0, z->r);
  z->pad_left = z->pad_right = random.between(0, z->s);
}

// Small groups of every size, depthwise with and without a multiplier, as many groups as there is room for.
inline void draw_groups(Random& random, ConvProblem* z) {
  z->groups = random.chance(0.2) ? random.logarithmic(int64_t(1) << 30) : random.between(1, 300);
  const int64_t most = random.pick({1, 1, 2, 4, 8, 16, 70});
  z->c = z->groups * random.between(1, most);
  z->k = z->groups * (random.chance(0.5) ? z->c / z->groups : random.between(1, most));
  z->n = random.pick({1, 2, 8, 65, 513});
  z->h = random.between(1, random.pick({9, 60, 300}));
  z->w = random.between(1, random.pick({9, 60, 300}));
  z->r = random.pick({1, 3, 3, 5, 7, 13, 31});
  z->s = random.chance(0.8) ? z->r : random.between(1, 41);
  z->stride_h = z->stride_w = random.pick({1, 1, 2, 3, 17});
  if (random.chance(0.2)) z->dilation_h = z->dilation_w = random.between(2, 9);
  z->pad_top = z->pad_bottom = z->r / 2 * z->dilation_h;
  z->pad_left = z->pad_right = z->s / 2 * z->dilation_w;
}

// One or two numbers as large as may be, the others small: sizes up to 2^40, strides, dilations and padding up to
// 2^63 - 1, and those beside a power of two.
inline void draw_extreme(Random& random, ConvProblem* z) {
  draw_tiny(random, z);
  if (random.chance(0.5)) z->h = z->w = z->r = z->s = z->dilation_h = z->dilation_w = 1;
  const auto vast = [&](int64_t high) {
    if (random.chance(0.5)) return random.logarithmic(high);
    const int64_t power = int64_t(1) << random.between(0, 62);
    const int64_t near = power - 2 + random.between(0, 4) < high ? power + random.between(-2, 2) : high;
    return near < 1 ? 1 : near > high ? high : near;
  };
  for (int64_t times = random.between(1, 3); times > 0; --times) {
    switch (random.between(0, 9)) {
      case 0:
        z->h = vast(kMostSize);
        break;
      case 1:
        z->w = vast(kMostSize);
        break;
      case 2:
        z->n = vast(kMostSize);
        break;
      case 3:
        z->c = vast(kMostSize);
        break;
      case 4:
        z->k = vast(kMostSize);
        break;
      case 5:
        (random.chance(0.5) ? z->stride_h : z->stride_w) = vast(INT64_MAX);
        break;
      case 6:
        (random.chance(0.5) ? z->dilation_h : z->dilation_w) = vast(INT64_MAX);
        break;
      case 7:
        (random.chance(0.5) ? z->pad_top : z->pad_bottom) = vast(INT64_MAX);
        break;
      case 8:
        (random.chance(0.5) ? z->pad_left : z->pad_right) = vast(INT64_MAX);
        break;
      case 9:
        (random.chance(0.5) ? z->r : z->s) = vast(kMostSize);
        break;
    }
  }
  if (random.chance(0.1)) z->stride_h = z->stride_w = INT64_MAX;
  // Padding and strides of which few outputs remain.
  if (random.chance(0.3)) z->stride_h = vast(INT64_MAX);
  if (random.chance(0.3)) z->stride_w = vast(INT64_MAX);
}

// Long kernels: the work of a plan must not grow with the number of taps.
inline void draw_taps(Random& random, ConvProblem* z) {
  draw_tiny(random, z);
  z->r = random.chance(0.5) ? 1 : random.logarithmic(int64_t(1) << 12);
  z->s = random.logarithmic(int64_t(1) << (z->r == 1 ? 22 : 12));
  z->h = z->r + random.between(0, 40);
  z->w = z->s + random.between(0, 40);
  z->dilation_h = z->dilation_w = 1;
  if (random.chance(0.3)) z->pad_left = z->pad_right = random.between(0, z->s);
  if (random.chance(0.3)) z->pad_top = z->pad_bottom = random.between(0, z->r);
}

inline void draw_covering(Random& random, ConvProblem* z) {
  draw_network(random, z);
  z->h = random.between(1, 16);
  z->w = random.chance(0.7) ? z->h : random.between(1, 16);
  z->r = z->h;
  z->s = z->w;
  z->dilation_h = z->dilation_w = 1;
  z->pad_top = z->pad_bottom = z->pad_left = z->pad_right = 0;
}

inline void draw_sizes(Random& random, ConvProblem* z) {
  switch (random.between(0, 11)) {
    case 0:
    case 1:
    case 2:
      return draw_network(random, z);
    case 3:
      return draw_tiny(random, z);
    case 4:
      return draw_logarithmic(random, 4096, 16, z);
    case 5:
      return draw_logarithmic(random, random.chance(0.5) ? kMostSize : int64_t(1) << 20, 1 << 20, z);
    case 6:
      return draw_primes(random, z);
    case 7:
      return draw_groups(random, z);
    case 8:
    case 9:
      return draw_extreme(random, z);
    case 10:
      return draw_taps(random, z);
    case 11:
      return draw_covering(random, z);
  }
}

inline Case draw(Random& random) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    ConvProblem z{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, DType::Float32, Precision::Ieee, false};
    z.dtype = DType(random.pick({0, 0, 0, 1, 2, 2, 3, 4, 5}));
    z.precision = z.dtype == DType::Float32 ? Precision(random.between(0, 2)) : Precision::Ieee;
    z.channels_last = random.chance(0.5);
    draw_sizes(random, &z);
    if (z.groups == 1 && random.chance(0.15)) {  // some groups, or depthwise with a multiplier
      z.groups = random.chance(0.3) ? z.c : random.pick({2, 3, 8, 32});
      z.c = (z.c + z.groups - 1) / z.groups * z.groups;
      z.k = (z.k + z.groups - 1) / z.groups * z.groups;
    }
    if (random.chance(0.02)) z.n = 0;
    if (random.chance(0.01)) z.c = 0;
    if (z.n == 0 || z.c == 0) {
      if (random.chance(0.3)) z.h = 0;
      if (random.chance(0.3)) z.w = 0;
    }
    // Where the kernel does not fit, padding makes room for it.
    if (!complete(&z) && random.chance(0.5)) {
      __int128 reach_h = __int128(z.r - 1) * z.dilation_h, reach_w = __int128(z.s - 1) * z.dilation_w;
      if (reach_h <= INT64_MAX) z.pad_top = int64_t(reach_h);
      if (reach_w <= INT64_MAX) z.pad_right = int64_t(reach_w);
    }
    const Pass pass = Pass(random.between(0, 2));
    if (!complete(&z)) continue;
    // As a call does where the operands' memory allows it, that of contiguous ones for certain.
    if (z.kernel_covers_input() && (z.c > 0 && z.n > 0) && random.chance(0.7)) z = z.as_1x1();
    return {z, pass};
  }
  return {ConvProblem{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, DType::Float32, Precision::Ieee, false},
          Pass::Forward};
}

}  // namespace fuzz
