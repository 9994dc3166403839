// The depthwise algorithm, one input channel per output channel; all passes in one file: their register tiles are the
// same.
//
// The plan says whether the lanes of vectors are channels (channels.h: where these lie side by side, as in
// channels_last) or columns (columns.h: NCHW), and what is read and written where it lies.
#include "channels.h"
#include "columns.h"

#include "../pass.h"

namespace conv_ext {

template <class T, class A, Pass pass>
void run_depthwise(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  if (plan.own<DepthwisePlan>().lanes_are == DepthwiseLanes::Channels)
    DepthwiseChannels<T, A, pass>(z, plan, b).run(executor);
  else
    DepthwiseColumns<T, A, pass>(z, plan, b).run(executor);
}

RunPlan select_depthwise(Pass pass, DType dtype) {
  if (is_complex(dtype)) return nullptr;
  return with_types_and_pass(dtype, pass, [](auto types, auto its_pass) -> RunPlan {
    typedef decltype(types) Types;
    return run_depthwise<typename Types::T, typename Types::A, decltype(its_pass)::value>;
  });
}

}  // namespace conv_ext
