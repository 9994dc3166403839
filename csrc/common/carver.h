// Memory that is laid out once: the same function counts its bytes for a plan and hands them out to a kernel.
#pragma once

#include "indexing.h"
#include "witness.h"

namespace conv_ext {

// Cuts a block of memory into arrays that begin at cache lines. Without memory it counts alone, and hands out nullptr:
// what a layout needs is then `bytes`, beyond every limit where it does not fit 64 bits.
class Carver {
 public:
  Carver() = default;
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}

  // An array with so many elements along each of its dimensions.
  template <class X, class... Rest>
  X* take(int64_t count, Rest... rest) {
    char* const at = memory_ != nullptr ? memory_ + bytes_ : nullptr;
    bytes_ = min_of(kHuge, bytes_ + round_up(product(count, int64_t(sizeof(X)), int64_t(rest)...), kLine));
    CONV_EXT_CARVED(memory_, bytes_);
    return reinterpret_cast<X*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kLine = 64;
  char* memory_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace conv_ext
