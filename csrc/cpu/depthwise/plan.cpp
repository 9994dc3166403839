// Plans of the depthwise algorithm: what the lanes are, what is read in place, rows and channels of a task.
#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {
namespace {

// Lanes are columns: bytes that a task reads and writes where it is one of many; channels are cut into so many tasks
// or more where there are enough for every thread.
constexpr int64_t kTaskBytes = 64 << 10;
// Positions of the maps that one call of the loops takes, and how many channels it takes at most; maps of so many
// positions or fewer are read one after the other, which the processor sees by itself.
constexpr int64_t kCallPositions = 4096, kCallChannels = 16, kSmallestMap = 64;

// Lanes are channels: bytes of operands and result beyond which they come from memory; the same where a row of results
// has several phases. Measured on two threads with a last cache of 32 MiB. Results are written through the caches at
// any size: past them, a layer and a pass that reads its result took 1.25 to 1.6 times as long together.
constexpr int64_t bytes_beyond_cache(const Machine& machine) { return machine.caches.last_bytes * 9 / 16; }
constexpr int64_t bytes_beyond_cache_of_phases(const Machine& machine) { return machine.caches.last_bytes * 7 / 16; }
static_assert(in_every_row(bytes_beyond_cache, 18 << 20) && in_every_row(bytes_beyond_cache_of_phases, 14 << 20));
// Elements of a row of a strip of columns, of which four, three of the source and one of results, stay in the first
// level of cache; its channels at most.
constexpr int64_t strip_elements(const Machine& machine) {
  return machine.caches.l1_bytes * 7 / 8 / (4 * int64_t(sizeof(float)));
}
static_assert(in_every_row(strip_elements, 1792));
constexpr int64_t kStripChannels = 256;
// weight_grad: the same in the second level; channels of a task, whose sums stay in the first. A strip's sums are added
// to those before it, so that it follows from no cache.
constexpr int64_t kDotStripElements = 7168, kDotChannels = 512;
// forward, input_grad: tasks that a call is cut into, between rows.
constexpr int64_t kRowTasks = 32;

// What both kinds of lanes are planned from.
struct Given {
  const ConvProblem& z;
  const Pass pass;
  const Axis vertical, horizontal;
  const int64_t (&source)[4], (&result)[4];  // strides; weight_grad: of the upstream gradient
  const Machine& machine;
  const int64_t bytes_each, lanes;
  const bool weight_grad, same_type, share;

  explicit Given(const PlanInput& input)
      : z(input.problem),
        pass(input.pass),
        vertical(vertical_axis(z, pass)),
        horizontal(horizontal_axis(z, pass)),
        source(source_of(pass, input.strides)),
        result(result_of(pass, input.strides)),
        machine(input.machine),
        bytes_each(accumulator_bytes(z.dtype)),
        lanes(machine.vector_bytes / bytes_each),
        weight_grad(pass == Pass::WeightGrad),
        same_type(element_bytes(z.dtype) == bytes_each),
        share(z.flops() >= kWorthSharing) {}

