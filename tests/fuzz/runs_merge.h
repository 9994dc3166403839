// A kernel that covers its input as a 1x1 kernel, as the operators take it: csrc/torch/buffers.h, without torch.
#pragma once

#include "../../csrc/kernels.h"

namespace conv_ext {

inline bool mergeable(const TensorRef& t, const int64_t sizes[4], const int order[3]) {
  for (int i = 0; i < 2; ++i)
    if (sizes[order[i]] != 1 && t.stride[order[i]] != t.stride[order[i + 1]] * sizes[order[i + 1]]) return false;
  return true;
}

inline void merge_kernel_into_channels(ConvProblem* z, Buffers* b) {
  if (!z->kernel_covers_input()) return;
  const int64_t input[4] = {z->n, z->c, z->h, z->w}, weight[4] = {z->k, z->group_c(), z->r, z->s};
  constexpr int kOrders[2][3] = {{1, 2, 3}, {2, 3, 1}};
  for (const auto& order : kOrders) {
    if (order[0] == 2 && z->groups > 1) continue;
    if (!mergeable(b->input, input, order) || !mergeable(b->weight, weight, order)) continue;
    b->input.stride[1] = b->input.stride[order[2]];
    b->weight.stride[1] = b->weight.stride[order[2]];
    *z = z->as_1x1();
    return;
  }
}

}  // namespace conv_ext
