// A kernel that covers its whole input is a 1x1 kernel over C R S channels, where the operands' memory allows it.
#pragma once

#include <string.h>

#include "buffers.h"
#include "problem.h"

namespace conv_ext {

// Takes three dimensions of a tensor for one: `order` lists them, the slowest first. false where their strides do not
// allow it; else *stride is that of the one dimension. The stride of a dimension of size 1 is never multiplied by
// anything but zero, so that it says nothing: such a dimension is left out, and its neighbours are compared.
inline bool merged_stride(const TensorRef& t, const int64_t (&sizes)[4], const int (&order)[3], int64_t* stride) {
  int64_t merged = 1;  // positions of the dimensions so far
  *stride = 1;
  for (int i = 2; i >= 0; --i) {
    const int64_t size = sizes[order[i]], step = t.stride[order[i]];
    if (size == 1) continue;
    if (merged == 1) {
      *stride = step;
    } else if (step != *stride * merged) {
      return false;
    }
    merged *= size;
  }
  return true;
}

// Returns whether it did.
inline bool merge_kernel_into_channels(ConvProblem* z, Buffers* b) {
  if (!z->kernel_covers_input()) return false;
  const int64_t input[4] = {z->n, z->c, z->h, z->w}, weight[4] = {z->k, z->group_c(), z->r, z->s};
  // c, h, w (contiguous), or h, w, c (channels_last), where channels of several groups would mix.
  constexpr int kOrders[2][3] = {{1, 2, 3}, {2, 3, 1}};
  for (const int(&order)[3] : kOrders) {
    if (order[0] == 2 && z->groups > 1) continue;
    int64_t input_stride = 0, weight_stride = 0;
    if (!merged_stride(b->input, input, order, &input_stride)) continue;
    if (!merged_stride(b->weight, weight, order, &weight_stride)) continue;
    b->input.stride[1] = input_stride;
    b->weight.stride[1] = weight_stride;
    *z = z->as_1x1();
    return true;
  }
  return false;
}

// How the numbers of a dtype are stored, as far as Inf and NaN go: all bits of the exponent are set in them.
struct ExponentBits {
  int64_t bytes;             // of a real number
  uint64_t exponent, quiet;  // with the highest bit below the exponent it is a NaN
};
inline ExponentBits exponent_bits(DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
      return {2, 0x7f80, 0x40};
    case DType::Float16:
      return {2, 0x7c00, 0x200};
    case DType::Float32:
    case DType::Complex64:
      return {4, 0x7f800000, 0x400000};
    case DType::Float64:
    case DType::Complex128:
      break;
  }
  return {8, 0x7ff0000000000000, 0x8000000000000};
}

// Whether all numbers of an input with a single position are finite, complex ones by their parts.
template <class Word>
inline bool all_finite(const ConvProblem& merged, const TensorRef& input, uint64_t exponent) {
  const int64_t parts = parts_of(merged.dtype);
  const Word mask = Word(exponent);
  Word special = 0;
  for (int64_t n = 0; n < merged.n; ++n) {
    const int64_t first = n * input.stride[0] * parts;  // in Words
    const int64_t step = input.stride[1] == 1 ? 1 : input.stride[1] * parts;
    const int64_t count = input.stride[1] == 1 ? merged.c * parts : merged.c;
    for (int64_t part = 0; part < (input.stride[1] == 1 ? 1 : parts); ++part)
      for (int64_t i = 0; i < count; ++i) {
        Word bits;
        const char* const from = static_cast<const char*>(input.data);
        memcpy(&bits, from + (first + part + i * step) * int64_t(sizeof(Word)), sizeof(Word));
        special |= Word((bits & mask) == mask);
      }
  }
  return special == 0;
}

// The input gradient of a kernel that was merged has left out the zeros that the definition has around the upstream
// gradient: position (h, w) reads one through every tap but (h, w) itself. That shows where a weight is not finite.
// Then the gradient at the weight's own place is not finite either, so that one look at the result mostly suffices.
inline void add_zeros_around_gradient(const ConvProblem& merged, const Buffers& merged_buffers, const ConvProblem& z,
                                      const Buffers& b) {
  const ExponentBits format = exponent_bits(z.dtype);
  const bool finite = format.bytes == 2   ? all_finite<uint16_t>(merged, merged_buffers.input, format.exponent)
                      : format.bytes == 4 ? all_finite<uint32_t>(merged, merged_buffers.input, format.exponent)
                                          : all_finite<uint64_t>(merged, merged_buffers.input, format.exponent);
  if (finite) return;
  const int64_t parts = parts_of(z.dtype), element = format.bytes * parts;
  const auto at = [&](const TensorRef& t, int64_t i, int64_t j, int64_t k, int64_t l) {
    const int64_t place = i * t.stride[0] + j * t.stride[1] + k * t.stride[2] + l * t.stride[3];
    return static_cast<char*>(t.data) + place * element;
  };
  const auto special = [&](const char* p) {
    for (int64_t part = 0; part < parts; ++part) {
      uint64_t bits = 0;
      memcpy(&bits, p + part * format.bytes, size_t(format.bytes));
      if ((bits & format.exponent) == format.exponent) return true;
    }
    return false;
  };
  const uint64_t nan = format.exponent | format.quiet;
  for (int64_t c = 0; c < z.c; ++c)
    for (int64_t r = 0; r < z.r; ++r)
      for (int64_t s = 0; s < z.s; ++s) {
        const int64_t group = c / z.group_c();
        bool any = false;
        for (int64_t k = 0; k < z.group_k() && !any; ++k)
          any = special(at(b.weight, group * z.group_k() + k, c % z.group_c(), r, s));
        for (int64_t h = 0; h < z.h && any; ++h)
          for (int64_t w = 0; w < z.w; ++w) {
            // A tap and the positions that it writes are a multiple of the stride apart.
            if ((h == r && w == s) || (h - r) % z.stride_h != 0 || (w - s) % z.stride_w != 0) continue;
            for (int64_t n = 0; n < z.n; ++n)
              for (int64_t part = 0; part < parts; ++part)
                memcpy(at(b.input, n, c, h, w) + part * format.bytes, &nan, size_t(format.bytes));
          }
      }
}

}  // namespace conv_ext
