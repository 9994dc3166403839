// The same for the plans of CUDA, whose kernels count in 32 bits besides.
#pragma once

#include "../../csrc/plan_cuda.h"
#include "../../csrc/plan_hopper.h"
#include "plans_check.h"
#include "plans_families.h"

namespace fuzz {

using conv_ext::Buffers;
using conv_ext::CudaAlgorithm;
using conv_ext::CudaPlan;
using conv_ext::TensorRef;

constexpr int64_t kCapabilities[] = {75, 80, 86, 89, 90, 100, 120};
constexpr int64_t kInt32 = INT32_MAX;

// Strides of a tensor as torch may have them: in order, channels last, expanded, with gaps; of a dimension of size 1
// anything up to 2^63 - 1. What is left out: strides whose furthest element has no address in 2^62 bytes.
inline TensorRef draw_operand(const int64_t (&size)[4], int64_t element_bytes, Random* r) {
  constexpr int kOrders[3][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}, {2, 3, 0, 1}};
  TensorRef t{};
  t.data = reinterpret_cast<void*>(uintptr_t(r->chance(0.7) ? 4096 : 4096 + r->between(1, 15) * element_bytes));
  const int* const order = kOrders[r->chance(0.9) ? r->between(0, 1) : 2];
  const bool gaps = r->chance(0.3), odd = r->chance(0.4);
  Wide reach = 0;
  int64_t next = 1;
  for (int i = 0; i < 4; ++i) {
    const int d = order[i];
    if (gaps && r->chance(0.3)) {
      int64_t further = 0;
      if (conv_ext::checked_add(next, r->between(1, 20), &further)) next = further;
    }
    t.stride[d] = r->chance(0.05) ? 0 : next;
    if (size[d] <= 1) {
      if (odd) t.stride[d] = r->pick({0, 1, 7, r->logarithmic(INT64_MAX / 2), INT64_MAX, INT64_MAX - 1});
      continue;
    }
    reach += Wide(t.stride[d]) * Wide(size[d]);
    if (reach * Wide(element_bytes) > Wide(int64_t(1) << 62)) {
      t.stride[d] = 0;  // expanded
      reach = 0;
      next = 1;
    } else if (t.stride[d] != 0) {
      next = t.stride[d] * size[d];
    }
  }
  return t;
}
inline Buffers draw_operands(const ConvProblem& z, uint64_t seed) {
  Random r(seed);
  const int64_t bytes = conv_ext::element_bytes(z.dtype);
  Buffers b{};
  b.input = draw_operand({z.n, z.c, z.h, z.w}, bytes, &r);
  b.weight = draw_operand({z.k, z.group_c(), z.r, z.s}, bytes, &r);
  b.output = draw_operand({z.n, z.k, z.p, z.q}, bytes, &r);
  return b;
}

// The most workspace ("CUDA" in docs/architecture.md): packed weights and copies of the operands, each with channels
// filled up to whole vectors, and parts of sums: at most four of forward and input_grad, of weight_grad 64 MiB beyond
// one set.
inline Wide most_cuda_workspace(const ConvProblem& z, Pass pass, const CudaPlan& plan) {
  const bool input_grad = pass == Pass::InputGrad, weight_grad = pass == Pass::WeightGrad;
  const Wide groups = Wide(z.groups), taps = Wide(z.r) * Wide(z.s), bytes = Wide(conv_ext::element_bytes(z.dtype));
  const Wide sum_bytes = Wide(conv_ext::accumulator_bytes(z.dtype) * conv_ext::parts_of(z.dtype));
  const Wide input = Wide(z.n) * Wide(z.h) * Wide(z.w), output = Wide(z.n) * Wide(z.p) * Wide(z.q);
  const Wide group_c = Wide(z.group_c()), group_k = Wide(z.group_k());
  // Of `wgmma` float32 has two parts, and packed rows are whole steps of 128 bytes for each tap.
  const bool wgmma = plan.algorithm == CudaAlgorithm::Wgmma;
  const Wide parts = wgmma ? Wide(conv_ext::wgmma_parts(z)) : 1, filled = wgmma ? 16 : 8;
  const Wide copies = (input * groups * (group_c + filled) + (weight_grad ? output * groups * (group_k + filled) : 0)) *
                      bytes * parts;
  const Wide grad_copy = output * groups * (group_k + filled) * bytes * parts;
  const Wide weights = groups * group_c * group_k * taps;
  if (weight_grad) return copies + weights * sum_bytes + Wide(64 << 20) + 4096;
  const Wide phases = Wide(conv_ext::cuda_shape(z, pass).phases());
  const Wide rows = input_grad ? group_c : group_k, channels = input_grad ? group_k : group_c;
  const Wide taps_of_phases = min_of(1, int64_t(phases)) * taps * phases;  // a tap may stand in each, with zeros
  const Wide packed = parts * groups * rows * (taps_of_phases * (channels + (wgmma ? 64 : 8)) + phases * 32) * bytes;
  const Wide results = (input_grad ? input * groups * group_c : output * groups * group_k) * sum_bytes;
  return packed + (input_grad ? grad_copy : copies) + 4 * results + 4096;
}

