// The problems that the fuzzer of runs draws: families that people use, and odd corners.
#pragma once

#include <algorithm>

#include "runs_case.h"

namespace fuzz {

// What the drawn cases leave out, for their size: tensors of more than kMostElements elements, and problems of more
// than 1.6 million multiply-adds. Empty tensors are left out because they never reach a kernel.
constexpr int64_t kMostElements = 600000;
constexpr double kSharedProducts = 1.02e6, kMostProducts = 1.6e6;  // plans share out work from a million products on

inline double products_of(const ConvProblem& z) { return z.flops() / 2; }

class Families {
 public:
  explicit Families(Random* random) : r_(*random) {}

  ConvProblem problem() {
    for (;;) {
      ConvProblem z{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, DType::Float32, Precision::Ieee, false};
      draw_type(&z);
      const Keep keep = draw_shape(&z);
      if (r_.chance(0.15)) disturb(&z);
      if (!complete(&z)) continue;
      const bool shared = r_.chance(0.008);
      const double most = shared            ? kMostProducts
                          : keep.large      ? 200e3
                          : r_.chance(0.7)  ? 7e3
                          : r_.chance(0.85) ? 30e3
                                            : 200e3;
      if (shared) enlarge(&z, keep);
      if (!reduce(&z, keep, most, shared ? kMostElements : keep.large ? 150000 : 16000)) continue;
      return z;
    }
  }

 private:
  struct Keep {
    bool n = false, channels = false, map = false;
    bool large = false;  // what it is about shows in larger problems alone
  };

  void draw_type(ConvProblem* z) {
    const int64_t type = r_.between(0, 99);
    z->dtype = type < 46   ? DType::Float32
               : type < 58 ? DType::Float64
               : type < 73 ? DType::BFloat16
               : type < 84 ? DType::Float16
               : type < 92 ? DType::Complex64
                           : DType::Complex128;
    if (z->dtype == DType::Float32)
      z->precision = r_.chance(0.6) ? Precision::Ieee : r_.chance(0.6) ? Precision::TF32 : Precision::BF16;
  }

  int64_t prime() { return r_.pick({2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67}); }
  // One more, one less than the sizes that blocks and vectors have.
  int64_t awkward() { return r_.pick({4, 8, 12, 14, 16, 24, 32, 48, 64, 96, 128, 144}) + r_.between(-1, 1); }
  int64_t channels() {
    const int64_t kind = r_.between(0, 4);
    return kind == 0   ? r_.pick({1, 2, 3, 4})
           : kind == 1 ? prime()
           : kind == 2 ? awkward()
           : kind == 3 ? r_.logarithmic(64)
                       : r_.pick({8, 16, 32, 64});
  }
  int64_t extent() {
    const int64_t kind = r_.between(0, 3);
    return kind == 0 ? prime() : kind == 1 ? awkward() : kind == 2 ? r_.logarithmic(64) : r_.between(1, 20);
  }
  void set_channels(ConvProblem* z, int64_t groups, int64_t group_c, int64_t group_k) {
    z->groups = groups;
    z->c = groups * group_c;
    z->k = groups * group_k;
  }
  void set_kernel(ConvProblem* z, int64_t r, int64_t s) {
    z->r = r;
    z->s = s;
  }
  void set_stride(ConvProblem* z, int64_t h, int64_t w) {
    z->stride_h = h;
    z->stride_w = w;
  }
  void set_padding(ConvProblem* z, int64_t most) {
    if (r_.chance(0.5)) {
      z->pad_top = z->pad_bottom = r_.between(0, most);
      z->pad_left = z->pad_right = r_.between(0, most);
    } else {
      for (int64_t* pad : {&z->pad_top, &z->pad_bottom, &z->pad_left, &z->pad_right}) *pad = r_.between(0, most);
    }
  }
  void pad_same(ConvProblem* z) {
    const int64_t down = z->dilation_h * (z->r - 1), across = z->dilation_w * (z->s - 1);
    z->pad_top = down / 2;
    z->pad_bottom = down - down / 2;
    z->pad_left = across / 2;
    z->pad_right = across - across / 2;
  }
  int64_t batch() { return r_.chance(0.5) ? 1 : r_.logarithmic(9); }

