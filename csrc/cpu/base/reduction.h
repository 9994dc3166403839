// Sums that are cut into parts.
#pragma once

#include "simd.h"

namespace conv_ext {

// Adds parts of a reduction, `pitch` elements apart, to the first one, in their order.
template <class A>
inline void add_parts(A* sums, int64_t count, int64_t parts, int64_t pitch) {
  constexpr int L = kLanes<A>;
  const int64_t full = count / L * L, rest = count - full;
  for (int64_t part = 1; part < parts; ++part) {
    const A* const from = sums + part * pitch;
    for (int64_t i = 0; i < full; i += L) store(sums + i, load(sums + i) + load(from + i));
    if (rest > 0) store_first(sums + full, load_first(sums + full, rest) + load_first(from + full, rest), rest);
  }
}

}  // namespace conv_ext
