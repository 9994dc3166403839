// What device.h is for every architecture, for what sm_90a alone has: barriers in shared memory that count bytes,
// copies of whole boxes of a tensor by the Tensor Memory Accelerator (TMA), and products of a warpgroup (four warps).
//
// As in device.h, the tests put another header in the place of this file's second half (tests/cuda_host/wgmma_host.h).
#pragma once

#include <stdio.h>

#include "../device.h"

namespace conv_ext {
namespace cuda {

// A tensor map: what TMA has to know of a tensor. Made on the host, read from a kernel's parameters, where it fills a
// line of the cache.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

enum class Number { BFloat16, Float16, Float32 };
constexpr int64_t number_bytes(Number number) { return number == Number::Float32 ? 4 : 2; }

// Rows of 128 bytes, in which TMA exchanges the 16-byte pieces of row i by an exclusive or with i % 8, so that a column
// falls into all banks.
constexpr int kRowBytes = 128;
// Operands and what is copied start at multiples of this, after which the exchange repeats.
constexpr int kSwizzleBytes = 1024;

// Patches of a tensor in (n, h, w, c) order; arrays list w before h. A copy starts at one position of a box and goes
// along w, then h, then n in `step`s; each time it reads `offset` from there. Outside the tensor it reads zeros.
struct PatchesMap {
  Number number;
  const void* data;
  int64_t size[4];    // c, w, h, n
  int64_t stride[3];  // w, h, n: in bytes
  int lower[2];       // the box: its first position
  int upper[2];       // its last one, counted from the tensor's last one
  int step[2];
  int channels, positions;  // of a copy
};
// Rows of a matrix, each of `taps` pieces of `columns` numbers; outside a piece or the matrix a copy reads zeros.
struct RowsMap {
  Number number;
  const void* data;
  int64_t columns, taps, rows;
  int64_t tap_stride, stride;  // in bytes; a row's is a multiple of a tap's
  int box_columns, box_rows;   // of a copy, which is of one tap
};

// What the warps of a block wait for that hangs, in memory of the host, which can be read when the kernel has ended
// with an error. No kernel prints it: where a kernel calls a function, the compiler waits for every single product.
struct Waits {
  uint64_t of_warp[32];  // 0 where a warp has not waited long
};
// The lowest bit says that the kernel has been ended for it.
CONV_EXT_DEVICE uint64_t wait_of(uint32_t block, int stage, bool full, uint32_t parity, bool ended) {
  return uint64_t(block | 1u << 31) << 32 | uint32_t(stage << 3 | int(full) << 2 | int(parity) << 1 | int(ended));
}
inline void print_waits(const Waits& waits) {
  bool ended = false;
  for (uint64_t wait : waits.of_warp) ended = ended || (wait & 1);
  for (int warp = 0; warp < 32 && ended; ++warp)
    if (const uint64_t wait = waits.of_warp[warp])
      fprintf(stderr, "conv_ext: a kernel hangs: block %d, warp %d waits for stage %d to be %s, parity %d\n",
              int(wait >> 32 & 0x7fffffff), warp, int(wait >> 3 & 0xff), wait & 4 ? "full" : "empty",
              int(wait >> 1 & 1));
}

// An operand of multiply_group as TMA lays it down. The descriptor's fields: the address, two distances, the kind of
// exchange; the first three in units of 16 bytes.
CONV_EXT_DEVICE uint64_t operand(uint32_t address, int boxes, int eight_rows) {
  return uint64_t((address & 0x3ffffu) >> 4) | uint64_t(boxes >> 4) << 16 | uint64_t(eight_rows >> 4) << 32 |
         uint64_t(1) << 62;
}
// Rows (of M or N) of 128 bytes that run along k. The next k are found 32 bytes on, up to the end of the rows; the
// distance of boxes means nothing.
CONV_EXT_DEVICE uint64_t operand_along(uint32_t address) { return operand(address, 16, 8 * kRowBytes); }
// Rows that run across k: boxes of 64 numbers of M or N by 64 k, one k in a row of 128 bytes; `box` bytes from box to
// box (16-bit numbers alone). The next k are found 16 rows on.
CONV_EXT_DEVICE uint64_t operand_across(uint32_t address, int box) { return operand(address, box, 8 * kRowBytes); }

}  // namespace cuda
}  // namespace conv_ext

