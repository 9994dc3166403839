// The operators on the CPU: allocate, plan, run; torch's thread pool behind the kernels' executor.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <string.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "buffers.h"
#include "fork.h"
#include "instruction_sets.h"
#include "open_library.h"
#include "registration.h"
#include "thread_memory.h"

namespace conv_ext {
namespace {

std::atomic<const KernelLibrary*> loaded_library{nullptr};
ThreadMemory& scratch_memory() {
  thread_local ThreadMemory memory;
  return memory;
}

// The calling thread's memory for a call, however that ends.
class Workspace {
 public:
  ~Workspace() { memory().trim(); }
  void* get(int64_t bytes) {
    void* const data = memory().get(bytes);
    CONV_EXT_CHECK(data != nullptr, "conv_ext could not allocate ", bytes, " bytes of workspace");
    return data;
  }

 private:
  static ThreadMemory& memory() {
    thread_local ThreadMemory memory;
    return memory;
  }
};

// The caller's rounding and flush-to-zero mode holds in every worker, or results would depend on who computed them.
class FloatingPointMode {
 public:
#if defined(__x86_64__)
  static unsigned current() { return _mm_getcsr(); }
  explicit FloatingPointMode(unsigned mode) : saved_(_mm_getcsr()) { _mm_setcsr(mode); }
  ~FloatingPointMode() { _mm_setcsr(saved_); }
#else
  static unsigned current() { return 0; }
  explicit FloatingPointMode(unsigned) : saved_(0) {}
#endif
 private:
  unsigned saved_;
};

// The indices of a parallel loop, in one share for each worker. A worker takes its own share first, so that each call
// finds its part of the tensors in the caches of the same core, and then what is left of the others': one that is held
// up does not hold up the others. Nothing depends on who takes which.
class Shares {
 public:
  Shares(int64_t count, int64_t workers) : shares_(std::min<int64_t>(workers, kMost)) {
    for (int64_t i = 0; i < shares_; ++i) {
      share_[i].next.store(begin_of(count, i), std::memory_order_relaxed);
      share_[i].end = begin_of(count, i + 1);
    }
  }

  template <class Body>
  void take_all(int64_t worker, Body body) {
    for (int64_t i = 0; i < shares_; ++i) {
      Share& share = share_[(worker + i) % shares_];
      for (int64_t index; (index = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) body(index);
    }
  }

 private:
  static constexpr int64_t kMost = 64;  // with more workers several begin in one share
  struct alignas(64) Share {            // in cache lines of their own: workers do not wait for each other's counters
    std::atomic<int64_t> next;
    int64_t end;
  };
  // The calling thread, which begins first, has the larger share.
  int64_t begin_of(int64_t count, int64_t i) const { return (count * i + shares_ - 1) / shares_; }

  const int64_t shares_;
  Share share_[kMost];
};

// The calling thread's own scratch is there before anything runs, or nothing runs; where a worker cannot have any,
// the others do its share. So nothing is thrown within a parallel region, and a call computes all or raises.
void run_parallel(void*, int64_t count, int64_t scratch_bytes, void (*body)(void*, int64_t, void*), void* argument) {
  uint32_t threads = 1;  // within a parallel region torch runs the whole loop on the calling thread
  if (!pool_left_behind) check_torch(torch_get_num_threads(&threads), "count its threads");
  const int64_t workers = std::min<int64_t>(count, threads);
  void* const scratch = scratch_bytes > 0 ? scratch_memory().get(scratch_bytes) : nullptr;
  CONV_EXT_CHECK(scratch_bytes <= 0 || scratch != nullptr, "conv_ext could not allocate ", scratch_bytes,
                 " bytes of scratch for a thread");
  Shares shares(count, workers);
  const auto work = [&](int64_t worker, void* own) {
    shares.take_all(worker, [&](int64_t i) { body(argument, i, own); });
  };
  if (workers > 1) {
    const std::thread::id caller = std::this_thread::get_id();
    const unsigned mode = FloatingPointMode::current();
    auto share = [&](int64_t begin, int64_t end) {
      if (begin == end) return;
      const bool is_caller = std::this_thread::get_id() == caller;
      void* const own = is_caller || scratch_bytes <= 0 ? scratch : scratch_memory().get(scratch_bytes);
      if (scratch_bytes > 0 && own == nullptr) return;
      FloatingPointMode scope(mode);
      work(begin, own);
    };
    using Share = decltype(share);
    const ParallelFunc call = [](int64_t begin, int64_t end, void* share) {
      (*static_cast<const Share*>(share))(begin, end);
    };
    check_torch(torch_parallel_for(0, workers, 1, call, &share), "run in parallel");
  }
  work(0, scratch);  // what a serial call has to do, and what workers without scratch have left
}

AtenTensorHandle allocate_by_interface(const int64_t* sizes, const int64_t* strides, int64_t dims, int32_t type,
                                       Device device) {
  AtenTensorHandle made = nullptr;
  check_torch(aoti_torch_empty_strided(dims, sizes, strides, type, device.type, device.index, &made),
              "allocate a result");
  return made;
}

}  // namespace

Allocate allocate = allocate_by_interface;
IsListening profiler_listens = nullptr;

const KernelLibrary& kernel_library() {
  if (loaded_library == nullptr) load_kernel_library(chosen_library());  // by two threads: the same one, twice
  return *loaded_library;
}

void load_kernel_library(const std::string& path) {
  void* const handle = open_library(path, "the kernel library");
  auto entry = reinterpret_cast<const KernelLibrary* (*)()>(dlsym(handle, "conv_ext_kernel_library"));
  CONV_EXT_CHECK(entry != nullptr, "not a kernel library of conv_ext: ", path);
  loaded_library = entry();
}

void set_scratch_guard(bool on) { scratch_guard = on; }
int64_t fail_block(int64_t number) { return failing_block.exchange(number); }

namespace {

// In front of kept weights: what they are for. A call for which that is another one packs its weights itself.
constexpr int64_t kHeadBytes = 256;
struct PackedHead {
  int64_t magic, bytes;
  int64_t algorithm, format[4];
  char isa[16];
  int64_t dtype, precision, c, k, r, s, groups, stride[2], dilation[2], padding[4];

