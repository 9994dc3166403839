// Sums that are cut into parts.
#pragma once

#include "pack.h"

namespace conv_ext {

// Adds parts of a reduction, `pitch` elements apart, to the first one, in their order.
template <class A>
inline void add_parts(A* sums, int64_t count, int64_t parts, int64_t pitch) {
  for (int64_t i = 0; i < count && parts > 1; i += kLanes<A>) {
    Vec<A> total = read_some<A>(sums + i, count - i);
    for (int64_t part = 1; part < parts; ++part) total += read_some<A>(sums + part * pitch + i, count - i);
    write_some<A, A>(sums + i, total, count - i);
  }
}

}  // namespace conv_ext
