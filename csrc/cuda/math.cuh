// What multiplies: how a warp's lanes hold their parts of two small matrices, and add their product to a third.
//
// A tile's operands lie in shared memory as rows of kBlockK numbers, gemm_k running along the row in both, and kPad
// more so that eight neighbouring rows fall into different banks. Each Math has
//   kReadsVectors      whether operands are always read in vectors along channels, from a copy if need be
//   kM, kN, kK         the size of one product of a warp
//   Left, Right, Sums  a lane's part of its operands and of the sums
//   row, column        where a lane's sum e stands in the product: kRows x kColumns of them
//   kChain             so many k are summed before the sum is added to another one (0: no second sum)
#pragma once

#include "device.h"

namespace conv_ext {
namespace cuda {

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
  static constexpr bool kTensorCores = false, kReadsVectors = false;
  static constexpr int kVector = 16 / int(sizeof(T));
  static constexpr int kM = 4, kN = 8, kK = kVector, kRows = 1, kColumns = 1, kChain = 0;
  static constexpr int kBlockK = sizeof(T) == 2 ? 32 : 16, kPad = sizeof(T) == 8 ? 4 : kVector;
  struct alignas(16) Vector {
    T number[kVector];
  };
  using Left = Vector;
  using Right = Vector;
  using Sums = A[1];

  CONV_EXT_DEVICE static void load_left(Left& a, const T* rows, int pitch, int lane) {
    a = *reinterpret_cast<const Vector*>(rows + lane / 8 * pitch);
  }
  // Two products' right operands together, as load_matrices brings them.
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

// Tensor cores with sums in float32. Their sums lose more than float32's rounding, hence the chains: what is beyond is
// added in float32.
template <class T>
struct TensorCores {
  using Element = T;
  using Sum = float;
  static constexpr bool kTensorCores = true, kReadsVectors = true;
  static constexpr int kM = 16, kN = 8, kK = 32 / int(sizeof(T)), kRows = 2, kColumns = 2, kChain = 128;
  static constexpr int kBlockK = 64 / int(sizeof(T)), kPad = 16 / int(sizeof(T));
  using Sums = float[4];
  struct Left {
    uint32_t word[4];
  };
  struct Right {
    uint32_t word[2];
  };

  // Rows 0-7, 8-15 of the first 16 bytes of k, then of the second: the order in which the products want them.
  CONV_EXT_DEVICE static void load_left(Left& a, const T* rows, int pitch, int lane) {
    load_matrices(a.word, rows + lane % 16 * pitch + lane / 16 * (kK / 2));
  }
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const T* rows, int pitch, int lane) {
    uint32_t word[4];
    load_matrices(word, rows + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * (kK / 2));
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
  CONV_EXT_DEVICE static void load_left(Left& a, const float* rows, int pitch, int lane) {
    TensorCores<float>::load_left(a, rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) a.word[i] = round_tf32(float_of(a.word[i]));
  }
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const float* rows, int pitch, int lane) {
    TensorCores<float>::load_right(b0, b1, rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      b0.word[i] = round_tf32(float_of(b0.word[i]));
      b1.word[i] = round_tf32(float_of(b1.word[i]));
    }
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) { multiply_tf32(sum, a.word, b.word); }
};

// float32 in two parts of TF32 each, of which three of the four products count: float32's accuracy, if sums are handed
// over to a float32 register every 64 k (without that they are not: arXiv 2203.03341).
struct ThreeTF32 : TensorCores<float> {
  static constexpr int kChain = 64;
  struct Left {
    uint32_t large[4], small[4];
  };
  struct Right {
    uint32_t large[2], small[2];
  };

  // An infinity times a small part that is 0 is NaN: what should be infinite is NaN here, within the same outputs.
  // large + small = value to 2^-24. Where rounding up would overflow the large part is cut off instead, and what is
  // not finite has no small part: Inf - Inf would be NaN.
  CONV_EXT_DEVICE static void split(uint32_t bits, uint32_t& large, uint32_t& small) {
    constexpr uint32_t kExponent = 0x7f800000u;
    large = round_tf32(float_of(bits));
    if ((large & kExponent) == kExponent) large = bits & 0xffffe000u;
    small = (large & kExponent) == kExponent ? 0 : round_tf32(float_of(bits) - float_of(large));
  }
  CONV_EXT_DEVICE static void load_left(Left& a, const float* rows, int pitch, int lane) {
    TensorCores<float>::Left whole;
    TensorCores<float>::load_left(whole, rows, pitch, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) split(whole.word[i], a.large[i], a.small[i]);
  }
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const float* rows, int pitch, int lane) {
    TensorCores<float>::Right whole[2];
    TensorCores<float>::load_right(whole[0], whole[1], rows, pitch, lane);
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
  static constexpr bool kTensorCores = true, kReadsVectors = false;
  static constexpr int kM = 8, kN = 8, kK = 4, kRows = 1, kColumns = 2, kChain = 0;
  static constexpr int kBlockK = 16, kPad = 4;
  using Left = double;
  using Right = double;
  using Sums = double[2];

  CONV_EXT_DEVICE static void load_left(Left& a, const double* rows, int pitch, int lane) {
    a = rows[lane / 4 * pitch + lane % 4];
  }
  CONV_EXT_DEVICE static void load_right(Right& b0, Right& b1, const double* rows, int pitch, int lane) {
    b0 = rows[lane / 4 * pitch + lane % 4];
    b1 = rows[(8 + lane / 4) * pitch + lane % 4];
  }
  CONV_EXT_DEVICE static void multiply(Sums& sum, const Left& a, const Right& b) { multiply_double(sum, a, b); }
  CONV_EXT_DEVICE static int row(int lane, int) { return lane / 4; }
  CONV_EXT_DEVICE static int column(int lane, int e) { return lane % 4 * 2 + e; }
};

}  // namespace cuda
}  // namespace conv_ext