inline Findings check_cuda_plan(const ConvProblem& z, Pass pass, const CudaPlan& plan) {
  Findings f;
  f.between("blocks", plan.blocks, 1, kInt32);
  f.between("splits", plan.splits, 1, pass == Pass::WeightGrad ? 1 << 20 : 4);
  f.between("steps", plan.steps, 0, kInt32);
  f.between("packed_bytes", plan.packed_bytes, 0, plan.workspace_bytes);
  f.between("partial_offset", plan.partial_offset, 0, plan.workspace_bytes);
  f.between("source.offset", plan.source.offset, 0, plan.workspace_bytes);
  f.between("grad.offset", plan.grad.offset, 0, plan.workspace_bytes);
  f.between("source.bytes", plan.source.bytes, 0, plan.workspace_bytes);
  f.between("grad.bytes", plan.grad.bytes, 0, plan.workspace_bytes);
  f.between("source.channels", plan.source.channels, 0, kInt32);
  f.between("grad.channels", plan.grad.channels, 0, kInt32);
  // What the launchers tell the kernels in 32 bits.
  for (const int64_t size : {z.n, z.c, z.h, z.w, z.k, z.p, z.q, z.groups, z.stride_h, z.stride_w})
    f.between("a size or a stride", size, 1, kInt32);
  f.between("pad", max_of(z.pad_top, z.pad_left), 0, 1 << 30);
  f.at_most("the kernel's reach", z.r, Wide(kInt32) / Wide(z.dilation_h));
  f.at_most("the kernel's reach", z.s, Wide(kInt32) / Wide(z.dilation_w));
  f.at_most("taps", z.r, Wide(kInt32) / Wide(z.s));
  const conv_ext::CudaWindow& w = plan.window;
  const bool window = conv_ext::is_window(plan.algorithm), cores = plan.algorithm == CudaAlgorithm::FirstLayerCores;
  if (window || cores) {
    const int64_t least_h = w.origin_h < 0 ? -w.origin_h : 0, least_w = w.origin_w < 0 ? -w.origin_w : 0;
    const conv_ext::Axis vertical = conv_ext::vertical_axis(z, pass), horizontal = conv_ext::horizontal_axis(z, pass);
    // Filled up to whole rows of threads of every phase.
    f.between("tile_h", w.tile_h, 1, round_up(vertical.output + least_h, 8 * vertical.output_step()));
    f.between("tile_w", w.tile_w, 1, round_up(horizontal.output + least_w, horizontal.output_step()));
    f.between("shared_bytes", w.shared_bytes, 1, cores ? 96 << 10 : 64 << 10);
    f.between("box_bytes", w.box_bytes, 1, w.shared_bytes);
  }
  if (window) {
    const int64_t rows = pass == Pass::InputGrad ? z.group_c() : z.group_k();
    f.between("channels", w.channels, 1, 8);
    f.between("height", w.height, 1, 8);
    f.between("groups", w.groups, 1, z.groups);
    f.between("rows", w.rows, 1, round_up(rows, w.channels));
    if (pass == Pass::WeightGrad) {
      f.between("columns", w.columns, 1, 256);
      f.between("lanes", w.lanes, 1, 256);
      f.between("stage_bytes", w.stage_bytes, 1, 32 << 10);
    } else {
      f.between("chunk", w.chunk, 1, pass == Pass::InputGrad ? z.group_k() : z.group_c());
      f.between("threads", w.threads, 1, conv_ext::kWindowThreads);
    }
  } else if (plan.algorithm == CudaAlgorithm::Direct) {
    if (pass != Pass::WeightGrad) f.between("channels", plan.channels, 1, 4);
  } else if (!cores) {
    f.between("tile_m", plan.tile_m, 32, 128);
    f.between("tile_n", plan.tile_n, 64, 128);
    f.between("steps", plan.steps, 1, kInt32);
  }
  if (f.text().empty()) f.at_most("workspace_bytes", plan.workspace_bytes, most_cuda_workspace(z, pass, plan));
  return f;
}

}  // namespace fuzz
