// What a pass reads beside its source, by role: the weights of forward and input_grad, and the bias.
#pragma once

#include "../../common/roles.h"
#include "epilogue.h"
#include "pack.h"

namespace conv_ext {

// The weights seen as (channels of a group's result, of its source, R, S): `n` and `channel` are the strides of these.
template <class T>
inline View<T> weights_by_role(Pass pass, const Buffers& b, int64_t parts = 1) {
  const View<T> w = view_of<T>(b.weight, parts);
  return pass == Pass::InputGrad ? View<T>{w.data, w.channel, w.n, w.row, w.column} : w;
}
// Elements between the weights of two groups, which lie K/g apart.
template <class T>
inline int64_t group_step(const ConvProblem& z, Pass pass, const View<T>& weights) {
  return z.group_k() * (pass == Pass::InputGrad ? weights.channel : weights.n);
}

// 0 where there is no bias. Of complex numbers both parts are channels.
template <class T, class A>
inline __attribute__((always_inline)) A bias_at(const Buffers& b, int64_t channel, int64_t parts = 1) {
  if (b.bias == nullptr) return A(0);
  return read<A>(static_cast<const T*>(b.bias) + channel / parts * b.bias_stride * parts + channel % parts);
}
// to[i] = the bias of channel first + i for `count` channels, and zeros up to `padded`.
template <class T, class A>
inline __attribute__((always_inline)) void pack_bias(A* to, const Buffers& b, int64_t first, int64_t count,
                                                     int64_t padded, int64_t parts = 1) {
  for (int64_t i = 0; i < padded; ++i) to[i] = i < count ? bias_at<T, A>(b, first + i, parts) : A(0);
}

}  // namespace conv_ext
