// What the plans of several algorithms share: limits of caches and tasks.
#pragma once

#include "indexing.h"
#include "plan.h"

namespace conv_ext {

constexpr int64_t kTileBudget = 384 << 10;  // bytes of a packed tile that leave room for the weights in an L2 of 1 MiB
constexpr int64_t kEnoughTasks = 16;        // for an even load on a few threads
constexpr double kWorthSharing = 2e6;       // operations below which a second thread costs more than it brings
constexpr int64_t kPartialSums = int64_t(8) << 20;  // weight_grad: bytes that cutting the reduction may cost

inline int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

// The implicit matrix product, in plan_implicit_gemm.cpp.
const char* implicit_gemm_declines(const ConvProblem&, Pass, const IsaTraits&);
void prepare_implicit_gemm(const ConvProblem&, Pass, const IsaTraits&, Plan*);

}  // namespace conv_ext
