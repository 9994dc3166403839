// The depthwise algorithm, all passes in one file: their register tiles are the same.
#include "depthwise.h"

#include "../pass.h"

namespace conv_ext {

template <class T, class A>
RunPass depthwise_of(Pass pass) {
  switch (pass) {
    case Pass::Forward:
      return run_depthwise<T, A, Pass::Forward>;
    case Pass::InputGrad:
      return run_depthwise<T, A, Pass::InputGrad>;
    case Pass::WeightGrad:
      return run_depthwise<T, A, Pass::WeightGrad>;
  }
  return nullptr;
}

RunPass select_depthwise(Pass pass, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return depthwise_of<float, float>(pass);
    case DType::Float64:
      return depthwise_of<double, double>(pass);
    case DType::BFloat16:
      return depthwise_of<bfloat16, float>(pass);
    case DType::Float16:
      return depthwise_of<float16, float>(pass);
    default:  // the plan declines complex numbers
      return nullptr;
  }
}

}  // namespace conv_ext
