// Input gradient: the upstream gradient convolved with the rotated kernel, one small product for each phase of a
// stride.
#include "launch.cuh"

namespace conv_ext {

int launch_input_grad(const ConvProblem& z, const CudaPlan& plan, const Buffers& buffers, void* stream) {
  return cuda::run_by_parts(z, Pass::InputGrad, plan, buffers, stream, [&](const cuda::RealCall& call) {
    const Buffers& b = call.b;
    // The roles of forward with K and C exchanged; vertical_axis and horizontal_axis are the inverse maps.
    return cuda::launch_gather(call, {Pass::InputGrad,
                                      b.output,
                                      b.input,
                                      z.p,
                                      z.q,
                                      {z.n, z.c, z.h, z.w},
                                      z.group_c(),
                                      z.group_k(),
                                      b.weight.stride[1],
                                      b.weight.stride[0],
                                      z.group_k() * b.weight.stride[0]});
  });
}

}  // namespace conv_ext
