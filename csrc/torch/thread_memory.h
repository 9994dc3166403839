// Memory that a thread keeps from call to call, so that its pages are not faulted in anew each time.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "../common/indexing.h"

namespace conv_ext {

// For tests: blocks that end at a page that cannot be touched; and of the blocks that are asked for from now on, the
// one with this number cannot be had (negative: all can).
inline std::atomic<bool> scratch_guard{false};
inline std::atomic<int64_t> failing_block{-1};

class ThreadMemory {
 public:
  ThreadMemory() = default;
  ThreadMemory(const ThreadMemory&) = delete;
  ThreadMemory& operator=(const ThreadMemory&) = delete;
  ~ThreadMemory() { release(); }

  // `bytes` bytes, aligned to 64; nullptr where they cannot be had, and nothing is kept then. The next call of get on
  // this object ends their life.
  void* get(int64_t bytes) {
    if (failing_block >= 0 && failing_block-- == 0) {
      release();
      return nullptr;
    }
    if (scratch_guard) return guarded(bytes);
    if (bytes > size_ || map_ != nullptr) {
      release();
      // Large blocks in large pages, where the system grants them: their pages are touched in strides.
      const int64_t alignment = bytes >= kLargePage ? kLargePage : 64;
      const size_t whole = size_t(round_up(std::max<int64_t>(bytes, 64), alignment));
      data_ = std::aligned_alloc(size_t(alignment), whole);
      if (data_ == nullptr) return nullptr;
#if defined(MADV_HUGEPAGE)
      if (bytes >= kLargePage) madvise(data_, whole, MADV_HUGEPAGE);
#endif
      size_ = bytes;
    }
    return data_;
  }

  // What is larger than a thread should keep goes back.
  void trim() {
    if (size_ > kKept) release();
  }

 private:
  static constexpr int64_t kLargePage = int64_t(2) << 20;
  // The transformed weights of 512 x 512 channels, which would else fault their pages in anew at every call.
  static constexpr int64_t kKept = int64_t(48) << 20;

  void* guarded(int64_t bytes) {
    release();
    const int64_t page = sysconf(_SC_PAGESIZE), used = round_up(std::max<int64_t>(bytes, 1), 64);
    const int64_t whole = round_up(used, page) + page;
    void* const map = mmap(nullptr, size_t(whole), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    map_ = map;
    map_size_ = whole;
    char* const end = static_cast<char*>(map) + whole - page;
    mprotect(end, size_t(page), PROT_NONE);
    return end - used;
  }
  void release() {
    if (map_ != nullptr) munmap(map_, size_t(map_size_));
    std::free(data_);
    map_ = data_ = nullptr;
    size_ = map_size_ = 0;
  }

  void* data_ = nullptr;
  void* map_ = nullptr;
  int64_t size_ = 0, map_size_ = 0;
};

}  // namespace conv_ext
