// As planted.cpp, for the accuracy of float32 by parts: forward of a 1x1 kernel on three_tf32 as Ampere computes it,
// and on wgmma. Sums of 32 to 64 positive numbers, then of numbers whose magnitudes are far apart. Exit status 1 if one
// is further off than 2 sqrt(L) roundings of float32.
#include <math.h>

#include <memory>
#include <random>

#include "wgmma/wgmma.cuh"
#include "passes.cuh"
#include "plan.h"

namespace {

using namespace conv_ext::cuda;

constexpr int kRows = 64, kPositions = 128, kMost = 64;
std::unique_ptr<float[]> source(new float[kPositions * kMost]), weights(new float[kRows * kMost]),
    result(new float[kRows * kPositions]);

void run_three_tf32(int length) {
  using Pass = Gather<float, float, Load::KVector>;
  Pass::Parameters p{};
  p.grid = {1, 2, 1, 1, 1, length / 16};
  p.vertical = {0, 1, 1, 1, 1, 0};
  p.horizontal = {0, 1, kPositions, 1, 1, 0};
  p.phases_w = p.images = 1;
  p.rows = kRows;
  p.channels = length;
  p.source = {source.get(), 1, kPositions};
  p.from = {0, 1, 0, length};
  p.to = {0, kPositions, 0, 1};
  p.weights = weights.get();
  p.pitch = length;
  p.result.data = result.get();
  p.result.stride_m = kPositions;
  tensor_core = {24, true};
  launch(igemm<Pass, ThreeTF32, SmallTile>, p.grid.blocks(), SmallTile::kThreads,
         SharedStages<ThreeTF32, SmallTile, Order::Along>::kBytes, nullptr, p);
}

void run_wgmma(int length) {
  using Group = ThreeBF16Group;
  std::unique_ptr<bfloat16[]> x(new bfloat16[3 * kPositions * kMost]()), w(new bfloat16[3 * kRows * kMost]());
  for (int part = 0; part < 3; ++part)
    for (int c = 0; c < length; ++c) {
      for (int i = 0; i < kPositions; ++i)
        x[size_t((part * kPositions + i) * kMost + c)] = Group::part(source[size_t(i * length + c)], part);
      for (int i = 0; i < kRows; ++i)
        w[size_t((part * kRows + i) * kMost + c)] = Group::part(weights[size_t(i * length + c)], part);
    }
  WgmmaParameters<float> p{};
  GatherPhase& phase = p.phases[0];
  phase.taps_h = phase.taps_w = phase.delta_h = phase.delta_w = 1;
  phase.count_h = 1;
  phase.count_w = kPositions;
  PatchesMap patches{Number::BFloat16, x.get(), {kMost, kPositions, 1, 3}, {}, {0, 0}, {0, 0}, {1, 1}, 64, 128};
  patches.stride[0] = kMost * 2;
  patches.stride[1] = patches.stride[2] = kPositions * patches.stride[0];
  encode(patches, &p.source[0]);
  encode(RowsMap{Number::BFloat16, w.get(), kMost, 1, 3 * kRows, kMost * 2, kMost * 2, 64, 64}, &p.weights);
  p.grid = {1, 1, 1, 1, 1, 1};
  p.tiles = p.blocks = p.images = p.tap_steps = p.part_steps = p.chain_steps = 1;
  p.rows = kRows;
  p.last_products = (length + 15) / 16;
  p.step_h = p.step_w = p.output_step_h = p.output_step_w = 1;
  p.to = {0, kPositions, 0, 1};
  p.result.data = result.get();
  p.result.stride_m = kPositions;
  tensor_core = {25, false};
  launch(wgmma_gather<Group, 64>, p.blocks, kWgmmaThreads, WgmmaShared<Group, 64>::kBytes, nullptr, p);
}

bool accurate(int length) {
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kPositions; ++i) {
      double sum = 0, whole = 0;
      for (int c = 0; c < length; ++c) {
        const double product = double(source[size_t(i * length + c)]) * double(weights[size_t(row * length + c)]);
        sum += product;
        whole += fabs(product);
      }
      if (!(fabs(double(result[size_t(row * kPositions + i)]) - sum) <= 2 * sqrt(length) * 0x1p-24 * whole))
        return false;
    }
  return true;
}

// bfloat16 on mma.sync, positive numbers, in two chains that are as long as the plan allows; the sums before they are
// rounded to bfloat16.
bool chains_of_bfloat16_are_accurate() {
  using Pass = Gather<bfloat16, float, Load::KVector>;
  constexpr int kLength = 2 * int(conv_ext::kCudaLongestChain);
  std::unique_ptr<bfloat16[]> x(new bfloat16[kPositions * kLength]), w(new bfloat16[kRows * kLength]);
  std::mt19937 random(7);
  for (int i = 0; i < kPositions * kLength; ++i) narrow(float(random() >> 8) * 0x1p-24f, &x[size_t(i)]);
  for (int i = 0; i < kRows * kLength; ++i) narrow(float(random() >> 8) * 0x1p-24f, &w[size_t(i)]);
  Pass::Parameters p{};
  p.grid = {1, 2, 1, 1, 1, kLength / 32, kLength / 64};
  p.vertical = {0, 1, 1, 1, 1, 0};
  p.horizontal = {0, 1, kPositions, 1, 1, 0};
  p.phases_w = p.images = 1;
  p.rows = kRows;
  p.channels = kLength;
  p.source = {x.get(), 1, kPositions};
  p.from = {0, 1, 0, kLength};
  p.to = {0, kPositions, 0, 1};
  p.weights = w.get();
  p.pitch = kLength;
  p.result.partial = result.get();
  p.result.stride_m = kPositions;
  tensor_core = {24, true};
  launch(igemm<Pass, TensorCores<bfloat16>, SmallTile>, p.grid.blocks(), SmallTile::kThreads,
         SharedStages<TensorCores<bfloat16>, SmallTile, Order::Along>::kBytes, nullptr, p);
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kPositions; ++i) {
      double sum = 0;
      for (int c = 0; c < kLength; ++c)
        sum += double(widen(x[size_t(i * kLength + c)])) * double(widen(w[size_t(row * kLength + c)]));
      if (!(fabs(double(result[size_t(row * kPositions + i)]) - sum) <= 2 * sqrt(kLength) * 0x1p-24 * sum))
        return false;
    }
  return true;
}

}  // namespace

int main() {
  if (!chains_of_bfloat16_are_accurate()) return 1;
  std::mt19937 random(7);
  for (const bool far_apart : {false, true})
    for (int length = 32; length <= kMost; length += 16) {
      int exponent[kMost] = {};
      if (far_apart)
        for (int& e : exponent) e = int(random() % 253) - 149;
      const auto number = [&](int e) { return ldexpf(float(random() >> 8) * 0x1p-24f, e); };
      for (int i = 0; i < kPositions * length; ++i) source[size_t(i)] = number(exponent[i % length]);
      for (int i = 0; i < kRows * length; ++i) weights[size_t(i)] = number(far_apart ? -46 - exponent[i % length] : 0);
      for (const auto& run : {run_three_tf32, run_wgmma}) {
        run(length);
        if (!accurate(length)) return 1;
      }
    }
  return 0;
}
