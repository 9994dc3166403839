// How it is computed: what a plan says to a kernel. It is made in plan.cpp and in the plan.cpp of the algorithm's
// folder.
//
// What follows from the shape and the strides is decided there, and the kernel does what the plan says: the arithmetic
// of forward and input_grad never depends on N, that of weight_grad may, and none of them on the number of threads.
#pragma once

#include "../common/indexing.h"
#include "algorithms.h"

namespace conv_ext {

#define CONV_EXT_NAME(Enumerator, folder) Enumerator,
enum class Algorithm : int32_t { CONV_EXT_ALGORITHMS(CONV_EXT_NAME) };
#undef CONV_EXT_NAME

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

struct Plan {
  Algorithm algorithm;
  int64_t tasks;            // of the loop that multiplies
  int64_t workspace_bytes;  // shared by all threads: packed weights or partial sums, and tables
  int64_t scratch_bytes;    // for each thread: the packed tile

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
