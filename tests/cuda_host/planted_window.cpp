// The kernels for few channels, small enough to be compiled again with each planted error, in the four ways.
//
// forward in two chunks of one source channel, and a depthwise weight_grad over three tiles of rows. Exit status 1 if a
// sum is wrong.
#include <memory>

#include "device.h"
#include "window/window.cuh"
#include "window/window_grad.cuh"

namespace {

using namespace conv_ext::cuda;

constexpr int kH = 21, kW = 13, kOutputs = kH * kW, kTaps = 9;

std::unique_ptr<float[]> numbers(int count, int factor, int modulus) {
  std::unique_ptr<float[]> result(new float[size_t(count)]);
  for (int i = 0; i < count; ++i) result[size_t(i)] = float(i * factor % modulus - modulus / 2);
  return result;
}

// Rows of the given columns, from the column before the first one, which is padding, on.
Box box_of(int rows, int line, int copy_bytes, int width, int height) {
  Box box{};
  box.rows = rows;
  box.columns = box.line = box.pitch_h = line;
  box.middle = divider(rows);
  box.pitch_c = rows * line;
  box.pitch_w = 1;
  box.lanes_log = 3;
  box.copy_bytes = copy_bytes;
  box.from_c = height * width;
  box.from_h = width;
  box.from_w = 1;
  return box;
}
// Of a 3x3 kernel with padding 1.
float at(const float* plane, int y, int x, int tap) {
  const int h = y + tap / 3 - 1, w = x + tap % 3 - 1;
  return h < 0 || w < 0 || h >= kH || w >= kW ? 0 : plane[h * kW + w];
}

bool forward_is_right() {
  constexpr int kChannels = 2, kTileH = 8;
  const auto source = numbers(kChannels * kOutputs, 7, 11), weights = numbers(kChannels * kTaps, 5, 13),
             result = numbers(kOutputs, 0, 1);
  WindowParameters<float, float> p{};
  p.vertical = {0, 3, kH, 1, 1, 1};
  p.horizontal = {0, 3, kW, 1, 1, 1};
  p.box = box_of(kTileH + 2, 20, 4, kW, kH);
  p.source = {source.get(), kH, kW};
  p.groups = p.rows = p.tile_groups = p.tile_rows = p.chunk = p.tiles_g = p.tiles_m = p.tiles_w = 1;
  p.channels = kChannels;
  p.height = kH;
  p.width = p.tile_w = kW;
  p.tile_h = kTileH;
  p.tiles_h = 3;
  p.items = kW;
  p.threads = 64;
  p.first = divider(kW);
  p.second = p.group = p.pitch_m = divider(1);
  p.phase_h = divider(kTileH);
  p.phase_w = divider(kW);
  p.taps = divider(kTaps);
  p.taps_w = divider(3);
  p.weights_at = (kTileH + 2) * 20 * 4;
  p.phases_at = p.weights_at + kTaps * 4;
  p.weights = weights.get();
  p.weight_c = kTaps;
  p.weight_h = 3;
  p.weight_w = 1;
  p.to_h = kW;
  p.to_w = 1;
  p.result.data = result.get();
  launch(window_gather<float, float, AnyWindow<float, float, 1, 8>, false>, p.tiles_h, p.threads,
         p.phases_at + 2 * int(sizeof(PhaseAxis)), nullptr, p);
  for (int i = 0; i < kOutputs; ++i) {
    float sum = 0;
    for (int c = 0; c < kChannels; ++c)
      for (int tap = 0; tap < kTaps; ++tap)
        sum += weights[size_t(c * kTaps + tap)] * at(source.get() + c * kOutputs, i / kW, i % kW, tap);
    if (!(result[size_t(i)] == sum)) return false;
  }
  return true;
}

bool weight_grad_is_right() {
  constexpr int kChannels = 8, kTileH = 8, kLanes = 8;
  const auto input = numbers(kChannels * kOutputs, 7, 11), grad = numbers(kChannels * kOutputs, 5, 13),
             result = numbers(kChannels * kTaps, 0, 1);
  WindowGradParameters<float, float> p{};
  p.vertical = {0, 3, kH, 1, 1, 1};
  p.horizontal = {0, 3, kW, 1, 1, 1};
  p.input_box = box_of(kTileH + 2, 20, 4, kW, kH);
  p.grad_box = box_of(kTileH, 16, 4, kW, kH);
  p.input = {input.get(), kH, kW};
  p.grad = {grad.get(), kH, kW};
  p.groups = p.tile_groups = p.blocks_m = p.items = kChannels;
  p.rows = p.channels = p.tile_rows = p.tile_columns = p.tiles_g = p.tiles_m = p.tiles_c = p.splits = p.tiles_w = 1;
  p.tile_h = kTileH;
  p.tile_w = kW;
  p.tiles_h = 3;
  p.tiles = p.step = 3;
  p.lanes = kLanes;
  p.by_lanes = divider(kLanes);
  p.by_items = p.by_blocks_m = divider(kChannels);
  p.in_group = divider(1);
  p.by_tile_w = divider(kW);
  p.grad_at = kChannels * (kTileH + 2) * 20;
  p.stage_bytes = (p.grad_at + kChannels * kTileH * 16) * 4;
  p.to_h = 3;
  p.to_w = 1;
  p.result.data = result.get();
  p.result.stride_m = kTaps;
  launch(window_grad<float, float, FixedGrad<float, float, 3, 1>>, 1, kGradThreads, 2 * p.stage_bytes, nullptr, p);
  for (int i = 0; i < kChannels * kTaps; ++i) {
    float sum = 0;
    for (int j = 0; j < kOutputs; ++j)
      sum += grad[size_t(i / kTaps * kOutputs + j)] * at(input.get() + i / kTaps * kOutputs, j / kW, j % kW, i % kTaps);
    if (!(result[size_t(i)] == sum)) return false;
  }
  return true;
}

}  // namespace

int main() {
  for (int way = 0; way < 4; ++way) {
    machine.late = way & 1;
    machine.reversed = way & 2;
    if (!forward_is_right() || !weight_grad_is_right()) return 1;
  }
  return 0;
}
