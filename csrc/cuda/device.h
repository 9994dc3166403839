// The only file that names PTX or the built-ins of CUDA: what a thread of a kernel can do, in plain functions.
//
// The tests compile the same kernels with g++ and put another header in the place of this file's second half
// (tests/cuda_host/device_host.h), in which each thread is a fibre.
#pragma once

#include <stdint.h>

namespace conv_ext {
namespace cuda {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

}  // namespace cuda
}  // namespace conv_ext

#if defined(CONV_EXT_CUDA_HOST)
#include CONV_EXT_CUDA_HOST
#else

#include <cuda_runtime.h>

// At least one block: without that the compiler would spill registers to make room for more.
#define CONV_EXT_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
// Registers for no more than so many blocks on a multiprocessor.
#define CONV_EXT_CROWDED_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define CONV_EXT_DEVICE __device__ __forceinline__

namespace conv_ext {
namespace cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kHasTensorCores = false;  // those of sm_75 know neither TF32 nor bfloat16: kernels for them are empty
#else
constexpr bool kHasTensorCores = true;
#endif

CONV_EXT_DEVICE int thread_index() { return int(threadIdx.x); }
CONV_EXT_DEVICE int64_t block_index() { return int64_t(blockIdx.x); }
CONV_EXT_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
CONV_EXT_DEVICE void barrier() { __syncthreads(); }
// A barrier that says whether any thread of the block came with true.
CONV_EXT_DEVICE bool barrier_any(bool mine) { return __syncthreads_or(mine) != 0; }

CONV_EXT_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Copies kBytes (4, 8 or 16) from global to shared memory, or writes zeros. It lands when wait_copies says so.
template <int kBytes>
CONV_EXT_DEVICE void copy_async(void* to, const void* from, bool valid) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint32_t bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
#else
  for (int i = 0; i < kBytes / 4; ++i)
    static_cast<uint32_t*>(to)[i] = valid ? static_cast<const uint32_t*>(from)[i] : 0;
#endif
}
// Closes a group of copies; wait_copies returns when all but the latest `pending` groups of this thread have landed.
CONV_EXT_DEVICE void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
template <int pending>
CONV_EXT_DEVICE void wait_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes: lane 8 i + j says where row j of matrix i is. Then word i of lane l is word
// l % 4 of row l / 4 of matrix i.
CONV_EXT_DEVICE void load_matrices(uint32_t (&word)[4], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row)));
#endif
}

// The same, each matrix turned: word i of lane l holds column l / 4 of matrix i, of it rows l % 4 * 2 and the next, in
// 16 bits each.
CONV_EXT_DEVICE void load_matrices_turned(uint32_t (&word)[4], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row)));
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define CONV_EXT_MMA(name)                                                               \
  asm volatile(name " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else
#define CONV_EXT_MMA(name)
#endif
// sum (16 x 8) += a (16 x k) b (k x 8): 8 numbers of TF32, or 16 of the shorter types.
CONV_EXT_DEVICE void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  CONV_EXT_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32");
}
CONV_EXT_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16) {
  CONV_EXT_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
}
CONV_EXT_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
  CONV_EXT_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
}
#undef CONV_EXT_MMA
// sum (8 x 8) += a (8 x 4) b (4 x 8).
CONV_EXT_DEVICE void multiply_double(double (&sum)[2], double a, double b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
               : "+d"(sum[0]), "+d"(sum[1])
               : "d"(a), "d"(b));
#endif
}
// To 10 explicit bits of mantissa, ties away from zero.
CONV_EXT_DEVICE uint32_t round_tf32(float value) {
  uint32_t bits = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
#endif
  return bits;
}

CONV_EXT_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
CONV_EXT_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
CONV_EXT_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
CONV_EXT_DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
CONV_EXT_DEVICE float exponential(float x) { return expf(x); }
CONV_EXT_DEVICE double exponential(double x) { return exp(x); }
CONV_EXT_DEVICE float widen(float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(result) : "h"(value.bits));
  return result;
}
CONV_EXT_DEVICE float16 narrow_to_half(float value) {
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(result.bits) : "f"(value));
  return result;
}

// Starts blocks x threads of a kernel; the launch's error, 0 where there is none.
template <class Parameters>
int launch(void (*kernel)(Parameters), int64_t blocks, int threads, int shared_bytes, void* stream,
           Parameters parameters) {
  if (shared_bytes > 48 << 10) {
    // Beyond 48 KiB a kernel has to ask. It is asked every time, for it holds for one device only.
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return int(error);
  }
  void* arguments[] = {&parameters};
  const cudaError_t error =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(unsigned(threads)),
                       arguments, size_t(shared_bytes), static_cast<cudaStream_t>(stream));
  const cudaError_t last = cudaGetLastError();
  return int(error != cudaSuccess ? error : last);
}

}  // namespace cuda
}  // namespace conv_ext

#endif
