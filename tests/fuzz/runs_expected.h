// What a result must be for one case and pass: the oracle's sums, and for each kind of algorithm the errors it may
// make.
#pragma once

#include "runs_oracle.h"

namespace fuzz {

// How far an element may be off; see expected_bound. An algorithm is judged by one of these.
enum class Gate : int {
  Plain,     // by the element's own products
  Winograd,  // by those of the tile that is transformed with it, where the precision or the data allow it
  Dot,       // products of bfloat16 pairs: the processors take subnormal numbers for zero
};
constexpr int kGates = 3;

template <class W>
class Expected {
 public:
  Expected(const Case& c, Pass pass, const Operand<W>& x, const Operand<W>& w, const Operand<W>& g,
           const Plane<W>* bias)
      : case_(c), z_(c.z), pass_(pass), x_(x), w_(w), g_(g), facts_(facts_of(c.z.dtype)) {
    parts_ = conv_ext::is_complex(z_.dtype) ? 2 : 1;
    Oracle<W>(z_).run(pass, x, w, g, &sums_);
    length_ = parts_ * (pass == Pass::Forward     ? z_.c / z_.groups * z_.r * z_.s
                        : pass == Pass::InputGrad ? z_.k / z_.groups * z_.r * z_.s
                                                  : z_.n * z_.p * z_.q);
    const int64_t sizes[3][4] = {
        {z_.n, z_.k, z_.p, z_.q}, {z_.n, z_.c, z_.h, z_.w}, {z_.k, z_.c / z_.groups, z_.r, z_.s}};
    std::copy(sizes[int(pass)], sizes[int(pass)] + 4, sizes_);
    if (pass == Pass::Forward && (bias != nullptr || c.relu)) finish(bias);
    // Sums of small integers are exact in every order, up to 2^24 in float32.
    exact_ = c.data == Data::Integers;
    for (int part = 0; part < parts_ && exact_; ++part)
      for (double magnitude : sums_.magnitude[part]) exact_ = exact_ && magnitude <= 0x1p24;
    if (exact_)
      for (int part = 0; part < parts_; ++part) {
        rounded_[part] = sums_.value[part];
        if (facts_.output_unit > 0)
          for (W& value : rounded_[part]) value = round_to_dtype(value);
      }
  }

  const int64_t* sizes() const { return sizes_; }
  int parts() const { return parts_; }
  // Whether an algorithm that is judged by this gate has to be exact.
  bool exact(Gate gate) const { return exact_ && !(gate == Gate::Winograd && z_.precision != Precision::Ieee); }
  const Plane<W>& value(Gate gate, int part) const { return exact(gate) ? rounded_[part] : sums_.value[part]; }
  double magnitude(int part, size_t at) const { return sums_.magnitude[part][at]; }
  int64_t length() const { return length_; }
  // What each element may be off by.
  const Plane<double>& bound(Gate gate, int part) {
    if (!ready_[int(gate)]) {
      for (int i = 0; i < parts_; ++i) compute_bound(gate, i);
      ready_[int(gate)] = true;
    }
    return bounds_[int(gate)][i_of(part)];
  }
  // Infinity times a subnormal number: NaN where the processor takes that for zero.
  bool may_lose_infinity(Gate gate) const { return gate == Gate::Dot && flushes() && case_.data == Data::Special; }
  // Where no sum of float32 numbers can be told from an overflow in some order of summation.
  bool may_overflow(int part, size_t at, double bound) const {
    const double accumulator = facts_.unit == 0x1p-24 ? double(std::numeric_limits<float>::max()) : facts_.largest;
    return sums_.magnitude[part][at] > accumulator / 8 ||
           double(std::fabs(sums_.value[part][at])) + bound >= facts_.largest;
  }

