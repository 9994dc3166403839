// Where an element of a matrix of patches lies: every pass is a product of matrices that are never written down.
//
// Start reading here. The matrix of patches of a tensor has a row for each position (n, p, q) and a column for each tap
// and channel (r, s, c); its element is  x[n, c, h(p) + h(r), w(q) + w(s)], or 0 outside the tensor. Both of its
// indices are sums of their own part of the address and of h and w, so that one struct serves rows and columns:
//
//                 gemm_m             gemm_n                  gemm_k
//   forward       K/g     Line       N P Q      Positions    R S C/g   Taps
//   input_grad    C/g     Line       N H W      Positions    R S K/g   Taps, one product for each phase of the stride
//   weight_grad   K/g     Line       R S C/g    Taps         N P Q     Positions
#pragma once

#include "device.h"

namespace conv_ext {
namespace cuda {

// One index of the matrix: its part of the address in elements, and of the row and column in the tensor.
struct Coordinate {
  int64_t offset;
  int32_t h, w;
};
// Outside any tensor, whatever is added to it: extents are below 2^30.
constexpr int32_t kNowhere = -(int32_t(1) << 30);

template <class T>
struct Patches {
  const T* data;
  int32_t h, w;  // extents of the tensor that is read

  CONV_EXT_DEVICE bool holds(const Coordinate& a, const Coordinate& b) const {
    return uint32_t(a.h + b.h) < uint32_t(h) && uint32_t(a.w + b.w) < uint32_t(w);
  }
};

// Three digits, the lowest of which runs fastest.
struct Digits {
  int32_t high, middle, low;
};
CONV_EXT_DEVICE Digits digits_of(int64_t index, int32_t middle, int32_t low) {
  if (index < (int64_t(1) << 31)) {  // a division of 64 bits costs five times as much
    const uint32_t i = uint32_t(index), rest = i / uint32_t(low);
    return {int32_t(rest / uint32_t(middle)), int32_t(rest % uint32_t(middle)), int32_t(i % uint32_t(low))};
  }
  const int64_t rest = index / low;
  return {int32_t(rest / middle), int32_t(rest % middle), int32_t(index % low)};
}

struct Quotient {
  int64_t whole;
  int32_t rest;
};
CONV_EXT_DEVICE Quotient divide(int64_t index, int32_t by) {
  if (index < (int64_t(1) << 31)) return {uint32_t(index) / uint32_t(by), int32_t(uint32_t(index) % uint32_t(by))};
  return {index / by, int32_t(index % by)};
}

// Maps of an index to Coordinates follow. Of indices whose lowest digits are below together(), and that differ in these
// alone, move() makes one's coordinate another's.

// Positions (n, p, q): the image, and outputs that stand `step` apart from `first` on.
struct Positions {
  int32_t images, rows, columns;
  int32_t step_h, step_w, first_h, first_w;
  int64_t stride_n, stride_h, stride_w;  // elements of the tensor that is read or written

  CONV_EXT_DEVICE int64_t count() const { return int64_t(images) * rows * columns; }
  CONV_EXT_DEVICE int32_t middle() const { return rows; }
  CONV_EXT_DEVICE int32_t low() const { return columns; }
  CONV_EXT_DEVICE Coordinate at(const Digits& d) const {
    if (d.high >= images) return {0, kNowhere, 0};
    const int32_t h = d.middle * step_h + first_h, w = d.low * step_w + first_w;
    return {d.high * stride_n + h * stride_h + w * stride_w, h, w};
  }
  CONV_EXT_DEVICE int32_t together() const { return columns; }
  CONV_EXT_DEVICE void move(Coordinate& c, int32_t by) const {
    c.w += by * step_w;
    c.offset += by * step_w * stride_w;
  }
};

// Taps and channels (r, s, c), the channels of a tap together. Taps stand `step` apart, in either direction.
struct Taps {
  int32_t rows, columns, channels;
  int32_t step_h, step_w;
  int64_t stride_c, stride_h, stride_w;
  int32_t beyond = 0;  // of the channels, the last so many fill up a vector: they are nowhere

