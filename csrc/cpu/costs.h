// What an algorithm is estimated to take: how often it does what takes its time, times cycles for each. The plan takes
// the algorithm with the least (`choose` in plan.cpp).
//
// An algorithm counts in its plan.cpp; the cycles are in cost_table.h, fitted to measured times by `python -m bench
// fit`. Counts of forward and input_grad are those of one image and of its share of what a call does once, so that the
// choice does not follow from N; nor do any from caches (machine.h).
#pragma once

#include "../common/roles.h"
#include "machine.h"

namespace conv_ext {

// Loops with cycles of their own. Where an algorithm has several, its plan.cpp says when each runs.
#define CONV_EXT_NESTS(NEST)       \
  NEST(DepthwiseChannels)          \
  NEST(DepthwiseColumns)           \
  NEST(DepthwiseColumnPairs)       \
  NEST(DepthwiseColumnsCopied)     \
  NEST(DepthwiseColumnPhases)      \
  NEST(DepthwiseColumnsSpread)     \
  NEST(Winograd2x2)                \
  NEST(Winograd4x4)                \
  NEST(GroupedSeveral)             \
  NEST(GroupedOne)                 \
  NEST(Pairs)                      \
  NEST(WindowsChannels)            \
  NEST(WindowsPositions)           \
  NEST(PanelsChannels)             \
  NEST(PanelsFewChannels)          \
  NEST(PanelsPositions)            \
  NEST(DepthwiseChannelsGrad)      \
  NEST(DepthwiseColumnsGrad)       \
  NEST(DepthwiseColumnPairsGrad)   \
  NEST(DepthwiseColumnsCopiedGrad) \
  NEST(WinogradGrad)               \
  NEST(GroupedSeveralGrad)         \
  NEST(GroupedOneGrad)             \
  NEST(PairsGrad)                  \
  NEST(PanelsChannelsGrad)         \
  NEST(PanelsPositionsGrad)        \
  NEST(PanelsOuterGrad)            \
  NEST(Tiles)                      \
  NEST(TilesLine)                  \
  NEST(TilesGrad)                  \
  NEST(TilesGradLine)
#define CONV_EXT_NEST(name) name,
// clang-format off
enum class Nest : int32_t {
  CONV_EXT_NESTS(CONV_EXT_NEST)
  Unknown,  // taken last: nobody has measured it
  Never     // it cannot be computed so, or is never worth it
};
// clang-format on
#undef CONV_EXT_NEST
constexpr int kNests = int(Nest::Unknown);
constexpr int kCounts = 10;

struct Work {
  Nest nest;
  double count[kCounts];  // unused ones are zero
};
constexpr Work kNever{Nest::Never, {}};

// Cycles of a core.
constexpr double kMostCycles = 1e300;
double cycles_of(const ConvProblem& z, const Machine& machine, const Work& work);
const char* nest_name(Nest nest);

// Images that share what forward and input_grad do once in a call, the packing of weights: as many as a batch may well
// have, for N has no say.
constexpr double kImagesOfCall = 8;

// Cycles of one step of a register tile of rows by vectors: of its multiply-adds, its loads, its weights where they
// come from the second level of cache; never fewer than a sum waits for its last product. And what the loop takes
// beside it.
inline double tile_cycles(const Rates& rates, double rows, double vectors, bool from_second_level) {
  const double times[] = {rows * vectors / rates.multiply_adds, (rows + vectors) / rates.loads,
                          from_second_level ? vectors * rates.l2_cycles : 0};
  double cycles = rates.latency;
  for (const double time : times) cycles = time > cycles ? time : cycles;
  return cycles + 0.5;
}

// Of many taps some are looked at, evenly spread.
constexpr int64_t kTapsLookedAt = 64;
// visit(tap) for each of them; returns for how many taps each stands.
template <class Visit>
inline double visit_some_taps(const Axis& axis, Visit visit) {
  const int64_t looked_at = min_of(axis.taps, kTapsLookedAt);
  for (int64_t i = 0; i < looked_at; ++i) {
    CONV_EXT_PLAN_STEP();
    const int64_t tap = axis.taps * i / looked_at;
    if (axis.phase_of(tap) < axis.phases()) visit(tap);
  }
  return double(axis.taps) / double(max_of(1, looked_at));
}

// Products along an axis: taps that an output has, in the mean over all phases, and which part of them reads the source
// and not the padding.
struct AxisWork {
  double taps, inside;

  static AxisWork of(const Axis& axis) {
    double all = 0, inside = 0;
    const double each = visit_some_taps(axis, [&](int64_t tap) {
      const int64_t count = axis.count(axis.phase_of(tap));
      all += double(count);
      inside += double(range_inside(axis.offset(tap), axis.step(), count, axis.source).count());
    });
    return {all * each / double(max_of(1, axis.output)), all > 0 ? inside / all : 1};
  }
};

// What the loops of a pass go over: of one image, or of all in weight_grad. Channels are real numbers.
struct LoopSizes {
  const Axis vertical, horizontal;
  const int64_t lanes;
  const AxisWork down, across;
  const double images, groups, m, c;          // of a group: channels of the result, and of the source
  const double sources, results;              // positions
  const double taps, inside;                  // of both axes
  const double row, rows;                     // outputs of a phase along both axes
  const bool phases;                          // outputs of a row belong to several
  const double source_v, result_v, weight_v;  // vectors; the weights' share of one image

  LoopSizes(const ConvProblem& z, Pass pass, const Machine& machine)
      : vertical(vertical_axis(z, pass)),
        horizontal(horizontal_axis(z, pass)),
        lanes(machine.vector_bytes / accumulator_bytes(z.dtype)),
        down(AxisWork::of(vertical)),
        across(AxisWork::of(horizontal)),
        images(pass == Pass::WeightGrad ? double(z.n) : 1),
        groups(double(z.groups)),
        m(double(max_of(1, result_channels(z, pass)) * parts_of(z.dtype))),
        c(double(max_of(1, source_channels(z, pass)) * parts_of(z.dtype))),
        sources(images * double(vertical.source) * double(horizontal.source)),
        results(images * double(vertical.output) * double(horizontal.output)),
        taps(down.taps * across.taps),
        inside(down.inside * across.inside),
        row(double(max_of(1, horizontal.longest_count()))),
        rows(double(max_of(1, vertical.longest_count()))),
        phases(vertical.phases() * horizontal.phases() > 1),
        source_v(sources * c * groups / double(lanes)),
        result_v(results * m * groups / double(lanes)),
        weight_v(groups * m * c * double(z.r) * double(z.s) / double(lanes) /
                 (pass == Pass::WeightGrad ? 1 : kImagesOfCall)) {}
  // Vectors that hold so many channels, and channels that fill whole vectors.
  double vectors(double channels) const { return double(ceil_div(int64_t(channels), lanes)); }
  double filled(double channels) const { return vectors(channels) * double(lanes); }
};

// Taps along a row, of all phases, that lead some of a phase's outputs [first, last) to the source.
inline double taps_met(const Axis& axis, int64_t first, int64_t last) {
  double met = 0;
  const double each = visit_some_taps(axis, [&](int64_t tap) {
    const int64_t low = first * axis.step() + axis.offset(tap);
    const int64_t end = min_of(last, axis.count(axis.phase_of(tap)));
    met += (end - 1) * axis.step() + axis.offset(tap) >= 0 && low < axis.source;
  });
  return met * each;
}

}  // namespace conv_ext