  // Channels are lanes where they are neighbours and fill half a vector.
  DepthwiseLanes lanes_are() const {
    return source[1] == 1 && result[1] == 1 && 2 * z.c >= lanes ? DepthwiseLanes::Channels : DepthwiseLanes::Columns;
  }
  int64_t padded_c() const { return round_up(z.c, lanes); }
  // The height of a tile where an image is cut into so many, or a few less: whole blocks of rows of all phases.
  int64_t tile_height(int64_t tiles) const {
    const int64_t wanted = max_of(1, min_of(vertical.output, tiles));
    return round_up(ceil_div(vertical.output, wanted), kColumnsRows * vertical.output_step());
  }
};

// weight_grad: parts of the sum, and the height of tiles that can be shared out among them.
void cut_sums(const Given& g, DepthwisePlan* own) {
  const int64_t wanted = ceil_div(kEnoughTasks * kGradBlock, g.padded_c());
  const int64_t sum_bytes = product(g.padded_c(), g.z.r * g.z.s, g.bytes_each);
  own->splits = g.share ? splits_of_sums(wanted, product(g.z.n, g.z.p), sum_bytes) : 1;
  own->tile_h = g.tile_height(ceil_div(own->splits, g.z.n));
  own->splits = max_of(1, min_of(own->splits, product(g.z.n, ceil_div(g.z.p, own->tile_h))));
}

// Whether the even outputs read one position, and the odd ones that and the next.
bool spreads_along(const Axis& axis) {
  if (axis.taps != 3 || axis.stride != 2 || axis.phases() != 2) return false;
  const PhaseTaps even = PhaseTaps::of(axis, 0), odd = PhaseTaps::of(axis, 1);
  return even.count == 1 && odd.count == 2 && odd.offset == even.offset && odd.offset_step == 1;
}

// What the loops read of the source, and how.
void plan_columns_reads(const Given& g, DepthwisePlan* own) {
  const ConvProblem& z = g.z;
  const Axis &vertical = g.vertical, &horizontal = g.horizontal;
  const int64_t step = horizontal.step();
  // With a stride of 2 every other element of a pair of vectors is taken; a larger one would waste most of them.
  own->source_in_place =
      g.same_type && g.source[3] == 1 && (step == 1 || (step == 2 && vertical.step() == 2 && horizontal.dilation == 1));
  own->result_in_place = g.same_type && g.result[3] == 1 && horizontal.output_step() == 1;
  DepthwiseByColumns& columns = own->columns;
  columns.column_step = own->source_in_place ? step : 1;
  // A packed row has the columns of each residue of the stride side by side.
  columns.row_pitch = own->source_in_place ? horizontal.source : product(ceil_div(horizontal.source, step), step);
  columns.shares_pairs = own->source_in_place && step == 2 && z.r == 3 && z.s == 3 && vertical.dilation == 1;
  columns.spreads = g.pass == Pass::InputGrad && g.same_type && g.result[3] == 1 && spreads_along(vertical) &&
                    spreads_along(horizontal);
  columns.prefetches = own->source_in_place && product(vertical.source, horizontal.source) > kSmallestMap;
}

void plan_columns(const Given& g, DepthwisePlan* own) {
  const ConvProblem& z = g.z;
  plan_columns_reads(g, own);
  if (g.weight_grad) {
    own->tile_c = min_of(max_of(1, z.c / kEnoughTasks), kChannelsTogether);
    cut_sums(g, own);
    // Where there are channels enough for every thread, maps are not cut: what is prefetched is what comes next.
    if (ceil_div(z.c, own->tile_c) >= kEnoughTasks) {
      own->splits = 1;
      own->tile_h = z.p;
    }
  } else {
    // A task is some channels, large enough to be worth handing out; only few large maps are cut.
    const int64_t map_bytes = product(product(z.h, z.w) + product(z.p, z.q), g.bytes_each);
    own->splits = 1;
    own->tile_c =
        max_of(1, min_of(z.c, min_of(kTaskBytes / max_of(1, map_bytes), product(z.n, z.c) / (2 * kEnoughTasks))));
    own->tile_h = g.tile_height(ceil_div(g.share ? ceil_div(kEnoughTasks, z.c) : 1, z.n));
  }
  // Maps that lie one behind the other; a row of zeros has to reach as far.
  const int64_t map = product(g.vertical.source, g.horizontal.source);
  const bool dense_maps = own->source_in_place && g.source[1] == map && (own->result_in_place || !g.weight_grad);
  own->columns.call_channels = dense_maps ? min_of(kCallChannels, max_of(1, kCallPositions / map)) : 1;
}

// Channels of which a block of rows and its results fit the cache, where they are copied: rows of a kernel of 3x3 and
// three rows of outputs, or of one.
int64_t packed_channels(const Given& g) {
  const int64_t rows = max_of(most_phase_taps(g.vertical), 2 * g.vertical.step() + 3);
  const int64_t row_bytes = product(g.machine.vector_bytes, product(rows, g.horizontal.source) + g.horizontal.output);
  return g.lanes * max_of(1, min_of(g.padded_c() / g.lanes, most_tile_bytes(g.machine) / row_bytes));
}

void plan_channels_weight_grad(const Given& g, bool row_blocks, DepthwisePlan* own) {
  own->tile_c = own->source_in_place ? min_of(g.padded_c(), kDotChannels) : packed_channels(g);
  cut_sums(g, own);
  const int64_t block = channels_columns(g.machine);
  const auto strip_of = [&](int64_t channels) {
    const int64_t blocks = kDotStripElements / product(round_up(channels, g.lanes), block, g.horizontal.step());
    return block * min_of(kChannelsDotBlocks, max_of(1, blocks));
  };
  own->channels.block_rows = row_blocks ? channels_dot_rows(g.machine) : 1;
  own->channels.strip_c = own->tile_c;
  own->channels.strip_w = strip_of(min_of(own->tile_c, g.z.c));
  own->channels.last_strip_w = strip_of(g.z.c - (ceil_div(g.z.c, own->tile_c) - 1) * own->tile_c);
}

void plan_channels(const Given& g, DepthwisePlan* own) {
  const ConvProblem& z = g.z;
  DepthwiseByChannels& channels = own->channels;
  // float16 is copied: to widen it takes too long to be done for every tap.
  own->source_in_place = own->result_in_place = z.dtype != DType::Float16;
  const int64_t phases = g.horizontal.phases(), block = channels_columns(g.machine);
  const int64_t beyond = phases > 1 ? bytes_beyond_cache_of_phases(g.machine) : bytes_beyond_cache(g.machine);
  channels.beyond_cache = own->source_in_place && z.bytes() > double(beyond);
  const bool row_blocks = own->source_in_place && z.r == 3 && z.s == 3 && z.dilation_h == 1 && z.dilation_w == 1 &&
                          z.stride_h == z.stride_w && z.stride_h <= (g.pass == Pass::InputGrad ? 1 : 2);
  if (g.weight_grad) {
    plan_channels_weight_grad(g, row_blocks, own);
  } else {
    own->splits = 1;
    own->tile_c = own->source_in_place ? g.padded_c() : packed_channels(g);
    const int64_t tiles = g.share ? ceil_div(kRowTasks, product(z.n, ceil_div(z.c, own->tile_c))) : 1;
    own->tile_h = round_up(ceil_div(g.vertical.output, tiles), g.vertical.output_step());
    channels.block_rows = row_blocks && !channels.beyond_cache ? channels_rows(g.machine) : 1;
    channels.strip_c = own->tile_c;
    channels.strip_w = g.horizontal.longest_count();
    if (channels.beyond_cache) {
      channels.strip_c = round_up(ceil_div(z.c, ceil_div(z.c, kStripChannels)), g.lanes);
      const int64_t block_elements = product(channels.strip_c, block, g.horizontal.step());
      channels.strip_w = block * max_of(1, strip_elements(g.machine) / block_elements);
    }
    channels.last_strip_w = channels.strip_w;
  }
  channels.phase_w = phases == 1 ? channels.strip_w : block;
}

template <class A>
void count_bytes(const Given& g, const DepthwisePlan& own, Plan* plan) {
  Carver workspace, scratch;
  if (own.lanes_are == DepthwiseLanes::Columns) {
    lay_out_columns_workspace<A>(g.z, g.pass, own, &workspace);
    lay_out_columns_scratch<A>(g.z, g.pass, own, g.machine, &scratch);
  } else {
    lay_out_channels_workspace<A>(g.z, g.pass, own, g.machine, &workspace);
    lay_out_channels_scratch<A>(g.z, g.pass, own, &scratch);
  }
  plan->workspace_bytes = workspace.bytes();
  plan->scratch_bytes = scratch.bytes();
}

}  // namespace

