// One case of the fuzzer of runs: a problem, how its three tensors lie in memory, what numbers they hold, and in which
// further ways it is run.
#pragma once

#include <algorithm>

#include "problem_text.h"

namespace fuzz {

// How a 4-D tensor lies in memory, whatever its sizes, so that a case can be made smaller and keeps its layout.
struct Layout {
  int order[4] = {0, 1, 2, 3};  // dimensions, the slowest first
  int64_t step = 1;             // elements between neighbours of the fastest dimension
  int64_t gap[4] = {};          // of each dimension: so many more entries lie in memory than are used
  int expand = 0;               // bit d: dimension d has stride 0 (operands alone)
  int overlap = 0;              // windows: strides of the dimension in order[overlap - 1] is halved (operands alone)
  int odd = 0;                  // strides of dimensions of size 1, which mean nothing
  bool at_begin = false;        // the unreadable page lies before the tensor, else behind it
  int shift = 0;                // bytes by which the tensor's address is not that of an element

  // Strides in elements. A result's elements must be apart.
  void strides(const int64_t sizes[4], bool result, int64_t stride[4]) const {
    int64_t running = step;
    for (int i = 3; i >= 0; --i) {
      const int d = order[i];
      stride[d] = running;
      running *= sizes[d] + gap[d];
    }
    constexpr int64_t kOdd[4] = {0, 1, 7919, 1000003};
    for (int d = 0; d < 4; ++d)
      if (odd && sizes[d] == 1) stride[d] = kOdd[(odd - 1 + d) % 4];
    if (result) return;
    for (int d = 0; d < 4; ++d)
      if (expand >> d & 1) stride[d] = 0;
    if (overlap) {
      const int d = order[overlap - 1];
      if (sizes[d] > 1) stride[d] = stride[d] / 2;
    }
  }
  bool is_order(const char* digits) const {
    for (int i = 0; i < 4; ++i)
      if (order[i] != digits[i] - '0') return false;
    return true;
  }
  // Every element beside the next in the usual order, or in that of channels_last; everything else is "strided".
  const char* name() const {
    const bool dense = step == 1 && !gap[0] && !gap[1] && !gap[2] && !gap[3] && !expand && !overlap;
    return dense && is_order("0123") ? "nchw" : dense && is_order("0231") ? "nhwc" : "strided";
  }
  // "0123", and of the rest what is not as usual: "0231/step:2/gap:0+1+0+0/odd:1/begin/shift:1".
  std::string text() const {
    std::ostringstream out;
    for (int d : order) out << d;
    if (step != 1) out << "/step:" << step;
    if (gap[0] || gap[1] || gap[2] || gap[3])
      out << "/gap:" << gap[0] << "+" << gap[1] << "+" << gap[2] << "+" << gap[3];
    if (expand) out << "/expand:" << expand;
    if (overlap) out << "/overlap:" << overlap;
    if (odd) out << "/odd:" << odd;
    if (at_begin) out << "/begin";
    if (shift) out << "/shift:" << shift;
    return out.str();
  }
  static Layout parse(const std::string& text) {
    Layout layout;
    std::istringstream parts(text);
    std::string part;
    std::getline(parts, part, '/');
    std::string digits = part;
    std::sort(digits.begin(), digits.end());
    if (digits != "0123") bad_case("a layout begins with the order of the dimensions, as 0231, got \"" + text + "\"");
    for (int i = 0; i < 4; ++i) layout.order[i] = part[size_t(i)] - '0';
    while (std::getline(parts, part, '/')) {
      const std::string key = part.substr(0, part.find(':')), value = part.substr(part.find(':') + 1);
      const auto number = [&](auto* integer) { read_integers(key, value, ' ', integer); };
      if (key == "step")
        number(&layout.step);
      else if (key == "expand")
        number(&layout.expand);
      else if (key == "overlap")
        number(&layout.overlap);
      else if (key == "odd")
        number(&layout.odd);
      else if (key == "begin")
        layout.at_begin = true;
      else if (key == "shift")
        number(&layout.shift);
      else if (key == "gap")
        read_integers(key, value, '+', &layout.gap[0], &layout.gap[1], &layout.gap[2], &layout.gap[3]);
      else
        bad_case("unknown part of a layout: " + part);
    }
    return layout;
  }
};

// What the tensors hold; see runs_numbers.h.
enum class Data : int { Integers, Signed, Positive, Special, Wide };
constexpr int kDataKinds = 5;
constexpr const char* kDataNames[] = {"integers", "signed", "positive", "special", "wide"};

// What is behind the sum and the residual, by the numbers of the kernels' enumeration; clamp's bounds.
enum class Behind : int { None, Relu, Clamp, Silu, HardSwish };
constexpr int kBehindKinds = 5;
constexpr const char* kBehindNames[] = {"none", "relu", "clamp", "silu", "hardswish"};
constexpr double kClampLow = -1.5, kClampHigh = 2.5;

constexpr int64_t kMostCache = 1 << 20;  // KiB

struct Case {
  ConvProblem z;
  Layout layout[3];          // of the input, the weight, the output or its gradient
  int64_t bias_stride = -1;  // -1: no bias
  bool relu = false;
  // forward runs once more with an epilogue: a residual that lies so, an activation.
  bool adds = false;
  Layout residual;
  Behind activation = Behind::None;
  Data data = Data::Integers;
  uint64_t seed = 0;  // of the numbers
  int shuffled = 0;   // runs once more with the tasks in another order, so many blocks of scratch taking turns
  int threads = 0;    // runs once more with 2, 3, 7 ... up to so many threads
  int64_t cut_begin = 0, cut_end = 0;  // runs forward and input_grad once more for these images alone
  int64_t l1 = 0, l2 = 0, last = 0;    // runs once more as planned for caches of so many KiB
  // A line that runs again may be about one library, pass and algorithm.
  std::string isa, pass, algorithm;
};

inline std::string text_of(const Case& c) {
  std::ostringstream out;
  out << text_of(c.z) << " input=" << c.layout[0].text() << " weight=" << c.layout[1].text()
      << " output=" << c.layout[2].text() << " data=" << kDataNames[int(c.data)] << " seed=" << c.seed;
  if (c.bias_stride >= 0) out << " bias=" << c.bias_stride;
  if (c.relu) out << " relu=1";
  if (c.adds) out << " residual=" << c.residual.text();
  if (c.activation != Behind::None) out << " activation=" << kBehindNames[int(c.activation)];
  if (c.shuffled) out << " shuffled=" << c.shuffled;
  if (c.threads) out << " threads=" << c.threads;
  if (c.cut_end) out << " cut=" << c.cut_begin << "-" << c.cut_end;
  if (c.l1) out << " caches=" << c.l1 << "-" << c.l2 << "-" << c.last;
  if (!c.isa.empty()) out << " isa=" << c.isa;
  if (!c.pass.empty()) out << " pass=" << c.pass;
  if (!c.algorithm.empty()) out << " algorithm=" << c.algorithm;
  return out.str();
}

inline Case parse_case(const std::string& line) {
  Case c;
  c.z = parse(line, [&](const std::string& key, const std::string& value) {
    if (key == "input")
      c.layout[0] = Layout::parse(value);
    else if (key == "weight")
      c.layout[1] = Layout::parse(value);
    else if (key == "output")
      c.layout[2] = Layout::parse(value);
    else if (key == "data")
      c.data = Data(index_of(key, value, kDataNames, kDataKinds));
    else if (key == "seed")
      read_integers(key, value, ' ', &c.seed);
    else if (key == "bias")
      read_integers(key, value, ' ', &c.bias_stride);
    else if (key == "relu")
      c.relu = value == "1";
    else if (key == "residual")
      c.adds = true, c.residual = Layout::parse(value);
    else if (key == "activation")
      c.activation = Behind(index_of(key, value, kBehindNames, kBehindKinds));
    else if (key == "shuffled")
      read_integers(key, value, ' ', &c.shuffled);
    else if (key == "threads")
      read_integers(key, value, ' ', &c.threads);
    else if (key == "cut")
      read_integers(key, value, '-', &c.cut_begin, &c.cut_end);
    else if (key == "caches")
      read_integers(key, value, '-', &c.l1, &c.l2, &c.last);
    else if (key == "isa")
      c.isa = value;
    else if (key == "pass")
      c.pass = value;
    else if (key == "algorithm")
      c.algorithm = value;
    else
      bad_case("unknown key: " + key);
  });
  for (int64_t size : {c.z.n, c.z.c, c.z.h, c.z.w, c.z.k})
    if (size < 1) bad_case("empty tensors never reach a kernel: " + line);
  if (c.activation != Behind::None && conv_ext::is_complex(c.z.dtype))
    bad_case("activations are for real numbers: " + line);
  const bool any_caches = c.l1 || c.l2 || c.last;
  for (int64_t kib : {c.l1, c.l2, c.last})
    if (any_caches && (kib < 1 || kib > kMostCache)) bad_case("caches are of 1 to 2^20 KiB each: " + line);
  return c;
}

}  // namespace fuzz