#if defined(CONV_EXT_CUDA_HOST)
#include CONV_EXT_CUDA_HOST_SM90
#else

#include <cuda.h>

#define CONV_EXT_GRID_CONSTANT const __grid_constant__

namespace conv_ext {
namespace cuda {

// ---- barriers in shared memory: a phase ends when all arrivals and all announced bytes have come

CONV_EXT_DEVICE void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After the last init_barrier, before the block's barrier(): now TMA sees the barriers, too.
CONV_EXT_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
CONV_EXT_DEVICE void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives and announces bytes that TMA will write.
CONV_EXT_DEVICE void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Whether the phase of this parity has ended: 0 for the first, then in turn. Before the first, 1 has ended. The device
// waits a little before it says no.
CONV_EXT_DEVICE bool phase_has_ended(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}
// Nanoseconds, modulo 2^32.
CONV_EXT_DEVICE uint32_t device_time() {
  uint32_t time;
  asm volatile("mov.u32 %0, %%globaltimer_lo;\n" : "=r"(time));
  return time;
}
// Tells the host what this thread's warp waits for. What it needs is read where it is needed: loops that wait shall not
// keep it in registers.
CONV_EXT_DEVICE void tell_host(Waits* waits, int stage, bool full, uint32_t parity, bool ended) {
  uint32_t block, thread;
  asm volatile("mov.u32 %0, %%ctaid.x;\nmov.u32 %1, %%tid.x;\n" : "=r"(block), "=r"(thread));
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;\nmembar.sys;\n" ::"l"(&waits->of_warp[thread / 32]),
               "l"(wait_of(block, stage, full, parity, ended))
               : "memory");
}
// Ends the kernel with an error.
CONV_EXT_DEVICE void trap() { __trap(); }
// A barrier of some of the block's warps, which all name the same number from 1 on; lanes may come one by one.
CONV_EXT_DEVICE void barrier_of(int number, int threads) {
  asm volatile("barrier.sync %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}

// An address in shared memory that is kept in a register; the compiler would compute it anew at every use.
CONV_EXT_DEVICE char* held(char* p) {
  uint32_t address = shared_address(p);
  asm volatile("" : "+r"(address));
  return static_cast<char*>(__cvta_shared_to_generic(address));
}
// A number whose origin the compiler forgets: what is computed from it is computed anew, not kept in registers.
CONV_EXT_DEVICE int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The warp's number in its block, known to the compiler as one number for all lanes: products may not stand where lanes
// part.
CONV_EXT_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0); }
// One lane of a warp whose lanes are all here. The compiler knows that it is one, and that what it computes is the same
// for the whole warp: TMA takes its operands from registers of the warp.
CONV_EXT_DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}
// Registers of each thread from here on: all warps of a warpgroup give back, or take.
template <int registers>
CONV_EXT_DEVICE void give_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(registers));
#endif
}
template <int registers>
CONV_EXT_DEVICE void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(registers));
#endif
}

// ---- TMA, started by one thread

CONV_EXT_DEVICE void copy_patches(void* to, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n,
                                  int offset_w, int offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2], {%7, %8};\n" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n),
      "h"(uint16_t(offset_w)), "h"(uint16_t(offset_h))
      : "memory");
}
CONV_EXT_DEVICE void copy_rows(void* to, const TensorMap* map, uint64_t* barrier, int column, int tap, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n" ::
          "r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(tap), "r"(row)
      : "memory");
}

// ---- products of a warpgroup; its four warps do all of this together

