// The algorithm for small groups, all passes in one file: forward and input_grad have the same register tiles.
#include "weight_grad.h"
#include "../pass.h"

namespace conv_ext {

template <class A, class T = A>
RunPass grouped_of(Pass pass) {
  switch (pass) {
    case Pass::Forward:
      return run_grouped<A, T, Pass::Forward>;
    case Pass::InputGrad:
      return run_grouped<A, T, Pass::InputGrad>;
    case Pass::WeightGrad:
      return run_grouped<A, T, Pass::WeightGrad>;
  }
  return nullptr;
}

RunPass select_grouped(Pass pass, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return grouped_of<float>(pass);
    case DType::Float64:
      return grouped_of<double>(pass);
    case DType::BFloat16:
      return grouped_of<float, bfloat16>(pass);
    default:  // the plan declines the other types
      return nullptr;
  }
}

}  // namespace conv_ext
