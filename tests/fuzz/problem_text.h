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

#include "../../csrc/common/problem.h"

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
constexpr const char* kLayoutNames[] = {"nchw", "nhwc", "strided"};  // a problem has one of the first two
constexpr const char* kPassNames[] = {"forward", "input_grad", "weight_grad"};

// Why a problem is not valid, or nullptr; the output's extent, as the validator computes it, is filled in as p and q.
inline const char* why_not(ConvProblem* z) {
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
  for (int64_t size : {z->n, z->c, z->h, z->w, z->pad_top, z->pad_bottom, z->pad_left, z->pad_right})
    if (size < 0) return "n, c, h, w and pad must not be negative";
  for (int64_t size : {z->r, z->s, z->stride_h, z->stride_w, z->dilation_h, z->dilation_w})
    if (size < 1) return "kernel, stride and dilation must be at least 1";
  if (z->groups < 1 || z->c % z->groups != 0 || z->k % z->groups != 0 || z->k < z->groups)
    return "groups must be at least 1 and divide c and k, and k must be at least groups";
  if (!((z->h > 0 && z->w > 0) || z->n == 0 || z->c == 0)) return "h and w must be at least 1";
  if (!extent(z->h, z->pad_top, z->pad_bottom, z->r, z->stride_h, z->dilation_h, &z->p) ||
      !extent(z->w, z->pad_left, z->pad_right, z->s, z->stride_w, z->dilation_w, &z->q))
    return "dilation * (kernel - 1) + 1 must not exceed the padded h and w, nor these 2^63 - 1";
  if (!fits({z->n, z->c, z->h, z->w}) || !fits({z->k, z->c / z->groups, z->r, z->s}) || !fits({z->n, z->k, z->p, z->q}))
    return "no tensor may have more than 2^63 - 1 elements";
  return nullptr;
}
inline bool complete(ConvProblem* z) { return why_not(z) == nullptr; }

// "n=2 c=3 h=8 w=9 k=4 kernel=3x3 stride=1x1 dilation=1x1 pad=1,1,1,1 groups=1 dtype=float32 precision=ieee
// layout=nchw"; pad lists top, bottom, left, right.
inline std::string text_of(const ConvProblem& z) {
  std::ostringstream out;
  out << "n=" << z.n << " c=" << z.c << " h=" << z.h << " w=" << z.w << " k=" << z.k << " kernel=" << z.r << "x" << z.s
      << " stride=" << z.stride_h << "x" << z.stride_w << " dilation=" << z.dilation_h << "x" << z.dilation_w
      << " pad=" << z.pad_top << "," << z.pad_bottom << "," << z.pad_left << "," << z.pad_right
      << " groups=" << z.groups << " dtype=" << kDTypeNames[int(z.dtype)]
      << " precision=" << kPrecisionNames[int(z.precision)] << " layout=" << (z.channels_last ? "nhwc" : "nchw");
  return out.str();
}

[[noreturn]] inline void bad_case(const std::string& what) {
  std::fprintf(stderr, "bad case: %s\n", what.c_str());
  std::exit(2);
}

inline int index_of(const std::string& key, const std::string& name, const char* const* names, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) {
    if (name == names[i]) return i;
    all += (i ? ", " : "") + std::string(names[i]);
  }
  bad_case(key + " must be one of " + all + ", got \"" + name + "\"");
}

// Reads "3x4" and its like: integers with `between` between them, and nothing else.
template <class... Integers>
inline void read_integers(const std::string& key, const std::string& value, char between, Integers*... integers) {
  std::istringstream text(value);
  int count = 0;
  const auto read = [&](auto* integer) {
    char separator = between;
    if (count++ > 0) text.get(separator);
    if (separator != between) text.setstate(std::ios::failbit);
    text >> std::noskipws >> *integer;
  };
  (read(integers), ...);
  if (!text.fail() && text.peek() == std::char_traits<char>::eof()) return;
  const std::string wanted =
      count == 1 ? "an integer" : std::to_string(count) + " integers with '" + between + "' between them";
  bad_case(key + " must be " + wanted + ", got \"" + value + "\"");
}

// Reads the words of text_of; others, as `key=value`, go to `other(key, value)`.
template <class Other>
inline ConvProblem parse(const std::string& line, Other other) {
  ConvProblem z{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, DType::Float32, Precision::Ieee, false};
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const size_t at = word.find('=');
    if (at == std::string::npos) bad_case("it is written as key=value, got \"" + word + "\"");
    const std::string key = word.substr(0, at), value = word.substr(at + 1);
    const auto number = [&](int64_t* integer) { read_integers(key, value, ' ', integer); };
    const auto pair = [&](int64_t* first, int64_t* second) { read_integers(key, value, 'x', first, second); };
    if (key == "n")
      number(&z.n);
    else if (key == "c")
      number(&z.c);
    else if (key == "h")
      number(&z.h);
    else if (key == "w")
      number(&z.w);
    else if (key == "k")
      number(&z.k);
    else if (key == "kernel")
      pair(&z.r, &z.s);
    else if (key == "stride")
      pair(&z.stride_h, &z.stride_w);
    else if (key == "dilation")
      pair(&z.dilation_h, &z.dilation_w);
    else if (key == "groups")
      number(&z.groups);
    else if (key == "dtype")
      z.dtype = DType(index_of(key, value, kDTypeNames, 6));
    else if (key == "precision")
      z.precision = Precision(index_of(key, value, kPrecisionNames, 3));
    else if (key == "layout")
      z.channels_last = index_of(key, value, kLayoutNames, 2) == 1;
    else if (key == "pad")
      read_integers(key, value, ',', &z.pad_top, &z.pad_bottom, &z.pad_left, &z.pad_right);
    else
      other(key, value);
  }
  if (const char* why = why_not(&z)) bad_case(std::string(why) + ": " + line);
  return z;
}

}  // namespace fuzz
