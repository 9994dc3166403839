// How the weights of forward and input_grad are cut into panels: for all plans of the engine but pairs of bfloat16.
#pragma once

#include "../plan_common.h"
#include "layout.h"

namespace conv_ext {

// Whether the elements along a dimension are neighbours in memory. Where there is one, its stride has no say.
inline bool are_neighbours(int64_t size, int64_t stride) { return size == 1 || stride == 1; }

inline bool source_channels_are_neighbours(const ConvProblem& z, Pass pass, const Strides& s) {
  return are_neighbours(z.groups * source_channels(z, pass), source_of(pass, s)[1]);
}
inline bool result_channels_are_neighbours(const ConvProblem& z, Pass pass, const Strides& s) {
  return are_neighbours(z.groups * result_channels(z, pass), result_of(pass, s)[1]);
}

constexpr int64_t kWorthPacking = 1 << 15;  // elements of weights that are worth a task of their own

// `widest`: vectors of the widest panel; where the lanes are positions, the most rows of one.
inline WeightPanels weight_panels(const ConvProblem& z, Pass pass, const Strides& strides, int64_t lanes,
                                  bool along_channels, int64_t joined_taps, int64_t widest, ChainsOf chains) {
  WeightPanels w{};
  w.parts = parts_of(z.dtype);
  w.unit = along_channels ? lanes : w.parts;
  const int64_t group_m = max_of(1, product(result_channels(z, pass), w.parts)), units = ceil_div(group_m, w.unit);
  w.along_channels = along_channels;
  w.chains = chains;
  w.joined_taps = joined_taps;
  w.channels = product(source_channels(z, pass), w.parts, joined_taps);
  w.panels = ceil_div(units, along_channels ? widest : max_of(1, widest / w.unit));
  w.panel_channels = ceil_div(units, w.panels) * w.unit;
  w.padded_m = units * w.unit;
  const int64_t* const stride = strides.weight;
  w.taps_are_neighbours = joined_taps == 1 && w.parts == 1 && stride[0] != 1 && stride[1] != 1 &&
                          are_neighbours(z.s, stride[3]) && (z.r == 1 || stride[2] == z.s);
  const int64_t elements = product(w.panel_channels, w.channels, z.r, z.s) / joined_taps;
  w.panels_per_task = max_of(1, kWorthPacking / max_of(1, elements));
  w.meets_padding =
      z.pad_top || z.pad_bottom || z.pad_left || z.pad_right || (pass == Pass::InputGrad && z.r * z.s > 1);
  w.packing_tasks = w.packed() ? ceil_div(product(z.groups, w.panels), w.panels_per_task) : 0;
  return w;
}

// Weights that are kept: how many bytes, and the format.
inline void count_kept(const ConvProblem& z, const WeightPanels& w, Plan* plan) {
  if (!w.kept) return;
  count_memory(z.dtype, &plan->kept_bytes,
               [&](auto number, Carver& memory) { panels_of_weights<decltype(number)>(z, w, memory); });
  plan->kept_format[0] = w.panel_channels;
  plan->kept_format[1] = w.panels;
  plan->kept_format[2] = 2 * int64_t(w.chains) + w.along_channels;
  plan->kept_format[3] = w.joined_taps;
}

}  // namespace conv_ext