void prepare_depthwise(const PlanInput& input, Plan* plan) {
  const Given g(input);
  DepthwisePlan& own = plan->own<DepthwisePlan>();
  own = DepthwisePlan{};
  own.lanes_are = g.lanes_are();
  if (own.lanes_are == DepthwiseLanes::Columns) {
    plan_columns(g, &own);
  } else {
    plan_channels(g, &own);
  }
  own.row_tiles = ceil_div(g.vertical.output, own.tile_h);
  own.channel_tiles = ceil_div(g.z.c, own.tile_c);
  own.units = product(g.weight_grad ? own.splits : product(g.z.n, own.row_tiles), own.channel_tiles);
  plan->tasks = g.share ? own.units : 1;
  if (g.bytes_each == 8) {
    count_bytes<double>(g, own, plan);
  } else {
    count_bytes<float>(g, own, plan);
  }
}

const char* depthwise_declines(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (z.groups != z.c || z.groups != z.k) return "it is for depthwise problems, where groups = C = K";
  if (is_complex(z.dtype)) return "it is for real numbers";
  if (z.r > 4096 / z.s) return "the kernel has more than 4096 taps";
  const Axis vertical = vertical_axis(z, pass), horizontal = horizontal_axis(z, pass);
  if (vertical.phases() > kMaxPhases / z.r || horizontal.phases() > kMaxPhases / z.s)
    return "it is for strides that, times R or S, are at most 4096";
  if (max_of(horizontal.source, horizontal.output) > kScratchLimit / (16 * z.s) / accumulator_bytes(z.dtype))
    return "the rows are so long that a block of them exceeds 16 MiB of scratch for each thread";
  if (z.flops() == 0) return nullptr;  // an empty problem is not planned
  Plan plan{};
  prepare_depthwise(input, &plan);
  const DepthwisePlan& own = plan.own<DepthwisePlan>();
  if (own.lanes_are == DepthwiseLanes::Columns && plan.workspace_bytes > kScratchLimit) {
    Carver tables;
    lay_out_segments(horizontal, own, &tables);
    if (tables.bytes() > kScratchLimit) return "so many outputs reach into the padding that their tables exceed 16 MiB";
  }
  return memory_declines(plan, "one block of rows exceeds 16 MiB of scratch for each thread");
}

