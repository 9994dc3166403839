// How it is computed: the ordered list of algorithms, and the tiles and memory of the one that was chosen.
//
// Start reading at kCandidates in plan.cpp. What follows from the shape alone is decided here: the arithmetic of
// forward and input_grad never depends on N, that of weight_grad may, and none of them on the number of threads.
#pragma once

#include "../common/indexing.h"

namespace conv_ext {

enum class Algorithm : int32_t { Depthwise, Winograd, Grouped, ImplicitGemm, Broadcast, Panels, Direct, Reference };

// What multiplies pairs of bfloat16 numbers: nothing, a vector instruction, or tiles, which are fast enough for float32
// that is cut into parts.
enum class Bf16Dot : int32_t { None, Vectors, Tiles };

// What a kernel library says of the instruction set that it was compiled for.
struct IsaTraits {
  const char* name;
  int64_t vector_bytes;
  int64_t gather_m, gather_v;  // largest register tile of forward and input_grad: channels x vectors
  int64_t dot_m, dot_t;        // largest register tile of weight_grad: K x (C/g R S)
  int64_t panel_v;             // panels: the widest one, in vectors; of positions, beside so many rows
  int64_t panel_p, panel_rows;
  Bf16Dot bf16_dot;
};

// Panels, forward and input_grad: the products of one chain are those of a block of channels and taps.
constexpr int64_t kPanelProducts = 192;
constexpr int64_t kMostJoined = 512;      // products of an output whose taps are joined
constexpr int64_t kFewChannels = 32;      // vectors run along them whatever the layout
constexpr int64_t kMostZeros = 16 << 10;  // elements, of which padding is read then
struct PanelBlocks {
  int64_t channels, taps;  // into how many parts each of them is cut
  int64_t count() const { return product(channels, taps); }
  // Products of the longest block.
  int64_t longest(int64_t all_channels, int64_t all_taps) const {
    return ceil_div(all_channels, channels) * ceil_div(all_taps, taps);
  }
};
inline PanelBlocks panel_blocks(int64_t channels, int64_t taps) {
  const int64_t cut_taps = max_of(1, ceil_div(taps, kPanelProducts));
  return {cut_taps > 1 ? channels : max_of(1, ceil_div(product(channels, taps), kPanelProducts)), cut_taps};
}
// Neighbouring taps of few channels are read as one run of channels, where the memory is channels_last.
inline bool joins_taps(const ConvProblem& z) {
  return z.s > 1 && z.dilation_w == 1 && z.c <= 32 && product(z.c, z.r, z.s) <= kMostJoined;
}
// weight_grad by panels: a kernel without taps or padding reads the input where it lies.
inline bool reads_in_place(const ConvProblem& z) {
  return z.r * z.s == 1 && !z.pad_top && !z.pad_bottom && !z.pad_left && !z.pad_right;
}
// weight_grad by panels: outputs of a tile (a panel of four vectors so long is three quarters of L1), and lines of
// memory that are prefetched for the next tile, where the operands exceed so many bytes.
constexpr int64_t kPanelPositions = 144, kLinesAhead = 4096, kMostProducts = 2 * kPanelProducts;
constexpr double kWorthPrefetching = 1 << 20;
struct PanelTasks {
  int64_t block;    // positions (or vectors of positions) of a task, at most
  int64_t blocks;   // tasks that share out the positions of a phase
  int64_t parts_m;  // tasks that share out the panels of weights
};

// Broadcast: a register tile of `vectors` of channels, and so many outputs as leave registers for their operands.
constexpr int64_t kBroadcastV = 4;
constexpr int64_t broadcast_positions(int64_t vector_bytes, int64_t vectors) {
  const int64_t registers = vector_bytes == 64 ? 31 : vector_bytes == 32 ? 15 : 14;  // products of SSE2 take one
  const int64_t most = (registers - vectors) / vectors;
  return most > 14 ? 14 : most;
}
struct BroadcastTasks {
  int64_t vectors;   // of a panel of weights
  int64_t rows;      // outputs whose sums are held together
  int64_t products;  // of the longest chain
  int64_t parts_m;   // tasks that share out the panels of weights
};

struct Plan {
  Algorithm algorithm;
  // Direct: outputs per tile and phase; how many images lie side by side in a vector; whether the lanes of a tile run
  // on across its rows (the columns between two rows are computed and thrown away) or end with each row.
  int64_t tile_h, tile_w, images;
  bool flat;
  int64_t channel_pitch;  // elements of one packed source channel of a tile
  int64_t task_groups;    // groups per task: small ones are packed together
  // forward, input_grad: outputs of the gemm_m dimension per task.
  int64_t task_m;
  // weight_grad: block of (K/g, C/g) per task; into how many parts, added in order, the reduction is cut.
  int64_t tile_k, tile_c, splits;
  int64_t grad_pitch;  // elements of one packed row of the upstream gradient
  // Winograd: F(outputs x outputs, filter x filter); tile_h and tile_w count tiles. Whether all weights are transformed
  // first and then every block of tiles by itself, or the other way round.
  int64_t outputs, filter;
  bool weights_first;
  // Panels: images of a tile, one after the other, and elements of one of them in a packed channel.
  int64_t batch, image_pitch;
  PanelTasks along_channels, along_positions;
  bool along_input;  // panels, weight_grad: vectors run along C instead of K
  BroadcastTasks broadcast;
  int64_t parts;          // bfloat16 numbers that an operand is cut into
  bool weights_in_tasks;  // implicit matrix product: the source is packed for all tasks, the weights by each
  int64_t tasks;
  int64_t workspace_bytes;  // shared: packed weights or partial sums, and tables
  int64_t scratch_bytes;    // for each thread: the packed tile
};

// Why a problem is so large that no plan with tiles is made for it; nullptr where it is not.
const char* beyond_tiles(const ConvProblem& problem);

struct Candidate {
  Algorithm algorithm;
  const char* name;
  // Why it cannot compute the problem; nullptr where it can. One predicate for dispatch, explain() and the error.
  const char* declines(const ConvProblem& problem, Pass pass, const IsaTraits& isa) const {
    const char* const reason = algorithm == Algorithm::Reference ? nullptr : beyond_tiles(problem);
    return reason != nullptr ? reason : cannot(problem, pass, isa);
  }
  const char* (*cannot)(const ConvProblem&, Pass, const IsaTraits&);
  // Why it is passed over although it could compute the problem; nullptr where it is wanted. A forced algorithm is not
  // asked.
  const char* (*yields)(const ConvProblem&, Pass, const IsaTraits&);
  void (*prepare)(const ConvProblem&, Pass, const IsaTraits&, Plan*);
};

constexpr int kCandidateCount = 8;
extern const Candidate kCandidates[kCandidateCount];

constexpr int64_t kScratchLimit = int64_t(16) << 20;  // bytes a thread may use for its packed tile

// The first candidate that does not decline. `forced` names one instead ("auto": none): nullptr is then returned, with
// the reason in *reason, where it declines or the name is unknown.
const Candidate* choose(const ConvProblem& problem, Pass pass, const IsaTraits& isa, const char* forced,
                        const char** reason);

inline Plan make_plan(const ConvProblem& problem, Pass pass, const IsaTraits& isa, const Candidate& candidate) {
  Plan plan{};
  plan.algorithm = candidate.algorithm;
  plan.tasks = 1;
  candidate.prepare(problem, pass, isa, &plan);
  return plan;
}

}  // namespace conv_ext
