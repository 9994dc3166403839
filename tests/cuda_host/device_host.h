// CUDA's threads on a CPU: what csrc/cuda/device.h declares, with each thread of a block as a fibre.
//
// A fibre runs until it waits for its warp (load_matrices, multiply) or for its block (barrier). What may differ on a
// device is varied by `machine`: copies land at once or only when they are waited for, and warps run in either order.
// Start reading at run_block().
#pragma once

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

#define CONV_EXT_KERNEL(threads) void
#define CONV_EXT_CROWDED_KERNEL(threads, blocks) void
#define CONV_EXT_DEVICE inline
#define CONV_EXT_HOST_UNCHECKED __attribute__((noinline, no_sanitize("address", "undefined")))
#define CONV_EXT_HOST_PART __attribute__((always_inline, no_sanitize("address", "undefined")))  // of such a function

namespace conv_ext {
namespace cuda {

constexpr bool kHasTensorCores = true;

struct Copy {
  void* to;
  const void* from;
  int bytes;  // 0: zeros
  int zeros;
};

struct Fibre {
  ucontext_t context;
  void* resume[5];
  bool started = false, finished = true, at_barrier = false;
  bool blocked = false;                   // waits for what another warp does, and asks again when that has run
  std::vector<std::vector<Copy>> groups;  // copies on their way, the open group last
};

struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  void* arguments[32];
};

struct Machine {
  bool late = false, reversed = false, any = false;
  std::vector<Fibre*> fibres;
  std::vector<Warp> warps;
  char* shared = nullptr;
  int threads = 0, current = 0, shared_bytes = 0;
  int64_t block = 0;
  unsigned long progress = 0, blocks = 0;  // whatever happens, and of that how often a fibre was blocked
  int idle_rounds = 0;                     // of all warps, in which nothing else has happened
  void (*block_begins)() = nullptr, (*block_ends)() = nullptr;
  void* scheduler[5];
  void (*body)(void*) = nullptr;
  void* body_argument = nullptr;
};
inline Machine machine;

[[noreturn]] inline void stop(const char* reason) {
  fprintf(stderr, "device_host: %s (block %ld, thread %d)\n", reason, long(machine.block), machine.current);
  abort();
}

// The compiler's own setjmp: it changes stacks without a system call, and the sanitizers do not step in between.
CONV_EXT_HOST_UNCHECKED inline void jump(void** to) { __builtin_longjmp(to, 1); }
CONV_EXT_HOST_UNCHECKED inline void pause_fibre() {
  Fibre& self = *machine.fibres[size_t(machine.current)];
  if (__builtin_setjmp(self.resume) == 0) jump(machine.scheduler);
}
CONV_EXT_HOST_UNCHECKED inline void run_fibre(Fibre& fibre) {
  if (__builtin_setjmp(machine.scheduler) == 0) {
    if (fibre.started) jump(fibre.resume);
    fibre.started = true;
    setcontext(&fibre.context);
  }
}
// A fibre outlives its block: it takes up the next one's body.
inline void fibre_main() {
  for (;;) {
    machine.body(machine.body_argument);
    machine.fibres[size_t(machine.current)]->finished = true;
    ++machine.progress;
    pause_fibre();
  }
}
inline Fibre* new_fibre() {
  constexpr size_t kStack = 256 << 10;
  Fibre* fibre = new Fibre;
  getcontext(&fibre->context);
  fibre->context.uc_stack.ss_sp = malloc(kStack);
  fibre->context.uc_stack.ss_size = kStack;
  fibre->context.uc_link = nullptr;
  makecontext(&fibre->context, fibre_main, 0);
  return fibre;
}

// Until another warp has run.
inline void block_fibre() {
  machine.fibres[size_t(machine.current)]->blocked = true;
  ++machine.progress;
  ++machine.blocks;
  pause_fibre();
}
// Runs every warp until all its lanes wait for the block or another warp or have ended; then they go on.
inline void run_block() {
  const int warps = machine.threads / 32;
  for (int i = 0; i < machine.threads; ++i) {
    Fibre& fibre = *machine.fibres[size_t(i)];
    fibre.finished = fibre.at_barrier = fibre.blocked = false;
    fibre.groups.assign(1, {});
  }
  for (bool any = true; any;) {
    const unsigned long events = machine.progress - machine.blocks;
    for (int w = 0; w < warps; ++w) {
      const int first = 32 * (machine.reversed ? warps - 1 - w : w);
      for (bool running = true; running;) {
        running = false;
        bool blocked = false;
        const unsigned long before = machine.progress;
        for (int lane = 0; lane < 32; ++lane) {
          machine.current = first + lane;
          Fibre& fibre = *machine.fibres[size_t(machine.current)];
          blocked = blocked || fibre.blocked;
          if (fibre.finished || fibre.at_barrier || fibre.blocked) continue;
          run_fibre(fibre);
          running = true;
        }
        if (!running || machine.progress != before) continue;
        if (!blocked) stop("a warp waits for lanes that never come");
        running = false;  // it waits for lanes that wait for another warp
      }
    }
    any = false;
    bool blocked = false;
    for (int i = 0; i < machine.threads; ++i) blocked = blocked || machine.fibres[size_t(i)]->blocked;
    // The kernel itself may notice that it waits too long.
    machine.idle_rounds = blocked && machine.progress - machine.blocks == events ? machine.idle_rounds + 1 : 0;
    if (machine.idle_rounds > 8) stop("all warps wait for each other");
    for (int i = 0; i < machine.threads; ++i) {
      Fibre& fibre = *machine.fibres[size_t(i)];
      fibre.blocked = false;
      if (!blocked) fibre.at_barrier = false;
      any = any || !fibre.finished;
    }
  }
}

inline int thread_index() { return machine.current; }
inline int64_t block_index() { return machine.block; }
inline char* shared_memory() { return machine.shared; }
inline void barrier() {
  machine.fibres[size_t(machine.current)]->at_barrier = true;
  ++machine.progress;
  pause_fibre();
}

// The flag is set, read and taken back between barriers of its own.
inline bool barrier_any(bool mine) {
  machine.any = machine.any || mine;
  barrier();
  const bool any = machine.any;
  barrier();
  machine.any = false;
  barrier();
  return any;
}

inline void land(const Copy& copy) {
  if (copy.bytes > 0) memcpy(copy.to, copy.from, size_t(copy.bytes));
  if (copy.zeros > 0) memset(copy.to, 0, size_t(copy.zeros));
}
template <int kBytes>
void copy_async(void* to, const void* from, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async can copy");
  if (reinterpret_cast<uintptr_t>(to) % kBytes != 0) stop("an asynchronous copy to a misaligned address");
  if (valid && reinterpret_cast<uintptr_t>(from) % kBytes != 0) stop("an asynchronous copy from a misaligned address");
  const Copy copy{to, from, valid ? kBytes : 0, valid ? 0 : kBytes};
  if (machine.late) {
    machine.fibres[size_t(machine.current)]->groups.back().push_back(copy);
  } else {
    land(copy);
  }
}
inline void commit_copies() { machine.fibres[size_t(machine.current)]->groups.emplace_back(); }
template <int pending>
void wait_copies() {
  auto& groups = machine.fibres[size_t(machine.current)]->groups;
  while (groups.size() > size_t(pending) + 1) {
    for (const Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

// What the whole warp does together: the last lane to come does it for all.
template <class Operation>
void together(void* argument, Operation operation) {
  Warp& warp = machine.warps[size_t(machine.current / 32)];
  warp.arguments[machine.current % 32] = argument;
  ++machine.progress;
  if (++warp.arrived == 32) {
    operation(warp.arguments);
    warp.arrived = 0;
    ++warp.generation;
    return;
  }
  for (const unsigned now = warp.generation; warp.generation == now;) pause_fibre();
}

inline void load_matrices(uint32_t (&word)[4], const void* row) {
  struct Lane {
    uint32_t* word;
    const char* row;
  } lane{word, static_cast<const char*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) stop("a matrix's row at a misaligned address");
  together(&lane, [](void** all) {
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i)
        memcpy(&static_cast<Lane*>(all[l])->word[i], static_cast<Lane*>(all[8 * i + l / 4])->row + l % 4 * 4, 4);
  });
}

inline void load_matrices_turned(uint32_t (&word)[4], const void* row) {
  struct Lane {
    uint32_t* word;
    const char* row;
  } lane{word, static_cast<const char*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) stop("a matrix's row at a misaligned address");
  together(&lane, [](void** all) {
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i)
        for (int part = 0; part < 2; ++part)
          memcpy(reinterpret_cast<char*>(&static_cast<Lane*>(all[l])->word[i]) + 2 * part,
                 static_cast<Lane*>(all[8 * i + l % 4 * 2 + part])->row + l / 4 * 2, 2);
  });
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return fma(a, b, c); }
inline float exponential(float x) { return expf(x); }
inline double exponential(double x) { return exp(x); }
inline uint32_t round_tf32(float value) {
  const uint32_t bits = bits_of(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}
inline float widen(float16 value) {
  _Float16 half;
  memcpy(&half, &value, 2);
  return float(half);
}
inline float16 narrow_to_half(float value) {
  const _Float16 half = _Float16(value);
  float16 result;
  memcpy(&result, &half, 2);
  return result;
}

// What the tensor cores of NVIDIA's devices make of one instruction (arXiv 2511.10909, 2512.07004, which found it by
// tests): the products are exact; they and the sum are aligned to the largest of their exponents, that of a product
// being the sum of its factors' exponents, and cut off `fraction` bits behind it; what is added up so is cut off to
// float32. Everything rounds toward zero.
struct TensorCore {
  int fraction = 24;   // bits; 25 on Hopper
  bool halves = true;  // mma.sync takes the first half of k, then the second (Ampere)
};
inline TensorCore tensor_core;

CONV_EXT_HOST_PART inline int exponent_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return int(bits >> 52 & 0x7ff) - 1023;
}
CONV_EXT_HOST_PART inline double power_of_two(int exponent) {
  const uint64_t bits = uint64_t(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, 8);
  return value;
}
CONV_EXT_HOST_PART inline float cut_to_float(double value) {
  if (!(fabs(value) < 0x1p128)) return float(value);
  if (fabs(value) < 0x1p-126) return float(trunc(value * 0x1p149) * 0x1p-149);
  uint64_t bits;
  memcpy(&bits, &value, 8);
  bits &= ~((uint64_t(1) << 29) - 1);
  memcpy(&value, &bits, 8);
  return float(value);
}

// One operand of an instruction: number (k, i) at k * rows + i. The exponents are those of the number's own type: of a
// subnormal one the smallest, and so low for a zero that it never counts.
struct Factors {
  static constexpr int kMost = 256 * 16, kNone = 1 << 12;
  double number[kMost];
  int16_t exponent[kMost];
  int largest, smallest;  // of all exponents; and 2^smallest divides all numbers
  int rows, count;

  CONV_EXT_HOST_UNCHECKED void measure(int of_rows, int of_k, int smallest_exponent) {
    rows = of_rows;
    count = of_k;
    largest = -126;
    smallest = kNone;
    for (int i = 0; i < rows * count; ++i) {
      if (number[i] == 0) {
        exponent[i] = -126;
        continue;
      }
      uint64_t bits;
      memcpy(&bits, &number[i], 8);
      const int own = exponent_of(number[i]);
      const int last = own - 52 + __builtin_ctzll(bits | uint64_t(1) << 52);
      exponent[i] = int16_t(own < smallest_exponent ? smallest_exponent : own);
      if (exponent[i] > largest) largest = exponent[i];
      if (last < smallest) smallest = last;
    }
  }
};

// The sum of sum and the products of left's numbers (k, row), right's (k, column) for k in [first, end).
CONV_EXT_HOST_UNCHECKED __attribute__((optimize("O2"))) inline float add_cut(float sum, const Factors& left, int row,
                                                                             const Factors& right, int column,
                                                                             int first, int end) {
  double total = double(sum);
  for (int k = first; k < end; ++k) total += left.number[k * left.rows + row] * right.number[k * right.rows + column];
  if (!isfinite(total)) return float(total);
  int largest = sum == 0 || fabsf(sum) < 0x1p-126f ? -126 : exponent_of(double(sum));
  for (int k = first; k < end; ++k) {
    const int exponent = left.exponent[k * left.rows + row] + right.exponent[k * right.rows + column];
    if (exponent > largest) largest = exponent;
  }
  const double last = power_of_two(largest - tensor_core.fraction),
               per_last = power_of_two(tensor_core.fraction - largest);
  total = trunc(double(sum) * per_last);
  for (int k = first; k < end; ++k)
    total += trunc(left.number[k * left.rows + row] * right.number[k * right.rows + column] * per_last);
  return cut_to_float(total * last);
}
// The loop that takes the time: exact where nothing is cut off.
CONV_EXT_HOST_UNCHECKED __attribute__((optimize("O3"))) inline void add_exactly(double* sum, const Factors& left,
                                                                                const Factors& right, int first,
                                                                                int end) {
  const int columns = right.rows;
  for (int row = 0; row < left.rows; ++row)
    for (int k = first; k < end; ++k)
      for (int column = 0; column < columns; ++column)
        sum[row * columns + column] += left.number[k * left.rows + row] * right.number[k * columns + column];
}
// An instruction: sum_at(row, column) gives each sum's place; `add`: else they begin at zero. Sums of few bits, as the
// tests' integers have, are not cut off, and need no look at single products.
template <class SumAt>
CONV_EXT_HOST_UNCHECKED void add_products(const Factors& left, const Factors& right, int first, int end, bool add,
                                          SumAt sum_at) {
  const int beyond = left.largest + right.largest - tensor_core.fraction, unit = left.smallest + right.smallest;
  const bool finite = left.largest < 1024 && right.largest < 1024;
  if (add && finite && (left.smallest == Factors::kNone || right.smallest == Factors::kNone)) return;  // zeros alone
  const bool exact = finite && beyond <= unit && beyond > -1000 && beyond < 1000;
  static double sums[16 * 256];
  if (exact) {
    memset(sums, 0, sizeof(double) * size_t(left.rows * right.rows));
    add_exactly(sums, left, right, first, end);
  }
  const double most = exact && unit < 900 ? power_of_two(unit + tensor_core.fraction + 1) : 0,
               per_unit = exact ? power_of_two(-beyond) : 0;
  for (int row = 0; row < left.rows; ++row)
    for (int column = 0; column < right.rows; ++column) {
      float& one = *sum_at(row, column);
      const float before = add ? one : 0;
      const double scaled = double(before) * per_unit;
      one = exact && fabs(double(before)) < most && scaled == trunc(scaled)
                ? cut_to_float(double(before) + sums[row * right.rows + column])
                : add_cut(before, left, row, right, column, first, end);
    }
}
// The products of the tensor cores: lane l holds rows l / 4 and l / 4 + 8 of the left operand, column l / 4 of the
// right one, of each the numbers that begin at l % 4 words, and again four words on.
template <int kInWord, class Number>
void multiply_warp(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int smallest_exponent,
                   Number number) {
  struct Lane {
    float* sum;
    const uint32_t *a, *b;
    int smallest_exponent;
    Number number;
  } lane{sum, a, b, smallest_exponent, number};
  together(&lane, [](void** all) {
    constexpr int kCount = 8 * kInWord;
    static Factors left, right;
    for (int l = 0; l < 32; ++l) {
      const Lane& from = *static_cast<Lane*>(all[l]);
      for (int part = 0; part < kInWord; ++part) {
        const int k = l % 4 * kInWord + part;
        for (int word = 0; word < 4; ++word)
          left.number[(k + word / 2 * 4 * kInWord) * 16 + l / 4 + word % 2 * 8] =
              double(from.number(from.a[word], part));
        for (int word = 0; word < 2; ++word)
          right.number[(k + word * 4 * kInWord) * 8 + l / 4] = double(from.number(from.b[word], part));
      }
    }
    const int smallest_exponent = static_cast<Lane*>(all[0])->smallest_exponent;
    left.measure(16, kCount, smallest_exponent);
    right.measure(8, kCount, smallest_exponent);
    const int step = tensor_core.halves ? kCount / 2 : kCount;
    for (int first = 0; first < kCount; first += step)
      add_products(left, right, first, first + step, true, [&](int row, int column) {
        return &static_cast<Lane*>(all[row % 8 * 4 + column / 2])->sum[row / 8 * 2 + column % 2];
      });
  });
}
inline void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_warp<1>(sum, a, b, -126, [](uint32_t word, int) { return float_of(word & ~0x1fffu); });
}
inline void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16) {
  multiply_warp<2>(sum, a, b, -126, [](uint32_t word, int part) { return float_of(word >> (16 * part) << 16); });
}
inline void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
  multiply_warp<2>(sum, a, b, -14,
                   [](uint32_t word, int part) { return widen(float16{uint16_t(word >> (16 * part))}); });
}
inline void multiply_double(double (&sum)[2], double a, double b) {
  struct Lane {
    double *sum, a, b;
  } lane{sum, a, b};
  together(&lane, [](void** all) {
    for (int l = 0; l < 32; ++l)
      for (int e = 0; e < 2; ++e)
        for (int k = 0; k < 4; ++k)
          static_cast<Lane*>(all[l])->sum[e] +=
              static_cast<Lane*>(all[l / 4 * 4 + k])->a * static_cast<Lane*>(all[(l % 4 * 2 + e) * 4 + k])->b;
  });
}

