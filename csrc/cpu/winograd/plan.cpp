// Which transform the Winograd algorithm uses, in which blocks, and where it is worth its transforms.
#include <cmath>
#include <initializer_list>

#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {
namespace {

constexpr int64_t kBlockRows = 56;  // tiles in a block
// Blocks as wide as the rows allow, for long runs of memory: F(2 x 2) on 224 x 224 with 64 channels is 30 % slower in
// blocks of 4 x 12 tiles than in rows of 112.
constexpr int64_t kWidestBlock = 112;
constexpr int64_t kSourceFirstTiles = 128;  // tiles of all images up to which the source goes first
// Of a block's transformed operands and products, which are a thread's scratch and below its limit; of a source that is
// transformed first.
constexpr int64_t kBlockBytes = kScratchLimit * 3 / 4;
constexpr int64_t kSharedSource = int64_t(16) << 20;
constexpr double kTransformCost = 14;  // of a vector in a transform, in multiply-adds

// Under "ieee". The transforms round sums of neighbours, whose size a single output's own products may not have; over
// many channels they are alike.
constexpr double kShortestReduction = 96;

struct Variant {
  int64_t outputs, filter;
};

int64_t lanes_of(const ConvProblem& z, const Machine& machine) {
  return machine.vector_bytes / accumulator_bytes(z.dtype);
}

// Multiply-adds in a channel of the reduction and one of gemm_m, the transforms' share included.
double cost_of(const ConvProblem& z, Pass pass, Variant v) {
  const double edge = double(v.outputs + v.filter - 1);
  const double tiles = double(ceil_div(vertical_axis(z, pass).output, v.outputs)) *
                       double(ceil_div(horizontal_axis(z, pass).output, v.outputs));
  const double pieces = double(ceil_div(z.r, v.filter)) * double(ceil_div(z.s, v.filter));
  return tiles * edge * edge * pieces *
         (1 + kTransformCost / double(z.group_c()) + kTransformCost / double(z.group_k()));
}

// "ieee" keeps to F(2 x 2, 3 x 3), whose error is that of the direct sum; every value meets only outputs that read it.
Variant choose_variant(const ConvProblem& z, Pass pass) {
  Variant best{2, 3};
  if (z.precision == Precision::Ieee) return best;
  for (const Variant v : {Variant{4, 3}, Variant{4, 5}})
    if ((v.filter == 3 || max_of(z.r, z.s) > 3) && cost_of(z, pass, v) < cost_of(z, pass, best)) best = v;
  return best;
}

void cut_tiles(int64_t tiles_h, int64_t tiles_w, int64_t n, int64_t rows, WinogradPlan* own) {
  own->images = 1;
  if (product(tiles_h, tiles_w) <= rows) {
    own->tile_h = tiles_h;
    own->tile_w = tiles_w;
    own->images = max_of(1, min_of(n, rows / (tiles_h * tiles_w)));
    return;
  }
  // Evenly cut.
  const int64_t across = ceil_div(tiles_w, min_of(tiles_w, kWidestBlock));
  own->tile_w = ceil_div(tiles_w, across);
  const int64_t down = ceil_div(tiles_h, max_of(1, rows / own->tile_w));
  own->tile_h = ceil_div(tiles_h, down);
}

}  // namespace

