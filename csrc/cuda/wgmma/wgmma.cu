// The algorithm `wgmma`: forward and input_grad by wgmma.cuh, weight_grad by wgmma/weight_grad.cuh. Compiled for sm_90a
// alone, whatever else is built for, and so it must not instantiate kernels that other files have: the device's code
// would be found in either.
#include "plan.h"
#include "weight_grad.cuh"
#include "../launch.cuh"

namespace conv_ext {
namespace cuda {
namespace {

static_assert(kMostGatherPhases == kMostBoxPhases && kWgmmaM == kWgmmaPositions, "plan and kernel are of one mind");
static_assert(kMostInParts<SixteenBitGroup<bfloat16>> == wgmma_most_in_parts(2) &&
                  kMostInParts<ThreeBF16Group> == wgmma_most_in_parts(4) && kMostChained == kWgmmaMostChained,
              "plan and kernel are of one mind");

template <class T>
constexpr Number number_of() {
  if (std::is_same_v<T, bfloat16>) return Number::BFloat16;
  return std::is_same_v<T, float16> ? Number::Float16 : Number::Float32;
}

// All phases, those of the vertical axis slowest.
void fill_phases(const ConvProblem& z, Pass pass, GatherPhase* to) {
  const conv_ext::Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  for (int64_t i = 0; i < vertical.phases(); ++i)
    for (int64_t j = 0; j < horizontal.phases(); ++j) {
      const BoxAxis h = box_axis(vertical, i), w = box_axis(horizontal, j);
      *to++ = {int32_t(h.taps),
               int32_t(w.taps),
               int32_t(h.lower),
               int32_t(w.lower),
               int32_t(h.first_offset),
               int32_t(w.first_offset),
               int32_t(h.delta),
               int32_t(w.delta),
               int32_t(h.count),
               int32_t(w.count),
               int32_t(h.first_output),
               int32_t(w.first_output),
               int32_t(h.first_tap * z.s + w.first_tap),
               int32_t(h.tap_step * z.s),
               int32_t(w.tap_step)};
    }
}

// Copies an operand if the plan says so (of n images, h x w positions, groups of `channels`); leaves in `map` how it
// lies.
template <class Group, class Element = typename Group::Element>
int prepare(const RealCall& call, TensorRef t, int64_t channels, int64_t h, int64_t w, const CudaOperand& plan,
            PatchesMap* map) {
  if (const int error = pack_operand<Group>(call, plan, call.z.n, h, w, channels, &t)) return error;
  const int64_t bytes = int64_t(sizeof(Element)), n = call.z.n, all_channels = call.z.groups * plan.channels;
  *map = {};
  map->number = number_of<Element>();
  map->data = t.data;
  map->stride[0] = t.stride[3] * bytes;
  map->stride[1] = t.stride[2] * bytes;
  map->stride[2] = t.stride[0] * bytes;
  map->size[0] = all_channels;
  map->size[1] = w;
  map->size[2] = h;
  map->size[3] = n * Group::kParts;
  map->channels = kChunk<Group>;
  map->step[0] = map->step[1] = 1;
  return 0;
}

// A box of a phase's positions.
void set_box(const BoxAxis& h, const BoxAxis& w, PatchesMap* map) {
  map->lower[0] = int(w.lower);
  map->lower[1] = int(h.lower);
  map->upper[0] = int(w.upper);
  map->upper[1] = int(h.upper);
}

// Where the weights lie, which are packed if the plan says so.
template <class Group>
int prepare_weights(const RealCall& call, const GatherRoles& roles, int64_t padded, int64_t phases, int tile,
                    RowsMap* map) {
  using Element = typename Group::Element;
  const int64_t bytes = int64_t(sizeof(Element));
  *map = {};
  map->number = number_of<Element>();
  map->box_columns = kChunk<Group>;
  if (call.plan.product.packed_bytes == 0) {
    const int64_t(&stride)[4] = call.b.weight.stride;
    map->data = call.b.weight.data;
    map->rows = call.z.k;
    map->columns = call.z.group_c();
    map->box_rows = roles.pass == Pass::InputGrad ? kBox : tile;
    map->taps = call.z.r * call.z.s;
    map->stride = stride[0] * bytes;
    map->tap_stride = map->taps == 1 ? map->stride : stride[call.z.s > 1 ? 3 : 2] * bytes;
    return 0;
  }
  map->data = call.b.workspace;
  map->rows = Group::kParts * phases * call.z.groups * roles.rows;
  map->box_rows = tile;
  map->columns = padded;
  map->taps = max_of(1, call.plan.product.pitch / padded);
  map->stride = call.plan.product.pitch * bytes;
  map->tap_stride = padded * bytes;
  return pack_weights_of<Group, 16 / int(sizeof(Element))>(call, roles, padded);
}

// Starts the kernel of the plan's tile.
template <class Group, class T = typename Group::Source>
int start_gather(const RealCall& call, const WgmmaParameters<T>& p) {
  const int64_t n = call.plan.product.tile_m;
  const auto start = [&]<int tile>(std::integral_constant<int, tile>) {
    return launch(wgmma_gather<Group, tile>, p.blocks, kWgmmaThreads, WgmmaShared<Group, tile>::kBytes, call.stream, p);
  };
  if constexpr (sizeof(T) == 2)
    if (n == 256) return start(std::integral_constant<int, 256>());
  return n == 128 ? start(std::integral_constant<int, 128>()) : start(std::integral_constant<int, 64>());
}
template <class Group, class T>
int start_gather_of(const RealCall& call, const GatherRoles& roles, const WgmmaParameters<T>& p) {
  if constexpr (sizeof(T) == 2)
    if (roles.pass == Pass::InputGrad && call.plan.product.packed_bytes == 0)
      return start_gather<SixteenBitGroup<T, true>>(call, p);
  return start_gather<Group>(call, p);
}

template <class Group, class T = typename Group::Source>
int run_wgmma(const RealCall& call, const GatherRoles& roles) {
  const ConvProblem& z = call.z;
  const CudaShape shape = cuda_shape(z, roles.pass);
  const conv_ext::Axis vertical = vertical_axis(z, roles.pass), horizontal = horizontal_axis(z, roles.pass);
  const int64_t n = call.plan.product.tile_m;
  WgmmaParameters<T> p{};
  fill_phases(z, roles.pass, p.phases);
  p.grid = {int32_t(ceil_div(shape.gemm_m, n)),
            int32_t(ceil_div(shape.gemm_n, kWgmmaM)),
            int32_t(z.groups),
            int32_t(shape.phases()),
            int32_t(call.plan.splits),
            int32_t(call.plan.steps)};
  p.tiles = int32_t(p.grid.blocks());
  p.images = int32_t(z.n);
  p.rows = int32_t(roles.rows);
  p.channels = int32_t(roles.channels);
  p.tap_steps = int32_t(ceil_div(roles.channels, kChunk<Group>));
  p.last_products = int32_t(ceil_div(roles.channels - (p.tap_steps - 1) * kChunk<Group>, kProduct<Group>));
  p.part_steps = int32_t(call.plan.product.part_steps);
  p.chain_steps = int32_t(call.plan.product.chain_steps);
  p.step_h = int32_t(vertical.step());
  p.step_w = int32_t(horizontal.step());
  p.output_step_h = int32_t(vertical.output_step());
  p.output_step_w = int32_t(horizontal.output_step());
  p.to = strides_of(roles.result);
  p.result = result_of<T, float>(call, roles.result, roles.result.stride[1]);
  p.vectors = call.plan.product.stores_vectors;
  if constexpr (Group::kParts > 1) p.again = gather_again(call, roles);
  RowsMap weights;
  if (const int error =
          prepare_weights<Group>(call, roles, p.tap_steps * kChunk<Group>, p.grid.phases, int(n), &weights))
    return error;
  PatchesMap map;
  const CudaOperand& source = call.plan.product.source;
  p.group_channels = int32_t(source.channels);
  if (const int error =
          prepare<Group>(call, roles.source, roles.channels, roles.source_h, roles.source_w, source, &map))
    return error;
  map.positions = kWgmmaM;
  map.step[0] = p.step_w;
  map.step[1] = p.step_h;
  for (int phase = 0; phase < p.grid.phases; ++phase) {
    const BoxAxis h = box_axis(vertical, phase / shape.phases_w), w = box_axis(horizontal, phase % shape.phases_w);
    if (h.taps == 0 || w.taps == 0) continue;  // it reads nothing: its sums are empty

    set_box(h, w, &map);
    if (const int error = encode(map, &p.source[phase])) return error;
  }
  if (const int error = encode(weights, &p.weights)) return error;
  if (call.plan.splits > 1) {
    const int64_t(&size)[4] = roles.result_size;
    p.result.partial = reinterpret_cast<float*>(call.workspace() + call.plan.partial_offset);
    p.result.stride_m = size[2] * size[3];
    p.to = {size[1] * size[2] * size[3], size[2] * size[3], size[3], 1};
    p.split_elements = size[0] * p.to.n;
  }
  const int processors = multiprocessors();
  if (processors < 0) return -processors;
  p.waits = waits_for_host();
  p.blocks = min_of(p.tiles, int32_t(processors));
  const int error = start_gather_of<Group>(call, roles, p);
  if (error || call.plan.splits == 1) return error;
  if constexpr (Group::kParts > 1) return add_parts(call, roles.result, roles.result_size, p.result.partial, p.again);
  return add_parts(call, roles.result, roles.result_size, 1, p.result.partial);
}

template <class Group, class T = typename Group::Source>
int run_correlate(const RealCall& call) {
  const ConvProblem& z = call.z;
  const Buffers& b = call.b;
  const conv_ext::Axis vertical = vertical_axis(z, Pass::WeightGrad), horizontal = horizontal_axis(z, Pass::WeightGrad);
  const BoxAxis h = box_axis(vertical, 0), w = box_axis(horizontal, 0);
  const int64_t n = call.plan.product.tile_n;
  CorrelateParameters<T> p{};
  p.rows = int32_t(z.group_k());
  p.channels = int32_t(z.group_c());
  p.channel_tiles = int32_t(ceil_div(z.group_c(), n));
  p.grid = {int32_t(ceil_div(z.group_k(), kWgmmaM)),
            int32_t(z.r * z.s * p.channel_tiles),
            int32_t(z.groups),
            1,
            int32_t(call.plan.splits),
            int32_t(call.plan.steps)};
  p.tiles = int32_t(p.grid.blocks());
  p.positions = z.n * z.p * z.q;
  p.taps_w = int32_t(z.s);
  p.output_h = int32_t(z.p);
  p.output_w = int32_t(z.q);
  p.lower_h = int32_t(h.lower);
  p.lower_w = int32_t(w.lower);
  p.step_h = int32_t(z.stride_h);
  p.step_w = int32_t(z.stride_w);
  p.dilation_h = int32_t(z.dilation_h);
  p.dilation_w = int32_t(z.dilation_w);
  PatchesMap map;
  p.grad_group = int32_t(call.plan.product.grad.channels);
  p.input_group = int32_t(call.plan.product.source.channels);
  if (const int error = prepare<Group>(call, b.output, z.group_k(), z.p, z.q, call.plan.product.grad, &map))
    return error;
  const auto encode_parts = [&](TensorMap* maps) {
    map.positions = kBox;
    map.size[3] = z.n;
    for (int part = 0; part < Group::kParts; ++part) {
      if (const int error = encode(map, &maps[part])) return error;
      map.data = static_cast<const char*>(map.data) + z.n * map.stride[2];
    }
    return 0;
  };
  if (const int error = encode_parts(p.grad)) return error;
  if (const int error = prepare<Group>(call, b.input, z.group_c(), z.h, z.w, call.plan.product.source, &map))
    return error;
  map.step[0] = p.step_w;
  map.step[1] = p.step_h;
  set_box(h, w, &map);
  if (const int error = encode_parts(p.input)) return error;
  p.to = strides_of(b.weight);
  p.result = result_of<T, float>(call, b.weight, p.to.n);
  if constexpr (Group::kParts > 1) p.again = correlate_again(call);
  const int64_t size[4] = {z.k, z.group_c(), z.r, z.s};
  if (call.plan.splits > 1) {
    p.result.partial = reinterpret_cast<float*>(call.workspace() + call.plan.partial_offset);
    p.to = strides_in_order(size, kOrderOfWeights);
    p.result.stride_m = p.to.n;
    p.split_elements = size[0] * p.to.n;
  }
  const int processors = multiprocessors();
  if (processors < 0) return -processors;
  p.waits = waits_for_host();
  p.blocks = min_of(p.tiles, int32_t(processors));
  const int error = n == 128 ? launch(wgmma_correlate<Group, 128>, p.blocks, kWgmmaThreads,
                                      WgmmaShared<Group, 128>::kBytes, call.stream, p)
                             : launch(wgmma_correlate<Group, 64>, p.blocks, kWgmmaThreads,
                                      WgmmaShared<Group, 64>::kBytes, call.stream, p);
  if (error || call.plan.splits == 1) return error;
  if constexpr (Group::kParts > 1) return add_parts(call, b.weight, size, p.result.partial, p.again);
  return add_parts(call, b.weight, size, 0, p.result.partial);
}

// Calls function(group) for the kind of number that the problem has.
template <class Function>
int with_group(const ConvProblem& z, const Function& function) {
  switch (z.dtype) {
    case DType::BFloat16:
      return function(Type<SixteenBitGroup<bfloat16>>());
    case DType::Float16:
      if constexpr (kEveryType) return function(Type<SixteenBitGroup<float16>>());
      return 1;
    default:
      return wgmma_parts(z) > 1 ? function(Type<ThreeBF16Group>()) : function(Type<TF32Group>());
  }
}

}  // namespace

int launch_wgmma(const RealCall& call, const GatherRoles& roles) {
  return with_group(call.z, [&]<class Group>(Type<Group>) { return run_wgmma<Group>(call, roles); });
}
int launch_wgmma_weight_grad(const RealCall& call) {
  return with_group(call.z, [&]<class Group>(Type<Group>) {
    if constexpr (sizeof(typename Group::Element) == 2) return run_correlate<Group>(call);
    return 1;  // the plan declines it
  });
}

}  // namespace cuda
}  // namespace conv_ext