namespace {

Work work_by_channels(const Given& g, const LoopSizes& s) {
  const double vectors = s.results * s.vectors(double(g.z.c)), row_taps = vectors / s.row * s.down.taps;
  if (g.weight_grad)
    return {Nest::DepthwiseChannelsGrad,
            {vectors * s.taps * s.down.inside, vectors, s.source_v, row_taps, 0, 0, 0, 0, 0, 1}};
  const bool strided = g.vertical.step() > 1;
  return {Nest::DepthwiseChannels,
          {vectors * s.taps * s.down.inside, vectors, s.source_v, row_taps, s.phases ? vectors : 0,
           strided ? vectors * s.taps : 0, 0, 0, 0, 1 / kImagesOfCall}};
}

Work work_by_columns(const Given& g, const LoopSizes& s) {
  DepthwisePlan own{};
  plan_columns_reads(g, &own);
  const double maps = s.images * s.groups;
  const double rows = double(s.vertical.output) * double(s.horizontal.phases()) * maps;
  const double vectors = rows * s.vectors(s.row);
  const double source_copied = own.source_in_place ? 0 : s.sources * s.groups;
  const double result_copied = own.result_in_place ? 0 : s.results * s.groups;
  const bool pairs = own.columns.column_step == 2;
  // Loops over 3 x 3 taps know them.
  const bool known = g.z.r == 3 && g.z.s == 3;
  const double steps = vectors * s.taps * (g.weight_grad ? 1 : s.across.inside);
  const double steps_known = known ? steps : 0, steps_else = known ? 0 : steps;
  if (g.weight_grad) {
    const Nest nest = !own.source_in_place ? Nest::DepthwiseColumnsCopiedGrad
                      : pairs              ? Nest::DepthwiseColumnPairsGrad
                                           : Nest::DepthwiseColumnsGrad;
    return {
        nest,
        {steps_else, vectors, rows * s.down.taps, maps * s.taps, source_copied, result_copied, steps_known, 0, 0, 1}};
  }
  const Nest nest = own.columns.spreads    ? Nest::DepthwiseColumnsSpread
                    : !own.result_in_place ? Nest::DepthwiseColumnPhases
                    : !own.source_in_place ? Nest::DepthwiseColumnsCopied
                    : pairs                ? Nest::DepthwiseColumnPairs
                                           : Nest::DepthwiseColumns;
  return {nest,
          {steps_else, vectors, rows * s.down.taps, rows, maps, source_copied, result_copied, steps_known, 0,
           1 / kImagesOfCall}};
}

}  // namespace

Work depthwise_work(const PlanInput& input) {
  const auto& [z, pass, machine, strides, keeps] = input;
  if (z.groups != z.c || z.groups != z.k || is_complex(z.dtype)) return kNever;
  const Given g(input);
  const LoopSizes s(z, pass, machine);
  return g.lanes_are() == DepthwiseLanes::Channels ? work_by_channels(g, s) : work_by_columns(g, s);
}

void describe_depthwise(const PlanInput& input, const Plan& plan, Facts* facts) {
  const DepthwisePlan& own = plan.own<DepthwisePlan>();
  const bool columns = own.lanes_are == DepthwiseLanes::Columns;
  const bool weight_grad = input.pass == Pass::WeightGrad;
  const auto place = [](bool in_place) { return std::string(in_place ? "in place" : "copied"); };
  add_facts(facts, {{"lanes", std::string(columns ? "columns" : "channels")},
                    {"source", place(own.source_in_place)},
                    {weight_grad ? "gradient" : "result", place(own.result_in_place)},
                    {"rows", min_of(own.tile_h, vertical_axis(input.problem, input.pass).output)},
                    {"columns", horizontal_axis(input.problem, input.pass).output},
                    {"channels", min_of(own.tile_c, input.problem.c)}});
  if (columns) add_facts(facts, {{"channels a call", min_of(own.tile_c, own.columns.call_channels)}});
  if (!columns && (weight_grad || own.channels.beyond_cache))
    add_facts(facts, {{"strip", std::to_string(own.channels.strip_w) + " columns, " +
                                    std::to_string(min_of(own.channels.strip_c, input.problem.c)) + " channels"}});
  if (weight_grad) add_facts(facts, {{"splits", own.splits}});
}

}  // namespace conv_ext
