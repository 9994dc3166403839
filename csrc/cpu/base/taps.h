// The taps of a kernel: which of them a phase has, where they read, and where a packed tile holds that.
#pragma once

#include "../../common/carver.h"

namespace conv_ext {

// The taps that the outputs of one phase of an axis read, in the order of the positions: with tap number
// tap + j * tap_step output i reads the position  i * axis.step() + offset + j * offset_step.
struct PhaseTaps {
  int64_t count, tap, tap_step, offset, offset_step;

  static PhaseTaps of(const Axis& axis, int64_t phase) {
    PhaseTaps p{0, 0, 1, 0, 1};
    int64_t last = 0;
    for (int64_t t = 0; t < axis.taps; ++t) {
      if (axis.phase_of(t) != phase) continue;
      if (p.count == 0) p.tap = t;
      if (p.count == 1) p.tap_step = t - p.tap;
      last = t;
      ++p.count;
    }
    if (axis.inverse && p.count > 0) {
      p.tap = last;
      p.tap_step = -p.tap_step;
    }
    p.offset = axis.offset(p.tap);
    if (p.count > 1) p.offset_step = axis.offset(p.tap + p.tap_step) - p.offset;
    return p;
  }
  int64_t tap_at(int64_t j) const { return tap + j * tap_step; }
  int64_t offset_at(int64_t j) const { return offset + j * offset_step; }
  int64_t last_offset() const { return offset_at(count - 1); }
};
// How far apart the taps of one phase are.
inline int64_t tap_distance(const Axis& axis) {
  return axis.inverse ? axis.stride / greatest_common_divisor(axis.stride, axis.dilation) : 1;
}

// The source positions that the outputs of an axis read, all phases together, packed as one run: the i-th output of a
// phase finds that of a tap at packed position i * output_step + (offset(tap) - low).
struct Reach {
  int64_t low, span;                 // smallest offset; packed positions from there to the largest, both included
  int64_t source_step, output_step;  // source positions between packed neighbours; packed ones between outputs

  // Of so many outputs of a phase.
  int64_t extent(int64_t outputs) const { return outputs > 0 ? (outputs - 1) * output_step + span : 0; }
};
inline Reach reach_of(const Axis& axis) {
  int64_t low = 0, high = 0;
  bool any = false;
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    CONV_EXT_PLAN_STEP();
    if (axis.phase_of(tap) >= axis.phases()) continue;
    const int64_t offset = axis.offset(tap);
    low = any ? min_of(low, offset) : offset;
    high = any ? max_of(high, offset) : offset;
    any = true;
  }
  return {low, high - low + 1, 1, axis.step()};
}

// The taps of both axes, those of one pair of phases after the other, of each the rows one after the other.
enum class TapOrder { ByNumber, ByPosition };
struct TapTable {
  Axis vertical, horizontal;
  int64_t *row, *column;  // (R S) source position of the tap for output 0 of its phase
  int64_t* tap;           // (R S) r * S + s
  int64_t* begin;         // (phases + 1) a phase's first tap

  int64_t phases() const { return product(vertical.phases(), horizontal.phases()); }
  int64_t count(int64_t phase) const { return begin[phase + 1] - begin[phase]; }

  void lay_out(const ConvProblem& z, Pass pass, Carver& memory) {
    vertical = vertical_axis(z, pass);
    horizontal = horizontal_axis(z, pass);
    const int64_t taps = product(z.r, z.s);
    row = memory.take<int64_t>(taps);
    column = memory.take<int64_t>(taps);
    tap = memory.take<int64_t>(taps);
    begin = memory.take<int64_t>(phases() + 1);
  }
  // Where `joined` taps of a row are read as one, it is the first of them.
  void build(TapOrder order, int64_t joined = 1) {
    const auto place = [order](const Axis& axis, const PhaseTaps& taps, int64_t i) {
      return order == TapOrder::ByNumber && axis.inverse ? taps.count - 1 - i : i;
    };
    int64_t next = 0;
    for (int64_t fh = 0; fh < vertical.phases(); ++fh) {
      const PhaseTaps down = PhaseTaps::of(vertical, fh);
      for (int64_t fw = 0; fw < horizontal.phases(); ++fw) {
        const PhaseTaps across = PhaseTaps::of(horizontal, fw);
        begin[fh * horizontal.phases() + fw] = next;
        for (int64_t i = 0; i < down.count; ++i)
          for (int64_t j = 0; j < across.count; j += joined) {
            const int64_t y = place(vertical, down, i), x = place(horizontal, across, j);
            row[next] = down.offset_at(y);
            column[next] = across.offset_at(x);
            tap[next++] = down.tap_at(y) * horizontal.taps + across.tap_at(x);
          }
      }
    }
    begin[phases()] = next;
  }
};

// A tile is packed as (channel, column region, row position, column position, image); regions are explained in
// common/indexing.h. Where a packed axis takes its positions from:
struct AxisTable {
  int64_t step, source, tile, regions, positions, longest;
  Region* region;      // (regions)
  int64_t* begin;      // (regions) packed position of the region's first element
  int64_t* position;   // (taps) packed position of a tap for the tile's first output
  int64_t* region_of;  // (taps)

  void lay_out(const Axis& axis, Carver& memory) {
    region = memory.take<Region>(axis.taps);
    begin = memory.take<int64_t>(axis.taps);
    position = memory.take<int64_t>(axis.taps);
    region_of = memory.take<int64_t>(axis.taps);
  }
  void build(const Axis& axis, int64_t tile_size) {
    step = axis.step();
    source = axis.source;
    tile = tile_size;
    const PackedExtent extent = walk_regions(axis, tile, [&](int64_t tap, int64_t index, const Region& r, int64_t at) {
      region[index] = r;
      region_of[tap] = index;
      position[tap] = at;
    });
    regions = extent.regions;
    positions = extent.positions;
    longest = extent.longest;
    int64_t next = 0;
    for (int64_t i = 0; i < regions; ++i) {
      begin[i] = next;
      next += region[i].length;
    }
  }
  // Source position of packed position j of a region in the tile whose first output is i0.
  int64_t source_at(const Region& r, int64_t i0, int64_t j) const { return (r.first + i0 + j) * step + r.residue; }
};

// Where a tile holds what each tap reads.
struct PackedTaps {
  TapTable taps;  // by number
  AxisTable rows, columns;
  int64_t* offset;  // (R S) packed offset of each

  void lay_out(const ConvProblem& z, Pass pass, Carver& memory) {
    taps.lay_out(z, pass, memory);
    rows.lay_out(taps.vertical, memory);
    columns.lay_out(taps.horizontal, memory);
    offset = memory.take<int64_t>(z.r, z.s);
  }
  // For tiles of so many outputs of a phase, of so many images side by side.
  void build(int64_t tile_h, int64_t tile_w, int64_t images) {
    taps.build(TapOrder::ByNumber);
    rows.build(taps.vertical, tile_h);
    columns.build(taps.horizontal, tile_w);
    for (int64_t t = 0; t < taps.begin[taps.phases()]; ++t) {
      const int64_t r = taps.tap[t] / taps.horizontal.taps, s = taps.tap[t] % taps.horizontal.taps;
      const int64_t row = rows.begin[rows.region_of[r]] + rows.position[r];
      offset[t] = ((columns.region_of[s] * rows.positions + row) * columns.longest + columns.position[s]) * images;
    }
  }
};

}  // namespace conv_ext
