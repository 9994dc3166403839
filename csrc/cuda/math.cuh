// What multiplies: how a warp's lanes hold their parts of two small matrices, and add their product to a third.
//
// A tile's operands lie in shared memory as rows of kBlockK numbers, gemm_k running along the row (Order::Along), and
// kPad more so that eight neighbouring rows fall into different banks; or as kBlockK rows, one for each k, with what
// runs along gemm_m or gemm_n in them, and kPadAcross more (Order::Across). Each Math has
//   kReadsVectors      whether operands are always read in vectors along channels, from a copy if need be
//   kM, kN, kK         the size of one product of a warp
//   Left, Right, Sums  a lane's part of its operands and of the sums
//   row, column        where a lane's sum e stands in the product: kRows x kColumns of them
//   kChain             so many k are summed before the sum is added to another one (0: no second sum), where the plan
//                      does not want longer chains
//   kStages            steps in shared memory: one that is multiplied, the others are on their way
//   kFormsAgain        numbers are split into scaled parts: sums are scaled by kSumScale; one that is not finite may be
//                      finite or another infinity and is formed again, see again.cuh
#pragma once

#include "../common/parts.h"
#include "device.h"

namespace conv_ext {
namespace cuda {

enum class Order { Along, Across };

CONV_EXT_DEVICE bool is_finite(float value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }

CONV_EXT_DEVICE float widen(float value) { return value; }
CONV_EXT_DEVICE double widen(double value) { return value; }
CONV_EXT_DEVICE float widen(bfloat16 value) { return float_of(uint32_t(value.bits) << 16); }

// Rounds to nearest, ties to even.
CONV_EXT_DEVICE void narrow(float value, float* to) { *to = value; }
CONV_EXT_DEVICE void narrow(double value, double* to) { *to = value; }
CONV_EXT_DEVICE void narrow(float value, float16* to) { *to = narrow_to_half(value); }
CONV_EXT_DEVICE void narrow(float value, bfloat16* to) {
  const uint32_t bits = bits_of(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = uint16_t(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Fused multiply-adds of single numbers: exact products, one rounding for each sum, any type, any device.
template <class T, class A>
struct Simple {
  using Element = T;
  using Sum = A;
  static constexpr bool kTensorCores = false, kReadsVectors = false, kFormsAgain = false;
  static constexpr int kStages = 3;
  static constexpr int kVector = 16 / int(sizeof(T));
  static constexpr int kM = 4, kN = 8, kK = kVector, kRows = 1, kColumns = 1, kChain = 0;
  static constexpr int kBlockK = sizeof(T) == 2 ? 32 : 16, kPad = sizeof(T) == 8 ? 4 : kVector, kPadAcross = 0;
  struct alignas(16) Vector {
    T number[kVector];
  };
  using Left = Vector;
  using Right = Vector;
  using Sums = A[1];

  template <Order order>
  CONV_EXT_DEVICE static void load_left(Left& a, const T* rows, int pitch, int lane) {
    static_assert(order == Order::Along, "one way is enough for multiply-adds");
    a = *reinterpret_cast<const Vector*>(rows + lane / 8 * pitch);
  }
  // Two products' right operands together, as load_matrices brings them.
  template <Order order>
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const T* rows, int pitch, int lane) {
    b0 = *reinterpret_cast<const Vector*>(rows + lane % 8 * pitch);
    b1 = *reinterpret_cast<const Vector*>(rows + (8 + lane % 8) * pitch);
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) sum[0] = fused(A(widen(a.number[k])), A(widen(b.number[k])), sum[0]);
  }
  CONV_EXT_DEVICE static int row(int lane, int) { return lane / 8; }
  CONV_EXT_DEVICE static int column(int lane, int) { return lane % 8; }
};

// Tensor cores with sums in float32. They align what they add to the largest of it and cut off what lies some 25 bits
// below, and then what float32 does not hold: each instruction loses up to two or three roundings of float32 of the sum
// so far, always toward zero. Hence the chains: what is beyond is added in float32.
template <class T>
struct TensorCores {
  using Element = T;
  using Sum = float;
  static constexpr bool kTensorCores = true, kReadsVectors = true, kFormsAgain = false;
  static constexpr int kStages = 4;
  static constexpr int kM = 16, kN = 8, kK = 32 / int(sizeof(T)), kRows = 2, kColumns = 2, kChain = 128;
  static constexpr int kBlockK = 64 / int(sizeof(T)), kPad = 16 / int(sizeof(T)), kPadAcross = 8;
  using Sums = float[4];
  struct Left {
    uint32_t word[4];
  };
  struct Right {
    uint32_t word[2];
  };

  // Rows 0-7, 8-15 of the first 16 bytes of k, then of the second: the order in which the products want them.
  template <Order order>
  CONV_EXT_DEVICE static void load_left(Left& a, const T* from, int pitch, int lane) {
    if constexpr (order == Order::Along) {
      load_matrices(a.word, from + lane % 16 * pitch + lane / 16 * (kK / 2));
    } else if constexpr (sizeof(T) == 2) {
      load_matrices_turned(a.word, from + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) a.word[i] = bits_of(from[(lane % 4 + i / 2 * 4) * pitch + lane / 4 + i % 2 * 8]);
    }
  }
  template <Order order>
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const T* from, int pitch, int lane) {
    uint32_t word[4];
    if constexpr (order == Order::Along) {
      load_matrices(word, from + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * (kK / 2));
    } else if constexpr (sizeof(T) == 2) {
      load_matrices_turned(word, from + (lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = bits_of(from[(lane % 4 + i % 2 * 4) * pitch + lane / 4 + i / 2 * 8]);
    }
    b0 = {{word[0], word[1]}};
    b1 = {{word[2], word[3]}};
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) {
    cuda::multiply(sum, a.word, b.word, T{});
  }
  CONV_EXT_DEVICE static int row(int lane, int e) { return lane / 4 + 8 * e; }
  CONV_EXT_DEVICE static int column(int lane, int e) { return lane % 4 * 2 + e; }
};

// float32 rounded to TF32.
struct TF32 : TensorCores<float> {
  template <Order order>
  CONV_EXT_DEVICE static void load_left(Left& a, const float* rows, int pitch, int lane) {
    TensorCores<float>::load_left<order>(a, rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) a.word[i] = round_tf32(float_of(a.word[i]));
  }
  template <Order order>
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const float* rows, int pitch, int lane) {
    TensorCores<float>::load_right<order>(b0, b1, rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      b0.word[i] = round_tf32(float_of(b0.word[i]));
      b1.word[i] = round_tf32(float_of(b1.word[i]));
    }
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) { multiply_tf32(sum, a.word, b.word); }
};

// float32 in two parts of TF32 each, of which three of the four products count, the small ones first: while the sum is
// small, little of it is cut off. Sums are handed over to a float32 register after each step, of 16 k, for with longer
// chains it is not float32's accuracy: sums of positive numbers would be 8 roundings of float32 too small with chains
// of 64 (14 on Ampere, which is beyond the bound), so they are 1.6 (2.4).
struct ThreeTF32 : TensorCores<float> {
  static constexpr int kChain = kBlockK;
  static constexpr bool kFormsAgain = true;
  struct Left {
    uint32_t large[4], small[4];
  };
  struct Right {
    uint32_t large[2], small[2];
  };

  // large + small = the scaled value to 2^-23: large is rounded to nearest, and of the exact rest hardly a bit is cut
  // off. Neither is subnormal (parts.h): TF32 ends at 2^-136, and the tensor cores align a subnormal number's product
  // as if it were not that small. What is not finite, scaled, or would round to infinity, has a small part that is not:
  // so has the sum.
  CONV_EXT_DEVICE static void split(uint32_t bits, uint32_t& large, uint32_t& small) {
    constexpr uint32_t kTF32 = 0xffffe000u;
    const float value = float_of(bits) * kPartScale;
    large = (bits_of(value) + 0x1000u) & kTF32;
    small = bits_of(value - float_of(large)) & kTF32;
  }
  template <Order order>
  CONV_EXT_DEVICE static void load_left(Left& a, const float* rows, int pitch, int lane) {
    TensorCores<float>::Left whole;
    TensorCores<float>::load_left<order>(whole, rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) split(whole.word[i], a.large[i], a.small[i]);
  }
  template <Order order>
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const float* rows, int pitch, int lane) {
    TensorCores<float>::Right whole[2];
    TensorCores<float>::load_right<order>(whole[0], whole[1], rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      split(whole[0].word[i], b0.large[i], b0.small[i]);
      split(whole[1].word[i], b1.large[i], b1.small[i]);
    }
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) {
    multiply_tf32(sum, a.small, b.large);
    multiply_tf32(sum, a.large, b.small);
    multiply_tf32(sum, a.large, b.large);
  }
};

// float64 on the tensor cores: the same roundings as fused multiply-adds.
struct Float64 {
  using Element = double;
  using Sum = double;
  static constexpr bool kTensorCores = true, kReadsVectors = false, kFormsAgain = false;
  static constexpr int kStages = 3;
  static constexpr int kM = 8, kN = 8, kK = 4, kRows = 1, kColumns = 2, kChain = 0;
  static constexpr int kBlockK = 16, kPad = 4, kPadAcross = 4;
  using Left = double;
  using Right = double;
  using Sums = double[2];

  // k of a lane is lane % 4, its row lane / 4.
  template <Order order>
  CONV_EXT_DEVICE static int place(int lane, int pitch) {
    return order == Order::Along ? lane / 4 * pitch + lane % 4 : lane % 4 * pitch + lane / 4;
  }
  template <Order order>
  CONV_EXT_DEVICE static void load_left(Left& a, const double* from, int pitch, int lane) {
    a = from[place<order>(lane, pitch)];
  }
  template <Order order>
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const double* from, int pitch, int lane) {
    b0 = from[place<order>(lane, pitch)];
    b1 = from[place<order>(lane, pitch) + 8 * (order == Order::Along ? pitch : 1)];
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) { multiply_double(sum, a, b); }
  CONV_EXT_DEVICE static int row(int lane, int) { return lane / 4; }
  CONV_EXT_DEVICE static int column(int lane, int e) { return lane % 4 * 2 + e; }
};

}  // namespace cuda
}  // namespace conv_ext