  Keep draw_shape(ConvProblem* z) {
    z->n = batch();
    set_channels(z, 1, channels(), channels());
    z->h = extent();
    z->w = extent();
    switch (r_.between(0, 15)) {
      case 0:
      case 1: {  // layers of networks
        const int64_t kernel = r_.pick({1, 3, 3, 3, 5, 7});
        set_kernel(z, kernel, kernel);
        pad_same(z);
        const int64_t stride = r_.pick({1, 1, 2, 2, 4});
        set_stride(z, stride, stride);
        z->h = z->w = r_.pick({4, 7, 8, 12, 14, 16, 28, 32});
        return {};
      }
      case 2:  // anything
        set_kernel(z, r_.logarithmic(9), r_.logarithmic(9));
        set_stride(z, r_.logarithmic(5), r_.logarithmic(5));
        z->dilation_h = r_.logarithmic(4);
        z->dilation_w = r_.logarithmic(4);
        set_padding(z, 4);
        return {};
      case 3:  // large kernels of few channels
        set_kernel(z, r_.between(1, 41), r_.between(1, 41));
        set_channels(z, 1, r_.between(1, 3), r_.between(1, 3));
        if (r_.chance(0.6)) pad_same(z);
        z->h = r_.between(1, 45);
        z->w = r_.between(1, 45);
        if (r_.chance(0.3)) set_stride(z, r_.between(1, 8), r_.between(1, 8));
        z->n = r_.between(1, 2);
        return {false, true, false};
      case 4:  // tiny maps of many channels
        z->h = r_.between(1, 4);
        z->w = r_.between(1, 4);
        set_kernel(z, r_.between(1, 3), r_.between(1, 3));
        set_padding(z, 1);
        set_channels(z, 1, r_.logarithmic(400), r_.logarithmic(400));
        z->n = r_.between(1, 3);
        return {false, false, true};
      case 5:  // large batches
        z->n = r_.pick({63, 64, 65, 100, 127, 128, 129, 257, 513});
        z->h = r_.between(1, 7);
        z->w = r_.between(1, 7);
        set_kernel(z, r_.between(1, 4), r_.between(1, 4));
        set_padding(z, 2);
        set_channels(z, 1, r_.between(1, 9), r_.between(1, 9));
        if (r_.chance(0.3)) set_stride(z, r_.between(1, 3), r_.between(1, 3));
        if (r_.chance(0.15)) {  // of many channels: whole blocks of images have no room
          z->n = r_.pick({65, 100, 128, 129});
          set_kernel(z, r_.between(2, 6), r_.between(2, 6));
          z->h = z->r + r_.between(0, 1);
          z->w = z->s + r_.between(0, 1);
          set_channels(z, 1, r_.between(20, 110), r_.between(1, 2));
          if (r_.chance(0.3)) std::swap(z->c, z->k);
          return {true, false, false, true};
        }
        return {true, false, false};
      case 6:  // strides above the kernel, up to the largest there are
        set_kernel(z, r_.between(1, 4), r_.between(1, 4));
        set_stride(z, z->r + r_.logarithmic(20), z->s + r_.logarithmic(20));
        set_padding(z, 3);
        z->h = r_.between(1, 60);
        z->w = r_.between(1, 60);
        if (r_.chance(0.06)) z->stride_h = r_.pick({1 << 20, int64_t(1) << 31, int64_t(1) << 62, INT64_MAX});
        if (r_.chance(0.06)) z->stride_w = r_.pick({1 << 20, int64_t(1) << 31, int64_t(1) << 62, INT64_MAX});
        return {};
      case 7:  // dilation, with strides that do or do not share a factor with it
        set_kernel(z, r_.between(1, 5), r_.between(1, 5));
        z->dilation_h = r_.between(1, 9);
        z->dilation_w = r_.between(1, 9);
        set_stride(z, r_.between(1, 6), r_.between(1, 6));
        if (r_.chance(0.5)) pad_same(z);
        if (z->r == 1 && r_.chance(0.1)) z->dilation_h = r_.pick({int64_t(1) << 40, INT64_MAX});
        if (z->s == 1 && r_.chance(0.1)) z->dilation_w = r_.pick({int64_t(1) << 40, INT64_MAX});
        z->h = r_.between(1, 48);
        z->w = r_.between(1, 48);
        return {};
      case 8: {  // groups of every size
        const int64_t kernel = r_.pick({1, 2, 3, 3, 5});
        set_kernel(z, kernel, r_.chance(0.7) ? kernel : r_.between(1, 5));
        set_channels(z, r_.logarithmic(40), r_.between(1, r_.pick({4, 9, 20, 70})),
                     r_.between(1, r_.pick({4, 9, 20, 70})));
        if (r_.chance(0.7)) pad_same(z);
        if (r_.chance(0.3)) set_stride(z, r_.between(1, 3), r_.between(1, 3));
        if (r_.chance(0.2)) z->dilation_h = z->dilation_w = r_.between(1, 3);
        return {};
      }
      case 9:
      case 10: {  // depthwise, some with several outputs for each channel
        const int64_t kernel = r_.pick({1, 2, 3, 3, 3, 5, 5, 7, 9, 11, 13, 31});
        set_kernel(z, kernel, r_.chance(0.8) ? kernel : r_.between(1, 13));
        set_channels(z, channels(), 1, r_.chance(0.75) ? 1 : r_.between(2, 5));
        if (r_.chance(0.8)) pad_same(z);
        if (r_.chance(0.4)) set_stride(z, r_.between(1, 4), r_.between(1, 4));
        if (r_.chance(0.2)) z->dilation_h = z->dilation_w = r_.between(1, 4);
        return {};
      }
      case 11:  // rows of one pixel, and one dimension
        (r_.chance(0.5) ? z->h : z->w) = 1;
        (z->h == 1 ? z->w : z->h) = r_.logarithmic(600);
        set_kernel(z, z->h == 1 ? 1 : r_.logarithmic(40), z->h == 1 ? r_.logarithmic(40) : 1);
        if (r_.chance(0.5)) set_padding(z, 3);
        if (r_.chance(0.3)) set_stride(z, r_.between(1, 5), r_.between(1, 5));
        if (r_.chance(0.3)) z->dilation_h = z->dilation_w = r_.between(1, 5);
        return {};
      case 12:  // a kernel that covers its input
        z->h = z->r = r_.between(1, 8);
        z->w = z->s = r_.between(1, 8);
        if (r_.chance(0.25)) set_channels(z, r_.between(1, 6), r_.between(1, 5), r_.between(1, 5));
        if (r_.chance(0.3)) set_stride(z, r_.between(1, 5), r_.between(1, 5));
        return {false, false, true};
      case 13:  // more padding than kernel
        set_kernel(z, r_.between(1, 5), r_.between(1, 5));
        set_padding(z, 9);
        z->h = r_.between(1, 12);
        z->w = r_.between(1, 12);
        if (r_.chance(0.5)) set_stride(z, r_.between(1, 7), r_.between(1, 7));
        return {};
      case 14: {  // patches: the kernel's own size as stride, or half of it
        const int64_t kernel = r_.pick({2, 3, 4, 7, 8, 14, 16, 32});
        set_kernel(z, kernel, kernel);
        set_stride(z, r_.chance(0.5) ? kernel : std::max<int64_t>(1, kernel / 2), kernel);
        z->h = kernel * r_.between(1, 3) + r_.between(0, 2);
        z->w = kernel * r_.between(1, 3);
        set_channels(z, 1, r_.pick({1, 2, 3, 4, 8}), channels());
        return {};
      }
      default: {  // edges of blocks
        const int64_t kernel = r_.pick({1, 1, 2, 3, 3, 4, 5});
        set_kernel(z, kernel, kernel);
        set_channels(z, 1, awkward(), awkward());
        z->w = awkward();
        z->h = r_.between(1, 8);
        if (r_.chance(0.5)) pad_same(z);
        return {};
      }
    }
  }

