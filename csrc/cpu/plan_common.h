// What the plans of several algorithms share: limits, tiles of outputs, and the counting of memory.
#pragma once

#include "../common/roles.h"
#include "base/taps.h"
#include "candidates.h"

namespace conv_ext {

constexpr int64_t kMaxPhases = 4096;
constexpr int64_t kMostExtent = int64_t(1) << 40;      // of a dimension, the padding included
constexpr int64_t kMostElements = int64_t(1) << 50;    // of a tensor, the padding included
constexpr int64_t kEnoughTasks = 16;                   // for an even load on a few threads
constexpr int64_t kWorkspaceLimit = int64_t(1) << 42;  // bytes of one call, 4 TiB: more is nobody's memory
constexpr int64_t kMostTasks = 64;                     // that are wanted for as many threads
constexpr double kTaskOperations = 16e6;               // of a task that many threads share, some 0.2 ms
constexpr double kWorthSharing = 2e6;               // operations below which a second thread costs more than it brings
constexpr int64_t kChannelsTogether = 16;           // small groups are packed together up to so many channels
constexpr int64_t kGradBlock = 64;                  // weight_grad: channels of each operand per tile
constexpr int64_t kPartialSums = int64_t(8) << 20;  // weight_grad: bytes that cutting the reduction may cost

// Bytes of a packed tile that leave room in the second level of cache for the weights that it meets.
constexpr int64_t most_tile_bytes(const Machine& machine) { return machine.caches.l2_bytes * 3 / 8; }
static_assert(in_every_row(most_tile_bytes, 384 << 10));

inline int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

// An odd number of cache lines, so that one position of many channels spreads over the sets of the cache.
inline int64_t spread_pitch(int64_t elements) {
  const int64_t lines = ceil_div(elements, 16);
  return (lines | 1) * 16;
}

struct Shape {  // one tile of outputs and what it reads
  int64_t tile_h, tile_w, images;
  int64_t pitch, channel_pitch;
};

inline Shape shape_of(const Axis& vertical, const Axis& horizontal, int64_t tile_h, int64_t tile_w, int64_t images) {
  const PackedExtent down = packed_extent(vertical, tile_h), across = packed_extent(horizontal, tile_w);
  return {tile_h, tile_w, images, across.longest,
          spread_pitch(product(across.regions, down.positions, across.longest, images))};
}

// At least so many blocks of work that 2, 4 or 8 threads have as many tasks each: those are `each` times the blocks.
// With many tasks that does not matter.
inline int64_t evenly_shared(int64_t blocks, int64_t each) {
  const int64_t tasks = product(blocks, each);
  if (tasks >= kMostTasks) return blocks;
  int64_t shares = tasks > 4 ? 8 : tasks > 2 ? 4 : tasks;
  for (; shares % 2 == 0 && each % 2 == 0; each /= 2) shares /= 2;
  return round_up(blocks, shares);
}

// forward, input_grad: tasks that are wanted, for a few threads or, of much work, for many.
inline int64_t enough_tasks(const ConvProblem& z) {
  if (z.flops() < kWorthSharing) return 1;
  const double many = z.flops() / kTaskOperations;
  return many >= double(kMostTasks) ? kMostTasks : max_of(kEnoughTasks / 2, int64_t(many));
}

// weight_grad: into how many parts a sum over so many units is cut, where so many are wanted.
inline int64_t splits_of_sums(int64_t wanted, int64_t units, int64_t sum_bytes) {
  return max_of(1, min_of(min_of(units, wanted), kPartialSums / sum_bytes));
}

// lay_out(number, memory) lays out one block, with a number of the type that sums are formed in.
template <class LayOut>
inline void count_memory(DType dtype, int64_t* bytes, LayOut lay_out) {
  Carver memory;
  if (accumulator_bytes(dtype) == 8) {
    lay_out(double(), memory);
  } else {
    lay_out(float(), memory);
  }
  *bytes = memory.bytes();
}

// lay_out(number, workspace, scratch) lays out both blocks, with a number of the type that sums are formed in.
template <class LayOut>
inline void count_memory(DType dtype, Plan* plan, LayOut lay_out) {
  Carver workspace, scratch;
  if (accumulator_bytes(dtype) == 8) {
    lay_out(double(), workspace, scratch);
  } else {
    lay_out(float(), workspace, scratch);
  }
  plan->workspace_bytes = workspace.bytes();
  plan->scratch_bytes = scratch.bytes();
}

// Why there is no memory for a plan, or for what `prepare` plans: `too_large` where that is a thread's scratch. An
// empty problem is not planned.
inline const char* memory_declines(const Plan& plan, const char* too_large) {
  if (plan.scratch_bytes > kScratchLimit) return too_large;
  if (plan.workspace_bytes > kWorkspaceLimit) return "it would take more than 4 TiB of workspace";
  return nullptr;
}
using Prepare = void (*)(const PlanInput&, Plan*);
inline const char* memory_declines(const PlanInput& input, Prepare prepare, const char* too_large) {
  if (input.problem.flops() == 0) return nullptr;
  Plan plan{};
  prepare(input, &plan);
  return memory_declines(plan, too_large);
}

}  // namespace conv_ext