  CONV_EXT_DEVICE int64_t count() const { return int64_t(rows) * columns * channels; }
  CONV_EXT_DEVICE int32_t middle() const { return columns; }
  CONV_EXT_DEVICE int32_t low() const { return channels; }
  CONV_EXT_DEVICE Coordinate at(const Digits& d) const {
    if (d.high >= rows || d.low >= channels - beyond) return {0, kNowhere, 0};
    const int32_t h = d.high * step_h, w = d.middle * step_w;
    return {d.low * stride_c + h * stride_h + w * stride_w, h, w};
  }
  CONV_EXT_DEVICE int32_t together() const { return channels - beyond; }
  CONV_EXT_DEVICE void move(Coordinate& c, int32_t by) const { c.offset += by * stride_c; }
};

// Elements or rows at one distance from each other.
struct Line {
  int32_t length;
  int64_t stride;

  CONV_EXT_DEVICE int64_t count() const { return length; }
  CONV_EXT_DEVICE int32_t middle() const { return 1; }
  CONV_EXT_DEVICE int32_t low() const { return 1; }
  CONV_EXT_DEVICE Coordinate at(const Digits& d) const { return {d.high * stride, d.high < length ? 0 : kNowhere, 0}; }
};

template <class Map>
CONV_EXT_DEVICE Coordinate coordinate(const Map& map, int64_t index) {
  return map.at(digits_of(index, map.middle(), map.low()));
}

// Goes along one index in small steps without dividing, and hardly ever asks the map anew.
template <class Map>
struct Walker {
  Map map;
  Digits digits;
  Coordinate now;

  CONV_EXT_DEVICE void seek(int64_t index) {
    digits = digits_of(index, map.middle(), map.low());
    now = map.at(digits);
  }
  CONV_EXT_DEVICE const Coordinate& here() const { return now; }
  CONV_EXT_DEVICE void advance(int32_t by) {
    digits.low += by;
    if (digits.low < map.together()) {
      map.move(now, by);
      return;
    }
    while (digits.low >= map.low()) {
      digits.low -= map.low();
      if (++digits.middle == map.middle()) {
        digits.middle = 0;
        ++digits.high;
      }
    }
    now = map.at(digits);
  }
};
template <>
struct Walker<Line> {
  Line map;
  Coordinate now;
  int32_t index;

  CONV_EXT_DEVICE void seek(int64_t first) {
    index = int32_t(first);
    now = map.at({index, 0, 0});
  }
  CONV_EXT_DEVICE const Coordinate& here() const { return now; }
  CONV_EXT_DEVICE void advance(int32_t by) {
    index += by;
    now.offset += by * map.stride;
    now.h = map.at({index, 0, 0}).h;
  }
};

// One axis of a pass, as in csrc/indexing.h: output i of a phase reads the source at i step + first + tap delta.
struct Axis {
  int32_t inverse;       // input_grad
  int32_t taps, output;  // of the whole axis
  int32_t stride, dilation, pad;
};
struct PhaseAxis {
  int32_t step, first, delta;         // in the source
  int32_t taps, first_tap, tap_step;  // of the kernel
  int32_t count, first_output, output_step;
};
CONV_EXT_DEVICE PhaseAxis phase_of(const Axis& axis, int32_t phase) {
  if (!axis.inverse) return {axis.stride, -axis.pad, axis.dilation, axis.taps, 0, 1, axis.output, 0, 1};
  // Output phase + i stride reads p where  phase + i stride + pad = p stride + tap dilation: taps that leave the same
  // rest as phase + pad, which come round after stride / gcd(stride, dilation).
  PhaseAxis a{1, 0, 0, 0, 0, 1, 0, phase, axis.stride};
  int32_t divisor = axis.stride;
  for (int32_t rest = axis.dilation; rest != 0;) {
    const int32_t next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  a.tap_step = axis.stride / divisor;
  a.delta = -(axis.dilation / divisor);
  a.count = phase < axis.output ? (axis.output - 1 - phase) / axis.stride + 1 : 0;
  for (int32_t tap = 0; tap < a.tap_step && tap < axis.taps; ++tap) {
    const int32_t distance = phase + axis.pad - tap * axis.dilation;
    if (distance % axis.stride != 0) continue;
    a.first_tap = tap;
    a.first = distance / axis.stride;
    a.taps = (axis.taps - 1 - tap) / a.tap_step + 1;
    break;
  }
  return a;
}

}  // namespace cuda
}  // namespace conv_ext
