// The plan of the CUDA kernels for few channels: depthwise, grouped, first_layer.
//
// The limits in this file are estimates: none has been measured on a GPU yet.
#include "plan.h"

#include "../plan.h"
#include "../../common/plan_steps.h"

namespace conv_ext {
namespace {

constexpr int64_t kMostShared = 64 << 10;       // what every device has
constexpr int64_t kUsualShared = 44 << 10;      // a tile grows up to this, so that several blocks are resident
constexpr int64_t kItems = 4 * kWindowThreads;  // NCHW: a tile grows until each thread has four items
constexpr int64_t kBlocksOfImage = 32;          // tiles do not grow where an image has fewer blocks than this
constexpr int64_t kWidest = 128;                // columns of a tile
constexpr int64_t kLineBytes = 128;             // channels_last: of the channels that a block reads side by side
constexpr int64_t kMostPhases = 16;
constexpr int64_t kRowsOfBlock = 64;        // channels of the result that a block computes of one group
constexpr int64_t kLongSum = 16;            // source channels beyond which they are staged in chunks,
constexpr int64_t kChunkBytes = 8 << 10;    // of so many bytes of weights
constexpr int64_t kManyWeights = 24 << 10;  // bytes of weights that are better staged in chunks than for fewer rows

struct Tiles {
  const ConvProblem& z;
  Pass pass;
  Axis vertical, horizontal;
  int64_t rows, channels;  // of a group: of the result, of the source
  CudaWindow w{};

