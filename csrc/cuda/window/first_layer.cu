// The launcher of first layers' forward on the tensor cores.
#include "box_launch.cuh"
#include "first_layer.cuh"

namespace conv_ext {
namespace cuda {
namespace {

template <class Math>
int start_first_layer(const RealCall& call) {
  using T = typename Math::Element;
  const ConvProblem& z = call.z;
  const Buffers& b = call.b;
  const CudaWindow& w = call.plan.window;
  const conv_ext::Axis vertical = vertical_axis(z, Pass::Forward), horizontal = horizontal_axis(z, Pass::Forward);
  FirstLayerParameters<T, float> p{};
  p.vertical = axis_of(vertical);
  p.horizontal = axis_of(horizontal);
  p.box = box_of<T>(z, window_box(z, vertical, horizontal, w.tile_h, w.tile_w, z.c), b.input, w.copy_bytes);
  p.source = {static_cast<const T*>(b.input.data), int32_t(z.h), int32_t(z.w)};
  p.from_n = b.input.stride[0];
  p.rows = int32_t(z.k);
  p.channels = int32_t(z.c);
  p.height = int32_t(z.p);
  p.width = int32_t(z.q);
  p.tile_h = int32_t(w.tile_h);
  p.tile_w = int32_t(w.tile_w);
  p.tiles_m = int32_t(ceil_div(z.k, kFirstRows));
  p.tiles_h = int32_t(ceil_div(z.p, w.tile_h));
  p.tiles_w = int32_t(ceil_div(z.q, w.tile_w));
  p.products = int32_t(z.c * z.r * z.s);
  const FirstLayerRoom room = first_layer_room(z, w.box_bytes);
  p.pitch = int32_t(room.pitch);
  p.by_pitch = divider(room.numbers);
  p.by_tile_w = divider(w.tile_w);
  p.taps = divider(z.r * z.s);
  p.taps_w = divider(z.s);
  p.weights_at = int32_t(room.weights_at);
  p.offsets_at = int32_t(room.offsets_at);
  p.sums_at = int32_t(room.sums_at);
  p.weights = static_cast<const T*>(b.weight.data);
  p.weight_m = b.weight.stride[0];
  p.weight_c = b.weight.stride[1];
  p.weight_h = b.weight.stride[2];
  p.weight_w = b.weight.stride[3];
  p.to_n = b.output.stride[0];
  p.to_h = b.output.stride[2];
  p.to_w = b.output.stride[3];
  p.result = result_of<T, float>(call, b.output, b.output.stride[1]);
  return launch(first_layer<Math>, call.plan.blocks, kFirstThreads, int(room.bytes), call.stream, p);
}

}  // namespace

int launch_first_layer(const RealCall& call) {
  if (call.z.dtype == DType::BFloat16) return start_first_layer<TensorCores<bfloat16>>(call);
  if (call.z.dtype == DType::Float16) return start_first_layer<TensorCores<float16>>(call);
  return start_first_layer<TF32>(call);
}

}  // namespace cuda
}  // namespace conv_ext
