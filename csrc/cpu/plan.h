// How it is computed: what a plan says to a kernel. It is made in plan.cpp and in the plan.cpp of the algorithm's
// folder.
//
// What follows from the shape and the strides is decided there, and the kernel does what the plan says: the arithmetic
// of forward and input_grad never depends on N, that of weight_grad may, and none of them on the number of threads.
#pragma once

#include "../common/indexing.h"

namespace conv_ext {

enum class Algorithm : int32_t;  // the list is in algorithms.h

struct Plan {
  Algorithm algorithm;
  int64_t tasks;            // of the loop that multiplies
  int64_t workspace_bytes;  // shared by all threads: packed weights or partial sums, and tables
  int64_t scratch_bytes;    // for each thread: the packed tile
  // Of weights that are kept for other calls, where that was asked for (PlanInput): 0 where nothing would be. They can
  // be used by every plan with the same algorithm and format of a call with the same weights, whatever its N.
  int64_t kept_bytes;
  int64_t kept_format[4];

  // What the algorithm alone knows: tiles, splits, variants. Own is the struct of its folder's layout.h.
  template <class Own>
  Own& own() {
    static_assert(sizeof(Own) <= sizeof(room_) && alignof(Own) <= 8 && __is_trivially_copyable(Own));
    return *reinterpret_cast<Own*>(room_);
  }
  template <class Own>
  const Own& own() const {
    return const_cast<Plan*>(this)->own<Own>();
  }

 private:
  alignas(8) unsigned char room_[256];
};

}  // namespace conv_ext