 private:
  static size_t i_of(int part) { return size_t(part); }
  W round_to_dtype(W value) const {
    char memory[8];
    return with_type(z_.dtype, [&](auto type) {
      type.write(memory, double(value));
      return W(type.read(memory));
    });
  }
  void finish(const Plane<W>* bias) {
    const int64_t map = z_.p * z_.q;
    for (int part = 0; part < parts_; ++part)
      for (int64_t i = 0; i < z_.n * z_.k * map; ++i) {
        W& value = sums_.value[part][size_t(i)];
        if (bias != nullptr) {
          const W b = bias[part][size_t(i / map % z_.k)];
          value += b;
          sums_.magnitude[part][size_t(i)] += std::fabs(double(b));
        }
        if (case_.relu && value < 0) value = 0;
      }
    if (bias != nullptr) ++length_;
  }

  // accuracy.md's gates: min(gamma_L, 2 sqrt(L) u) A; under "tf32" and "bf16" (2 u' + gamma_L) A; and one rounding to
  // bfloat16 or float16. Below the normal numbers every operation rounds to a multiple of the smallest number.
  void compute_bound(Gate gate, int part) {
    const double length = double(length_), u = facts_.unit, gamma = length * u / (1 - length * u);
    const bool leave = z_.dtype == DType::Float32 && z_.precision != Precision::Ieee;
    const double leave_unit = z_.precision == Precision::TF32 ? 0x1p-11 : 0x1p-8;
    // Where the same product is summed again and again all roundings go one way, and only the hard bound holds.
    const double typical = repeated() ? gamma : std::min(gamma, 2 * std::sqrt(length) * u);
    const double factor = leave ? 2 * leave_unit + gamma : typical;
    const double smallest = u == 0x1p-24 ? 0x1p-149 : facts_.smallest;
    double lost = length * smallest * (gate == Gate::Winograd ? 1024 : 1);  // products and sums of 36 points, and more
    if (gate == Gate::Dot && flushes()) lost += flushed();
    const bool tiles = gate == Gate::Winograd && (leave || case_.data == Data::Wide || repeated());
    const Plane<double> magnitude = tiles ? over_tiles(part) : sums_.magnitude[part];
    Plane<double>& bound = bounds_[int(gate)][part];
    bound.resize(magnitude.size());
    for (size_t i = 0; i < bound.size(); ++i) {
      bound[i] = factor * magnitude[i] + lost;
      if (facts_.output_unit > 0 && sums_.value[part][i] != 0)
        bound[i] += std::max(facts_.output_unit * double(std::fabs(sums_.value[part][i])), facts_.smallest / 2);
    }
    if (exact(gate)) std::fill(bound.begin(), bound.end(), 0.0);
  }

  // Whether an operand has the same number in many places: sums may then have few products that differ.
  bool repeated() const {
    for (const Layout& layout : case_.layout)
      if (layout.expand || layout.overlap) return true;
    return false;
  }
  // float32 under "ieee" is in parts that lose nothing.
  bool flushes() const { return z_.precision != Precision::Ieee || z_.dtype == DType::BFloat16; }
  // Products below 2^-126, and those of operands below it.
  double flushed() const {
    const Operand<W>& a = pass_ == Pass::InputGrad ? g_ : x_;
    const Operand<W>& b = pass_ == Pass::WeightGrad ? g_ : w_;
    double largest[2] = {0, 0};
    bool subnormal[2] = {false, false};
    for (int which = 0; which < 2; ++which)
      for (W value : (which ? b : a).part[0]) {
        const double size = std::fabs(double(value));
        if (!(size <= std::numeric_limits<double>::max())) continue;
        largest[which] = std::max(largest[which], size);
        // Also what a second or third part of a number falls below.
        subnormal[which] = subnormal[which] || (size != 0 && size < 0x1p-126);
      }
    return double(length_) * 0x1p-126 * (1 + (subnormal[0] ? largest[1] : 0) + (subnormal[1] ? largest[0] : 0));
  }

