// What csrc/cuda/wgmma/device_sm90.h declares, on fibres: barriers that count bytes, TMA, and products of a warpgroup.
//
// Written from the PTX ISA and the driver's documentation, not from the kernels: tensor maps, operands' descriptors and
// the exchange of 16-byte pieces (of absolute addresses in shared memory) are decoded here anew. TMA and the products
// see shared memory through a copy of it, the asynchronous proxy's: what threads write shows there only after a fence.
// With machine.late, TMA's bytes land when somebody waits for them; with machine.reversed, products run when they are
// waited for. Who arrives at a barrier lets all other warps run first.
#pragma once

#include <map>

#define CONV_EXT_GRID_CONSTANT const

namespace conv_ext {
namespace cuda {

struct HostBarrier {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;  // announced and not yet there
  uint32_t parity = 0;
  std::vector<struct BoxCopy> waiting;
};
struct BoxCopy {
  const TensorMap* map;
  uint32_t to;
  int64_t at[4], offset[2];
  bool patches;
};
struct GroupProduct {
  float* sums[32];  // of the warp's lanes
  uint64_t a, b;
  int columns, warp;
  bool add, left_across, right_across;
  Number number;
};
struct Sm90 {
  std::map<uint32_t, HostBarrier> barriers;
  std::map<int, std::pair<int, unsigned>> named;                 // arrived, generation
  std::vector<std::vector<std::vector<GroupProduct>>> products;  // of each warp: groups, the open one last
  std::vector<char> proxy;                                       // shared memory as the asynchronous proxy sees it
  int multiprocessors = 3;
};
inline Sm90 sm90;

// Where the window of shared memory begins for a kernel: at no multiple of 1024.
constexpr uint32_t kSharedWindow = 0x410;
inline uint32_t shared_address(const void* p) {
  return uint32_t(static_cast<const char*>(p) - machine.shared) + kSharedWindow;
}
inline size_t proxy_place(uint32_t address, int bytes) {
  if (address < kSharedWindow || address + uint32_t(bytes) > kSharedWindow + sm90.proxy.size())
    stop("an asynchronous access outside shared memory");
  return address - kSharedWindow;
}

inline bool wgmma_begins = [] {
  machine.block_begins = [] {
    sm90.barriers.clear();
    sm90.named.clear();
    sm90.products.assign(size_t(machine.threads / 32), {{}});
    sm90.proxy.assign(machine.shared, machine.shared + machine.shared_bytes);
  };
  machine.block_ends = [] {
    for (const auto& [address, barrier] : sm90.barriers)
      if (barrier.bytes != 0 || !barrier.waiting.empty()) stop("a block ends before its copies have come");
    for (const auto& groups : sm90.products)
      for (const auto& group : groups)
        if (!group.empty()) stop("a block ends before its products are waited for");
  };
  return true;
}();

// ---- tensor maps, with the limits that the driver documents

struct HostMap {
  uint32_t kind;  // 1: patches, 2: rows
  Number number;
  const char* data;
  union {
    struct {
      int32_t size[4], lower[2], upper[2];
      int64_t stride[3];
      int16_t channels, positions;
      int8_t step[2];
    } patches;
    struct {
      int64_t columns, taps, rows, tap_stride, stride;
      int32_t box_columns, box_rows;
    } rows;
  };
};
static_assert(sizeof(HostMap) <= sizeof(TensorMap), "a map has to fit");

constexpr int kInvalidValue = 1;
inline int encode(const PatchesMap& m, TensorMap* map) {
  bool right = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  for (int64_t size : m.size) right = right && size >= 1 && size < int64_t(1) << 31;
  for (int64_t stride : m.stride) right = right && stride % 16 == 0 && stride > 0 && stride < int64_t(1) << 40;
  for (int d = 0; d < 2; ++d) {
    right = right && m.lower[d] >= -128 && m.lower[d] <= 127 && m.upper[d] >= -128 && m.upper[d] <= 127;
    right = right && m.size[d + 1] - 1 + m.upper[d] >= m.lower[d] && m.step[d] >= 1 && m.step[d] <= 8;
  }
  right = right && m.channels <= 256 && m.positions <= 1024 && m.channels * number_bytes(m.number) <= kRowBytes &&
          m.channels * number_bytes(m.number) % 16 == 0;
  if (!right) return kInvalidValue;
  HostMap made{};
  made.kind = 1;
  made.number = m.number;
  made.data = static_cast<const char*>(m.data);
  for (int d = 0; d < 4; ++d) made.patches.size[d] = int32_t(m.size[d]);
  for (int d = 0; d < 3; ++d) made.patches.stride[d] = m.stride[d];
  for (int d = 0; d < 2; ++d) {
    made.patches.lower[d] = m.lower[d];
    made.patches.upper[d] = m.upper[d];
    made.patches.step[d] = int8_t(m.step[d]);
  }
  made.patches.channels = int16_t(m.channels);
  made.patches.positions = int16_t(m.positions);
  memcpy(map, &made, sizeof made);
  return 0;
}
inline int encode(const RowsMap& m, TensorMap* map) {
  bool right = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  for (int64_t size : {m.columns, m.taps, m.rows}) right = right && size >= 1 && size < int64_t(1) << 32;
  for (int64_t stride : {m.tap_stride, m.stride})
    right = right && stride % 16 == 0 && stride > 0 && stride < int64_t(1) << 40;
  right = right && m.stride % m.tap_stride == 0 && m.box_columns >= 1 && m.box_columns <= 256 && m.box_rows >= 1 &&
          m.box_rows <= 256 && m.box_columns * number_bytes(m.number) <= kRowBytes &&
          m.box_columns * number_bytes(m.number) % 16 == 0;
  if (!right) return kInvalidValue;
  HostMap made{};
  made.kind = 2;
  made.number = m.number;
  made.data = static_cast<const char*>(m.data);
  made.rows = {m.columns, m.taps, m.rows, m.tap_stride, m.stride, m.box_columns, m.box_rows};
  memcpy(map, &made, sizeof made);
  return 0;
}

// ---- TMA

// Where byte `column` of a box's row lies, with the 128-byte exchange: bits 4 to 6 of an address take in bits 7 to 9.
inline uint32_t exchanged(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Writes 16 bytes for both proxies.
inline void land_piece(uint32_t address, const char* piece) {
  const size_t place = proxy_place(exchanged(address), 16);
  memcpy(&sm90.proxy[place], piece, 16);
  memcpy(machine.shared + place, piece, 16);
}
// One row of a box: what lies beyond `valid` bytes is zero.
inline void land_row(uint32_t to, const char* from, int bytes, int64_t valid) {
  for (int byte = 0; byte < bytes; byte += 16) {
    char piece[16] = {};
    const int64_t real = valid - byte < 16 ? valid - byte : 16;
    if (real > 0) memcpy(piece, from + byte, size_t(real));
    land_piece(to + uint32_t(byte), piece);
  }
}
inline int64_t land_box(const BoxCopy& copy) {
  HostMap map;
  memcpy(&map, copy.map, sizeof map);
  const int64_t each = number_bytes(map.number);
  if (!copy.patches) {
    const auto& m = map.rows;
    const int64_t column = copy.at[0], tap = copy.at[1];
    for (int i = 0; i < m.box_rows; ++i) {
      const int64_t row = copy.at[2] + i;
      const bool inside = row >= 0 && row < m.rows && tap >= 0 && tap < m.taps && column >= 0 && column < m.columns;
      land_row(copy.to + uint32_t(i * kRowBytes),
               inside ? map.data + row * m.stride + tap * m.tap_stride + column * each : nullptr,
               int(m.box_columns * each), inside ? (m.columns - column) * each : 0);
    }
    return m.box_rows * m.box_columns * each;
  }
  const auto& m = map.patches;
  int64_t at[3] = {copy.at[1], copy.at[2], copy.at[3]}, last[2];  // w, h, n
  for (int d = 0; d < 2; ++d) {
    last[d] = m.size[d + 1] - 1 + m.upper[d];
    if (at[d] < m.lower[d] || at[d] > last[d]) stop("a copy of patches begins outside its box");
    if (copy.offset[d] < 0 || copy.offset[d] > 255) stop("an offset of patches that the instruction cannot hold");
  }
  for (int i = 0; i < m.positions; ++i) {
    const int64_t w = at[0] + copy.offset[0], h = at[1] + copy.offset[1], n = at[2], c = copy.at[0];
    const bool inside =
        w >= 0 && w < m.size[1] && h >= 0 && h < m.size[2] && n >= 0 && n < m.size[3] && c >= 0 && c < m.size[0];
    land_row(copy.to + uint32_t(i * kRowBytes),
             inside ? map.data + w * m.stride[0] + h * m.stride[1] + n * m.stride[2] + c * each : nullptr,
             int(m.channels * each), inside ? (m.size[0] - c) * each : 0);
    if ((at[0] += m.step[0]) <= last[0]) continue;
    at[0] = m.lower[0];
    if ((at[1] += m.step[1]) <= last[1]) continue;
    at[1] = m.lower[1];
    ++at[2];
  }
  return m.positions * m.channels * each;
}

// ---- barriers

inline HostBarrier& barrier_at(uint64_t* barrier) {
  const auto found = sm90.barriers.find(shared_address(barrier));
  if (found == sm90.barriers.end()) stop("a barrier that nobody has made");
  return found->second;
}
inline void end_phase(HostBarrier& barrier) {
  if (barrier.pending < 0) stop("more arrivals than a barrier's phase has");
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.parity ^= 1;
  barrier.pending = barrier.arrivals;
}
inline void init_barrier(uint64_t* barrier, int arrivals) {
  if (shared_address(barrier) % 8 != 0) stop("a barrier at a misaligned address");
  HostBarrier& made = sm90.barriers[shared_address(barrier)] = {};
  made.arrivals = made.pending = arrivals;
}
inline void publish_barriers() { sm90.proxy.assign(machine.shared, machine.shared + machine.shared_bytes); }
inline void arrive_expecting(uint64_t* barrier, int bytes) {
  ++machine.progress;
  barrier_at(barrier).bytes += bytes;
  --barrier_at(barrier).pending;
  end_phase(barrier_at(barrier));
}
inline void arrive(uint64_t* barrier) {
  arrive_expecting(barrier, 0);
  block_fibre();
}
inline void start_copy(const BoxCopy& copy, uint64_t* barrier) {
  if (copy.to % 128 != 0) stop("TMA writes to a misaligned address");
  ++machine.progress;
  HostBarrier& to = barrier_at(barrier);
  if (machine.late) {
    to.waiting.push_back(copy);
    return;
  }
  to.bytes -= land_box(copy);
  end_phase(to);
}
inline bool phase_has_ended(uint64_t* barrier, uint32_t parity) {
  HostBarrier& on = barrier_at(barrier);
  if (on.parity != parity) return true;
  if (on.waiting.empty()) {
    block_fibre();
  } else {
    const std::vector<BoxCopy> copies = std::move(on.waiting);
    on.waiting.clear();
    for (const BoxCopy& copy : copies) on.bytes -= land_box(copy);
    ++machine.progress;
    end_phase(on);
  }
  return on.parity != parity;
}
// It goes on when nothing else does.
inline uint32_t device_time() { return uint32_t(machine.idle_rounds) * 800'000'000u; }
inline Waits* waits_for_host() {
  static Waits waits;
  return &waits;
}
inline void tell_host(Waits* waits, int stage, bool full, uint32_t parity, bool ended) {
  waits->of_warp[machine.current / 32] = wait_of(uint32_t(machine.block), stage, full, parity, ended);
}
inline void trap() {
  print_waits(*waits_for_host());
  stop("a kernel ends itself");
}
inline void barrier_of(int number, int threads) {
  if (number < 1 || number > 15 || threads % 32 != 0) stop("a barrier that a device does not have");
  auto& [arrived, generation] = sm90.named[number];
  ++machine.progress;
  if (++arrived == threads) {
    arrived = 0;
    ++generation;
    return;
  }
  for (const unsigned now = generation; generation == now;) block_fibre();
}

inline void copy_patches(void* to, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n, int offset_w,
                         int offset_h) {
  start_copy({map, shared_address(to), {c, w, h, n}, {offset_w, offset_h}, true}, barrier);
}
inline void copy_rows(void* to, const TensorMap* map, uint64_t* barrier, int column, int tap, int row) {
  start_copy({map, shared_address(to), {column, tap, row, 0}, {}, false}, barrier);
}

// ---- products of a warpgroup: each warp does its 16 rows for itself

// Rows [first, first + rows) of an operand, 32 bytes of k: what its descriptor says, k slowest.
CONV_EXT_HOST_UNCHECKED inline void read_operand(uint64_t descriptor, int first, int rows, Number number, double* to) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, groups = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) stop("an operand that is not laid out in rows of 128 bytes");
  if ((descriptor >> 49 & 7) != 0 || (start & ~127u) % 1024 != 0) stop("an operand's rows begin at another phase");
  for (int row = first; row < first + rows; ++row) {
    const uint32_t at = start + uint32_t(row / 8) * groups + uint32_t(row % 8) * 128;
    double* next = to + row - first;
    for (uint32_t piece = 0; piece < 32; piece += 16) {
      const char* from = sm90.proxy.data() + proxy_place(exchanged(at + piece), 16);
      for (int i = 0; i < int(16 / number_bytes(number)); ++i, next += rows) {
        uint32_t word;
        memcpy(&word, from + (number == Number::Float32 ? 4 * i : i / 2 * 4), 4);
        const uint32_t half = word >> (i % 2 * 16) & 0xffffu;
        *next = number == Number::Float32   ? double(float_of(word & ~0x1fffu))
                : number == Number::Float16 ? double(widen(float16{uint16_t(half)}))
                                            : double(float_of(half << 16));
      }
    }
  }
}
// The same of an operand that runs across k: 64 numbers of a row are one k, boxes of them stand `boxes` apart.
CONV_EXT_HOST_UNCHECKED inline void read_across(uint64_t descriptor, int first, int rows, Number number, double* to) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, groups = uint32_t(descriptor >> 32 & 0x3fff) << 4,
                 boxes = uint32_t(descriptor >> 16 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) stop("an operand that is not laid out in rows of 128 bytes");
  if ((descriptor >> 49 & 7) != 0 || start % 1024 != 0) stop("an operand's rows begin at another phase");
  if (number == Number::Float32) stop("only 16-bit numbers can run across k");
  for (uint32_t k = 0; k < 16; ++k)
    for (int row = first; row < first + rows; ++row) {
      const uint32_t at = start + uint32_t(row / 64) * boxes + k / 8 * groups + k % 8 * 128 + uint32_t(row % 64) * 2;
      uint16_t half;
      memcpy(&half, sm90.proxy.data() + proxy_place(exchanged(at), 2), 2);
      *to++ = number == Number::Float16 ? double(widen(float16{half})) : double(float_of(uint32_t(half) << 16));
    }
}
inline void run_product(const GroupProduct& product) {
  const int count = int(32 / number_bytes(product.number));
  static Factors left, right;
  const auto read_left = product.left_across ? read_across : read_operand,
             read_right = product.right_across ? read_across : read_operand;
  read_left(product.a, product.warp % 4 * 16, 16, product.number, left.number);
  read_right(product.b, 0, product.columns, product.number, right.number);
  const int smallest_exponent = product.number == Number::Float16 ? -14 : -126;
  left.measure(16, count, smallest_exponent);
  right.measure(product.columns, count, smallest_exponent);
  add_products(left, right, 0, count, product.add, [&](int row, int column) {
    return &product.sums[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2];
  });
}

