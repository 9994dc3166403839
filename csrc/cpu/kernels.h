// The whole kernel API: plain C types, so that a kernel library knows neither torch nor a thread library.
#pragma once

#include "../common/buffers.h"
#include "machine.h"
#include "plan.h"

namespace conv_ext {

struct Executor {
  void* context;
  // Runs body(argument, index, scratch) for every index in [0, count), in any order and on any threads. `scratch` is
  // scratch_bytes long, aligned to 64 bytes, not initialised, and no other running body has it.
  void (*parallel_for)(void* context, int64_t count, int64_t scratch_bytes,
                       void (*body)(void* argument, int64_t index, void* scratch), void* argument);
};

struct KernelLibrary {
  Machine machine;  // the row that it was compiled for
  void (*run)(const ConvProblem&, Pass, const Plan&, const Buffers&, const Executor&);
};

// Calls a function object body(index, scratch) through the plain-C executor.
template <class Body>
inline void parallel_for(const Executor& executor, int64_t count, int64_t scratch_bytes, Body body) {
  executor.parallel_for(
      executor.context, count, scratch_bytes,
      [](void* argument, int64_t index, void* scratch) { (*static_cast<Body*>(argument))(index, scratch); }, &body);
}

}  // namespace conv_ext

// The one symbol that a kernel library exports.
extern "C" const conv_ext::KernelLibrary* conv_ext_kernel_library();