  // Largest neighbour within `reach` along both of the last dimensions, numbers that are not finite left out.
  static Plane<double> largest_around(const Plane<double>& from, int64_t maps, int64_t height, int64_t width,
                                      int64_t reach) {
    Plane<double> rows(from.size(), 0.0), result(from.size(), 0.0);
    const auto finite = [](double v) {
      return std::fabs(v) <= std::numeric_limits<double>::max() ? std::fabs(v) : 0.0;
    };
    for (int64_t line = 0; line < maps * height; ++line)
      for (int64_t q = 0; q < width; ++q)
        for (int64_t i = std::max<int64_t>(0, q - reach); i <= std::min(width - 1, q + reach); ++i)
          rows[size_t(line * width + q)] =
              std::max(rows[size_t(line * width + q)], finite(from[size_t(line * width + i)]));
    for (int64_t map = 0; map < maps; ++map)
      for (int64_t p = 0; p < height; ++p)
        for (int64_t i = std::max<int64_t>(0, p - reach); i <= std::min(height - 1, p + reach); ++i)
          for (int64_t q = 0; q < width; ++q) {
            double& to = result[size_t((map * height + p) * width + q)];
            to = std::max(to, rows[size_t((map * height + i) * width + q)]);
          }
    return result;
  }
  // Of a kernel that is cut into pieces of 3, or of 5.
  static int64_t missing_taps(int64_t taps) { return std::max((3 - taps % 3) % 3, taps > 3 ? (5 - taps % 5) % 5 : 0); }
  // A as the Winograd algorithm is judged: the largest over what one tile transforms together. Numbers of very
  // different magnitudes (zeros among others too, and few that are repeated), and in weight_grad those at the edges,
  // also meet in products that cancel and that no result has: there the operands themselves are taken for the largest
  // of their tiles.
  Plane<double> over_tiles(int part) const {
    // Four outputs along an axis, and those that the taps would read by which a kernel is filled up to whole pieces.
    const int64_t reach = 3 + std::max(missing_taps(z_.r), missing_taps(z_.s));
    const bool alike = (case_.data == Data::Signed || case_.data == Data::Positive) && !repeated();
    if (alike && pass_ != Pass::WeightGrad)
      return largest_around(sums_.magnitude[part], sizes_[0] * sizes_[1], sizes_[2], sizes_[3], reach);
    constexpr int64_t kEdge = 7, kAll = 64;
    const auto enlarged = [](const Operand<W>& t, int64_t maps, int64_t height, int64_t width, int64_t around) {
      Operand<W> out;
      if (t.part[0].empty()) return out;
      const Plane<double> from(t.part[0].begin(), t.part[0].end());
      const Plane<double> to = largest_around(from, maps, height, width, around);
      out.part[0].assign(to.begin(), to.end());
      return out;
    };
    Sums<W> sums;
    Oracle<W>(z_).run(pass_, enlarged(x_, z_.n * z_.c, z_.h, z_.w, kEdge),
                      enlarged(w_, z_.k * (z_.c / z_.groups), z_.r, z_.s, kAll),
                      enlarged(g_, z_.n * z_.k, z_.p, z_.q, kEdge), &sums);
    Plane<double> all = sums.magnitude[part];
    for (size_t i = 0; i < all.size(); ++i) all[i] = std::max(all[i], sums_.magnitude[part][i]);  // the bias
    return largest_around(all, sizes_[0] * sizes_[1], sizes_[2], sizes_[3], kEdge);
  }

  const Case& case_;
  const ConvProblem& z_;
  const Pass pass_;
  const Operand<W>&x_, &w_, &g_;
  const DTypeFacts facts_;
  Sums<W> sums_;
  Plane<W> rounded_[2];
  Plane<double> bounds_[kGates][2];
  bool ready_[kGates] = {};
  int64_t sizes_[4], length_;
  int parts_;
  bool exact_;
};

}  // namespace fuzz
