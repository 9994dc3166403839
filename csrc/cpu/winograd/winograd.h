// The Winograd algorithm: products of transformed tiles, one matrix product for each pair of points (toom_cook.h).
//
//   forward, input_grad                                weight_grad
//     transform all weights                              for each block of K x C (in parallel):
//     for each block of tiles (in parallel):               for each block of tiles:
//       transform the source                                  transform the input and the upstream gradient
//       for each pair of points: product                      for each pair of points: product, added up
//       transform the products                             transform the sums
//                                                        add the parts, write
//
// Where the tiles are few and the weights many, the roles in the first column are exchanged: the source is transformed
// first, and each task takes a panel of the weights. The sums are the same, in the same order. Vectors run over
// channels in every transform. An output that is not finite is computed again without transforms, so that Inf and NaN
// stand where they do in the direct sum and nowhere else; in a finite result none is left.
//
// Start reading at run_winograd, at the end. The memory is laid out in cpu/winograd/layout.h.
#pragma once

#include "tiles.h"
#include "weight_grad.h"

namespace conv_ext {

template <class T, class A, int M, int R>
Winograd<T, A, M, R> make_winograd(const ConvProblem& z, Pass pass, const Plan& plan, const Buffers& b) {
  const View<T> weight = weights_by_role<T>(pass, b);
  return {z,
          plan,
          winograd_sizes(z, pass, plan.own<WinogradPlan>(), kLanes<A>),
          vertical_axis(z, pass),
          horizontal_axis(z, pass),
          b,
          view_of<T>(source_of(pass, b), 1),
          view_of<T>(result_of(pass, b), 1),
          weight,
          group_step(z, pass, weight),
          result_channels(z, pass),
          source_channels(z, pass),
          pass == Pass::InputGrad};
}

// Here the size of the transform becomes a template argument.
template <class T, class A, Pass pass>
void run_winograd(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const WinogradPlan& own = plan.own<WinogradPlan>();
  const auto run = [&](const auto& task) {
    Carver carver(b.workspace);
    const WinogradWorkspace<A> memory = winograd_workspace<A>(z, pass, own, task.size, carver);
    if constexpr (pass == Pass::WeightGrad)
      run_winograd_weight_grad(task, executor, memory.partial);
    else if (own.weights_first)
      task.run_weights_first(executor, memory);
    else
      task.run_source_first(executor, memory);
  };
  if (own.filter == 5)
    run(make_winograd<T, A, 4, 5>(z, pass, plan, b));
  else if (own.outputs == 4)
    run(make_winograd<T, A, 4, 3>(z, pass, plan, b));
  else
    run(make_winograd<T, A, 2, 3>(z, pass, plan, b));
}

}  // namespace conv_ext
