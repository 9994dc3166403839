// Machines with other caches than those that plans assume, and what must not follow from caches.
#pragma once

#include <array>

#include "../../csrc/cpu/algorithms.h"
#include "../../csrc/cpu/candidates.h"
#include "../../csrc/cpu/depthwise/layout.h"
#include "../../csrc/cpu/gemm/layout.h"
#include "../../csrc/cpu/gemm/windows_layout.h"
#include "../../csrc/cpu/gemm/pairs_layout.h"
#include "../../csrc/cpu/winograd/layout.h"

namespace fuzz {

using conv_ext::Machine;

inline Machine with_caches(Machine machine, const conv_ext::Caches& caches) {
  machine.caches = caches;
  return machine;
}

// What a plan says of the order of a sum in forward and input_grad: transforms and parts of numbers, and where chains
// end. What it does not say is in the kernel, or in the algorithm.
using Order = std::array<int64_t, 4>;
inline Order order_of(const conv_ext::Plan& plan) {
  using namespace conv_ext;
  switch (plan.algorithm) {
    case Algorithm::Depthwise:
      return {int64_t(plan.own<DepthwisePlan>().lanes_are)};
    case Algorithm::Winograd:
      return {plan.own<WinogradPlan>().outputs, plan.own<WinogradPlan>().filter};
    case Algorithm::ImplicitGemm:
      return {plan.own<ImplicitGemmPlan>().parts};
    case Algorithm::Broadcast:
    case Algorithm::Direct: {
      const WindowsPlan& own = plan.own<WindowsPlan>();
      return {own.weights.joined_taps, own.weights.channels, own.products, own.tile_c};
    }
    case Algorithm::Panels: {
      const PanelsGatherPlan& own = plan.own<PanelsPlan>().gather;
      return {own.weights.along_channels, own.weights.joined_taps, own.weights.channels, own.products};
    }
    default:
      return {};
  }
}

}  // namespace fuzz
