// The algorithm for small groups, all passes in one file: forward and input_grad have the same register tiles.
#include "grouped_grad.h"
#include "pass.h"

namespace conv_ext {

template <class A>
RunPass grouped_of(Pass pass) {
  switch (pass) {
    case Pass::Forward:
      return run_grouped<A, Pass::Forward>;
    case Pass::InputGrad:
      return run_grouped<A, Pass::InputGrad>;
    case Pass::WeightGrad:
      return run_grouped<A, Pass::WeightGrad>;
  }
  return nullptr;
}

RunPass select_grouped(Pass pass, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return grouped_of<float>(pass);
    case DType::Float64:
      return grouped_of<double>(pass);
    default:  // the plan declines the other types
      return nullptr;
  }
}

}  // namespace conv_ext
