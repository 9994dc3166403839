// The launcher of the kernels for few channels, forward and input_grad: depthwise, grouped, first_layer.
#include "box_launch.cuh"
#include "window.cuh"

namespace conv_ext {
namespace cuda {
namespace {

// What threads do with the items of a tile, and where its weights and phases lie in shared memory.
template <class T, class Sum>
void set_items(const ConvProblem& z, const CudaWindow& w, WindowParameters<T, Sum>* p) {
  const int64_t step_h = p->vertical.inverse ? p->vertical.stride : 1,
                step_w = p->horizontal.inverse ? p->horizontal.stride : 1;
  const int64_t across = w.fixed ? w.tile_w / step_w : w.tile_w, down = w.tile_h / w.height,
                blocks_m = w.groups * w.rows / w.channels;
  p->items = int32_t(across * down * blocks_m);
  p->threads = int32_t(w.threads);
  p->first = divider(z.channels_last ? blocks_m : across);
  p->second = divider(z.channels_last ? across : down);
  p->phase_h = divider(w.tile_h / step_h);
  p->phase_w = divider(w.tile_w / step_w);
  p->group = divider(w.rows);
  p->pitch_m = divider(w.groups * w.rows);
  p->taps = divider(z.r * z.s);
  p->taps_w = divider(z.s);
  p->weights_at = int32_t(w.box_bytes);
  p->phases_at = int32_t(w.box_bytes + w.weight_bytes);
}

template <class T, class Sum>
void set_weights(const RealCall& call, const GatherRoles& roles, WindowParameters<T, Sum>* p) {
  p->weights = static_cast<const T*>(call.b.weight.data);
  p->weight_group = roles.stride_group;
  p->weight_m = roles.stride_m;
  p->weight_c = roles.stride_c;
  p->weight_h = call.b.weight.stride[2];
  p->weight_w = call.b.weight.stride[3];
  // input_grad of stride 1 is forward with the kernel turned round.
  const bool inverse = roles.pass == Pass::InputGrad;
  if (inverse && !p->vertical.inverse) {
    p->weights += (call.z.r - 1) * p->weight_h;
    p->weight_h = -p->weight_h;
  }
  if (inverse && !p->horizontal.inverse) {
    p->weights += (call.z.s - 1) * p->weight_w;
    p->weight_w = -p->weight_w;
  }
}

template <class T, class Sum>
WindowParameters<T, Sum> window_parameters(const RealCall& call, const GatherRoles& roles) {
  const ConvProblem& z = call.z;
  const CudaWindow& w = call.plan.window;
  const conv_ext::Axis vertical = window_axis(vertical_axis(z, roles.pass)),
                       horizontal = window_axis(horizontal_axis(z, roles.pass));
  WindowParameters<T, Sum> p{};
  p.vertical = axis_of(vertical);
  p.horizontal = axis_of(horizontal);
  p.box = box_of<T>(z, window_box(z, vertical, horizontal, w.tile_h, w.tile_w, w.groups * w.chunk), roles.source,
                    w.copy_bytes);
  p.source = {static_cast<const T*>(roles.source.data), int32_t(roles.source_h), int32_t(roles.source_w)};
  p.from_n = roles.source.stride[0];
  p.groups = int32_t(z.groups);
  p.rows = int32_t(roles.rows);
  p.channels = int32_t(roles.channels);
  p.height = int32_t(roles.result_size[2]);
  p.width = int32_t(roles.result_size[3]);
  p.tile_groups = int32_t(w.groups);
  p.tile_rows = int32_t(w.rows);
  p.tile_h = int32_t(w.tile_h);
  p.tile_w = int32_t(w.tile_w);
  p.chunk = int32_t(w.chunk);
  p.origin_h = int32_t(w.origin_h);
  p.origin_w = int32_t(w.origin_w);
  p.tiles_g = int32_t(ceil_div(z.groups, w.groups));
  p.tiles_m = int32_t(ceil_div(roles.rows, w.rows));
  p.tiles_h = int32_t(ceil_div(p.height - w.origin_h, w.tile_h));
  p.tiles_w = int32_t(ceil_div(p.width - w.origin_w, w.tile_w));
  set_items(z, w, &p);
  set_weights(call, roles, &p);
  p.to_n = roles.result.stride[0];
  p.to_h = roles.result.stride[2];
  p.to_w = roles.result.stride[3];
  p.result = result_of<T, Sum>(call, roles.result, roles.result.stride[1]);
  p.vectors = w.stores_vectors;
  return p;
}

// Starts the kernel that the plan means.
template <class T, class Sum>
int start_window(const RealCall& call, const GatherRoles& roles) {
  const ConvProblem& z = call.z;
  const CudaWindow& w = call.plan.window;
  const WindowParameters<T, Sum> p = window_parameters<T, Sum>(call, roles);
  const auto run = [&]<class Window, bool kColumns>(Type<Window>, std::bool_constant<kColumns>) {
    return launch(window_gather<T, Sum, Window, kColumns>, call.plan.blocks, p.threads, int(w.shared_bytes),
                  call.stream, p);
  };
  const auto either = [&]<class Window>(Type<Window> type) { return run(type, std::false_type()); };
  if constexpr (sizeof(T) < 8) {
    const auto known = [&]<class Window>(Type<Window> type) {
      return z.channels_last ? either(type) : run(type, std::true_type());
    };
    const bool inverse = p.vertical.inverse;
    if (w.fixed == 3 && z.stride_h == 1) return known(Type<FixedWindow<T, Sum, 3, 1, false, 8>>());
    if (w.fixed == 3 && !inverse) return either(Type<FixedWindow<T, Sum, 3, 2, false, 4>>());
    if (w.fixed == 3) return either(Type<FixedWindow<T, Sum, 3, 2, true, 4>>());
    if (w.fixed == 5 && z.stride_h == 1) return known(Type<FixedWindow<T, Sum, 5, 1, false, 8>>());
    if (w.fixed == 5 && !inverse) return either(Type<FixedWindow<T, Sum, 5, 2, false, 4>>());
    if (w.fixed == 5) return either(Type<FixedWindow<T, Sum, 5, 2, true, 4>>());
    // Of the shape alone, for it is another order of the sums.
    const bool fours = z.channels_last && w.chunk == roles.channels && roles.channels % 4 == 0;
    if (fours && w.channels == 8) return either(Type<ChannelsWindow<T, Sum, 8, 8>>());
    if (fours && w.channels == 4) return either(Type<ChannelsWindow<T, Sum, 4, 8>>());
    if (w.channels == 8) return either(Type<AnyWindow<T, Sum, 8, 8>>());
  }
  constexpr int kHeight = sizeof(T) == 8 ? 4 : 8;
  if (w.channels == 4) return either(Type<AnyWindow<T, Sum, 4, kHeight>>());
  return either(Type<AnyWindow<T, Sum, 1, kHeight>>());
}

}  // namespace

int launch_window(const RealCall& call, const GatherRoles& roles) {
  return with_math(call.z, CudaAlgorithm::MultiplyAdd, [&](auto type) {
    return [&]<class Math>(Type<Math>) {
      if constexpr (Math::kTensorCores) {
        return 1;  // not reached: sums are fused multiply-adds
      } else {
        return start_window<typename Math::Element, typename Math::Sum>(call, roles);
      }
    }(type);
  });
}

}  // namespace cuda
}  // namespace conv_ext
