// What the plan of im2row says, and how its memory is laid out.
#pragma once

#include "../../common/carver.h"

namespace conv_ext {

struct Im2rowPlan {
  int64_t rows;  // of outputs that a task computes
};

template <class A>
struct Im2rowScratch {
  A* patch;  // (C/g, R, S) that one output reads, with zeros for the padding
};
template <class A>
inline Im2rowScratch<A> im2row_scratch(const ConvProblem& z, Carver& memory) {
  return {memory.take<A>(z.group_c(), z.r, z.s)};
}

}  // namespace conv_ext
