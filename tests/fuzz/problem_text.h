// What the fuzzers share: a generator of random numbers whose sequence follows from its seed alone, and a problem as a
// line of text that can be run again.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/problem.h"

namespace fuzz {

using conv_ext::ConvProblem;
using conv_ext::DType;
using conv_ext::Pass;
using conv_ext::Precision;

// SplitMix64 (Steele, Lea, Flood 2014): every seed gives another sequence, the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // From `low` to `high`, both included.
  int64_t between(int64_t low, int64_t high) {
    const uint64_t count = uint64_t(high) - uint64_t(low) + 1;
    return int64_t(uint64_t(low) + (count == 0 ? bits() : bits() % count));
  }
  bool chance(double probability) { return double(bits() >> 11) * 0x1p-53 < probability; }
  double uniform() { return double(bits() >> 11) * 0x1p-53; }
  int64_t pick(std::initializer_list<int64_t> values) { return values.begin()[bits() % values.size()]; }
  template <class T>
  const T& pick(const std::vector<T>& values) {
    return values[bits() % values.size()];
  }
  // About as many numbers of each length in binary digits: 1, 2-3, 4-7 ..., up to `high`.
  int64_t logarithmic(int64_t high) {
    int digits = 0;
    while (digits < 62 && (int64_t(2) << digits) <= high) ++digits;
    const int64_t low = int64_t(1) << between(0, digits);
    return between(low, 2 * (low - 1) + 1 < high ? 2 * (low - 1) + 1 : high);
  }

 private:
  uint64_t state_;
};

constexpr const char* kDTypeNames[] = {"float32", "float64", "bfloat16", "float16", "complex64", "complex128"};
constexpr const char* kPrecisionNames[] = {"ieee", "tf32", "bf16"};
constexpr const char* kPassNames[] = {"forward", "input_grad", "weight_grad"};

// The output's extent, as the validator computes it; false where the problem is not valid. Fills in p and q.
inline bool complete(ConvProblem* z) {
  const auto extent = [](int64_t size, int64_t before, int64_t behind, int64_t kernel, int64_t stride, int64_t dilation,
                         int64_t* output) {
    int64_t padded = 0, reach = 0;
    if (!conv_ext::checked_add(before, behind, &padded) || !conv_ext::checked_add(padded, size, &padded)) return false;
    if (!conv_ext::checked_mul(dilation, kernel - 1, &reach) || !conv_ext::checked_add(reach, 1, &reach)) return false;
    if (reach > padded) return false;
    *output = (padded - reach) / stride + 1;
    return true;
  };
  const auto fits = [](std::initializer_list<int64_t> sizes) {
    int64_t product = 1;
    for (int64_t size : sizes)
      if (size == 0) return true;
    for (int64_t size : sizes)
      if (!conv_ext::checked_mul(product, size, &product)) return false;
    return true;
  };
  if (z->groups < 1 || z->c % z->groups != 0 || z->k % z->groups != 0 || z->k < z->groups || z->r < 1 || z->s < 1)
    return false;
  if (!((z->h > 0 && z->w > 0) || z->n == 0 || z->c == 0)) return false;
  return extent(z->h, z->pad_top, z->pad_bottom, z->r, z->stride_h, z->dilation_h, &z->p) &&
         extent(z->w, z->pad_left, z->pad_right, z->s, z->stride_w, z->dilation_w, &z->q) &&
         fits({z->n, z->c, z->h, z->w}) && fits({z->k, z->c / z->groups, z->r, z->s}) && fits({z->n, z->k, z->p, z->q});
}

// "n=2 c=3 h=8 w=9 k=4 kernel=3x3 stride=1x1 dilation=1x1 pad=1,1,1,1 groups=1 dtype=float32 precision=ieee
// layout=nchw"; pad lists top, bottom, left, right.
inline std::string text_of(const ConvProblem& z) {
  std::ostringstream out;
  out << "n=" << z.n << " c=" << z.c << " h=" << z.h << " w=" << z.w << " k=" << z.k << " kernel=" << z.r << "x" << z.s
      << " stride=" << z.stride_h << "x" << z.stride_w << " dilation=" << z.dilation_h << "x" << z.dilation_w
      << " pad=" << z.pad_top << "," << z.pad_bottom << "," << z.pad_left << "," << z.pad_right
      << " groups=" << z.groups << " dtype=" << kDTypeNames[int(z.dtype)]
      << " precision=" << kPrecisionNames[int(z.precision)]
      << " layout=" << (z.channels_last ? "nhwc" : "nchw");
  return out.str();
}

inline int index_of(const std::string& name, const char* const* names, int count) {
  for (int i = 0; i < count; ++i)
    if (name == names[i]) return i;
  std::fprintf(stderr, "unknown word in a case: %s\n", name.c_str());
  std::exit(2);
}

// Reads the words of text_of; others, as `key=value`, go to `other(key, value)`.
template <class Other>
inline ConvProblem parse(const std::string& line, Other other) {
  ConvProblem z{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, DType::Float32, Precision::Ieee, false};
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const size_t at = word.find('=');
    if (at == std::string::npos) {
      std::fprintf(stderr, "a case is written as key=value, got: %s\n", word.c_str());
      std::exit(2);
    }
    const std::string key = word.substr(0, at), value = word.substr(at + 1);
    const auto number = [&] { return int64_t(std::strtoll(value.c_str(), nullptr, 10)); };
    const auto pair = [&](int64_t* first, int64_t* second) {
      *first = number();
      *second = std::strtoll(value.c_str() + value.find('x') + 1, nullptr, 10);
    };
    if (key == "n") z.n = number();
    else if (key == "c") z.c = number();
    else if (key == "h") z.h = number();
    else if (key == "w") z.w = number();
    else if (key == "k") z.k = number();
    else if (key == "kernel") pair(&z.r, &z.s);
    else if (key == "stride") pair(&z.stride_h, &z.stride_w);
    else if (key == "dilation") pair(&z.dilation_h, &z.dilation_w);
    else if (key == "groups") z.groups = number();
    else if (key == "dtype") z.dtype = DType(index_of(value, kDTypeNames, 6));
    else if (key == "precision") z.precision = Precision(index_of(value, kPrecisionNames, 3));
    else if (key == "layout") z.channels_last = value == "nhwc";
    else if (key == "pad") {
      std::istringstream numbers(value);
      char comma;
      numbers >> z.pad_top >> comma >> z.pad_bottom >> comma >> z.pad_left >> comma >> z.pad_right;
    } else other(key, value);
  }
  if (!complete(&z)) {
    std::fprintf(stderr, "not a valid problem: %s\n", line.c_str());
    std::exit(2);
  }
  return z;
}

}  // namespace fuzz
