// A kernel that covers its whole input is a 1x1 kernel over C R S channels, where the operands' memory allows it.
#pragma once

#include "kernels.h"

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

inline void merge_kernel_into_channels(ConvProblem* z, Buffers* b) {
  if (!z->kernel_covers_input()) return;
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
    return;
  }
}

}  // namespace conv_ext