  // One number of the problem becomes another.
  void disturb(ConvProblem* z) {
    int64_t* const numbers[] = {&z->n,          &z->h,        &z->w,          &z->r,          &z->s,
                                &z->stride_h,   &z->stride_w, &z->dilation_h, &z->dilation_w, &z->pad_top,
                                &z->pad_bottom, &z->pad_left, &z->pad_right};
    int64_t* const number = numbers[r_.between(0, 12)];
    const bool padding = number >= &z->pad_top && number <= &z->pad_right;
    *number = padding ? r_.between(0, 6) : r_.logarithmic(12);
  }

  // Up to the size from which plans share out work among threads.
  void enlarge(ConvProblem* z, Keep keep) {
    // Few channels of large maps are shared out by rows, many channels by themselves.
    const bool depthwise = z->groups == z->c;
    const bool keep_channels = keep.channels || (!keep.map && r_.chance(depthwise ? 0.6 : 0.4));
    if (depthwise && keep_channels) {
      z->n = 1;
      set_channels(z, r_.between(1, 8), 1, z->group_k());
      if (r_.chance(0.4)) set_stride(z, r_.between(1, 3), r_.between(1, 3));
    }
    for (int tries = 0; tries < 400 && products_of(*z) < kSharedProducts; ++tries) {
      const ConvProblem before = *z;
      switch (r_.between(0, 4)) {
        case 0:
          if (!depthwise || !keep_channels) z->n += z->n / 2 + 1;
          break;
        case 1:
          if (!keep_channels) z->c += z->groups * (z->group_c() / 2 + 1);
          break;
        case 2:
          if (!keep_channels) z->k += z->groups * (z->group_k() / 2 + 1);
          break;
        case 3:
          if (!keep.map) z->h += z->h / 2 + 1;
          break;
        default:
          if (!keep.map) z->w += z->w / 2 + 1;
          break;
      }
      if (!keep_channels && z->groups > 1 && z->groups == before.c && r_.chance(0.8)) {  // depthwise stays depthwise
        z->c = before.c;
        z->k = before.k;
        if (r_.chance(0.5)) set_channels(z, before.groups + before.groups / 3 + 1, 1, before.group_k());
      }
      if (!complete(z) || products_of(*z) > 1.5 * kMostProducts) *z = before;
    }
  }