struct ProductLane {
  float* sums;
  uint64_t a, b;
  int columns;
  bool add, left_across, right_across;
  Number number;
};
template <int count>
void multiply_on(float (&sum)[count], uint64_t a, uint64_t b, bool add, Number number, bool left_across,
                 bool right_across) {
  ProductLane lane{sum, a, b, 2 * count, add, left_across, right_across, number};
  together(&lane, [](void** all) {
    const ProductLane& first = *static_cast<ProductLane*>(all[0]);
    GroupProduct product{{},
                         first.a,
                         first.b,
                         first.columns,
                         machine.current / 32,
                         first.add,
                         first.left_across,
                         first.right_across,
                         first.number};
    for (int l = 0; l < 32; ++l) {
      const ProductLane& other = *static_cast<ProductLane*>(all[l]);
      if (other.a != first.a || other.b != first.b || other.add != first.add) stop("lanes multiply different operands");
      product.sums[l] = other.sums;
    }
    auto& groups = sm90.products[size_t(machine.current / 32)];
    groups.back().push_back(product);
    if (!machine.reversed) run_product(product);
  });
}
constexpr Number number_of(bfloat16) { return Number::BFloat16; }
constexpr Number number_of(float16) { return Number::Float16; }
constexpr Number number_of(float) { return Number::Float32; }
template <int count, class T>
void multiply_group(float (&sum)[count], uint64_t a, uint64_t b, bool add, T tag) {
  multiply_on(sum, a, b, add, number_of(tag), false, false);
}
template <int count, class T>
void multiply_group_across(float (&sum)[count], uint64_t a, uint64_t b, bool add, T tag) {
  multiply_on(sum, a, b, add, number_of(tag), true, true);
}
template <int count, class T>
void multiply_group_right_across(float (&sum)[count], uint64_t a, uint64_t b, bool add, T tag) {
  multiply_on(sum, a, b, add, number_of(tag), false, true);
}
inline void begin_products() {}
inline void commit_products() {
  int nothing = 0;
  together(&nothing, [](void**) { sm90.products[size_t(machine.current / 32)].emplace_back(); });
}
template <int pending>
void wait_products() {
  int nothing = 0;
  together(&nothing, [](void**) {
    auto& groups = sm90.products[size_t(machine.current / 32)];
    while (groups.size() > size_t(pending) + 1) {
      if (machine.reversed)
        for (const GroupProduct& product : groups.front()) run_product(product);
      groups.erase(groups.begin());
    }
  });
}

template <int count>
void wait_sums(float (&)[count]) {
  wait_products<0>();
}

inline char* held(char* p) { return p; }
inline int anew(int number) { return number; }
inline int warp_index() { return machine.current / 32; }
inline bool elect_one() { return machine.current % 32 == 0; }
template <int registers>
void give_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256, "what setmaxnreg can say");
}
template <int registers>
void take_registers() {
  give_registers<registers>();
}
inline int multiprocessors() { return sm90.multiprocessors; }

}  // namespace cuda
}  // namespace conv_ext
