// Numbers of run time as template arguments: the extents of register tiles.
#pragma once

#include <stdint.h>

namespace conv_ext {

template <int i>
struct Constant {
  static constexpr int value = i;
};

// visit(Constant<...>()) with the first of the numbers, which descend, that n reaches; with the last if it reaches
// none.
template <int first, int... rest, class Visit>
inline __attribute__((always_inline)) auto with_one_of(int64_t n, Visit visit) {
  if constexpr (sizeof...(rest) > 0) {
    if (n < first) return with_one_of<rest...>(n, visit);
  }
  return visit(Constant<first>());
}
// The same with `most`, most - 1 ... 1.
template <int most, class Visit>
inline __attribute__((always_inline)) auto with_extent(int64_t n, Visit visit) {
  if constexpr (most > 1) {
    if (n < most) return with_extent<most - 1>(n, visit);
  }
  return visit(Constant<most>());
}

}  // namespace conv_ext
