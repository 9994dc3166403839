// The operators on the CPU: allocate, plan, run; torch's thread pool behind the kernels' executor.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <cstdlib>

#include "../indexing.h"
#include "buffers.h"
#include "registration.h"

namespace conv_ext {
namespace {

using at::Tensor;

std::atomic<const KernelLibrary*> loaded_library{nullptr};
std::atomic<bool> scratch_guard{false};

constexpr int64_t kLargePage = int64_t(2) << 20;
// The transformed weights of 512 x 512 channels, which would else fault their pages in anew at every call.
constexpr int64_t kKeptWorkspace = int64_t(48) << 20;

// Memory that a thread keeps from call to call, so that its pages are not faulted in anew each time.
class ThreadMemory {
 public:
  ~ThreadMemory() { release(); }
  void* get(int64_t bytes) {
    if (scratch_guard) return guarded(bytes);
    if (bytes > size_ || map_ != nullptr) {
      release();
      // Large blocks in large pages, where the system grants them: their pages are touched in strides.
      const int64_t alignment = bytes >= kLargePage ? kLargePage : 64;
      data_ = std::aligned_alloc(size_t(alignment), size_t(round_up(std::max<int64_t>(bytes, 64), alignment)));
      TORCH_CHECK(data_ != nullptr, "conv_ext could not allocate ", bytes, " bytes of workspace");
#if defined(MADV_HUGEPAGE)
      if (bytes >= kLargePage) madvise(data_, size_t(round_up(bytes, kLargePage)), MADV_HUGEPAGE);
#endif
      size_ = bytes;
    }
    return data_;
  }
  // What is larger than a thread should keep goes back at the end of the call.
  void trim() {
    if (size_ > kKeptWorkspace) release();
  }

 private:
  void* guarded(int64_t bytes) {
    release();
    const int64_t page = sysconf(_SC_PAGESIZE), used = round_up(std::max<int64_t>(bytes, 1), 64);
    map_size_ = round_up(used, page) + page;
    map_ = mmap(nullptr, size_t(map_size_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(map_ != MAP_FAILED, "conv_ext could not map ", map_size_, " bytes of guarded workspace");
    char* const end = static_cast<char*>(map_) + map_size_ - page;
    mprotect(end, size_t(page), PROT_NONE);
    return end - used;
  }
  void release() {
    if (map_ != nullptr && map_ != MAP_FAILED) munmap(map_, size_t(map_size_));
    std::free(data_);
    map_ = data_ = nullptr;
    size_ = map_size_ = 0;
  }
  void* data_ = nullptr;
  void* map_ = nullptr;
  int64_t size_ = 0, map_size_ = 0;
};

ThreadMemory& scratch_memory() {
  thread_local ThreadMemory memory;
  return memory;
}
ThreadMemory& workspace_memory() {
  thread_local ThreadMemory memory;
  return memory;
}

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

void run_parallel(void*, int64_t count, int64_t scratch_bytes, void (*body)(void*, int64_t, void*), void* argument) {
  const int64_t workers = at::in_parallel_region() ? 1 : std::min<int64_t>(count, at::get_num_threads());
  std::atomic<int64_t> next{0};
  // Indices are handed out one by one: a worker that is held up does not hold up the others. Nothing depends on who
  // takes which.
  const auto work = [&] {
    void* scratch = scratch_bytes > 0 ? scratch_memory().get(scratch_bytes) : nullptr;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(argument, i, scratch);
  };
  if (workers <= 1) {
    work();
    return;
  }
  const unsigned mode = FloatingPointMode::current();
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    FloatingPointMode scope(mode);
    work();
  });
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

Tensor run_cpu(Pass pass, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
               const CallArguments& call) {
  ConvProblem problem = validate(pass, a, b, bias, call);
  TORCH_CHECK(a.is_cpu(), "conv_ext has no kernels for device ", a.device());
  Tensor result = allocate_result(&problem, pass, a, b);
  const KernelLibrary& library = kernel_library();
  Buffers buffers = buffers_of(pass, a, b, bias, result, call);
  const ConvProblem unmerged = problem;
  const Buffers unmerged_buffers = buffers;
  const bool merged = merge_kernel_into_channels(&problem, &buffers);
  const Candidate& candidate = choose_or_throw(problem, pass, library.isa, call.algorithm);
  if (result.numel() == 0) return result;
  if (a.numel() == 0 || b.numel() == 0) return fill_empty_sum(result, bias, buffers.relu);
  const Plan plan = make_plan(problem, pass, library.isa, candidate);
  RECORD_FUNCTION(std::string("conv_ext::") + pass_name(pass) + "[" + candidate.name + "]", std::vector<c10::IValue>());
  ThreadMemory& workspace = workspace_memory();
  if (plan.workspace_bytes > 0) buffers.workspace = workspace.get(plan.workspace_bytes);
  library.run(problem, pass, plan, buffers, Executor{nullptr, run_parallel});
  workspace.trim();
  if (merged && pass == Pass::InputGrad) add_zeros_around_gradient(problem, buffers, unmerged, unmerged_buffers);
  return result;
}

TORCH_LIBRARY_IMPL(conv_ext, CPU, library) { implement<run_cpu>(library); }

}  // namespace conv_ext
