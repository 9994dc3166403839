// What the fuzzer asks of each plan of CUDA: sizes that fit the problem and the device, all work shared out, memory.
#pragma once

#include <numeric>

#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/wgmma/plan.h"
#include "plans_check.h"

namespace fuzz {

using conv_ext::CudaAlgorithm;
using conv_ext::CudaPlan;

constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
constexpr int64_t kMostShared = 96 << 10;              // what every device with tensor cores has
constexpr int64_t kMostCudaParts = int64_t(64) << 20;  // of weight_grad

using Field = std::pair<const char*, int64_t>;
inline std::vector<Field> fields(const CudaPlan& p) {
  return {{"tile_m", p.product.tile_m},
          {"tile_n", p.product.tile_n},
          {"parts", p.parts},
          {"splits", p.splits},
          {"steps", p.steps},
          {"part_steps", p.product.part_steps},
          {"chain_steps", p.product.chain_steps},
          {"channels", p.direct_channels},
          {"vector", p.product.vector},
          {"pitch", p.product.pitch},
          {"load", int64_t(p.product.load)},
          {"stores_along_m", p.product.stores_along_m},
          {"stores_vectors", p.product.stores_vectors},
          {"packed_bytes", p.product.packed_bytes},
          {"source.channels", p.product.source.channels},
          {"source.offset", p.product.source.offset},
          {"source.bytes", p.product.source.bytes},
          {"grad.channels", p.product.grad.channels},
          {"grad.offset", p.product.grad.offset},
          {"grad.bytes", p.product.grad.bytes},
          {"partial_offset", p.partial_offset},
          {"blocks", p.blocks},
          {"workspace_bytes", p.workspace_bytes},
          {"window.fixed", p.window.fixed},
          {"window.height", p.window.height},
          {"window.channels", p.window.channels},
          {"window.groups", p.window.groups},
          {"window.rows", p.window.rows},
          {"window.tile_h", p.window.tile_h},
          {"window.tile_w", p.window.tile_w},
          {"window.chunk", p.window.chunk},
          {"window.threads", p.window.threads},
          {"window.origin_h", p.window.origin_h},
          {"window.origin_w", p.window.origin_w},
          {"window.weight_bytes", p.window.weight_bytes},
          {"window.box_bytes", p.window.box_bytes},
          {"window.shared_bytes", p.window.shared_bytes},
          {"window.columns", p.window.columns},
          {"window.lanes", p.window.lanes},
          {"window.stage_bytes", p.window.stage_bytes},
          {"window.copy_bytes", p.window.copy_bytes},
          {"window.grad_copy_bytes", p.window.grad_copy_bytes},
          {"window.stores_vectors", p.window.stores_vectors}};
}

inline void check_window(const ConvProblem& z, Pass pass, const CudaPlan& p, Verdict* v) {
  const conv_ext::CudaWindow& w = p.window;
  const bool cores = p.algorithm == CudaAlgorithm::FirstLayerCores, weight_grad = pass == Pass::WeightGrad;
  v->within(w.shared_bytes, 1, kMostShared, "boxes and weights fit shared memory");
  v->expect(w.tile_h >= 1 && w.tile_w >= 1, "a tile has outputs");
  v->expect(w.box_bytes >= 0 && w.weight_bytes >= 0 && w.stage_bytes >= 0, "no size is negative");
  if (v->rule || cores) return;
  v->within(w.groups, 1, Wide(z.groups) + 15, "groups are some of the groups");
  v->expect(w.channels >= 1 && w.channels <= 8 && w.rows >= w.channels && w.rows % w.channels == 0,
            "rows are whole threads' channels");
  v->expect(w.height >= 1 && (weight_grad || w.tile_h % w.height == 0), "a tile is whole threads' outputs");
  if (weight_grad) {
    v->expect(w.columns >= 1 && w.lanes >= 1, "a block has columns and lanes");
    v->expect(Wide(w.lanes) * w.groups * (w.rows / w.channels) * w.columns <= 256, "a block has at most 256 threads");
  } else {
    v->within(w.threads, 1, 128, "a block has 1 to 128 threads");
    v->expect(w.threads % 32 == 0, "threads are whole warps");
    v->within(w.chunk, 1, most(1, pass == Pass::Forward ? z.group_c() : z.group_k()),
              "a chunk is some of the channels");
  }
}

// wgmma: what a sum is made of covers it, and its tile has registers for that.
inline void check_sum_order(const ConvProblem& z, bool forward, const CudaPlan& p, Verdict* v) {
  const bool short_numbers = conv_ext::element_bytes(z.dtype) == 2;
  const auto taps = [&](int64_t all, int64_t stride, int64_t dilation) {
    return forward ? Wide(all) : divided_up(all, stride / std::gcd(stride, dilation));  // of a phase
  };
  const Wide chunk = conv_ext::wgmma_chunk(z), channels = forward ? z.group_c() : z.group_k(),
             products = channels * taps(z.r, z.stride_h, z.dilation_h) * taps(z.s, z.stride_w, z.dilation_w);
  v->expect(p.product.part_steps >= 1 && p.product.chain_steps >= 1 &&
                p.product.chain_steps <= most(p.product.part_steps, 128 / int64_t(chunk)),
            "parts are made of chains");
  v->expect(Wide(p.parts) * p.product.part_steps * chunk >= p.product.pitch, "parts are all of a sum");
  v->expect(Wide(p.parts - 1) * p.product.part_steps * chunk < p.product.pitch, "no part is empty");
  v->expect(Wide(p.splits) * p.steps * chunk >= p.product.pitch, "blocks form all of a sum");
  v->expect(p.splits == 1 || p.steps == p.product.part_steps, "a block that shares a sum forms a part");
  v->expect(p.splits > 1 || p.parts == 1 || p.product.tile_m <= (short_numbers ? 128 : 64),
            "a block has room for parts");
  v->expect(p.product.tile_m <= 128 || (short_numbers && p.product.chain_steps >= p.product.part_steps),
            "the widest tile has no chains");
  const Wide limit = z.dtype == conv_ext::DType::BFloat16 ? 2048 : z.dtype == conv_ext::DType::Float16 ? 256 : 128;
  const Wide longest = least(Wide(p.product.chain_steps) * chunk, products);
  v->expect(longest <= most(Wide(128), limit), "a chain is as accurate as it should be");
}

// The blocks that share out all of the result and of the sums.
inline void check_blocks(const ConvProblem& z, Pass pass, const CudaPlan& p, Verdict* v) {
  const bool forward = pass == Pass::Forward, weight_grad = pass == Pass::WeightGrad;
  const conv_ext::Axis vertical = conv_ext::vertical_axis(z, pass), horizontal = conv_ext::horizontal_axis(z, pass);
  const Wide rows = pass == Pass::InputGrad ? z.group_c() : z.group_k(), taps = Wide(z.r) * z.s;
  const auto count = [](const conv_ext::Axis& a) {
    return a.inverse ? divided_up(a.output, a.stride) : Wide(a.output);
  };
  const Wide phases = Wide(vertical.phases()) * horizontal.phases();
  const Wide positions = z.n * count(vertical) * count(horizontal), products = Wide(z.n) * z.p * z.q;
  const conv_ext::CudaWindow& w = p.window;
  Wide blocks = 0;
  switch (p.algorithm) {
    case CudaAlgorithm::Depthwise:
    case CudaAlgorithm::Grouped:
    case CudaAlgorithm::FirstLayer:
      if (weight_grad) {
        const Wide columns = divided_up(z.group_c() * taps, w.fixed ? w.fixed * w.fixed : 9);
        blocks = divided_up(z.groups, w.groups) * divided_up(rows, w.rows) * divided_up(columns, w.columns) * p.splits;
      } else {
        blocks = divided_up(z.groups, w.groups) * divided_up(rows, w.rows) *
                 divided_up(Wide(vertical.output) - w.origin_h, w.tile_h) *
                 divided_up(Wide(horizontal.output) - w.origin_w, w.tile_w) * z.n;
      }
      break;
    case CudaAlgorithm::FirstLayerCores:
      blocks = divided_up(z.k, 64) * divided_up(z.p, w.tile_h) * divided_up(z.q, w.tile_w) * z.n;
      break;
    case CudaAlgorithm::Direct: {
      const Wide results = forward ? Wide(z.n) * z.k * z.p * z.q : Wide(z.n) * z.c * z.h * z.w;
      if (!weight_grad) {
        v->expect(Wide(p.blocks) * 128 * p.direct_channels >= results, "threads are as many as results");
        return;
      }
      blocks = divided_up(Wide(z.k) * z.group_c(), z.channels_last ? 32 : 1) * divided_up(taps, 9) * p.splits;
      break;
    }
    case CudaAlgorithm::Wgmma:
      v->expect(p.product.tile_m > 0 && p.product.tile_n > 0, "a tile has sums");
      if (v->rule) return;
      if (!weight_grad) check_sum_order(z, forward, p, v);
      blocks = weight_grad
                   ? divided_up(rows, p.product.tile_m) * divided_up(z.group_c(), p.product.tile_n) * taps * z.groups *
                         p.splits
                   : divided_up(rows, p.product.tile_m) * z.groups * phases * divided_up(positions, 128) * p.splits;
      break;
    case CudaAlgorithm::TensorCores:
    case CudaAlgorithm::ThreeTF32:
    case CudaAlgorithm::MultiplyAdd: {
      v->expect(p.product.tile_m > 0 && p.product.tile_n > 0 && p.product.vector > 0, "a tile has sums");
      if (v->rule) return;
      const Wide columns = weight_grad ? rounded_up(z.group_c(), p.product.vector) * taps : positions;
      blocks =
          divided_up(rows, p.product.tile_m) * divided_up(columns, p.product.tile_n) * z.groups * phases * p.splits;
      const Wide numbers = Wide(p.steps) * p.splits * conv_ext::cuda_block_k(z.dtype);
      v->expect(!forward || numbers >= z.group_c() * taps, "steps are all of a sum");
      v->expect(!weight_grad || numbers >= products, "steps are all of a sum");
      break;
    }
  }
  v->expect(p.blocks == blocks, "blocks are all tiles");
}

// Whether all vectors of `bytes` along a dimension of a tensor begin at multiples of that.
inline bool lies_in_vectors(const conv_ext::TensorRef& t, const int64_t (&sizes)[4], int along, int64_t bytes,
                            int64_t element) {
  bool right = t.stride[along] == 1 && reinterpret_cast<uintptr_t>(t.data) % uintptr_t(bytes) == 0;
  for (int d = 0; d < 4; ++d)
    right = right && (d == along || sizes[d] <= 1 || Wide(t.stride[d]) * element % bytes == 0);
  return right;
}

// How wide operands are read: never wider than they lie, nor across the end of what is read.
inline void check_reads(const ConvProblem& z, Pass pass, const CudaPlan& p, const conv_ext::Buffers& b, Verdict* v) {
  const int64_t real = conv_ext::element_bytes(z.dtype) / conv_ext::parts_of(z.dtype), vector = 16 / real;
  const bool weight_grad = pass == Pass::WeightGrad, window = conv_ext::is_window(p.algorithm);
  const conv_ext::TensorSizes sizes = conv_ext::sizes_of(z);
  const auto copied = [&](bool input, int64_t bytes, Wide step) {
    v->expect(bytes >= real && bytes <= 16 && (bytes & (bytes - 1)) == 0, "a copy has 16, 8 or 4 bytes, or one number");
    if (v->rule || bytes == real) return;
    const conv_ext::TensorRef& t = input ? b.input : b.output;
    const int64_t(&size)[4] = input ? sizes.input : sizes.output;
    const int along = z.channels_last ? 1 : 3;
    v->expect(!conv_ext::is_complex(z.dtype) && lies_in_vectors(t, size, along, bytes, real), "copies are aligned");
    v->expect(size[along] % (bytes / real) == 0 && (!z.channels_last || step * real % bytes == 0),
              "a copy lies inside or outside as a whole");
  };
  const conv_ext::CudaWindow& w = p.window;
  if (p.algorithm == CudaAlgorithm::FirstLayerCores) copied(true, w.copy_bytes, z.c);
  if (window && weight_grad) {
    const Wide rows = Wide(w.groups) * z.group_k();
    copied(true, w.copy_bytes, Wide(w.groups) * z.group_c());
    copied(false, w.grad_copy_bytes, w.rows < z.group_k() ? std::gcd(int64_t(rows), w.rows) : rows);
  } else if (window) {
    const int64_t channels = most(1, pass == Pass::Forward ? z.group_c() : z.group_k());
    copied(pass == Pass::Forward, w.copy_bytes,
           w.chunk < channels ? Wide(std::gcd(w.chunk, channels)) : Wide(w.groups) * channels);
  }
  if (p.algorithm == CudaAlgorithm::Wgmma && !weight_grad && p.product.packed_bytes == 0) {
    const int64_t size[4] = {z.k, z.group_c(), z.r, z.s};
    v->expect(real == 2 && (z.group_c() == 1 || lies_in_vectors(b.weight, size, 1, 16, real)),
              "weights that are read in place lie in vectors");
    v->expect(pass == Pass::Forward || z.groups == 1 || z.group_k() % 16 == 0, "no product has rows of another group");
  }
  if (p.product.tile_m == 0 || p.product.vector > 1 || p.algorithm == CudaAlgorithm::Wgmma) return;
  const auto in_vectors = [&](bool input) {
    return (input ? z.group_c() : z.group_k()) % vector == 0 &&
           lies_in_vectors(input ? b.input : b.output, input ? sizes.input : sizes.output, 1, 16, real);
  };
  const conv_ext::CudaLoad load = p.product.load;
  if (conv_ext::is_complex(z.dtype)) v->expect(load == conv_ext::CudaLoad::Positions, "parts are read one by one");
  if (load == conv_ext::CudaLoad::Vectors) {
    v->expect(!weight_grad || p.algorithm == CudaAlgorithm::TensorCores, "weight_grad has a kernel that reads vectors");
    v->expect(pass == Pass::InputGrad || in_vectors(true), "vectors of the input are aligned");
    v->expect(pass == Pass::Forward || in_vectors(false), "vectors of the gradient are aligned");
  }
  if (load == conv_ext::CudaLoad::Channels)
    v->expect(weight_grad && b.input.stride[1] == 1 && b.output.stride[1] == 1, "channels lie side by side");
}

// How wide the result is written.
inline void check_stores(const ConvProblem& z, Pass pass, const CudaPlan& p, const conv_ext::Buffers& b, Verdict* v) {
  const int64_t real = conv_ext::element_bytes(z.dtype) / conv_ext::parts_of(z.dtype), vector = 16 / real;
  const conv_ext::TensorSizes sizes = conv_ext::sizes_of(z);
  const bool forward = pass == Pass::Forward, weight_grad = pass == Pass::WeightGrad;
  const conv_ext::TensorRef& t = forward ? b.output : weight_grad ? b.weight : b.input;
  const int64_t(&size)[4] = forward ? sizes.output : weight_grad ? sizes.weight : sizes.input;
  if (p.product.stores_along_m) v->expect(!weight_grad && t.stride[1] == 1, "rows of gemm_m are neighbours");
  if (!p.product.stores_vectors && !p.window.stores_vectors) return;
  v->expect(p.splits == 1 && !conv_ext::is_complex(z.dtype), "whole numbers that are finished are written in vectors");
  const int64_t rows = forward ? z.group_k() : z.group_c(),
                of_thread = p.window.stores_vectors ? p.window.channels : vector;
  if (lies_in_vectors(t, size, 1, 16, real) && rows % of_thread == 0) return;
  const bool rows_together = size[2] <= 1 || t.stride[2] == size[3];
  const int64_t plane[4] = {size[0], size[1], rows_together ? 1 : size[2], size[3]};
  const Wide line = rows_together ? Wide(size[2]) * size[3] : Wide(size[3]);
  const int64_t phases = conv_ext::vertical_axis(z, pass).phases() * conv_ext::horizontal_axis(z, pass).phases();
  v->expect(p.product.stores_vectors && !weight_grad && phases == 1 && lies_in_vectors(t, plane, 3, 16, real) &&
                line % vector == 0,
            "vectors of the result are aligned, and end where it does");
}

// nullptr, or the rule that the plan breaks; it was made for these operands.
inline const char* check_cuda_plan(const ConvProblem& z, Pass pass, const CudaPlan& p, const conv_ext::Buffers& b) {
  Verdict v;
  v.within(p.blocks, 1, kMostBlocks, "there is a block, and there are at most 2^31 - 1");
  v.within(p.workspace_bytes, 0, kMostWorkspace, "the workspace is within bounds");
  for (const int64_t value :
       {p.product.tile_m, p.product.tile_n, p.steps, p.direct_channels, p.product.vector, p.product.pitch,
        p.product.packed_bytes, p.product.source.channels, p.product.source.offset, p.product.source.bytes,
        p.product.grad.channels, p.product.grad.offset, p.product.grad.bytes, p.partial_offset})
    v.expect(value >= 0, "no size is negative");
  v.expect(p.parts >= 1 && (p.splits == 1 || p.splits == p.parts), "a sum has parts, of one block or of a block each");
  v.expect(p.splits == p.parts || p.algorithm == CudaAlgorithm::Wgmma ||
               (p.algorithm == CudaAlgorithm::TensorCores && p.product.chain_steps == p.product.part_steps),
           "a block has room for parts");
  if (v.rule) return v.rule;
  if (conv_ext::is_window(p.algorithm) || p.algorithm == CudaAlgorithm::FirstLayerCores) check_window(z, pass, p, &v);
  if (v.rule) return v.rule;
  check_blocks(z, pass, p, &v);
  if (v.rule) return v.rule;
  const bool forward = pass == Pass::Forward, weight_grad = pass == Pass::WeightGrad;
  const Wide parts = conv_ext::parts_of(z.dtype), real = conv_ext::element_bytes(z.dtype) / parts;
  const Wide weights = Wide(z.k) * z.group_c() * z.r * z.s, input = Wide(z.n) * z.c * z.h * z.w,
             output = Wide(z.n) * z.k * z.p * z.q;
  const Wide results = weight_grad ? weights : forward ? output : input;
  const Wide result_bytes = results * conv_ext::accumulator_bytes(z.dtype);
  // Parts of sums stand behind everything else.
  if (p.splits > 1)
    v.expect(p.workspace_bytes >= p.partial_offset + p.splits * result_bytes, "parts of sums fit the workspace");
  if (weight_grad && p.splits > 1 && p.algorithm != CudaAlgorithm::Direct)
    v.expect(p.splits * result_bytes <= kMostCudaParts, "parts of weight_grad take at most 64 MiB");
  if (!weight_grad) v.within(p.parts, 1, 8, "a sum of forward or input_grad has at most 8 parts");
  if (forward && p.product.packed_bytes > 0)
    v.expect(p.product.packed_bytes >= weights * real, "the packed weights fit");
  v.expect(p.product.source.offset >= p.product.packed_bytes || p.product.source.bytes == 0,
           "copies stand behind the packed weights");
  const Wide source = forward || weight_grad ? input : output;
  if (p.product.source.bytes > 0) v.expect(p.product.source.bytes >= source * real, "a copy fits the workspace");
  if (p.product.grad.bytes > 0) v.expect(p.product.grad.bytes >= output * real, "a copy fits the workspace");
  v.expect(p.workspace_bytes >= Wide(p.product.packed_bytes) + p.product.source.bytes + p.product.grad.bytes,
           "all of it is in the workspace");
  check_reads(z, pass, p, b, &v);
  check_stores(z, pass, p, b, &v);
  return v.rule;
}

}  // namespace fuzz