  int64_t step(const Axis& a) const { return a.inverse ? a.stride : 1; }
  int64_t unit_h() const { return w.height * (w.fixed ? 1 : step(vertical)); }
  int64_t unit_w() const { return step(horizontal); }
  int64_t height() const { return max_of(1, vertical.output - w.origin_h); }
  int64_t width() const { return max_of(1, horizontal.output - w.origin_w); }
  int64_t columns() const { return w.fixed ? w.tile_w / step(horizontal) : w.tile_w; }  // threads side by side
  int64_t items() const { return w.groups * w.rows / w.channels * (w.tile_h / w.height) * columns(); }
  int64_t blocks() const {
    return product(ceil_div(z.groups, w.groups), ceil_div(rows, w.rows), ceil_div(height(), w.tile_h),
                   ceil_div(width(), w.tile_w));
  }
  void measure() {
    w.box_bytes = window_box(z, vertical, horizontal, w.tile_h, w.tile_w, w.groups * w.chunk).bytes;
    w.weight_bytes = round_up(product(w.chunk, z.r, z.s, w.groups, w.rows, real_bytes(z) == 8 ? 8 : 4), 16);
    const int64_t phases = w.fixed ? 0 : step(vertical) + step(horizontal);
    w.shared_bytes = w.box_bytes + w.weight_bytes + phases * 9 * 4;
  }
  bool fits(int64_t most) {
    measure();
    return w.shared_bytes <= most;
  }
  // Takes a size where the tile still fits with it.
  bool try_size(int64_t CudaWindow::*size, int64_t value) {
    const CudaWindow before = w;
    w.*size = value;
    if (w.*size > before.*size && fits(kUsualShared) && blocks() >= kBlocksOfImage &&
        (w.chunk == channels || items() <= kWindowThreads))
      return true;
    w = before;
    return false;
  }
};

// Equal tiles instead of a last one that is nearly empty.
int64_t even_tile(int64_t extent, int64_t tile, int64_t unit) {
  return round_up(ceil_div(extent, ceil_div(extent, tile)), unit);
}

// Channels of the result that one thread computes.
int64_t rows_of_thread(int64_t rows, bool wide) { return rows == 1 ? 1 : rows <= 4 || wide ? 4 : 8; }

Tiles cut(const ConvProblem& z, Pass pass) {
  const bool forward = pass == Pass::Forward, wide = real_bytes(z) == 8;
  Tiles t{z,
          pass,
          window_axis(vertical_axis(z, pass)),
          window_axis(horizontal_axis(z, pass)),
          max_of(1, forward ? z.group_k() : z.group_c()),
          max_of(1, forward ? z.group_c() : z.group_k())};
  CudaWindow& w = t.w;
  const int64_t stride = z.stride_h;
  w.channels = rows_of_thread(t.rows, wide);
  const bool square = z.r == z.s && z.stride_h == z.stride_w && z.dilation_h == 1 && z.dilation_w == 1;
  if (w.channels == 1 && !wide && square && (z.r == 3 || z.r == 5) && stride <= 2) w.fixed = z.r;
  w.height = wide || (w.fixed && stride == 2) ? 4 : 8;
  if (w.fixed && t.vertical.inverse) {
    w.origin_h = -floor_mod(z.pad_top, stride);
    w.origin_w = -floor_mod(z.pad_left, stride);
  }
  const int64_t vector = 16 / real_bytes(z);
  w.rows = even_tile(t.rows, kRowsOfBlock, w.channels);
  w.groups = 1;
  w.chunk = t.channels;
  if (t.channels > kLongSum)
    w.chunk = max_of(1, min_of(kLongSum, kChunkBytes / product(z.r, z.s, w.rows, wide ? 8 : 4)));
  w.tile_h = t.unit_h();
  w.tile_w = even_tile(t.width(), z.channels_last ? 8 : kWidest, t.unit_w());
  if (z.channels_last && w.chunk == t.channels) {
    const int64_t together = max_of(1, kLineBytes / real_bytes(z) / t.channels);
    w.groups = even_tile(max_of(1, z.groups), together, 1);
    if (z.groups * t.channels % vector == 0)  // whole vectors, a power of two of numbers
      w.groups = round_up(w.groups, vector / greatest_common_divisor(vector, t.channels));
  }
  // Smaller where that does not fit. Each step halves a size that is at most 128 (a width, channels, groups): they end.
  while (!t.fits(kMostShared) || (w.chunk < t.channels && t.items() > kWindowThreads)) {
    CONV_EXT_PLAN_STEP();
    if (w.tile_w > max_of(32, t.unit_w())) {
      w.tile_w = round_up(w.tile_w / 2, t.unit_w());
    } else if (w.groups == 1 && w.chunk > 1 && w.weight_bytes > kManyWeights) {
      w.chunk = ceil_div(w.chunk, 2);
    } else if (w.tile_w > max_of(8, t.unit_w())) {
      w.tile_w = round_up(w.tile_w / 2, t.unit_w());
    } else if (w.rows > w.channels && w.rows > 16) {
      w.rows = round_up(w.rows / 2, w.channels);
    } else if (w.groups > 1) {
      w.groups = ceil_div(w.groups, 2);
    } else if (w.chunk > 1 && !t.fits(kMostShared)) {
      w.chunk = ceil_div(w.chunk, 2);
    } else if (w.tile_w > t.unit_w()) {
      w.tile_w = round_up(w.tile_w / 2, t.unit_w());
    } else if (w.rows > w.channels) {
      w.rows = round_up(w.rows / 2, w.channels);
    } else {
      return t;  // without threads: declined
    }
  }
  // Larger where there is room. Each step makes a size larger, by a factor of two or up to its end, which try_size
  // allows as long as the tile fits.
  const int64_t most_h = round_up(t.height(), t.unit_h()), most_w = round_up(t.width(), t.unit_w());
  while (t.items() < (z.channels_last ? 4 : 1) * kItems) {
    CONV_EXT_PLAN_STEP();
    if (z.channels_last && w.tile_w <= w.tile_h && t.try_size(&CudaWindow::tile_w, min_of(most_w, 2 * w.tile_w)))
      continue;
    if (t.try_size(&CudaWindow::tile_h, min_of(most_h, 2 * w.tile_h))) continue;
    if (t.try_size(&CudaWindow::tile_w, min_of(most_w, 2 * w.tile_w))) continue;
    if (w.chunk == t.channels && !z.channels_last && t.try_size(&CudaWindow::groups, min_of(z.groups, 2 * w.groups)))
      continue;
    break;
  }
  w.tile_h = even_tile(t.height(), w.tile_h, t.unit_h());
  w.tile_w = even_tile(t.width(), w.tile_w, t.unit_w());
  if (!z.channels_last) w.groups = even_tile(max_of(1, z.groups), w.groups, 1);
  t.measure();
  const int64_t rounds = ceil_div(t.items(), kWindowThreads);
  w.threads = min_of(kWindowThreads, round_up(ceil_div(t.items(), rounds), 32));
  return t;
}

// ---- weight_grad

constexpr int64_t kGradStage = 16 << 10;      // bytes of a tile's boxes, up to which it grows
constexpr int64_t kMostGradStage = 31 << 10;  // there are two of them
constexpr int64_t kGradLanes = 8;             // as many threads at least share the positions of many small sums
constexpr int64_t kGradBlocks = 512, kMostSplits = 256;
constexpr int64_t kPartBytes = int64_t(64) << 20;  // what parts of sums may take

struct GradTiles {
  const ConvProblem& z;
  CudaWindow w{};