// Before the first product of a group: registers that were written are seen by it.
CONV_EXT_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
CONV_EXT_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Returns when all but the latest `pending` groups are done: their operands may be overwritten.
template <int pending>
CONV_EXT_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}
// Returns when all are done: now the sums may be read, and the compiler must not do it before.
template <int count>
CONV_EXT_DEVICE void wait_sums(float (&sum)[count]) {
  wait_products<0>();
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CONV_EXT_SUMS_8(i)                                                                                \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define CONV_EXT_SUMS_32(i) CONV_EXT_SUMS_8(i), CONV_EXT_SUMS_8(i + 8), CONV_EXT_SUMS_8(i + 16), CONV_EXT_SUMS_8(i + 24)
#define CONV_EXT_SUMS_64(i) CONV_EXT_SUMS_32(i), CONV_EXT_SUMS_32(i + 32)
#define CONV_EXT_NAMES_32                                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define CONV_EXT_NAMES_64                                                                                       \
  CONV_EXT_NAMES_32                                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CONV_EXT_NAMES_128                                                                                   \
  CONV_EXT_NAMES_64                                                                                          \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "   \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "   \
  "%121, %122, %123, %124, %125, %126, %127"
#define CONV_EXT_GROUP_64(shape, tail)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64" shape \
               " {" CONV_EXT_NAMES_32 "}, %32, %33, p, 1, 1" tail ";\n}\n"                           \
               : CONV_EXT_SUMS_32(0)                                                                 \
               : "l"(a), "l"(b), "r"(int(add)))
#define CONV_EXT_GROUP_128(shape, tail)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128" shape \
               " {" CONV_EXT_NAMES_64 "}, %64, %65, p, 1, 1" tail ";\n}\n"                            \
               : CONV_EXT_SUMS_64(0)                                                                  \
               : "l"(a), "l"(b), "r"(int(add)))
#define CONV_EXT_GROUP_256(shape, tail)                                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256" shape \
               " {" CONV_EXT_NAMES_128 "}, %128, %129, p, 1, 1" tail ";\n}\n"                          \
               : CONV_EXT_SUMS_64(0), CONV_EXT_SUMS_64(64)                                             \
               : "l"(a), "l"(b), "r"(int(add)))
#else
#define CONV_EXT_GROUP_64(shape, tail)
#define CONV_EXT_GROUP_128(shape, tail)
#define CONV_EXT_GROUP_256(shape, tail)
#endif
#define CONV_EXT_GROUP(name, Tag, shape, tail)                                         \
  CONV_EXT_DEVICE void name(float(&sum)[32], uint64_t a, uint64_t b, bool add, Tag) {  \
    CONV_EXT_GROUP_64(shape, tail);                                                    \
  }                                                                                    \
  CONV_EXT_DEVICE void name(float(&sum)[64], uint64_t a, uint64_t b, bool add, Tag) {  \
    CONV_EXT_GROUP_128(shape, tail);                                                   \
  }                                                                                    \
  CONV_EXT_DEVICE void name(float(&sum)[128], uint64_t a, uint64_t b, bool add, Tag) { \
    CONV_EXT_GROUP_256(shape, tail);                                                   \
  }
// sums (64 x 64, 64 x 128 or 64 x 256) = a b, or += a b: 32 bytes along k. A thread has sums [4 j + 2 i + e]: those of
// row 16 warp + lane / 4 + 8 i and column 8 j + 2 (lane % 4) + e. float32 is cut off to TF32.
CONV_EXT_GROUP(multiply_group, bfloat16, "k16.f32.bf16.bf16", ", 0, 0")
CONV_EXT_GROUP(multiply_group, float16, "k16.f32.f16.f16", ", 0, 0")
CONV_EXT_GROUP(multiply_group, float, "k8.f32.tf32.tf32", "")
// The same of operands that run across k, and of a right one alone that does.
CONV_EXT_GROUP(multiply_group_across, bfloat16, "k16.f32.bf16.bf16", ", 1, 1")
CONV_EXT_GROUP(multiply_group_across, float16, "k16.f32.f16.f16", ", 1, 1")
CONV_EXT_GROUP(multiply_group_right_across, bfloat16, "k16.f32.bf16.bf16", ", 0, 1")
CONV_EXT_GROUP(multiply_group_right_across, float16, "k16.f32.f16.f16", ", 0, 1")
#undef CONV_EXT_GROUP

