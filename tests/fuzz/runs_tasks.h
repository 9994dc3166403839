// Who runs the tasks of a kernel, in which order and on which memory; and where a worker is when it fails.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "../../csrc/common/witness.h"
#include "../../csrc/cpu/algorithms.h"
#include "../../csrc/cpu/candidates.h"
#include "../../csrc/cpu/kernels.h"
#include "problem_text.h"
#include "runs_memory.h"

namespace fuzz {

using conv_ext::Executor;
using conv_ext::KernelLibrary;

constexpr int kMostThreads = 7;

// Where a worker is, in memory that its parent reads when it has died.
struct Stage {
  std::atomic<uint64_t> index;  // of the case
  std::atomic<int> isa, pass,
      algorithm;  // algorithm: -1 while the case is prepared, kChoosing, else the candidate's place
  std::atomic<uint64_t> steps;
};
constexpr int kPreparing = -1, kChoosing = -2;

struct Failure {
  std::string kind, isa, pass, algorithm, message;
  std::string signature() const { return kind + " " + pass + " " + algorithm; }
};

// Hands out the indices in one of several ways, and counts what the plan announced.
class Tasks {
 public:
  enum class Order { InTurn, Shuffled, Threads };
  Order order = Order::InTurn;
  int workers = 1;
  int64_t planned_scratch = 0, most_tasks = 0, used_scratch = 0;
  int64_t planned_tasks = 0, planned_loops = 0;  // loops of just so many tasks with just so much scratch

  Executor executor() { return {this, run}; }
  bool margins_intact() const {
    for (const Arena& arena : scratch_)
      if (arena.begin() != nullptr && !arena.margins_intact()) return false;
    return true;
  }
  void begin(Order how, int count, const conv_ext::Plan& plan, uint64_t seed) {
    order = how;
    workers = count;
    planned_scratch = plan.scratch_bytes;
    planned_tasks = plan.tasks;
    most_tasks = used_scratch = planned_loops = 0;
    random_ = Random(seed);
  }

 private:
  static void run(void* context, int64_t count, int64_t scratch_bytes, void (*body)(void*, int64_t, void*),
                  void* argument) {
    Tasks& self = *static_cast<Tasks*>(context);
    self.most_tasks = std::max(self.most_tasks, count);
    self.used_scratch = std::max(self.used_scratch, scratch_bytes);
    self.planned_loops += count == self.planned_tasks && scratch_bytes == self.planned_scratch;
    void* scratch[kMostThreads] = {};
    if (scratch_bytes > 0)
      for (int i = 0; i < self.workers; ++i) {
        scratch[i] = self.scratch_[i].place_aligned(scratch_bytes);
        self.scratch_[i].fill();
      }
    if (self.order == Order::InTurn) {
      for (int64_t i = 0; i < count; ++i) body(argument, i, scratch[0]);
    } else if (self.order == Order::Shuffled) {
      std::vector<int64_t>& indices = self.indices_;
      indices.resize(size_t(count));
      for (int64_t i = 0; i < count; ++i) indices[size_t(i)] = i;
      for (int64_t i = count - 1; i > 0; --i)
        std::swap(indices[size_t(i)], indices[size_t(self.random_.between(0, i))]);
      for (int64_t i = 0; i < count; ++i) body(argument, indices[size_t(i)], scratch[i % self.workers]);
    } else {
      std::atomic<int64_t> next{0};
      const auto work = [&](void* own) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(argument, i, own);
      };
      std::vector<std::thread> threads;
      for (int i = 1; i < self.workers && i < count; ++i) threads.emplace_back(work, scratch[i]);
      work(scratch[0]);
      for (std::thread& thread : threads) thread.join();
    }
  }

  Arena scratch_[kMostThreads];
  std::vector<int64_t> indices_;
  Random random_{0};
};

struct Library {
  std::string name;
  const KernelLibrary* kernels;
  const conv_ext::Witness* witness;  // nullptr where the library has none (csrc/common/witness.h)
};

}  // namespace fuzz
