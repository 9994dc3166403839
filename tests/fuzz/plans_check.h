// What the fuzzer asks of each plan of the CPU: sizes that fit the problem, all work shared out, memory within bounds.
//
// Everything is computed anew in 128 bits: none of it can overflow.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../../csrc/common/indexing.h"
#include "../../csrc/cpu/depthwise/layout.h"
#include "../../csrc/cpu/gemm/layout.h"
#include "../../csrc/cpu/gemm/windows_layout.h"
#include "../../csrc/cpu/grouped/layout.h"
#include "../../csrc/cpu/gemm/tiles_layout.h"
#include "../../csrc/cpu/algorithms.h"
#include "../../csrc/cpu/candidates.h"
#include "../../csrc/cpu/winograd/layout.h"
#include "problem_text.h"

namespace fuzz {

using conv_ext::Algorithm;
using conv_ext::Axis;
using conv_ext::Machine;
using conv_ext::Plan;
using Wide = __int128;

constexpr int64_t kMostScratch = int64_t(16) << 20;   // docs/architecture.md: of a thread
constexpr int64_t kMostPartial = int64_t(8) << 20;    // docs/architecture.md: partial sums beyond one set of them
constexpr int64_t kMostWorkspace = int64_t(1) << 42;  // of any plan: more than that is nobody's memory
constexpr int64_t kMostTables = int64_t(16) << 20;    // of one plan, beside a few words for each tap and phase

// The first rule that does not hold; nullptr while all do.
struct Verdict {
  const char* rule = nullptr;
  void expect(bool holds, const char* what) {
    if (!holds && rule == nullptr) rule = what;
  }
  void within(int64_t value, Wide low, Wide high, const char* what) { expect(value >= low && value <= high, what); }
};

inline Wide divided_up(Wide a, Wide b) { return b == 0 ? -1 : (a + b - 1) / b; }
inline Wide rounded_up(Wide a, Wide b) { return divided_up(a, b) * b; }
inline Wide least(Wide a, Wide b) { return a < b ? a : b; }
inline Wide most(Wide a, Wide b) { return a > b ? a : b; }

// What a pass of a problem is made of, as far as the checks ask.
struct Sizes {
  Axis vertical, horizontal;
  bool inverse, weight_grad;
  Wide parts, bytes, lanes;  // real numbers of an element, bytes of a sum, sums in a vector
  Wide rows_m, channels;     // of a group, in real numbers: of the result, of the source
  Wide taps, phases;
  Wide count_h, count_w;  // outputs of a phase, at most
  Wide groups, n;
};
inline Sizes sizes_of(const ConvProblem& z, Pass pass, const Machine& machine) {
  Sizes s{};
  s.vertical = conv_ext::vertical_axis(z, pass);
  s.horizontal = conv_ext::horizontal_axis(z, pass);
  s.inverse = pass == Pass::InputGrad;
  s.weight_grad = pass == Pass::WeightGrad;
  s.parts = conv_ext::parts_of(z.dtype);
  s.bytes = conv_ext::accumulator_bytes(z.dtype);
  s.lanes = machine.vector_bytes / s.bytes;
  s.rows_m = Wide(s.inverse ? z.group_c() : z.group_k()) * s.parts;
  s.channels = Wide(s.inverse ? z.group_k() : z.group_c()) * s.parts;
  s.taps = Wide(z.r) * z.s;
  s.phases = Wide(s.vertical.phases()) * s.horizontal.phases();
  const auto count = [](const Axis& a) { return a.inverse ? divided_up(a.output, a.stride) : Wide(a.output); };
  s.count_h = count(s.vertical);
  s.count_w = count(s.horizontal);
  s.groups = z.groups;
  s.n = z.n;
  return s;
}

// The most workspace that a plan may ask for: one set of packed weights or of sums, channels rounded up to what the
// algorithm's vectors and panels hold, 8 MiB of partial sums beyond that, and tables.
inline Wide most_workspace(const Sizes& s, const ConvProblem& z, const Machine& machine, Algorithm algorithm,
                           const Plan& plan) {
  const bool tiles_dot = machine.bf16_dot == conv_ext::Bf16Dot::Tiles;
  const Wide dot_block = tiles_dot ? 32 : 16;
  const Wide tables = kMostTables + 256 * (s.taps + z.r + z.s) + 64 * s.phases;
  const Wide vectors = 4 * s.lanes;  // as many of them as a panel has
  const Wide bias = s.groups * rounded_up(s.rows_m, vectors) * s.bytes;
  Wide set = s.groups * rounded_up(s.rows_m, vectors) * rounded_up(s.channels, 2) * s.taps * s.bytes + bias;
  if (algorithm == Algorithm::ImplicitGemm)
    set = s.groups * rounded_up(s.rows_m, dot_block) * rounded_up(s.channels, tiles_dot ? 32 : 2) * s.taps * 2 *
              plan.own<conv_ext::ImplicitGemmPlan>().parts +
          bias;
  if (algorithm == Algorithm::Depthwise) set = rounded_up(z.c, s.lanes) * (s.taps + 1) * s.bytes;
  if (algorithm == Algorithm::Grouped)  // a vector of the result for each channel of the source, of several groups
    set = divided_up(s.groups, most(1, s.lanes / most(s.rows_m, s.channels))) * rounded_up(s.rows_m, s.lanes) *
          most(s.channels, 1) * (s.taps + 1) * s.bytes;
  if (algorithm == Algorithm::Winograd && !s.weight_grad) {
    // Every piece of the kernel becomes a square of points; or the transformed source, up to 16 MiB of it.
    const auto& own = plan.own<conv_ext::WinogradPlan>();
    const Wide edge = own.outputs + own.filter - 1;
    const Wide pieces = divided_up(z.r, own.filter) * divided_up(z.s, own.filter);
    set = s.groups * edge * edge *
          (rounded_up(s.rows_m, vectors) * rounded_up(s.channels, s.lanes) * pieces + s.lanes) * s.bytes;
    return tables + (own.weights_first ? set : kMostScratch + 4096);
  }
  // The gradient is summed with the channels of either operand in whole blocks.
  const auto in_blocks = [&](Wide channels, Wide block) {
    const Wide rounding = algorithm == Algorithm::ImplicitGemm ? dot_block : s.lanes;
    return divided_up(channels / s.parts, most(1, block)) * rounded_up(most(1, block) * s.parts, rounding);
  };
  Wide tile_k = 1, tile_c = 1, groups = s.groups;
  const auto blocks_of = [&](const auto& own) { tile_k = own.tile_k, tile_c = own.tile_c; };
  if ((algorithm == Algorithm::Panels || algorithm == Algorithm::Direct) && s.weight_grad) {
    blocks_of(plan.own<conv_ext::PanelsPlan>().grad);
    groups = rounded_up(s.groups, plan.own<conv_ext::PanelsPlan>().grad.task_groups);
  }
  if (algorithm == Algorithm::ImplicitGemm) blocks_of(plan.own<conv_ext::ImplicitGemmPlan>());
  if (algorithm == Algorithm::Winograd) blocks_of(plan.own<conv_ext::WinogradPlan>());
  if (s.weight_grad) set = groups * in_blocks(s.rows_m, tile_k) * in_blocks(s.channels, tile_c) * s.taps * s.bytes;
  if (s.weight_grad && algorithm == Algorithm::Grouped)
    set = divided_up(s.groups, most(1, s.lanes / most(s.rows_m, s.channels))) * rounded_up(s.rows_m, s.lanes) *
          most(s.channels, 1) * s.taps * s.bytes * 2;
  if (s.weight_grad && algorithm == Algorithm::Depthwise) set = rounded_up(z.c, s.lanes) * s.taps * s.bytes;
  return tables + set + (s.weight_grad ? kMostPartial : 0);
}

inline void check_depthwise(const Sizes& s, const ConvProblem& z, const Plan& plan, Verdict* v) {
  const auto& own = plan.own<conv_ext::DepthwisePlan>();
  const bool channels = own.lanes_are == conv_ext::DepthwiseLanes::Channels;
  const bool same_type = conv_ext::element_bytes(z.dtype) == s.bytes;
  v->expect(channels || own.lanes_are == conv_ext::DepthwiseLanes::Columns, "lanes are columns or channels");
  v->expect(!channels || 2 * z.c >= s.lanes, "channels that are lanes fill half a vector");
  const Wide rows = s.vertical.output, step = s.vertical.output_step();
  v->expect(own.tile_h >= 1 && own.tile_h < rows + 7 * step, "tile_h is some of the rows");
  v->expect(s.weight_grad || own.tile_h % int64_t(step) == 0, "tile_h has all phases");
  v->within(own.tile_c, 1, channels ? rounded_up(z.c, s.lanes) : z.c, "tile_c is some of the channels");
  v->expect(!channels || own.tile_c % int64_t(s.lanes) == 0, "tile_c is whole vectors");
  if (v->rule) return;
  v->expect(own.row_tiles == divided_up(rows, own.tile_h), "the tiles have all rows, and none is empty");
  v->expect(own.channel_tiles == divided_up(z.c, own.tile_c), "the tiles have all channels, and none is empty");
  v->within(own.splits, 1, s.weight_grad ? s.n * own.row_tiles : 1, "splits are some of the tiles");
  v->expect(own.units == (s.weight_grad ? Wide(own.splits) : s.n * own.row_tiles) * own.channel_tiles,
            "units are all the work");
  v->expect(plan.tasks == own.units || plan.tasks == 1, "tasks are all units, or one");
  const Wide padded_c = channels ? rounded_up(z.c, s.lanes) : Wide(z.c), sums = padded_c * s.taps * s.bytes;
  v->expect(own.splits == 1 || own.splits * sums <= kMostPartial, "partial sums take at most 8 MiB");
  const bool weights = channels || !same_type;
  v->expect(plan.workspace_bytes >= (s.weight_grad ? own.splits * sums : (weights ? sums : 0) + padded_c * s.bytes),
            "weights or sums fit the workspace");
  const Wide line = s.horizontal.source * s.bytes, result_line = s.horizontal.output * s.bytes;
  if (channels) {
    const auto& by = own.channels;
    v->expect(own.source_in_place && own.result_in_place ? z.dtype != conv_ext::DType::Float16
                                                         : z.dtype == conv_ext::DType::Float16,
              "float16 alone is copied");
    v->within(by.block_rows, 1, z.r == 3 && z.s == 3 ? 3 : 1, "blocks of rows are for 3x3");
    v->expect(by.strip_c >= 1 && by.strip_c <= own.tile_c && by.strip_c % int64_t(s.lanes) == 0,
              "a strip has some of the channels, in whole vectors");
    v->expect(by.strip_w >= 1 && by.last_strip_w >= by.strip_w && by.phase_w >= 1, "a strip has columns");
    v->expect(own.source_in_place || plan.scratch_bytes >= (line + result_line) * own.tile_c,
              "copies of a row and its results fit the scratch");
    return;
  }
  const auto& by = own.columns;
  v->expect(same_type || !(own.source_in_place || own.result_in_place), "another type is copied");
  v->within(by.column_step, 1, own.source_in_place ? 2 : 1, "at most every other element is taken of a vector");
  v->expect(by.row_pitch >= s.horizontal.source && by.row_pitch < s.horizontal.source + s.horizontal.step(),
            "a row has its elements");
  v->within(by.call_channels, 1, own.source_in_place ? 16 : 1, "a call takes some channels that lie in place");
  v->expect(!by.shares_pairs || by.column_step == 2, "pairs of vectors are for every other element");
  v->expect(!by.spreads || (s.inverse && same_type && z.r == 3 && z.s == 3 && z.stride_h == 2 && z.stride_w == 2),
            "four outputs at a time are for 3x3 with stride 2");
  const Wide copies = (own.source_in_place ? 0 : line) + (own.result_in_place ? 0
                                                          : s.weight_grad     ? result_line
                                                                              : result_line * by.call_channels);
  const Wide lane_sums = s.weight_grad ? own.tile_c * s.taps * s.lanes * s.bytes : 0;
  v->expect(plan.scratch_bytes >= copies + lane_sums, "copies of a row, and sums, fit the scratch");
}

inline void check_winograd(const Sizes& s, const ConvProblem& z, const Plan& plan, Verdict* v) {
  const auto& own = plan.own<conv_ext::WinogradPlan>();
  v->expect((own.outputs == 2 && own.filter == 3) || (own.outputs == 4 && (own.filter == 3 || own.filter == 5)),
            "the transform is one that there is");
  if (v->rule) return;
  const Wide tiles_h = divided_up(s.inverse ? z.h : z.p, own.outputs),
             tiles_w = divided_up(s.inverse ? z.w : z.q, own.outputs);
  v->within(own.tile_h, 1, tiles_h, "tile_h is some of the tiles");
  v->within(own.tile_w, 1, tiles_w, "tile_w is some of the tiles");
  v->within(own.images, 1, s.n, "images are some of the batch");
  if (v->rule) return;
  const Wide blocks = divided_up(s.n, own.images) * divided_up(tiles_h, own.tile_h) * divided_up(tiles_w, own.tile_w);
  const Wide edge = own.outputs + own.filter - 1, points = edge * edge;
  if (s.weight_grad) {
    v->within(own.splits, 1, blocks, "splits are some of the blocks");
    const Wide sums = s.groups * s.rows_m * s.taps * rounded_up(s.channels, s.lanes) * s.bytes;
    v->expect(own.splits == 1 || (own.splits * sums <= kMostPartial && plan.workspace_bytes >= own.splits * sums),
              "partial sums take at most 8 MiB, which the workspace has");
    v->expect(
        plan.tasks == s.groups * divided_up(z.group_k(), own.tile_k) * divided_up(z.group_c(), own.tile_c) * own.splits,
        "tasks are all blocks of the result and parts of the sums");
    return;
  }
  const Wide panel = 2 * s.lanes, pieces = divided_up(z.r, own.filter) * divided_up(z.s, own.filter);
  const Wide columns = rounded_up(s.channels, s.lanes) * pieces;
  const Wide rows = Wide(own.images) * own.tile_h * own.tile_w;
  if (own.weights_first) {
    v->expect(own.task_m >= panel && own.task_m % int64_t(panel) == 0, "task_m is whole panels");
    v->expect(plan.workspace_bytes >= s.groups * points * rounded_up(s.rows_m, panel) * columns * s.bytes,
              "the transformed weights fit the workspace");
    v->expect(plan.scratch_bytes >= points * rows * (columns + own.task_m) * s.bytes, "a block fits the scratch");
    v->expect(plan.tasks == s.groups * blocks * divided_up(rounded_up(s.rows_m, panel), own.task_m),
              "tasks are all blocks");
  } else {
    v->expect(plan.workspace_bytes >= s.groups * points * s.n * tiles_h * tiles_w * columns * s.bytes,
              "the transformed source fits the workspace");
    v->expect(plan.tasks == s.groups * divided_up(s.rows_m, panel), "tasks are all panels");
  }
}

inline void check_grouped(const Sizes& s, const ConvProblem& z, Pass pass, const Machine& machine, const Plan& plan,
                          Verdict* v) {
  const auto& own = plan.own<conv_ext::GroupedPlan>();
  const Wide step = s.vertical.output_step();
  v->expect(own.tile_h >= step && own.tile_h % int64_t(step) == 0 && own.tile_h < s.vertical.output + step,
            "tile_h is some of the rows, all phases of each");
  v->expect(own.tile_w == s.horizontal.output, "tile_w is a whole row");
  if (v->rule) return;
  const conv_ext::GroupUnits u = conv_ext::group_units(z, pass, int64_t(s.lanes));
  const Wide blocks = divided_up(s.vertical.output, own.tile_h);
  v->within(own.task_groups, 1, least(8, u.units), "task_groups are some of the units");
  v->within(own.splits, 1, s.weight_grad ? s.n * blocks : 1, "splits are some of the blocks of rows");
  if (v->rule) return;
  const Wide vectors = Wide(u.units) * u.vectors * s.taps * u.source * machine.vector_bytes;
  v->expect(plan.workspace_bytes >= own.splits * vectors, "weights or sums fit the workspace");
  v->expect(own.splits == 1 || own.splits * vectors <= kMostPartial, "partial sums take at most 8 MiB");
  v->expect(plan.tasks == (s.weight_grad ? Wide(own.splits) : s.n * blocks) * divided_up(u.units, own.task_groups),
            "tasks are all units and blocks of rows");
  v->expect(plan.scratch_bytes >= Wide(own.tile_h) * s.horizontal.output * machine.vector_bytes,
            "a block of the result fits the scratch");
}

// The packed positions of a tile, and those that AMX's tiles go through, by 32.
inline Wide packed_positions(const Sizes& s, const conv_ext::ImplicitGemmPlan& own) {
  const conv_ext::PackedExtent down = conv_ext::packed_extent(s.vertical, own.tile_h),
                               across = conv_ext::packed_extent(s.horizontal, own.tile_w);
  return Wide(across.regions) * down.positions * across.longest * own.images;
}
inline Wide flat_positions(const Sizes& s, const conv_ext::ImplicitGemmPlan& own) {
  return ((own.tile_h - 1) * Wide(conv_ext::packed_extent(s.horizontal, own.tile_w).longest) + own.tile_w) * own.images;
}
// weight_grad along a line of positions, in steps of two strips of 16, of which 4 are packed at a time.
inline void check_tiles_grad_line(const Sizes& s, const ConvProblem& z, const Plan& plan, Verdict* v) {
  const auto& own = plan.own<conv_ext::ImplicitGemmPlan>();
  const Wide plane = Wide(z.p) * z.q, strips = own.tile_h * divided_up(own.tile_w, 16);
  v->expect(s.taps == 1 && z.p == z.h && z.q == z.w, "a line is that of the source");
  v->expect((own.tile_h == 1 && own.tile_w == s.n * plane) || (own.tile_h == s.n && own.tile_w == plane),
            "a line is all positions, or a run of each image's");
  v->within(own.tile_k, 1, z.group_k(), "tile_k is some of the channels");
  v->within(own.tile_c, 1, z.group_c(), "tile_c is some of the channels");
  v->within(own.splits, 1, divided_up(strips, 8), "splits are some of the line");
  if (v->rule) return;
  const Wide blocks = s.groups * divided_up(z.group_k(), own.tile_k) * divided_up(z.group_c(), own.tile_c);
  const Wide block = rounded_up(own.tile_k, 32) * rounded_up(own.tile_c, 32) * 4;
  v->expect(own.splits == 1 ||
                (own.splits * blocks * block <= kMostPartial && plan.workspace_bytes >= own.splits * blocks * block),
            "partial sums take at most 8 MiB, which the workspace has");
  v->expect(
      plan.scratch_bytes >= (rounded_up(own.tile_k, 32) + rounded_up(own.tile_c, 32)) / 32 * 2 * 4 * own.parts * 2048 +
                                (own.splits == 1 ? block : 0),
      "twice four steps of both operands and the sums of a block fit the scratch");
  v->expect(plan.tasks == blocks * own.splits, "tasks are all blocks of the result and parts of the sums");
}
inline void check_tiles_weight_grad(const Sizes& s, const ConvProblem& z, const Plan& plan, Verdict* v) {
  const auto& own = plan.own<conv_ext::ImplicitGemmPlan>();
  v->within(own.tile_k, 1, z.group_k(), "tile_k is some of the channels");
  v->within(own.tile_c, 1, z.group_c(), "tile_c is some of the channels");
  v->expect(own.grad_pitch >= flat_positions(s, own), "the gradient of a tile fits its pitch");
  v->expect(own.channel_pitch >= (packed_positions(s, own) + 31) * 32, "the input of a tile fits its pitch");
  if (v->rule) return;
  const Wide units = divided_up(s.n, own.images) * divided_up(z.p, own.tile_h) * divided_up(z.q, own.tile_w);
  const Wide blocks = s.groups * divided_up(z.group_k(), own.tile_k) * divided_up(z.group_c(), own.tile_c);
  const Wide block = rounded_up(own.tile_k, 32) * rounded_up(own.tile_c, 32) * s.taps * 4;
  v->within(own.splits, 1, units, "splits are some of the tiles");
  v->expect(own.splits == 1 ||
                (own.splits * blocks * block <= kMostPartial && plan.workspace_bytes >= own.splits * blocks * block),
            "partial sums take at most 8 MiB, which the workspace has");
  v->expect(plan.scratch_bytes >=
                (rounded_up(own.tile_k, 32) * own.grad_pitch + rounded_up(own.tile_c, 32) * own.channel_pitch / 16) *
                        2 * own.parts +
                    (own.splits == 1 ? block : 0),
            "the packed tiles and the sums of a block fit the scratch");
  v->expect(plan.tasks == blocks * own.splits, "tasks are all blocks of the result and parts of the sums");
}
inline void check_tiles_gather(const Sizes& s, const ConvProblem& z, const Plan& plan, Verdict* v) {
  const auto& own = plan.own<conv_ext::ImplicitGemmPlan>();
  const Wide tiles =
      divided_up(s.n, own.images) * divided_up(s.count_h, own.tile_h) * divided_up(s.count_w, own.tile_w);
  const Wide blocks = divided_up(s.channels, 32), panels = divided_up(s.rows_m, 32);
  const Wide panel = blocks * s.taps * own.parts * 2048, tile = blocks * own.parts * own.channel_pitch * 2 + 31 * 64;
  v->expect(own.channel_pitch >= packed_positions(s, own) * 32, "32 channels of a tile fit their pitch");
  if (own.schedule == conv_ext::DotSchedule::Source) {
    v->within(own.splits, 1, tiles, "splits are some of the tiles of a group");
    v->expect(plan.workspace_bytes >= s.groups * tiles * tile, "the packed source fits the workspace");
    v->expect(own.task_m >= 32 && own.task_m % 32 == 0, "task_m is whole panels");
    if (v->rule) return;
    v->expect(plan.scratch_bytes >= own.task_m / 32 * panel, "a task's panels fit the scratch");
    v->expect(own.task_m == 32 || own.task_m / 32 * panel <= 1 << 20, "several panels take at most 1 MiB");
    v->expect(plan.tasks == s.groups * divided_up(s.rows_m, own.task_m) * own.splits,
              "tasks are all panels and splits");
    return;
  }
  v->expect(plan.workspace_bytes >= s.groups * panels * panel, "the weights fit the workspace");
  if (own.schedule != conv_ext::DotSchedule::Weights) {
    v->expect(s.taps == 1 && z.p == z.h && z.q == z.w, "a line is that of the source");
    v->within(own.splits, 1, s.n * divided_up(Wide(z.p) * z.q, 32), "splits are some of the line");
    const Wide block = blocks * own.parts * 2048;
    v->within(own.run, 1, panels * block <= 2 << 20 ? 1 : 8, "a run is some blocks, or one where weights stay near");
    if (v->rule) return;
    v->expect(own.run == 1 || 2 * own.run * block <= 1 << 20, "two runs of several blocks take at most 1 MiB");
    v->expect(plan.scratch_bytes >= 2 * own.run * block, "two runs of blocks of positions fit the scratch");
    v->expect(plan.tasks == s.groups * own.splits, "tasks are all parts of the line");
    return;
  }
  v->expect(own.task_m >= 1 && (own.task_m % 32 == 0 || own.task_m >= s.rows_m), "task_m is whole panels");
  if (v->rule) return;
  v->expect(plan.scratch_bytes >= tile, "a packed tile fits the scratch");
  v->expect(plan.tasks == s.groups * tiles * divided_up(s.rows_m, own.task_m), "tasks are all tiles");
}

inline void check_implicit_gemm(const Sizes& s, const ConvProblem& z, const Machine& machine, const Plan& plan,
                                Verdict* v) {
  const auto& own = plan.own<conv_ext::ImplicitGemmPlan>();
  const bool tiles_dot = machine.bf16_dot == conv_ext::Bf16Dot::Tiles;
  v->within(own.parts, 1, tiles_dot ? 3 : 1, "an operand is cut into 1 to 3 parts, by tiles alone");
  if (tiles_dot && s.weight_grad && own.schedule == conv_ext::DotSchedule::Line)
    return check_tiles_grad_line(s, z, plan, v);
  v->within(own.tile_h, 1, s.count_h, "tile_h is among the outputs of a phase");
  v->within(own.tile_w, 1, s.count_w, "tile_w is among the outputs of a phase");
  v->expect(own.images >= 1 && own.images < 2 * s.n, "images are some of the batch");
  if (v->rule) return;
  if (tiles_dot) return s.weight_grad ? check_tiles_weight_grad(s, z, plan, v) : check_tiles_gather(s, z, plan, v);
  if (s.weight_grad) {
    v->within(own.tile_k, 1, z.group_k(), "tile_k is some of the channels");
    v->within(own.tile_c, 1, z.group_c(), "tile_c is some of the channels");
    v->expect(own.grad_pitch > Wide(own.images) * own.tile_h * own.tile_w, "a row of the gradient fits its pitch");
    if (v->rule) return;
    const Wide units = divided_up(s.n, own.images) * divided_up(z.p, own.tile_h) * divided_up(z.q, own.tile_w);
    const Wide sums = Wide(z.k) * divided_up(z.group_c(), own.tile_c) * rounded_up(own.tile_c * s.taps, 16) * 4;
    v->within(own.splits, 1, units, "splits are some of the tiles");
    v->expect(own.splits == 1 || (own.splits * sums <= kMostPartial && plan.workspace_bytes >= own.splits * sums),
              "partial sums take at most 8 MiB, which the workspace has");
    v->expect(plan.scratch_bytes >= Wide(own.tile_k) * own.grad_pitch * 2, "the packed gradient fits the scratch");
    v->expect(
        plan.tasks == s.groups * divided_up(z.group_k(), own.tile_k) * divided_up(z.group_c(), own.tile_c) * own.splits,
        "tasks are all blocks of the result and parts of the sums");
    return;
  }
  v->expect(own.task_m >= 16 && own.task_m % 16 == 0, "task_m is whole vectors");
  if (v->rule) return;
  const Wide tiles =
      divided_up(s.n, own.images) * s.groups * divided_up(s.count_h, own.tile_h) * divided_up(s.count_w, own.tile_w);
  const Wide weights = s.groups * s.rows_m * s.channels * s.taps * 2;
  if (own.schedule == conv_ext::DotSchedule::Source) {
    v->within(own.splits, 1, tiles / s.groups, "splits are some of the tiles of a group");
    v->expect(plan.workspace_bytes >= tiles * own.channel_pitch * 2, "the packed source fits the workspace");
    v->expect(plan.tasks == s.groups * divided_up(s.rows_m, own.task_m) * own.splits,
              "tasks are all panels and splits");
  } else {
    v->expect(plan.workspace_bytes >= weights, "the weights fit the workspace");
    v->expect(plan.scratch_bytes >= Wide(own.channel_pitch) * 2, "a packed tile fits the scratch");
    v->expect(plan.tasks == tiles * divided_up(s.rows_m, own.task_m), "tasks are all tiles");
  }
}

// How weights become panels, whose vectors run along channels or along positions.
inline void check_weight_panels(const Sizes& s, const ConvProblem& z, const conv_ext::WeightPanels& w, int64_t widest,
                                Verdict* v) {
  const Wide unit = w.along_channels ? s.lanes : s.parts, units = divided_up(most(1, s.rows_m), unit);
  v->expect(w.unit == unit && w.parts == s.parts, "a panel has whole vectors, or whole elements");
  v->expect(w.joined_taps == 1 || (w.joined_taps == z.s && !s.inverse && s.groups == 1),
            "joined taps are those of a row");
  v->expect(w.channels == s.channels * w.joined_taps, "joined taps are read as channels");
  v->expect(w.padded_m == units * unit, "channels fill up the last vector");
  v->expect(w.panels == divided_up(units, w.along_channels ? widest : widest / int64_t(unit)),
            "panels are all channels, as few as can be");
  if (v->rule) return;
  v->expect(w.panel_channels == divided_up(units, w.panels) * unit, "the widest panel is one of evenly wide ones");
  const Wide all = s.groups * w.panels;
  v->expect(w.panels_per_task >= 1 && w.packing_tasks == (w.packed() ? divided_up(all, w.panels_per_task) : 0),
            "all panels that are not read in place are packed");
}

inline void check_panels_grad(const Sizes& s, const ConvProblem& z, const Plan& plan, Verdict* v) {
  using conv_ext::GradLanes;
  const auto& own = plan.own<conv_ext::PanelsPlan>().grad;
  const bool positions = own.lanes_are == GradLanes::Positions, along_input = own.lanes_are == GradLanes::InputChannels;
  v->expect(positions || along_input || own.lanes_are == GradLanes::OutputChannels, "lanes are channels or positions");
  v->within(own.tile_h, 1, z.p, "tile_h is some of the rows");
  v->within(own.tile_w, 1, z.q, "tile_w is some of the columns");
  v->within(own.batch, 1, positions ? least(128, most(1, 2 * s.n - 1)) : s.n, "batch is some of the images");
  v->expect(own.images == (positions ? own.batch : 1), "images lie side by side where lanes are positions");
  v->within(own.tile_k, 1, most(1, z.group_k()), "tile_k is some of the channels");
  v->within(own.tile_c, 1, most(1, z.group_c()), "tile_c is some of the channels");
  v->within(own.task_groups, 1, positions ? s.groups : 1, "task_groups are some of the groups");
  v->expect(own.task_groups == 1 || (own.tile_k == z.group_k() && own.tile_c == z.group_c()),
            "of several groups a task has all channels");
  const bool padded = z.pad_top || z.pad_bottom || z.pad_left || z.pad_right;
  const bool same_type = conv_ext::element_bytes(z.dtype) == s.parts * s.bytes;
  v->expect(own.in_place == (!positions && s.taps == 1 && !padded && same_type),
            "one tap without padding is read in place, where nothing is widened");
  v->expect(own.in_place || !along_input, "vectors run along C where it is not packed otherwise");
  v->within(own.panel_vectors, 1, 4, "panel_vectors are those of a register tile");
  v->expect(own.in_place || !own.outer, "outer products are of what is read in place");
  v->expect(!own.lanes_in_place || (own.outer && s.parts * (along_input ? z.group_c() : z.group_k()) % s.lanes == 0),
            "lanes are read in place where they fill vectors");
  if (v->rule) return;
  // Of small tiles the positions are counted tap by tap.
  if (s.taps <= 64) {
    const conv_ext::PackedExtent down = conv_ext::packed_extent(s.vertical, own.tile_h),
                                 across = conv_ext::packed_extent(s.horizontal, own.tile_w);
    const Wide packed = Wide(across.regions) * down.positions * across.longest * own.batch;
    v->expect(own.channel_pitch >= packed, "a packed channel fits its pitch");
    v->expect(own.channel_pitch <= packed + 32, "a packed channel is not much shorter than its pitch");
  }
  const Wide units = divided_up(s.n, own.batch) * divided_up(z.p, own.tile_h) * divided_up(z.q, own.tile_w);
  const Wide blocks = divided_up(s.groups, own.task_groups) * divided_up(most(1, z.group_k()), own.tile_k) *
                      divided_up(most(1, z.group_c()), own.tile_c);
  const Wide lanes_of_task = s.parts * (along_input ? own.tile_c : own.tile_k);
  v->expect(own.lanes == (positions ? lanes_of_task : rounded_up(lanes_of_task, s.lanes)),
            "lanes of a block are one operand's channels, in whole vectors");
  v->expect(own.rows == s.parts * (along_input ? own.tile_k : own.tile_c), "rows of a block are the other operand's");
  const Wide block = Wide(own.task_groups) * own.lanes * own.rows * s.taps * s.bytes;
  v->within(own.splits, 1, units, "splits are some of the tiles");
  v->expect(own.splits == 1 || own.splits * blocks * block <= kMostPartial, "partial sums take at most 8 MiB");
  v->expect(plan.workspace_bytes >= own.splits * blocks * block, "the partial sums fit the workspace");
  v->expect(plan.tasks == blocks * own.splits, "tasks are all blocks of the result and parts of the sums");
  const Wide line = Wide(own.tile_w) * own.batch;
  v->expect(!positions || own.grad_pitch == rounded_up(line, s.lanes), "a row of the gradient is whole vectors");
  const Wide lanes =
      own.lanes_in_place ? Wide(0) : Wide(own.lanes) * own.tile_h * (positions ? Wide(own.grad_pitch) : line);
  const Wide rows = own.in_place ? 0 : Wide(own.rows) * own.channel_pitch;
  v->expect(plan.scratch_bytes >= (lanes + rows) * own.task_groups * s.bytes + own.rows * s.taps * 8,
            "the panels and rows fit the scratch");
  const Wide segments = Wide(own.batch) * own.tile_h * (own.outer ? 2 : 1);
  v->expect(positions || plan.scratch_bytes >= own.rows * s.taps * 8 + segments * 8, "the offsets fit the scratch");
}

inline void check_windows(const Sizes& s, const ConvProblem& z, const Machine& machine, const Plan& plan, Verdict* v) {
  if (s.weight_grad) return check_panels_grad(s, z, plan, v);
  const auto& own = plan.own<conv_ext::WindowsPlan>();
  const bool channels = plan.algorithm == Algorithm::Broadcast;  // are lanes, else positions
  v->within(own.tile_h, 1, most(1, s.count_h), "tile_h is among the outputs of a phase");
  v->within(own.tile_w, 1, most(1, s.count_w), "tile_w is among the outputs of a phase");
  v->within(own.rows, 1, own.tile_h, "rows are some of a tile");
  v->within(own.tile_c, 1, most(1, s.channels), "tile_c is some of the channels");
  v->within(own.task_groups, 1, channels ? Wide(1) : s.groups, "task_groups are some of the groups");
  v->within(own.weights.panels, 1, divided_up(most(1, s.rows_m), channels ? s.lanes : s.parts),
            "panels are some of the vectors or channels");
  v->expect(own.weights.along_channels == channels && own.weights.packed() &&
                own.weights.chains == conv_ext::ChainsOf::ChannelsAlone && own.weights.joined_taps == 1,
            "the weights are packed, tap by tap");
  if (v->rule) return;
  const int64_t vectors = own.weights.panel_channels / int64_t(s.lanes);
  if (channels) v->within(vectors, 1, conv_ext::kWindowV, "vectors are those of a register tile");
  if (v->rule) return;
  check_weight_panels(s, z, own.weights, channels ? vectors : conv_ext::window_channels(machine), v);
  v->within(
      own.images, 1,
      channels ? least(most(1, s.n), conv_ext::window_outputs(machine, vectors)) : least(128, most(1, 2 * s.n - 1)),
      "images are some of the batch, and of a register tile");
  v->within(own.parts_m, 1, own.weights.panels, "parts_m are some of the panels");
  const bool several = s.channels * s.taps > conv_ext::kPanelProducts && s.channels > s.parts;
  v->expect(own.products >= least(s.channels * s.taps, conv_ext::kPanelProducts), "products are those of a chain");
  v->expect(!several || own.task_groups == 1, "several chains are those of one group");
  v->expect(!several || own.rows == own.tile_h, "sums of several chains are held for all rows of a tile");
  if (v->rule) return;
  // Of small tiles the positions are counted tap by tap.
  if (s.taps <= 64) {
    const conv_ext::PackedExtent down = conv_ext::packed_extent(s.vertical, own.tile_h),
                                 across = conv_ext::packed_extent(s.horizontal, own.tile_w);
    const Wide packed = Wide(across.regions) * down.positions * across.longest * own.images;
    v->expect(own.channel_pitch >= packed, "a packed channel fits its pitch");
    v->expect(own.channel_pitch <= packed + 32, "a packed channel is not much shorter than its pitch");
  }
  const Wide row = Wide(own.tile_w) * own.images, lanes = channels ? Wide(1) : s.lanes;
  const Wide sums = own.flat ? own.rows * row : own.rows * rounded_up(row, lanes);
  const bool held = channels || !own.in_place;  // vectors of positions are summed where the result lies, or held
  v->expect(!held ? own.sums == 0
                  : own.sums >=
                        sums * (several ? divided_up(own.weights.panels, own.parts_m) : 1) * own.weights.panel_channels,
            "sums are those of some rows, of all panels of a task where several chains are added");
  v->expect(own.runs >= divided_up(row, lanes), "there is a run for every output of a row, or every vector");
  v->expect(plan.workspace_bytes >= s.groups * own.weights.padded_m * (s.channels * s.taps + 1) * s.bytes,
            "weights and bias fit the workspace");
  v->expect(plan.scratch_bytes >= (Wide(own.task_groups) * own.tile_c * own.channel_pitch + own.sums) * s.bytes +
                                      own.products * Wide(8) + own.runs * Wide(32) + Wide(own.tile_h) * 16,
            "a packed tile, its sums, offsets and runs fit the scratch");
  v->expect(plan.tasks == divided_up(s.n, own.images) * divided_up(s.groups, own.task_groups) *
                              divided_up(s.count_h, own.tile_h) * divided_up(s.count_w, own.tile_w) * own.parts_m,
            "tasks are all tiles");
}

inline void check_panels(const Sizes& s, const ConvProblem& z, const Machine& machine, const Plan& plan, Verdict* v) {
  if (s.weight_grad) return check_panels_grad(s, z, plan, v);
  const auto& own = plan.own<conv_ext::PanelsPlan>().gather;
  const conv_ext::WeightPanels& w = own.weights;
  check_weight_panels(s, z, w, w.along_channels ? conv_ext::panel_vectors(machine) : conv_ext::most_panel_rows(machine),
                      v);
  const Wide positions = most(1, s.n * s.count_h * s.count_w);
  const Wide units = w.along_channels ? positions : divided_up(positions, s.lanes);  // that are shared out
  v->expect(own.block >= 1 && own.blocks >= 1 && Wide(own.block) * own.blocks >= units, "blocks are all positions");
  v->expect(own.unit >= 1 && own.blocks <= divided_up(units, own.unit), "each block has a register tile");
  v->within(own.parts_m, 1, w.panels, "parts_m are some of the panels");
  v->expect(plan.tasks == s.groups * s.phases * own.blocks * own.parts_m,
            "tasks are all groups, phases, blocks of positions and parts of the panels");
  if (v->rule) return;
  v->expect(!own.one_row || (s.taps == 1 && z.h == z.p && z.w == z.q),
            "one row is what is computed position by position");
  const Wide weights = s.groups * w.padded_m * s.channels * s.taps * s.bytes;
  if (w.along_channels) {
    const Wide taps = s.taps / w.joined_taps, windows = w.joined_taps > 1 ? own.block * taps * w.channels : 0;
    v->expect(plan.workspace_bytes >= weights, "the weights fit the workspace");
    v->expect(own.sums == Wide(own.block) * w.panel_channels, "sums are those of a block and a panel");
    v->expect(own.zeros >= most(1, w.joined_taps > 1 ? Wide(w.channels) : s.channels > 1),
              "the zeros are a position's");
    v->expect(
        plan.scratch_bytes >= own.block * taps * 8 + (own.sums + windows + own.zeros + w.panel_channels) * s.bytes,
        "sources, sums, windows and zeros fit the scratch");
    return;
  }
  v->expect(own.task_rows >= divided_up(w.panels, own.parts_m) * w.panel_channels, "the rows of a task are counted");
  v->expect(own.panel_lanes == conv_ext::panel_vectors_of_most_rows(machine) * s.lanes,
            "a panel of positions is whole vectors");
  v->expect(own.products >= least(s.channels * s.taps, conv_ext::kPanelProducts), "products are those of a chain");
  v->expect(own.sums == Wide(own.task_rows) * own.block * s.lanes, "sums are those of a block and its rows");
  v->expect(plan.scratch_bytes >= (own.sums + Wide(own.products) * own.panel_lanes) * s.bytes + own.task_rows * Wide(8),
            "a panel and the sums fit the scratch");
  v->expect(plan.workspace_bytes < 32 * s.taps + 8 * s.phases + 1024, "weights that are read in place are not packed");
}

// nullptr, or the rule that the plan breaks.
inline const char* check_plan(const ConvProblem& z, Pass pass, const Machine& machine, Algorithm algorithm,
                              const Plan& p) {
  Verdict v;
  v.within(p.tasks, 1, INT64_MAX, "there is a task");
  v.within(p.workspace_bytes, 0, kMostWorkspace, "the workspace is within bounds");
  v.within(p.scratch_bytes, 0, kMostScratch, "the scratch is at most 16 MiB");
  if (v.rule) return v.rule;
  const Sizes s = sizes_of(z, pass, machine);
  switch (algorithm) {
    case Algorithm::Depthwise:
      check_depthwise(s, z, p, &v);
      break;
    case Algorithm::Winograd:
      check_winograd(s, z, p, &v);
      break;
    case Algorithm::Grouped:
      check_grouped(s, z, pass, machine, p, &v);
      break;
    case Algorithm::ImplicitGemm:
      check_implicit_gemm(s, z, machine, p, &v);
      break;
    case Algorithm::Broadcast:
    case Algorithm::Direct:
      check_windows(s, z, machine, p, &v);
      break;
    case Algorithm::Panels:
      check_panels(s, z, machine, p, &v);
      break;
    case Algorithm::Reference:
      v.expect(p.workspace_bytes == 0 && p.scratch_bytes == 0, "the reference needs no memory");
      return v.rule;
  }
  if (v.rule) return v.rule;
  v.expect(p.workspace_bytes <= most_workspace(s, z, machine, algorithm, p),
           "the workspace is one set of weights or sums, 8 MiB more");
  return v.rule;
}

}  // namespace fuzz
