// Memory between unreadable pages, so that a byte too far is a fault and not luck.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace fuzz {

constexpr unsigned char kFill = 0xff;  // NaN in every dtype
constexpr int64_t kMargin = 128;       // bytes around a block that are watched where no unreadable page is

// ThreadSanitizer has a memset of its own, which is slow; the driver is not what it looks at.
inline void fill_bytes(char* to, int64_t count) {
#if defined(FUZZ_THREAD_SANITIZER)
  for (int64_t i = 0; i < count; ++i) to[i] = char(kFill);
#else
  std::memset(to, kFill, size_t(count));
#endif
}

// A block that begins or ends at an unreadable page; the mapping is kept and grows.
class Arena {
 public:
  char* place(int64_t bytes, bool at_begin, int64_t shift) {
    release_margins();
    if (bytes + shift + 2 * kMargin > capacity_) grow(bytes + shift + 2 * kMargin);
    begin_ = at_begin ? first_ + shift : first_ + capacity_ - bytes - shift;
    bytes_ = bytes;
    for_margins([](char* from, int64_t count) {
      fill_bytes(from, count);
#if defined(__SANITIZE_ADDRESS__)
      ASAN_POISON_MEMORY_REGION(from, size_t(count));
#endif
    });
    return begin_;
  }
  // As the kernels' memory is placed: aligned to 64 bytes, as near to the end as that allows.
  char* place_aligned(int64_t bytes) { return place(bytes, false, (64 - bytes % 64) % 64); }
  char* begin() const { return begin_; }
  int64_t bytes() const { return bytes_; }
  void fill() { fill_bytes(begin_, bytes_); }
  bool is_filled() const { return filled(begin_, bytes_); }
  bool margins_intact() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;  // AddressSanitizer watches them
#else
    bool intact = true;
    for_margins([&](const char* from, int64_t count) { intact = intact && filled(from, count); });
    return intact;
#endif
  }

 private:
  static bool filled(const char* from, int64_t count) {
    uint64_t all = ~uint64_t(0);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      uint64_t word;
      std::memcpy(&word, from + i, 8);
      all &= word;
    }
    for (; i < count; ++i) all &= uint64_t(0xffffffffffffff00) | uint64_t(uint8_t(from[i]));
    return all == ~uint64_t(0);
  }
  template <class Visit>
  void for_margins(Visit visit) const {
    char* const end = begin_ + bytes_;
    const int64_t before = begin_ - first_, behind = first_ + capacity_ - end;
    visit(begin_ - (before < kMargin ? before : kMargin), before < kMargin ? before : kMargin);
    visit(end, behind < kMargin ? behind : kMargin);
  }
  void release_margins() {
#if defined(__SANITIZE_ADDRESS__)
    if (begin_ != nullptr)
      for_margins([](char* from, int64_t count) { ASAN_UNPOISON_MEMORY_REGION(from, size_t(count)); });
#endif
  }
  void grow(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    if (first_ != nullptr) munmap(first_ - page, size_t(capacity_ + 2 * page));
    capacity_ = 64 << 10;
    while (capacity_ < bytes) capacity_ *= 2;
    void* map = mmap(nullptr, size_t(capacity_ + 2 * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(static_cast<char*>(map) + page, size_t(capacity_), PROT_READ | PROT_WRITE) != 0) {
      std::fprintf(stderr, "no memory for a block of %ld bytes\n", long(bytes));
      std::exit(3);
    }
    first_ = static_cast<char*>(map) + page;
  }

  char *first_ = nullptr, *begin_ = nullptr;
  int64_t capacity_ = 0, bytes_ = 0;
};

}  // namespace fuzz