  // Down to `most` products and tensors of `elements`; false where that cannot be.
  bool reduce(ConvProblem* z, Keep keep, double most, int64_t elements) {
    const auto fits = [&] {
      return products_of(*z) <= most && z->input_elements() <= elements && z->weight_elements() <= elements &&
             z->output_elements() <= elements;
    };
    for (int tries = 0; tries < 200; ++tries) {
      if (fits()) return true;
      const ConvProblem before = *z;
      const auto less = [&](int64_t value) {
        return value <= 1 ? value : std::max<int64_t>(1, value - std::max<int64_t>(1, value / 3));
      };
      switch (r_.between(0, 5)) {
        case 0:
          if (!keep.n || r_.chance(0.1)) z->n = less(z->n);
          break;
        case 1:
          z->c = z->groups * less(z->group_c());
          break;
        case 2:
          z->k = z->groups * less(z->group_k());
          break;
        case 3:
          if (!keep.map) z->h = less(z->h);
          break;
        case 4:
          if (!keep.map) z->w = less(z->w);
          break;
        default:
          if (z->groups > 1) set_channels(z, less(z->groups), z->group_c(), z->group_k());
          break;
      }
      if (!complete(z)) *z = before;
    }
    return false;
  }

  Random& r_;
};

}  // namespace fuzz