void prepare_winograd(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  WinogradPlan& own = plan->own<WinogradPlan>();
  const int64_t lanes = lanes_of(z, machine), bytes = accumulator_bytes(z.dtype);
  const Variant variant = choose_variant(z, pass);
  own.outputs = variant.outputs;
  own.filter = variant.filter;
  const int64_t tiles_h = ceil_div(vertical_axis(z, pass).output, variant.outputs);
  const int64_t tiles_w = ceil_div(horizontal_axis(z, pass).output, variant.outputs);
  const int64_t rows_m = result_channels(z, pass);
  WinogradSizes w{};
  const auto lay_out = [&, &z = z, &pass = pass] {
    Carver workspace, scratch;
    winograd_workspace<float>(z, pass, own, w, workspace);
    winograd_scratch<float>(z, pass, own, w, scratch);
    plan->workspace_bytes = workspace.bytes();
    plan->scratch_bytes = scratch.bytes();
  };
  if (pass == Pass::WeightGrad) {
    own.tile_k = min_of(z.group_k(), kGradBlock);
    own.tile_c = min_of(round_up(z.group_c(), lanes), kGradBlock);
    for (int64_t rows = kBlockRows; rows >= 1; rows /= 2) {
      cut_tiles(tiles_h, tiles_w, z.n, rows, &own);
      w = winograd_sizes(z, pass, own, lanes);
      lay_out();
      if (plan->scratch_bytes <= kBlockBytes) break;
    }
    const int64_t tasks = product(z.groups, ceil_div(z.group_k(), own.tile_k), ceil_div(z.group_c(), own.tile_c));
    const int64_t sum_bytes = product(z.k, z.r * z.s, round_up(z.group_c(), lanes), bytes);
    own.splits = splits_of_sums(ceil_div(kEnoughTasks, tasks), w.blocks, sum_bytes);
    plan->tasks = product(tasks, own.splits);
    lay_out();
    return;
  }
  own.kept = keeps;
  own.weights_first = keeps || product(z.n, tiles_h, tiles_w) > kSourceFirstTiles;
  for (int64_t rows = kBlockRows; rows >= 1; rows /= 2) {
    cut_tiles(tiles_h, tiles_w, z.n, rows, &own);
    own.task_m = round_up(rows_m, kProductV * lanes);
    w = winograd_sizes(z, pass, own, lanes);
    if (!own.weights_first) {
      lay_out();
      if (plan->workspace_bytes <= kSharedSource && plan->scratch_bytes <= kScratchLimit) break;
      own.weights_first = true;
      w = winograd_sizes(z, pass, own, lanes);
    }
    lay_out();
    if (plan->scratch_bytes <= kBlockBytes) break;
  }
  if (own.weights_first) {
    const int64_t tasks = product(z.groups, w.blocks);
    const int64_t parts = tasks < kEnoughTasks ? min_of(ceil_div(kEnoughTasks, tasks), max_of(1, w.panels / 4)) : 1;
    own.task_m = ceil_div(w.panels, parts) * w.panel;
    w = winograd_sizes(z, pass, own, lanes);
    plan->tasks = product(tasks, ceil_div(w.panels, own.task_m / w.panel));
  } else {
    plan->tasks = product(z.groups, w.panels);
  }
  lay_out();
  if (!own.kept) return;
  Carver kept;
  transformed_weights<float>(z, w, kept);
  plan->kept_bytes = kept.bytes();
  plan->kept_format[0] = own.outputs;
  plan->kept_format[1] = own.filter;
}

// The memory of forward and input_grad in the smallest blocks that there are where the weights go first: no plan of any
// batch has more, so that N has no say in whether the algorithm declines.
void prepare_smallest_block(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  WinogradPlan& own = plan->own<WinogradPlan>();
  const Variant variant = choose_variant(z, pass);
  const int64_t lanes = lanes_of(z, machine);
  own = {};
  own.outputs = variant.outputs;
  own.filter = variant.filter;
  own.weights_first = true;
  own.task_m = round_up(result_channels(z, pass), kProductV * lanes);
  cut_tiles(ceil_div(vertical_axis(z, pass).output, variant.outputs),
            ceil_div(horizontal_axis(z, pass).output, variant.outputs), z.n, 1, &own);
  const WinogradSizes w = winograd_sizes(z, pass, own, lanes);
  Carver workspace, scratch;
  winograd_workspace<float>(z, pass, own, w, workspace);
  winograd_scratch<float>(z, pass, own, w, scratch);
  plan->workspace_bytes = workspace.bytes();
  plan->scratch_bytes = scratch.bytes();
}

