// The operators on the CPU: allocate, plan, run; torch's thread pool behind the kernels' executor.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <thread>

#include "buffers.h"
#include "fork.h"
#include "old_glibc.h"
#include "registration.h"
#include "thread_memory.h"

namespace conv_ext {
namespace {

using at::Tensor;

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
    TORCH_CHECK(data != nullptr, "conv_ext could not allocate ", bytes, " bytes of workspace");
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

// The calling thread's own scratch is there before anything runs, or nothing runs; where a worker cannot have any,
// the others do its share. So nothing is thrown within a parallel region, and a call computes all or raises.
void run_parallel(void*, int64_t count, int64_t scratch_bytes, void (*body)(void*, int64_t, void*), void* argument) {
  const bool alone = at::in_parallel_region() || pool_left_behind;
  const int64_t workers = alone ? 1 : std::min<int64_t>(count, at::get_num_threads());
  void* const scratch = scratch_bytes > 0 ? scratch_memory().get(scratch_bytes) : nullptr;
  TORCH_CHECK(scratch_bytes <= 0 || scratch != nullptr, "conv_ext could not allocate ", scratch_bytes,
              " bytes of scratch for a thread");
  std::atomic<int64_t> next{0};
  // Indices are handed out one by one: a worker that is held up does not hold up the others. Nothing depends on who
  // takes which.
  const auto work = [&](void* own) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(argument, i, own);
  };
  if (workers > 1) {
    const std::thread::id caller = std::this_thread::get_id();
    const unsigned mode = FloatingPointMode::current();
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      if (begin == end) return;
      const bool is_caller = std::this_thread::get_id() == caller;
      void* const own = is_caller || scratch_bytes <= 0 ? scratch : scratch_memory().get(scratch_bytes);
      if (scratch_bytes > 0 && own == nullptr) return;
      FloatingPointMode scope(mode);
      work(own);
    });
  }
  work(scratch);  // what a serial call has to do, and what workers without scratch have left
}

}  // namespace

const KernelLibrary& kernel_library() {
  const KernelLibrary* library = loaded_library;
  TORCH_CHECK(library != nullptr, "no kernel library is loaded: import conv_ext, not conv_ext._C");
  return *library;
}

void load_kernel_library(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(handle != nullptr, "the kernel library did not load: ", dlerror());
  auto entry = reinterpret_cast<const KernelLibrary* (*)()>(dlsym(handle, "conv_ext_kernel_library"));
  TORCH_CHECK(entry != nullptr, "not a kernel library of conv_ext: ", path);
  loaded_library = entry();
}

void set_scratch_guard(bool on) { scratch_guard = on; }
int64_t fail_block(int64_t number) { return failing_block.exchange(number); }

Tensor run_cpu(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
               const CallArguments& call) {
  ConvProblem problem = validate(pass, a, b, bias, call);
  TORCH_CHECK(a.is_cpu(), "conv_ext has no kernels for device ", a.device());
  problem.channels_last = lies_channels_last(a, b);
  const Tensor result = allocate_result(problem, pass, a, b);
  Tensor computed = result;
  // The order of the sums in a depthwise convolution follows from the layouts, which are those of the operands alone
  // where the result is computed in theirs.
  if (problem.groups > 1 && problem.groups == problem.c && problem.c == problem.k &&
      !lies_so(result, problem.channels_last))
    computed = at::empty(result.sizes(), result.options().memory_format(memory_format(problem.channels_last)));
  const KernelLibrary& library = kernel_library();
  Buffers buffers = buffers_of(pass, a, b, bias, computed, call);
  const ConvProblem unmerged = problem;
  const Buffers unmerged_buffers = buffers;
  const bool merged = merge_kernel_into_channels(&problem, &buffers);
  const Strides strides = strides_of(problem, buffers);
  const PlanInput input{problem, pass, library.machine, strides};
  const Candidate& candidate = choose_or_throw(input, call.algorithm);
  if (result.numel() == 0) return result;
  if (a.numel() == 0 || b.numel() == 0) return fill_empty_sum(result, bias, buffers.relu);
  const Plan plan = make_plan(input, candidate);
  RECORD_FUNCTION(std::string("conv_ext::") + pass_name(pass) + "[" + candidate.name + "]", std::vector<c10::IValue>());
  Workspace workspace;
  if (plan.workspace_bytes > 0) buffers.workspace = workspace.get(plan.workspace_bytes);
  library.run(problem, pass, plan, buffers, Executor{nullptr, run_parallel});
  if (merged && pass == Pass::InputGrad) add_zeros_around_gradient(problem, buffers, unmerged, unmerged_buffers);
  if (!computed.is_same(result)) result.copy_(computed);
  return result;
}

TORCH_LIBRARY_IMPL(conv_ext, CPU, library) {
  implement<run_cpu>(library);
  end_the_pool_before_a_fork();
}

}  // namespace conv_ext
