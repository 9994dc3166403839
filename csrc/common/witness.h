// What a run really did, for the fuzzer that compares it with the plan (tests/fuzz/runs_check.h): kept where the
// kernels are compiled with CONV_EXT_WITNESS, and nothing anywhere else.
#pragma once

#include <stdint.h>

namespace conv_ext {

struct Witness {
  const void *workspace, *kept;  // of the run, by which their carvers are told from those of scratch
  int64_t workspace_bytes, kept_bytes, scratch_bytes;  // the most that was handed out of a block
  const char* variant;  // what the kernel says it is; nullptr where an algorithm has one alone
};

}  // namespace conv_ext

#if defined(CONV_EXT_WITNESS)
namespace conv_ext {

extern Witness witness;  // in library.cpp

inline void witness_carved(const void* block, int64_t bytes) {
  if (block == nullptr) return;
  int64_t* const most = block == witness.workspace ? &witness.workspace_bytes
                        : block == witness.kept    ? &witness.kept_bytes
                                                   : &witness.scratch_bytes;
  int64_t seen = __atomic_load_n(most, __ATOMIC_RELAXED);
  while (seen < bytes && !__atomic_compare_exchange_n(most, &seen, bytes, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace conv_ext
#define CONV_EXT_RUNS(words) \
  __atomic_store_n(&conv_ext::witness.variant, static_cast<const char*>(words), __ATOMIC_RELAXED)
#define CONV_EXT_CARVED(block, bytes) conv_ext::witness_carved(block, bytes)
#else
#define CONV_EXT_RUNS(words) ((void)0)
#define CONV_EXT_CARVED(block, bytes) ((void)0)
#endif