template <class Parameters>
int launch(void (*kernel)(Parameters), int64_t blocks, int threads, int shared_bytes, void*, Parameters parameters) {
  struct Call {
    void (*kernel)(Parameters);
    Parameters* parameters;
  } call{kernel, &parameters};
  if (threads % 32 != 0 || threads > 1024 || blocks < 1) stop("a launch that a device would refuse");
  while (machine.fibres.size() < size_t(threads)) machine.fibres.push_back(new_fibre());
  machine.threads = threads;
  machine.body_argument = &call;
  machine.body = [](void* argument) {
    static_cast<Call*>(argument)->kernel(*static_cast<Call*>(argument)->parameters);
  };
  for (machine.block = 0; machine.block < blocks; ++machine.block) {
    machine.warps.assign(size_t(threads / 32), Warp{});
    machine.shared = static_cast<char*>(malloc(size_t(shared_bytes)));
    memset(machine.shared, 0xff, size_t(shared_bytes));  // NaN, so that what nobody has written shows
    machine.shared_bytes = shared_bytes;
    if (machine.block_begins != nullptr) machine.block_begins();
    run_block();
    if (machine.block_ends != nullptr) machine.block_ends();
    free(machine.shared);
  }
  return 0;
}

}  // namespace cuda
}  // namespace conv_ext