  int64_t column_blocks() const {
    return ceil_div(product(max_of(1, z.group_c()), z.r, z.s), w.fixed ? w.fixed * w.fixed : kWindowGradColumns);
  }
  int64_t items() const { return w.groups * (w.rows / w.channels) * w.columns; }
  int64_t blocks() const {
    return product(ceil_div(max_of(1, z.groups), w.groups), ceil_div(max_of(1, z.group_k()), w.rows),
                   ceil_div(column_blocks(), w.columns));
  }
  int64_t tiles() const {
    return product(max_of(1, z.n), ceil_div(max_of(1, z.p), w.tile_h), ceil_div(max_of(1, z.q), w.tile_w));
  }
  bool fits(int64_t most) {
    const WindowGradBoxes boxes = window_grad_boxes(z, w);
    w.box_bytes = boxes.input.bytes;
    w.stage_bytes = boxes.input.bytes + boxes.grad.bytes;
    w.lanes = max_of(1, kWindowGradThreads / items());
    const int64_t columns = w.fixed ? w.fixed * w.fixed : kWindowGradColumns;
    w.shared_bytes = max_of(2 * w.stage_bytes, columns * items() * (w.lanes | 1) * (real_bytes(z) == 8 ? 8 : 4));
    return w.stage_bytes <= most && items() <= kWindowGradThreads && w.shared_bytes <= kMostShared;
  }
  bool try_size(int64_t CudaWindow::*size, int64_t value) {
    const CudaWindow before = w;
    w.*size = value;
    if (w.*size > before.*size && fits(kGradStage)) return true;
    w = before;
    return false;
  }
};

// Rows and blocks of columns that keep most threads of a block busy.
void choose_rows(GradTiles* t) {
  CudaWindow& w = t->w;
  const int64_t rows = max_of(1, t->z.group_k()), blocks = t->column_blocks();
  double best = 0;
  CudaWindow found = w;
  for (int64_t most = kRowsOfBlock; most >= w.channels; most /= 2) {
    CONV_EXT_PLAN_STEP();
    w.rows = round_up(min_of(rows, most), w.channels);
    if (t->z.groups > 1 && w.rows < rows && most < kRowsOfBlock) break;
    const int64_t across = kWindowGradThreads / (w.rows / w.channels);
    w.columns = ceil_div(blocks, ceil_div(blocks, across));
    const double used =
        double(blocks) / double(round_up(blocks, w.columns)) * double(rows) / double(round_up(rows, w.rows));
    const double busy = used * double(t->items() * (kWindowGradThreads / t->items()));
    if (busy > 1.1 * best) {
      best = busy;
      found = w;
    }
    if (t->z.groups > 1) break;
  }
  w = found;
}

GradTiles cut_grad(const ConvProblem& z) {
  GradTiles t{z};
  CudaWindow& w = t.w;
  const bool wide = real_bytes(z) == 8;
  const bool square = z.r == z.s && z.stride_h == z.stride_w && z.dilation_h == 1 && z.dilation_w == 1;
  const int64_t p = max_of(1, z.p), q = max_of(1, z.q), rows = max_of(1, z.group_k()), groups = max_of(1, z.groups);
  if (z.groups > 1 && z.group_c() == 1 && !wide && square && (z.r == 3 || z.r == 5) && z.stride_h <= 2) w.fixed = z.r;
  w.channels = w.fixed ? 1 : rows_of_thread(rows, wide);
  w.height = w.fixed ? 8 / z.stride_h : 1;
  w.groups = 1;
  choose_rows(&t);
  const int64_t unit = w.fixed ? w.height : min_of(p, 8);
  w.tile_h = unit;
  w.tile_w = even_tile(q, z.channels_last ? 16 : kWidest, 1);
  const bool all_rows = w.rows >= rows && w.columns == t.column_blocks();
  // Groups whose channels fill copies of 16 bytes.
  const int64_t vector = 16 / real_bytes(z);
  const int64_t whole = !z.channels_last ? 1
                                         : vector / min_of(greatest_common_divisor(vector, rows),
                                                           greatest_common_divisor(vector, max_of(1, z.group_c())));
  if (z.channels_last && all_rows) {
    w.groups = max_of(1, min_of(kLineBytes / real_bytes(z), kWindowGradThreads / 4 / t.items()));
    w.groups = groups % whole == 0 && w.groups > whole ? even_tile(groups, w.groups / whole * whole, whole)
                                                       : even_tile(groups, w.groups, 1);
  }
  while (!t.fits(kMostGradStage)) {  // each step halves a size that is at most 128
    CONV_EXT_PLAN_STEP();
    if (w.tile_w > 16) {
      w.tile_w = ceil_div(w.tile_w, 2);
    } else if (!w.fixed && w.tile_h > 1) {
      w.tile_h = ceil_div(w.tile_h, 2);
    } else if (w.groups > 1) {
      w.groups = ceil_div(w.groups, 2);
    } else if (w.tile_w > 1) {
      w.tile_w = ceil_div(w.tile_w, 2);
    } else if (w.rows > w.channels) {
      w.rows = round_up(w.rows / 2, w.channels);
    } else {
      w.shared_bytes = kMostShared + 1;
      return t;
    }
  }
  const int64_t most_h = round_up(p, unit);
  for (;;) {  // as in cut()
    CONV_EXT_PLAN_STEP();
    if (t.try_size(&CudaWindow::tile_h, min_of(most_h, 2 * w.tile_h))) continue;
    if (t.try_size(&CudaWindow::tile_w, min_of(q, 2 * w.tile_w))) continue;
    const int64_t more = min_of(groups, 2 * w.groups);
    if (all_rows && w.rows >= rows && more * t.items() / w.groups * kGradLanes <= kWindowGradThreads &&
        t.try_size(&CudaWindow::groups, more))
      continue;
    break;
  }
  w.tile_h = even_tile(p, w.tile_h, w.fixed ? unit : 1);
  w.tile_w = even_tile(q, w.tile_w, 1);
  w.groups = even_tile(groups, w.groups, w.groups % whole == 0 ? whole : 1);
  t.fits(kMostGradStage);
  return t;
}

// ---- first layers on the tensor cores

constexpr int64_t kFirstShared = 96 << 10;  // what every device with these tensor cores has
constexpr int64_t kFirstUsual = 64 << 10;   // for three blocks on a multiprocessor
constexpr int64_t kFirstOutputs = 8 * 128;  // of a tile
constexpr int64_t kLongestChain = 512;      // numbers that the tensor cores' sums may run over

CudaWindow cut_first(const ConvProblem& z) {
  const Axis vertical = vertical_axis(z, Pass::Forward), horizontal = horizontal_axis(z, Pass::Forward);
  const int64_t p = max_of(1, z.p), q = max_of(1, z.q);
  CudaWindow w{};
  w.tile_w = even_tile(q, kWidest, 1);
  w.tile_h = even_tile(p, max_of(1, kFirstOutputs / w.tile_w), 1);
  for (;;) {  // halves the tile, 1024 outputs at most, until it fits
    CONV_EXT_PLAN_STEP();
    w.box_bytes = window_box(z, vertical, horizontal, w.tile_h, w.tile_w, z.c).bytes;
    w.shared_bytes = first_layer_room(z, w.box_bytes).bytes;
    const bool many = w.tile_h * w.tile_w > 256;
    if (w.shared_bytes <= (many ? kFirstUsual : kFirstShared)) return w;
    if (w.tile_h == 1 && w.tile_w == 1) return w;
    int64_t& longer = w.tile_h * 2 > w.tile_w ? w.tile_h : w.tile_w;
    longer = ceil_div(longer, 2);
  }
}

// ---- how boxes are copied

// The most bytes that a copy into a box may have: numbers that lie together inside or outside the tensor, at multiples
// of their size. `width` and `channels` are those of the whole tensor; boxes begin at multiples of `step` channels.
int64_t copy_bytes(const ConvProblem& z, const TensorRef& t, int64_t width, int64_t channels, int64_t step) {
  const int64_t size = real_bytes(z);
  if (is_complex(z.dtype)) return size;  // the parts of numbers are no neighbours
  const auto together = [&](int64_t bytes) {
    const int64_t vector = bytes / size;
    const bool along = z.channels_last ? t.stride[1] == 1 && channels % vector == 0 && step % vector == 0
                                       : t.stride[3] == 1 && width % vector == 0;
    const int64_t other = z.channels_last ? t.stride[3] : t.stride[1];
    return along && reinterpret_cast<uintptr_t>(t.data) % size_t(bytes) == 0 && t.stride[0] % vector == 0 &&
           t.stride[2] % vector == 0 && other % vector == 0;
  };
  for (int64_t bytes = 16; bytes > size; bytes /= 2)
    if (together(bytes)) return bytes;
  return size;
}

// Channels of the upstream gradient from one block's first to the next one's, which copies have to divide.
int64_t grad_step(const ConvProblem& z, const CudaWindow& w) {
  const int64_t step = greatest_common_divisor(window_grad_boxes(z, w).grad.channels, w.groups * z.group_k());
  return w.rows < z.group_k() ? greatest_common_divisor(step, w.rows) : step;
}

// Whether a thread's channels can be written at once: as vectors of up to 16 bytes, from a multiple of 16 on.
bool stores_vectors(const ConvProblem& z, const CudaWindow& w, const TensorRef& t, int64_t rows) {
  const int64_t vector = 16 / real_bytes(z);
  return !is_complex(z.dtype) && rows % w.channels == 0 && t.stride[1] == 1 &&
         reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride[0] % vector == 0 && t.stride[2] % vector == 0 &&
         t.stride[3] % vector == 0;
}

}  // namespace

const char* first_layer_cores_decline(const ConvProblem& z) {
  if (product(z.c, z.r, z.s) > kLongestChain) return "a sum has more than 512 products";
  if (cut_first(z).shared_bytes > kFirstShared) return "its smallest tile does not fit into shared memory";
  return nullptr;
}

void prepare_first_layer_cores(const CudaPlanInput& input, CudaPlan* plan) {
  const ConvProblem& z = input.problem;
  plan->window = cut_first(z);
  plan->window.copy_bytes = copy_bytes(z, input.source(), z.w, z.c, z.c);
  plan->splits = plan->parts = 1;
  plan->blocks = product(max_of(1, z.n), ceil_div(max_of(1, z.k), 64), ceil_div(max_of(1, z.p), plan->window.tile_h),
                         ceil_div(max_of(1, z.q), plan->window.tile_w));
}

const char* window_declines(const ConvProblem& z, Pass pass) {
  const char* const room = "its smallest tile does not fit into a block and its shared memory";
  if (pass == Pass::WeightGrad) return cut_grad(z).w.shared_bytes > kMostShared ? room : nullptr;
  const Axis vertical = window_axis(vertical_axis(z, pass)), horizontal = window_axis(horizontal_axis(z, pass));
  if ((vertical.inverse && vertical.stride > kMostPhases) || (horizontal.inverse && horizontal.stride > kMostPhases))
    return "a stride above 16 makes more phases of input_grad than its table holds";
  return cut(z, pass).w.threads == 0 ? room : nullptr;
}

void describe_first_layer_cores(Pass, const CudaPlan& plan, Facts* facts) {
  add_facts(facts, {{"outputs", std::to_string(plan.window.tile_h) + "x" + std::to_string(plan.window.tile_w)}});
  add_facts(facts, {{"bytes of a copy", plan.window.copy_bytes}});
}

void describe_window(Pass pass, const CudaPlan& plan, Facts* facts) {
  describe_first_layer_cores(pass, plan, facts);
  if (pass == Pass::WeightGrad) {
    add_facts(facts, {{"bytes of a gradient's copy", plan.window.grad_copy_bytes}});
  } else {
    add_facts(facts, {{"stores", describe_stores(plan.window.stores_vectors)}});
  }
}

void prepare_window(const CudaPlanInput& input, CudaPlan* plan) {
  const ConvProblem& z = input.problem;
  const Pass pass = input.pass;
  CudaWindow& w = plan->window;
  if (pass == Pass::WeightGrad) {
    const GradTiles t = cut_grad(z);
    w = t.w;
    w.copy_bytes = copy_bytes(z, input.operands.input, z.w, z.c, window_grad_boxes(z, w).input.channels);
    w.grad_copy_bytes = copy_bytes(z, input.operands.output, z.q, z.k, grad_step(z, w));
    const int64_t sum_bytes = max_of(1, product(z.weight_elements(), accumulator_bytes(z.dtype)));
    const int64_t wanted = min_of(min_of(ceil_div(kGradBlocks, t.blocks()), kMostSplits), t.tiles());
    const int64_t splits = max_of(1, min_of(wanted, kPartBytes / sum_bytes));
    plan->steps = ceil_div(t.tiles(), splits);
    plan->splits = plan->parts = ceil_div(t.tiles(), plan->steps);
    plan->blocks = product(t.blocks(), plan->splits);
    plan->workspace_bytes = plan->splits > 1 ? product(plan->splits, sum_bytes) : 0;
    return;
  }
  const Tiles t = cut(z, pass);
  w = t.w;
  const int64_t step = w.chunk < t.channels ? greatest_common_divisor(w.chunk, t.channels) : w.groups * w.chunk;
  w.copy_bytes = copy_bytes(z, input.source(), t.horizontal.source, product(max_of(1, z.groups), t.channels), step);
  w.stores_vectors = stores_vectors(z, w, input.result(), t.rows);
  plan->splits = plan->parts = 1;
  plan->blocks = product(max_of(1, z.n), t.blocks());
}

}  // namespace conv_ext
