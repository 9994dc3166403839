// The launcher of the kernels for few channels, weight_grad: depthwise, grouped, first_layer.
#include "box_launch.cuh"
#include "window_grad.cuh"

namespace conv_ext {
namespace cuda {
namespace {

template <class T, class Sum>
WindowGradParameters<T, Sum> window_grad_parameters(const RealCall& call) {
  const ConvProblem& z = call.z;
  const Buffers& b = call.b;
  const CudaWindow& w = call.plan.window;
  const WindowGradBoxes boxes = window_grad_boxes(z, w);
  WindowGradParameters<T, Sum> p{};
  p.vertical = axis_of(vertical_axis(z, Pass::WeightGrad));
  p.horizontal = axis_of(horizontal_axis(z, Pass::WeightGrad));
  p.input_box = box_of<T>(z, boxes.input, b.input, w.copy_bytes);
  p.grad_box = box_of<T>(z, boxes.grad, b.output, w.grad_copy_bytes);
  p.input = {static_cast<const T*>(b.input.data), int32_t(z.h), int32_t(z.w)};
  p.grad = {static_cast<const T*>(b.output.data), int32_t(z.p), int32_t(z.q)};
  p.input_n = b.input.stride[0];
  p.grad_n = b.output.stride[0];
  p.groups = int32_t(z.groups);
  p.rows = int32_t(z.group_k());
  p.channels = int32_t(z.group_c());
  p.tile_groups = int32_t(w.groups);
  p.tile_rows = int32_t(w.rows);
  p.tile_columns = int32_t(w.columns);
  const int64_t columns = w.fixed ? w.fixed * w.fixed : kWindowGradColumns;
  p.tiles_g = int32_t(ceil_div(z.groups, w.groups));
  p.tiles_m = int32_t(ceil_div(z.group_k(), w.rows));
  p.tiles_c = int32_t(ceil_div(ceil_div(z.group_c() * z.r * z.s, columns), w.columns));
  p.tile_h = int32_t(w.tile_h);
  p.tile_w = int32_t(w.tile_w);
  p.tiles_h = int32_t(ceil_div(z.p, w.tile_h));
  p.tiles_w = int32_t(ceil_div(z.q, w.tile_w));
  p.tiles = z.n * p.tiles_h * p.tiles_w;
  p.step = call.plan.steps;
  p.lanes = int32_t(w.lanes);
  p.blocks_m = int32_t(w.groups * w.rows / w.channels);
  p.items = int32_t(p.blocks_m * w.columns);
  p.by_lanes = divider(w.lanes);
  p.by_items = divider(p.items);
  p.by_blocks_m = divider(p.blocks_m);
  p.in_group = divider(w.rows / w.channels);
  p.by_tile_w = divider(w.tile_w);
  p.stage_bytes = int32_t(w.stage_bytes);
  p.grad_at = int32_t(w.box_bytes / int64_t(sizeof(T)));
  Strides to = strides_of(b.weight);
  p.result = result_of<T, Sum>(call, b.weight, to.n);
  if (call.plan.splits > 1) {  // parts lie as K C R S
    p.result.partial = static_cast<Sum*>(b.workspace);
    to = {z.group_c() * z.r * z.s, z.r * z.s, z.s, 1};
    p.result.stride_m = to.n;
    p.split_elements = z.k * to.n;
  }
  p.to_c = to.c;
  p.to_h = to.h;
  p.to_w = to.w;
  return p;
}

// Adds up the parts of the sums.
template <class T, class Sum>
int add_splits(const RealCall& call, const WindowGradParameters<T, Sum>& p) {
  const ConvProblem& z = call.z;
  const int64_t size[4] = {z.k, z.group_c(), z.r, z.s};
  ReduceParameters<T, Sum> sums{};
  for (int d = 0; d < 4; ++d) {
    sums.size[d] = size[d];
    sums.stride[d] = call.b.weight.stride[d];
  }
  sums.splits = int32_t(call.plan.splits);
  sums.partial = p.result.partial;
  sums.result = result_of<T, Sum>(call, call.b.weight, 0);
  return launch(window_reduce<T, Sum>, ceil_div(p.split_elements, kSumThreads / kSumLanes), kSumThreads,
                kSumThreads * int(sizeof(Sum)), call.stream, sums);
}

// Starts the kernel that the plan means.
template <class T, class Sum>
int start_window_grad(const RealCall& call) {
  const CudaWindow& w = call.plan.window;
  const bool by_ones = call.z.stride_h == 1;
  const WindowGradParameters<T, Sum> p = window_grad_parameters<T, Sum>(call);
  const auto run = [&]<class Window>(Type<Window>) {
    return launch(window_grad<T, Sum, Window>, call.plan.blocks, kGradThreads, int(w.shared_bytes), call.stream, p);
  };
  const auto start = [&] {
    if constexpr (sizeof(T) < 8) {
      if (w.fixed == 3 && by_ones) return run(Type<FixedGrad<T, Sum, 3, 1>>());
      if (w.fixed == 3) return run(Type<FixedGrad<T, Sum, 3, 2>>());
      if (w.fixed == 5 && by_ones) return run(Type<FixedGrad<T, Sum, 5, 1>>());
      if (w.fixed == 5) return run(Type<FixedGrad<T, Sum, 5, 2>>());
      if (w.channels == 8) return run(Type<AnyGrad<T, Sum, 8>>());
    }
    if (w.channels == 4) return run(Type<AnyGrad<T, Sum, 4>>());
    return run(Type<AnyGrad<T, Sum, 1>>());
  };
  const int error = start();
  return error || call.plan.splits == 1 ? error : add_splits(call, p);
}

}  // namespace

int launch_window_grad(const RealCall& call) {
  return with_math(call.z, CudaAlgorithm::MultiplyAdd, [&](auto type) {
    return [&]<class Math>(Type<Math>) {
      if constexpr (Math::kTensorCores) {
        return 1;  // not reached: sums are fused multiply-adds
      } else {
        return start_window_grad<typename Math::Element, typename Math::Sum>(call);
      }
    }(type);
  });
}

}  // namespace cuda
}  // namespace conv_ext
