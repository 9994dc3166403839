// Who is who in a pass: the source is what is convolved, the result is what comes of it.
//
//                 source              result             gemm_m   gemm_n       gemm_k
//   forward       input               output             K/g      N P Q        C/g R S
//   input_grad    upstream gradient   input              C/g      N H W        K/g R S
//   weight_grad   input               upstream gradient  K/g      C/g R S      N P Q
//
// weight_grad reads both of them, as forward reads one and writes the other.
#pragma once

#include "buffers.h"

namespace conv_ext {

// Channels of a group; gemm_m are those of the result.
inline int64_t source_channels(const ConvProblem& z, Pass pass) {
  return pass == Pass::InputGrad ? z.group_k() : z.group_c();
}
inline int64_t result_channels(const ConvProblem& z, Pass pass) {
  return pass == Pass::InputGrad ? z.group_c() : z.group_k();
}

// Of the three tensors (Buffers), or of their strides or sizes.
template <class Three>
inline const auto& source_of(Pass pass, const Three& three) {
  return pass == Pass::InputGrad ? three.output : three.input;
}
template <class Three>
inline const auto& result_of(Pass pass, const Three& three) {
  return pass == Pass::InputGrad ? three.input : three.output;
}

}  // namespace conv_ext
