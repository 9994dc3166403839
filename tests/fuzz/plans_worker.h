// Where a worker tells its parent, in memory that both see, what it is at: so that a crash or a hang names its case.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "plans_check_cuda.h"

namespace fuzz {

// Where a worker is; the names are string literals, the same in parent and child.
struct Place {
  const char* target;     // an instruction set, or "cuda"
  const char* algorithm;  // "auto", or the one that is forced
  const char* step;
  int64_t capability;
};

// Times of plans in a histogram of 16 steps for each power of two of nanoseconds.
constexpr int kTimeSteps = 16 * 40;
inline int time_step(double nanoseconds) {
  return std::min(kTimeSteps - 1, std::max(0, int(16 * std::log2(std::max(1.0, nanoseconds)))));
}
inline double time_of(int step) { return std::exp2(double(step + 1) / 16); }  // at most

struct Slot {
  volatile int64_t index, done;  // the case's number; cases that are finished
  PlanCase at;
  Place place;
  char message[400], signature[200];
  int64_t plans, declined, chosen[2][16];
  int64_t times[kTimeSteps];
  int64_t most_steps, slowest;  // of one plan; nanoseconds
  PlanCase most_steps_at, slowest_at;
  Place most_steps_place, slowest_place;
};

template <class T>
inline T* shared_memory(size_t count) {
  void* const map = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    std::perror("mmap");
    std::exit(3);
  }
  return static_cast<T*>(map);
}

inline int64_t nanoseconds(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t{};
  clock_gettime(clock, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

constexpr int kFailed = 77;  // exit status of a worker that found a plan to be wrong
inline Slot* slot = nullptr;  // this worker's

[[noreturn]] inline void fail(const std::string& signature, const std::string& text) {
  std::snprintf(slot->signature, sizeof(slot->signature), "%s", signature.c_str());
  std::snprintf(slot->message, sizeof(slot->message), "%s", text.c_str());
  _exit(kFailed);
}

}  // namespace fuzz

#if defined(CONV_EXT_COUNT_PLAN_STEPS)
namespace conv_ext {
int64_t plan_steps = 0, most_plan_steps = 0;
void too_many_plan_steps() {
  fuzz::fail("steps", "planning takes more than " + std::to_string(most_plan_steps) + " steps");
}
inline int64_t& counted_steps() { return plan_steps; }
}  // namespace conv_ext
#else
namespace conv_ext {
inline int64_t& counted_steps() {
  static int64_t none = 0;
  return none;
}
}  // namespace conv_ext
#endif