  static PackedHead of(const ConvProblem& z, const Machine& machine, const Plan& plan) {
    PackedHead head;
    memset(&head, 0, sizeof head);
    head.magic = 0x70657463;
    head.bytes = plan.kept_bytes;
    head.algorithm = int64_t(plan.algorithm);
    std::copy(plan.kept_format, plan.kept_format + 4, head.format);
    strncpy(head.isa, machine.name, sizeof head.isa - 1);
    head.dtype = int64_t(z.dtype);
    head.precision = int64_t(z.precision);
    const int64_t sizes[] = {z.c,          z.k,          z.r,       z.s,          z.groups,   z.stride_h, z.stride_w,
                             z.dilation_h, z.dilation_w, z.pad_top, z.pad_bottom, z.pad_left, z.pad_right};
    std::copy(std::begin(sizes), std::end(sizes), &head.c);
    return head;
  }
};
static_assert(sizeof(PackedHead) <= kHeadBytes);

// Where kept weights begin; nullptr where they are not for this plan.
char* kept_weights(const Operand& packed, const PackedHead& head) {
  bool contiguous = false;
  check_torch(aoti_torch_is_contiguous(packed.tensor, &contiguous), "describe a tensor");
  if (packed.type_name != std::string_view("uint8") || !is_cpu(packed) || !contiguous ||
      packed.elements() != kHeadBytes + head.bytes)
    return nullptr;
  char* const data = static_cast<char*>(const_data(packed.tensor));
  return memcmp(data, &head, sizeof head) == 0 && reinterpret_cast<uintptr_t>(data) % 64 == 0 ? data + kHeadBytes
                                                                                              : nullptr;
}

// The workspace of a call, and the call.
void run_planned(Pass pass, const KernelLibrary& library, const Plan& plan, const ConvProblem& problem,
                 Buffers buffers) {
  Workspace workspace;
  if (plan.workspace_bytes > 0) buffers.workspace = workspace.get(plan.workspace_bytes);
  library.run(problem, pass, plan, buffers, Executor{nullptr, run_parallel});
}

}  // namespace

Tensor pack_cpu(const Operand& input, const Operand& weight, const CallArguments& call) {
  ConvProblem problem = validate(Pass::Forward, input, weight, nullptr, call);
  problem.channels_last = lies_channels_last(input, weight);
  const Tensor owned = allocate_result(problem, Pass::Forward, input, weight);
  const Operand result = operand_of(owned.get());
  const KernelLibrary& library = kernel_library();
  Buffers buffers = buffers_of(Pass::Forward, input, weight, nullptr, result, call);
  merge_kernel_into_channels(&problem, &buffers);
  const Strides strides = strides_of(problem, buffers);
  const PlanInput plan_input{problem, Pass::Forward, library.machine, strides, true};
  const Candidate& candidate = choose_or_throw(plan_input, call.algorithm);
  const bool nothing = input.elements() == 0 || weight.elements() == 0 || result.elements() == 0;
  const Plan plan = nothing ? Plan{} : make_plan(plan_input, candidate);
  const std::array<int64_t, 1> bytes{plan.kept_bytes == 0 ? 0 : kHeadBytes + plan.kept_bytes}, one{1};
  Tensor packed = empty(bytes, one, aoti_torch_dtype_uint8(), weight.device);
  if (plan.kept_bytes == 0) return packed;
  char* const data = static_cast<char*>(const_data(packed.get()));
  memset(data, 0, size_t(bytes[0]));  // what a plan leaves between its panels is to be the same in every packing
  const PackedHead head = PackedHead::of(problem, library.machine, plan);
  memcpy(data, &head, sizeof head);
  buffers.kept = data + kHeadBytes;
  buffers.packed = PackedWeights::Make;
  run_planned(Pass::Forward, library, plan, problem, buffers);
  return packed;
}

Tensor run_cpu(Pass pass, const Operand& a, const Operand& b, const Operand* bias, const CallArguments& call) {
  ConvProblem problem = validate(pass, a, b, bias, call);
  CONV_EXT_CHECK(is_cpu(a), "conv_ext has no kernels for device ", a.device);
  problem.channels_last = lies_channels_last(a, b);
  Tensor owned = allocate_result(problem, pass, a, b), other_order;
  const Operand result = operand_of(owned.get());
  Operand computed = result;
  // The order of the sums in a depthwise convolution follows from the layouts, which are those of the operands alone
  // where the result is computed in theirs.
  if (problem.groups > 1 && problem.groups == problem.c && problem.c == problem.k &&
      !lies_so(result, problem.channels_last)) {
    const List<int64_t>& n = result.sizes;
    other_order = empty_like_this({n[0], n[1], n[2], n[3]}, problem.channels_last, a);
    computed = operand_of(other_order.get());
  }
  const KernelLibrary& library = kernel_library();
  Buffers buffers = buffers_of(pass, a, b, bias, computed, call);
  const ConvProblem unmerged = problem;
  const Buffers unmerged_buffers = buffers;
  const bool merged = merge_kernel_into_channels(&problem, &buffers);
  const Strides strides = strides_of(problem, buffers);
  const PlanInput input{problem, pass, library.machine, strides};
  const Candidate& candidate = choose_or_throw(input, call.algorithm);
  if (result.elements() == 0) return owned;
  if (a.elements() == 0 || b.elements() == 0) return fill_empty_sum(pass, std::move(owned), bias, call);
  Plan plan = make_plan(input, candidate);
  if (call.packed != nullptr && call.packed->elements() > 0) {
    const Plan with_kept = make_plan({problem, pass, library.machine, strides, true}, candidate);
    buffers.kept = kept_weights(*call.packed, PackedHead::of(problem, library.machine, with_kept));
    if (buffers.kept != nullptr) {
      plan = with_kept;
      buffers.packed = PackedWeights::Kept;
    }
  }
  const ProfilerScope scope(pass_name(pass), candidate.name);
  run_planned(pass, library, plan, problem, buffers);
  if (merged && pass == Pass::InputGrad) add_zeros_around_gradient(problem, buffers, unmerged, unmerged_buffers);
  if (other_order) copy(owned, other_order.get());
  return owned;
}

namespace {

const Library kLibrary = [] {
  Library library = implemented<run_cpu>("CPU");
  library.impl("pack", boxed_pack);
  end_the_pool_before_a_fork();
  return library;
}();

}  // namespace
}  // namespace conv_ext