// ---- the host's part

inline CUtensorMapDataType data_type(Number number) {
  return number == Number::BFloat16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
         : number == Number::Float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}
// A function of the driver, through the run-time library: nothing is linked to libcuda.
template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
  return error == cudaSuccess && status == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(found) : nullptr;
}

// Drivers up to 13.1 set a bit in the maps of tensors below 128 KiB that NVIDIA's own libraries clear again.
inline void mend(TensorMap* map, int64_t bytes) {
  static const bool needed = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version <= 13010;
  }();
  if (needed && bytes < 131072) map->opaque[1] &= ~(uint64_t(1) << 21);
}

// Both return 0 or the error of the driver, whose numbers are those of the run-time library.
inline int encode(const PatchesMap& m, TensorMap* map) {
  static const auto function = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (function == nullptr) return int(cudaErrorNotSupported);
  const cuuint64_t size[4] = {cuuint64_t(m.size[0]), cuuint64_t(m.size[1]), cuuint64_t(m.size[2]),
                              cuuint64_t(m.size[3])};
  const cuuint64_t stride[3] = {cuuint64_t(m.stride[0]), cuuint64_t(m.stride[1]), cuuint64_t(m.stride[2])};
  const cuuint32_t step[4] = {1, cuuint32_t(m.step[0]), cuuint32_t(m.step[1]), 1};
  const int error = int(function(reinterpret_cast<CUtensorMap*>(map), data_type(m.number), 4, const_cast<void*>(m.data),
                                 size, stride, m.lower, m.upper, cuuint32_t(m.channels), cuuint32_t(m.positions), step,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  if (error == 0) mend(map, m.size[3] * m.stride[2]);
  return error;
}
inline int encode(const RowsMap& m, TensorMap* map) {
  static const auto function = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (function == nullptr) return int(cudaErrorNotSupported);
  const cuuint64_t size[3] = {cuuint64_t(m.columns), cuuint64_t(m.taps), cuuint64_t(m.rows)};
  const cuuint64_t stride[2] = {cuuint64_t(m.tap_stride), cuuint64_t(m.stride)};
  const cuuint32_t box[3] = {cuuint32_t(m.box_columns), 1, cuuint32_t(m.box_rows)}, step[3] = {1, 1, 1};
  const int error = int(function(reinterpret_cast<CUtensorMap*>(map), data_type(m.number), 3, const_cast<void*>(m.data),
                                 size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  if (error == 0) mend(map, m.rows * m.stride);
  return error;
}

// Where the kernels of this process tell of waits without end, or nullptr; it is printed when the process ends.
inline Waits* waits_for_host() {
  struct alignas(4096) Place {
    Waits waits{};
    Waits* device = nullptr;
    Place() {
      // A stream that is being captured allows it in this mode alone.
      cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
      if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) return;
      void* seen = nullptr;
      if (cudaHostRegister(this, sizeof *this, cudaHostRegisterMapped | cudaHostRegisterPortable) == cudaSuccess &&
          cudaHostGetDevicePointer(&seen, &waits, 0) == cudaSuccess)
        device = static_cast<Waits*>(seen);
      cudaThreadExchangeStreamCaptureMode(&mode);
      if (device == nullptr) cudaGetLastError();  // it is done without
    }
    ~Place() { print_waits(waits); }
  };
  static Place place;
  return place.device;
}

// How many blocks run at once where each fills a multiprocessor; a negative error.
inline int multiprocessors() {
  int device = 0, count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return error == cudaSuccess ? count : -int(error);
}

}  // namespace cuda
}  // namespace conv_ext

#endif