const char* winograd_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (z.dtype != DType::Float32) return "it is for float32";
  if (z.stride_h != 1 || z.stride_w != 1) return "its tiles are for stride 1";
  if (z.dilation_h != 1 || z.dilation_w != 1) return "its tiles are for dilation 1";
  if (z.r > 64 || z.s > 64) return "the kernel is larger than 64";
  // A kernel is filled up to the transform's 3 x 3 with taps of zero. The corner of 2 x 2 has a quarter of its tile's
  // products, whose error it shares: 1.09 of the gate was seen.
  if (z.precision == Precision::Ieee && (z.r < 3 || z.s < 3))
    return "a kernel smaller than 3 x 3 saves no products, and the taps that fill it up add rounding errors";
  const double reduction = pass == Pass::WeightGrad ? double(z.n) * double(z.p) * double(z.q)
                                                    : double(source_channels(z, pass)) * (double(z.r) * double(z.s));
  if (z.precision == Precision::Ieee && reduction < kShortestReduction)
    return "fewer than 96 products are summed: the transforms' rounding errors would show";
  return memory_declines(input, pass == Pass::WeightGrad ? prepare_winograd : prepare_smallest_block,
                         "one block of tiles exceeds 16 MiB of scratch for each thread");
}

Work winograd_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  const int64_t lanes = lanes_of(z, machine);
  if (z.dtype != DType::Float32 || z.stride_h != 1 || z.stride_w != 1 || z.dilation_h != 1 || z.dilation_w != 1)
    return kNever;
  // A kernel smaller than 3 x 3 saves no products, and fewer channels than a vector holds leave lanes idle: of both
  // operands' channels, in weight_grad of the input's.
  if (z.r < 3 || z.s < 3 || z.group_c() < lanes || (pass != Pass::WeightGrad && z.group_k() < lanes)) return kNever;
  const LoopSizes s(z, pass, machine);
  const Variant v = choose_variant(z, pass);
  const double points = double((v.outputs + v.filter - 1) * (v.outputs + v.filter - 1));
  const double tiles = s.images * double(ceil_div(s.vertical.output, v.outputs)) *
                       double(ceil_div(s.horizontal.output, v.outputs)) * s.groups;
  const double pieces = double(ceil_div(z.r, v.filter)) * double(ceil_div(z.s, v.filter));
  const double weights = s.weight_v / (double(z.r) * double(z.s)) * points * pieces;
  const double rows = double(product_rows(machine)), cycles = tile_cycles(machine.rates, rows, kProductV, false);
  const auto panels = [&](double channels) { return std::ceil(channels / double(kProductV * lanes)); };
  if (pass == Pass::WeightGrad)
    return {Nest::WinogradGrad,
            {tiles * points * pieces * s.m / rows * panels(s.c) * cycles, tiles * points * s.c / double(lanes),
             tiles * points * s.m / double(lanes), weights, 0, 0, 0, 0, 0, 1}};
  return {v.outputs == 2 ? Nest::Winograd2x2 : Nest::Winograd4x4,
          {tiles / rows * points * pieces * s.filled(s.c) * panels(s.m) * cycles,
           tiles * points * s.vectors(s.c) * pieces, tiles * points * s.vectors(s.m), weights, s.source_v, s.result_v,
           tiles * points * panels(s.m), 0, 0, 1 / kImagesOfCall}};
}

void describe_winograd(const PlanInput& input, const Plan& plan, Facts* facts) {
  const WinogradPlan& own = plan.own<WinogradPlan>();
  const std::string outputs = std::to_string(own.outputs), filter = std::to_string(own.filter);
  add_facts(facts, {{"transform", "F(" + outputs + "x" + outputs + ", " + filter + "x" + filter + ")"},
                    {"rows", own.tile_h * own.outputs},
                    {"columns", own.tile_w * own.outputs},
                    {"images", own.images}});
  if (input.pass == Pass::WeightGrad) {
    add_facts(facts, {{"K/g", own.tile_k}, {"C/g", own.tile_c}, {"splits", own.splits}});
  } else {
    add_facts(facts, {{"first", own.weights_first ? "weights" : "source"}});
  }
}

}  // namespace conv_ext
