// Plans of the algorithm for small groups.
#include "layout.h"
#include "../plan_common.h"

namespace conv_ext {
namespace {

// The source of one unit: most of it is read again from the first level of cache.
constexpr int64_t window_bytes(const Machine& machine) { return 2 * machine.caches.l1_bytes; }
static_assert(in_every_row(window_bytes, 64 << 10));
constexpr int64_t kChainOutputs = 256;  // weight_grad: outputs that are summed in one chain, or those of one row
constexpr int64_t kMostChannels = 64;   // of a group
constexpr int64_t kUnitsOfTask = 8;     // each fetches what the next one reads
// weight_grad: bytes of the sums of those. Into how many parts the reduction is cut follows from them, and they from no
// cache.
constexpr int64_t kTaskSums = 40 << 10;

// The packed source of so many rows of outputs. Its extents are looked for among the taps once, not for each number of
// rows.
struct Window {
  const Axis vertical, horizontal;
  const Reach down, across;
  const int64_t blocks, lanes, vector_bytes;

  Window(const ConvProblem& z, Pass pass, const Machine& machine, int64_t lanes)
      : vertical(vertical_axis(z, pass)),
        horizontal(horizontal_axis(z, pass)),
        down(reach_of(vertical)),
        across(reach_of(horizontal)),
        blocks(group_units(z, pass, lanes).blocks),
        lanes(lanes),
        vector_bytes(machine.vector_bytes) {}
  int64_t bytes(int64_t rows) const {
    return product(blocks, window_rows(vertical, down, rows), across.extent(horizontal.longest_count()), vector_bytes);
  }
  // Of the result that those rows make, or of the upstream gradient, turned round in whole squares.
  int64_t block_bytes(int64_t rows) const { return product(product(rows, horizontal.output) + lanes, vector_bytes); }
};

}  // namespace

void prepare_grouped(const PlanInput& input, Plan* plan) {
  const auto& [z, pass, machine, strides, keeps] = input;
  GroupedPlan& own = plan->own<GroupedPlan>();
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  const int64_t bytes_each = accumulator_bytes(z.dtype), lanes = machine.vector_bytes / bytes_each, taps = z.r * z.s;
  const GroupUnits units = group_units(z, pass, lanes);
  const Window window(z, pass, machine, lanes);
  const bool weight_grad = pass == Pass::WeightGrad, share = z.flops() >= kWorthSharing;
  const int64_t step = vertical.output_step(), output = max_of(1, vertical.output);
  // All rows, or as many as the window has room for; weight_grad ends its chains with them.
  const auto rows = [&](int64_t blocks) { return round_up(ceil_div(output, blocks), step); };
  int64_t blocks = weight_grad ? ceil_div(output, max_of(1, kChainOutputs / max_of(1, z.q))) : 1;
  const int64_t most_bytes = window_bytes(machine);
  blocks = smallest_that_fits(blocks, max_of(blocks, ceil_div(output, step)), [&](int64_t count) {
    return rows(count) <= step ||
           (window.bytes(rows(count)) <= most_bytes && window.block_bytes(rows(count)) <= kScratchLimit / 2);
  });
  own.tile_h = rows(blocks);
  own.tile_w = horizontal.output;
  blocks = ceil_div(output, own.tile_h);
  const int64_t vector_bytes = product(taps, units.source, machine.vector_bytes);
  const int64_t vectors = product(units.units, units.vectors);
  own.splits = 1;
  own.kept = keeps;
  if (weight_grad) {
    own.task_groups =
        max_of(1, min_of(min_of(units.units, kUnitsOfTask), kTaskSums / product(units.vectors, vector_bytes)));
    const int64_t parts = ceil_div(units.units, own.task_groups);
    if (share)
      own.splits = splits_of_sums(ceil_div(kEnoughTasks, parts), product(z.n, blocks), product(vectors, vector_bytes));
    plan->tasks = product(parts, own.splits);
  } else {
    const int64_t tasks = product(z.n, blocks, units.units);
    own.task_groups = max_of(1, min_of(min_of(units.units, kUnitsOfTask), tasks / kEnoughTasks));
    plan->tasks = product(z.n, blocks, ceil_div(units.units, own.task_groups));
  }
  count_memory(z.dtype, plan, [&, &z = z, &pass = pass](auto number, Carver& workspace, Carver& scratch) {
    grouped_workspace<decltype(number)>(z, pass, own, lanes, workspace);
    grouped_scratch<decltype(number)>(z, pass, own, lanes, scratch);
  });
  if (own.kept)
    count_memory(z.dtype, &plan->kept_bytes, [&, &z = z, &pass = pass](auto number, Carver& memory) {
      grouped_weights<decltype(number)>(z, pass, lanes, memory);
    });
}

const char* grouped_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (z.groups == 1) return "it is for groups";
  if (z.dtype != DType::Float32 && z.dtype != DType::Float64 && z.dtype != DType::BFloat16)
    return "it is for float32, float64 and bfloat16";
  if (max_of(z.group_c(), z.group_k()) > kMostChannels) return "a group has more than 64 channels";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  if (pass == Pass::InputGrad && vertical.phases() > kMaxPhases / horizontal.phases())
    return "stride_h * stride_w is above 4096: that many phases of input_grad would be computed one by one";
  if (max_of(horizontal.source, horizontal.output) + (z.s - 1) * z.dilation_w > kScratchLimit)
    return "a row is longer than 2^24";
  return memory_declines(input, prepare_grouped, "the smallest window exceeds 16 MiB of scratch for each thread");
}

Work grouped_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (z.groups == 1 || is_complex(z.dtype) || max_of(z.group_c(), z.group_k()) > kMostChannels) return kNever;
  const LoopSizes s(z, pass, machine);
  const GroupUnits u = group_units(z, pass, s.lanes);
  // There is no instruction to spread channels over so short vectors.
  if (u.several() && s.lanes < 8) return {Nest::Unknown, {}};
  const double units = double(u.units), vectors = units * double(u.vectors);
  const double sources = s.sources * units * double(u.blocks);
  if (pass == Pass::WeightGrad) {
    const double sums = vectors * (double(z.r) * double(z.s)) * double(u.source);
    return {u.several() ? Nest::GroupedSeveralGrad : Nest::GroupedOneGrad,
            {s.results * sums * s.inside, sources, s.results * vectors, s.results / s.row * sums, s.images * sums,
             s.results * vectors * (double(z.r) * double(z.s)), 0, 0, 0, 1}};
  }
  return {u.several() ? Nest::GroupedSeveral : Nest::GroupedOne,
          {s.results * vectors * double(u.source) * s.taps * s.down.inside, sources, s.results * vectors,
           s.results / 8 * vectors * s.taps, s.results / s.row * units, s.weight_v, 0, 0, 0, 1 / kImagesOfCall}};
}

void describe_grouped(const PlanInput& input, const Plan& plan, Facts* facts) {
  const GroupedPlan& own = plan.own<GroupedPlan>();
  add_facts(facts, {{"rows", own.tile_h}, {"columns", own.tile_w}});
  if (input.pass == Pass::WeightGrad) add_facts(facts, {{"splits", own.splits}});
}

}  // namespace conv_ext
