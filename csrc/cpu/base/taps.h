// Where a packed tile of the source holds what each tap reads: the tables of direct, broadcast and panels.
//
// A tile is packed as (channel, column region, row position, column position, image); regions are explained in
// common/indexing.h.
#pragma once

#include "../../common/carver.h"

namespace conv_ext {

// Where a packed axis takes its positions from.
struct AxisTable {
  int64_t step, source, tile, regions, longest;
  Region* region;     // (regions)
  int64_t* begin;     // (regions) packed position of the region's first element
  int64_t* position;  // (taps) packed position of a tap for the tile's first output
  int64_t* column;    // (taps) region of a tap

  void lay_out(const Axis& axis, Carver& memory) {
    region = memory.take<Region>(axis.taps);
    begin = memory.take<int64_t>(axis.taps);
    position = memory.take<int64_t>(axis.taps);
    column = memory.take<int64_t>(axis.taps);
  }
  void build(const Axis& axis, int64_t tile_size) {
    step = axis.step();
    source = axis.source;
    tile = tile_size;
    const PackedExtent extent = walk_regions(axis, tile, [&](int64_t tap, int64_t index, const Region& r, int64_t at) {
      region[index] = r;
      column[tap] = index;
      position[tap] = at;
    });
    regions = extent.regions;
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

// The taps of both axes. Those of one pair of phases stand together.
struct Tables {
  Axis vertical, horizontal;
  AxisTable rows, columns;
  int64_t* tap_offset;   // (R S) packed offset of each tap
  int64_t* tap_weight;   // (R S) r * S + s, in the same order
  int64_t* phase_begin;  // (phases + 1) first tap of each pair of phases

  int64_t phases() const { return product(vertical.phases(), horizontal.phases()); }

  void lay_out(const ConvProblem& z, Pass pass, Carver& memory) {
    vertical = vertical_axis(z, pass);
    horizontal = horizontal_axis(z, pass);
    rows.lay_out(vertical, memory);
    columns.lay_out(horizontal, memory);
    tap_offset = memory.take<int64_t>(z.r, z.s);
    tap_weight = memory.take<int64_t>(z.r, z.s);
    phase_begin = memory.take<int64_t>(phases() + 1);
  }
  // For tiles of so many outputs of a phase, of so many images side by side.
  void build(int64_t tile_h, int64_t tile_w, int64_t images) {
    rows.build(vertical, tile_h);
    columns.build(horizontal, tile_w);
    int64_t row_positions = 0;
    for (int64_t i = 0; i < rows.regions; ++i) row_positions += rows.region[i].length;
    int64_t next = 0;
    for (int64_t phase = 0; phase < phases(); ++phase) {
      phase_begin[phase] = next;
      for (int64_t r = 0; r < vertical.taps; ++r) {
        if (vertical.phase_of(r) != phase / horizontal.phases()) continue;
        const int64_t row = rows.begin[rows.column[r]] + rows.position[r];
        for (int64_t s = 0; s < horizontal.taps; ++s) {
          if (horizontal.phase_of(s) != phase % horizontal.phases()) continue;
          tap_offset[next] =
              ((columns.column[s] * row_positions + row) * columns.longest + columns.position[s]) * images;
          tap_weight[next++] = r * horizontal.taps + s;
        }
      }
    }
    phase_begin[phases()] = next;
  }
};

}  // namespace conv_ext
