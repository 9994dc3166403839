// The implicit matrix product, all passes: what alone differs between the AVX-512 libraries, which share the rest.
#include "weight_grad.h"
#include "../pass.h"

namespace conv_ext {

template <class T>
RunPass implicit_gemm_of(Pass pass) {
  switch (pass) {
    case Pass::Forward:
      return run_implicit_gemm<T, Pass::Forward>;
    case Pass::InputGrad:
      return run_implicit_gemm<T, Pass::InputGrad>;
    case Pass::WeightGrad:
      return run_implicit_gemm<T, Pass::WeightGrad>;
  }
  return nullptr;
}

RunPass select_implicit_gemm(Pass pass, bool of_bfloat16) {
  return of_bfloat16 ? implicit_gemm_of<bfloat16>(pass) : implicit_gemm_of<float>(pass);
}

}  // namespace conv_ext
