// Where run.cpp's operands lie and how kernels are started and timed: in host memory with fibres, where
// CONV_EXT_CUDA_HOST names their header, and else on a device.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace conv_ext {

// What ends the process: after it a context computes nothing any more.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct NoDevice : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace conv_ext

#if defined(CONV_EXT_CUDA_HOST)

#include "../../csrc/cuda/device.h"

namespace conv_ext {

constexpr bool kOnDevice = false;
constexpr int64_t kUsualCapability = 80;
constexpr const char* kUsualWays = "0123";

// `bytes` of memory, NaN at first, from `shift` bytes behind an address that is a multiple of 256. On the host it ends
// with its last byte, so that the sanitizer sees every access beyond it.
class Memory {
 public:
  Memory(int64_t bytes, int64_t shift) : block_(new char[size_t(shift + bytes)]), shift_(shift), bytes_(bytes) {
    forget();
  }
  char* host() const { return block_.get() + shift_; }
  char* device() const { return host(); }
  void upload() {}
  void download() {}
  // NaN where the kernels see it.
  void forget() { memset(host(), 0xff, size_t(bytes_)); }
  // What has been written beside it.
  std::string damage() { return ""; }

  static inline bool guarded = true;

 private:
  std::unique_ptr<char[]> block_;
  int64_t shift_, bytes_;
};

// What may differ from run to run: 1 and 3 have late copies, 2 and 3 the warps reversed.
inline void set_way(char way) {
  if (way < '0' || way > '3') throw std::invalid_argument(std::string("a way must be one of 0 to 3, got ") + way);
  cuda::machine.late = (way - '0') & 1;
  cuda::machine.reversed = (way - '0') & 2;
}
inline std::string way_text(char way) {
  return std::string(", copies ") + ((way - '0') & 1 ? "late" : "eager") + ", warps " +
         ((way - '0') & 2 ? "reversed" : "forward");
}
inline int64_t open_device(int) { return kUsualCapability; }
inline std::string device_text() { return "fibres of the CPU"; }
inline void wait_for_device() {}
template <class Launch>
std::vector<double> milliseconds(Launch, double) {
  throw std::invalid_argument("time= is for a device: fibres tell nothing about speed");
}

}  // namespace conv_ext

#else

#include <cuda_runtime.h>

namespace conv_ext {

constexpr bool kOnDevice = true;
constexpr const char* kUsualWays = "01";  // twice

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw DeviceError(std::string(what) + ": " + cudaGetErrorString(error) + " (CUDA error " + std::to_string(error) +
                    ")");
}

class Memory {
 public:
  Memory(int64_t bytes, int64_t shift)
      : host_(size_t(std::max<int64_t>(bytes, 1)), char(0xff)),
        before_((guarded ? kGuard : 0) + shift),
        bytes_(bytes),
        whole_(before_ + bytes + (guarded ? kGuard : 0)) {
    check(cudaMalloc(reinterpret_cast<void**>(&block_), size_t(std::max<int64_t>(whole_, 1))), "memory");
    if (guarded) check(cudaMemset(block_, 0xff, size_t(whole_)), "filling memory");
  }
  ~Memory() { cudaFree(block_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* host() { return host_.data(); }
  char* device() const { return block_ + before_; }
  void upload() { copy(device(), host_.data(), bytes_, cudaMemcpyHostToDevice); }
  void download() { copy(host_.data(), device(), bytes_, cudaMemcpyDeviceToHost); }
  // Without guards nothing is written that the kernels have not: compute-sanitizer then sees what they read too early.
  void forget() {
    if (guarded) check(cudaMemset(device(), 0xff, size_t(bytes_)), "filling memory");
  }
  std::string damage() {
    if (!guarded) return "";
    std::vector<char> around(size_t(std::max(before_, kGuard)));
    for (const bool behind : {false, true}) {
      const int64_t length = behind ? kGuard : before_;
      copy(around.data(), behind ? device() + bytes_ : block_, length, cudaMemcpyDeviceToHost);
      for (int64_t i = 0; i < length; ++i)
        if (around[size_t(i)] != char(0xff))
          return behind ? std::to_string(i) + " bytes behind its end" : std::to_string(length - i) + " bytes before it";
    }
    return "";
  }

  static inline bool guarded = true;

 private:
  static void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpy(to, from, size_t(bytes), kind), "copying memory");
  }
  static constexpr int64_t kGuard = 4096;
  std::vector<char> host_;
  char* block_ = nullptr;
  int64_t before_, bytes_, whole_;
};

inline void set_way(char) {}
inline std::string way_text(char way) { return way == '0' ? ", the first time" : ", the second time"; }
// The device's compute capability.
inline int64_t open_device(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    throw NoDevice(std::string(cudaGetErrorString(error)) + ", CUDA error " + std::to_string(error));
  if (device < 0 || device >= count)
    throw NoDevice("device " + std::to_string(device) + " was asked for, and there are " + std::to_string(count));
  check(cudaSetDevice(device), "choosing the device");
  cudaDeviceProp found;
  check(cudaGetDeviceProperties(&found, device), "asking the device");
  return 10 * found.major + found.minor;
}
inline std::string device_text() {
  int device = 0, driver = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDriverGetVersion(&driver), "asking for the driver");
  cudaDeviceProp found;
  check(cudaGetDeviceProperties(&found, device), "asking the device");
  return std::string(found.name) + ", compute capability " + std::to_string(found.major) + "." +
         std::to_string(found.minor) + ", " + std::to_string(found.multiProcessorCount) + " multiprocessors, " +
         std::to_string(found.totalGlobalMem >> 20) + " MiB, driver for CUDA " + std::to_string(driver / 1000) + "." +
         std::to_string(driver % 1000 / 10);
}
inline void wait_for_device() { check(cudaDeviceSynchronize(), "a kernel"); }

// Samples of the time of a launch, of so many milliseconds together: a graph of it is replayed between two events, so
// that kernels are timed, and not how fast the host starts them.
template <class Launch>
std::vector<double> milliseconds(Launch launch, double most) {
  constexpr double kSample = 1;  // far above an event's resolution
  constexpr size_t kFewest = 5, kMost = 101;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaEvent_t start, end;
  check(cudaStreamCreate(&stream), "a stream");
  check(cudaEventCreate(&start), "an event");
  check(cudaEventCreate(&end), "an event");
  check(cudaError_t(launch(stream)), "a launch");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph");
  check(cudaError_t(launch(stream)), "a launch into a graph");
  check(cudaStreamEndCapture(stream, &graph), "a graph");
  check(cudaGraphInstantiate(&replay, graph, 0), "a graph");
  const auto sample = [&](int times) {
    check(cudaEventRecord(start, stream), "an event");
    for (int i = 0; i < times; ++i) check(cudaGraphLaunch(replay, stream), "a graph's launch");
    check(cudaEventRecord(end, stream), "an event");
    check(cudaEventSynchronize(end), "a kernel");
    float elapsed = 0;
    check(cudaEventElapsedTime(&elapsed, start, end), "an event");
    return double(elapsed) / times;
  };
  sample(2);
  const int times = int(std::min(1000.0, std::ceil(kSample / std::max(sample(3), 1e-3))));
  std::vector<double> samples;
  for (double spent = 0; samples.size() < kFewest || (spent < most && samples.size() < kMost);) {
    samples.push_back(sample(times));
    spent += samples.back() * times;
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  std::sort(samples.begin(), samples.end());
  return samples;
}

}  // namespace conv_ext

#endif
