// Runs the CUDA kernels on fibres against the reference: one problem a line on standard input, integers as operands.
//
//   pass dtype precision layout algorithm capability bias relu  N C H W K R S  stride dilation padding (4)  groups
//
// Every problem runs in the ways that the first argument names, by default all four in which `machine` can vary: 1 and
// 3 have late copies, 2 and 3 the warps reversed. "special" instead puts an infinity and a NaN into the operands,
// "huge" some of the largest numbers of float32 whose sums are finite, "images" asks whether an image alone has the
// bits that it has in a batch, "accuracy" and "magnitudes" how far sums of real numbers are from exact ones. A line for
// each problem; exit status 1 where one is wrong.
#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/launch.h"
#include "../../csrc/reference/reference.h"

namespace conv_ext {
namespace {

constexpr const char* kPassNames[] = {"forward", "input_grad", "weight_grad"};
constexpr const char* kDTypeNames[] = {"float32", "float64", "bfloat16", "float16", "complex64", "complex128"};

template <size_t count>
int index_of(const char* const (&names)[count], const std::string& name) {
  for (size_t i = 0; i < count; ++i)
    if (name == names[i]) return int(i);
  throw std::invalid_argument("unknown name " + name);
}

template <class Wide, class T>
Wide read(const T* from) {
  return widen<Wide>(*from);
}
template <class T, class Wide>
void write(T* to, Wide value) {
  *to = narrow<T>(value);
}

// A tensor in memory that ends with its last element, so that the sanitizer sees every access beyond it. "shifted" is
// channels_last that begins at no multiple of 16 bytes.
struct Tensor {
  int64_t size[4], stride[4], elements;
  std::unique_ptr<char[]> block;
  char* memory;

  Tensor(std::array<int64_t, 4> sizes, const std::string& layout, int64_t bytes) {
    std::array<int, 4> order{0, 1, 2, 3};  // the slowest first
    if (layout == "channels_last" || layout == "shifted") order = {0, 2, 3, 1};
    if (layout == "transposed") order = {3, 2, 1, 0};
    int64_t next = layout == "sliced" ? 2 : 1;
    for (int d = 3; d >= 0; --d) {
      size[order[size_t(d)]] = sizes[size_t(order[size_t(d)])];
      stride[order[size_t(d)]] = next;
      next = next * sizes[size_t(order[size_t(d)])] + (layout == "sliced" ? 3 : 0);
    }
    elements = 1;
    for (int d = 0; d < 4; ++d) elements += (size[d] - 1) * stride[d];
    const int64_t shift = layout == "shifted" ? bytes : 0;
    block.reset(new char[size_t(shift + elements * bytes)]);
    memory = block.get() + shift;
    memset(memory, 0xff, size_t(elements * bytes));
  }
  TensorRef ref() const { return {memory, {stride[0], stride[1], stride[2], stride[3]}}; }
  int64_t place(const int64_t (&i)[4]) const {
    return i[0] * stride[0] + i[1] * stride[1] + i[2] * stride[2] + i[3] * stride[3];
  }
  template <class Visit>
  void each(Visit visit) const {
    for (int64_t a = 0; a < size[0]; ++a)
      for (int64_t b = 0; b < size[1]; ++b)
        for (int64_t c = 0; c < size[2]; ++c)
          for (int64_t d = 0; d < size[3]; ++d) visit(a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]);
  }
};

const char* ways = "0123";
bool special = false, huge = false;

struct Case {
  ConvProblem z;
  Pass pass;
  std::string layout, algorithm;
  int64_t capability;
  bool bias, relu;
};

int launch_pass(Pass pass, const ConvProblem& z, const CudaPlan& plan, const Buffers& b) {
  const auto launch = pass == Pass::Forward     ? launch_forward
                      : pass == Pass::InputGrad ? launch_input_grad
                                                : launch_weight_grad;
  return launch(z, plan, b, nullptr);
}

// forward, input_grad: whether each image alone gives the bits that it gives in the batch, and whether the batch gives
// them at addresses that are no multiple of a vector. Operands are real numbers.
template <class T, class Wide>
std::string check_images(const Case& c, const CudaCandidate& candidate, Tensor& x, Tensor& w, Tensor& y) {
  const int64_t bytes = element_bytes(c.z.dtype);
  const bool forward = c.pass == Pass::Forward;
  Tensor &source = forward ? x : y, &result = forward ? y : x;
  std::mt19937 random(54321);
  for (Tensor* t : {&source, &w})
    t->each([&](int64_t at) {
      for (int64_t part = 0; part < parts_of(c.z.dtype); ++part)
        write<T>(reinterpret_cast<T*>(t->memory + at * bytes) + part, Wide(random()) / Wide(1u << 31) - 1);
    });
  const auto run = [&](int64_t first, int64_t images) {
    ConvProblem z = c.z;
    z.n = images;
    Buffers b{x.ref(), w.ref(), y.ref(), nullptr, 0, nullptr, false};
    b.input.data = static_cast<char*>(b.input.data) + first * x.stride[0] * bytes;
    b.output.data = static_cast<char*>(b.output.data) + first * y.stride[0] * bytes;
    const CudaPlan plan = make_cuda_plan(z, c.pass, candidate, &b);
    std::unique_ptr<char[]> workspace(new char[size_t(plan.workspace_bytes)]);
    b.workspace = workspace.get();
    return launch_pass(c.pass, z, plan, b);
  };
  run(0, c.z.n);
  std::unique_ptr<char[]> together(new char[size_t(result.elements * bytes)]);
  memcpy(together.get(), result.memory, size_t(result.elements * bytes));
  const auto differs = [&] { return memcmp(together.get(), result.memory, size_t(result.elements * bytes)) != 0; };
  const auto forget = [&] {
    result.each([&](int64_t at) { memset(result.memory + at * bytes, 0xff, size_t(bytes)); });
  };
  forget();
  for (int64_t n = 0; n < c.z.n; ++n) run(n, 1);
  if (differs()) return std::string("other bits alone than in a batch, by ") + candidate.name;
  for (Tensor* t : {&x, &w, &y}) {
    std::unique_ptr<char[]> block(new char[size_t((t->elements + 1) * bytes)]);
    memcpy(block.get() + bytes, t->memory, size_t(t->elements * bytes));
    t->block = std::move(block);
    t->memory = t->block.get() + bytes;
  }
  forget();
  run(0, c.z.n);
  if (differs()) return std::string("other bits at other addresses, by ") + candidate.name;
  return std::string("exact: the same bits by ") + candidate.name;
}

// The reference's result into `to`, of T or of wider numbers.
template <class T, class Wide, Pass pass>
void run_exact(const ConvProblem& z, Buffers b, const Tensor& to) {
  (pass == Pass::Forward ? b.output : pass == Pass::InputGrad ? b.input : b.weight) = to.ref();
  Plan plan{};
  plan.tasks = pass == Pass::Forward ? z.n * z.k : pass == Pass::InputGrad ? z.n * z.c : z.k * z.group_c();
  const Executor executor{nullptr, [](void*, int64_t count, int64_t, void (*body)(void*, int64_t, void*), void* a) {
                            for (int64_t i = 0; i < count; ++i) body(a, i, nullptr);
                          }};
  run_reference<T, Wide, pass>(z, plan, b, executor);
}

// A tensor's numbers, or their magnitudes, as a contiguous tensor of wider ones.
template <class T, class Wide>
Tensor widened(const Tensor& from, bool magnitudes) {
  Tensor to({from.size[0], from.size[1], from.size[2], from.size[3]}, "contiguous", sizeof(Wide));
  Wide* next = reinterpret_cast<Wide*>(to.memory);
  for (int64_t i[4] = {}; i[0] < from.size[0]; ++i[0])
    for (i[1] = 0; i[1] < from.size[1]; ++i[1])
      for (i[2] = 0; i[2] < from.size[2]; ++i[2])
        for (i[3] = 0; i[3] < from.size[3]; ++i[3]) {
          const Wide value = read<Wide>(reinterpret_cast<const T*>(from.memory) + from.place(i));
          *next++ = magnitudes ? std::abs(value) : value;
        }
  return to;
}

// Real numbers, whose sums are rounded: of both signs or positive, which shows a bias; between 0 and 1, or of float32's
// magnitudes. What has the index e[i] in a dimension (the channel; in weight_grad the image) is near 2^e[i] then, or at
// random where there is no e.
template <class T, class Wide>
void fill_real(Tensor& t, std::mt19937_64& random, bool signs, int dimension, const std::vector<int>& e,
               int highest_at_random) {
  for (int64_t i[4] = {}; i[0] < t.size[0]; ++i[0])
    for (i[1] = 0; i[1] < t.size[1]; ++i[1])
      for (i[2] = 0; i[2] < t.size[2]; ++i[2])
        for (i[3] = 0; i[3] < t.size[3]; ++i[3]) {
          Wide value = Wide(random() >> 12) * Wide(0x1p-52);
          if (!e.empty()) value = std::ldexp((value + 1) / 2, e[size_t(i[dimension]) % e.size()]);
          if (highest_at_random) value = std::ldexp((value + 1) / 2, int(random() % (highest_at_random + 150)) - 149);
          write<T>(reinterpret_cast<T*>(t.memory) + t.place(i), signs && random() % 2 ? -value : value);
        }
}

// Of the exact sum, and of A, the sum of its products' magnitudes, a result may be off by 2 sqrt(L) u A for L products
// summed with roundings of u; by what 16 bits of it cannot hold; and by 2^-10 A where float32 is rounded to TF32.
//
// "accuracy" has positive numbers, then such of both signs. "magnitudes" has float32 of all magnitudes in one sum:
// first so that none of its products is negligible, 2^e being multiplied with 2^(level - e), up to where parts that are
// scaled by 2^24 overflow, then up to float32's largest; and then at random.
template <class T, class Wide, Pass pass>
std::string check_accuracy(const Case& c, const CudaCandidate& candidate, Tensor& x, Tensor& w, Tensor& y,
                           Tensor& result) {
  const ConvProblem& z = c.z;
  const bool magnitudes = std::string(ways) == "magnitudes";
  if (is_complex(z.dtype) || (magnitudes && z.dtype != DType::Float32)) return "there are no such numbers of this type";
  Tensor &first = pass == Pass::Forward ? x : y, &second = pass == Pass::WeightGrad ? x : w;
  // The dimensions that are summed over, and how long they are.
  const int first_dimension = pass == Pass::WeightGrad ? 0 : 1, second_dimension = pass == Pass::Forward ? 1 : 0;
  const int64_t summed = pass == Pass::Forward ? z.group_c() : pass == Pass::InputGrad ? z.group_k() : z.n;
  const int64_t length = summed * (pass == Pass::WeightGrad ? z.p * z.q : z.r * z.s);
  const Wide u = z.dtype == DType::Float64 ? Wide(0x1p-53) : Wide(0x1p-24);
  const Wide u_out = z.dtype == DType::BFloat16 ? Wide(0x1p-8) : z.dtype == DType::Float16 ? Wide(0x1p-11) : Wide(0);
  const Wide smallest = z.dtype == DType::Float16 ? Wide(0x1p-24) : Wide(0x1p-149);
  const bool rounded = z.dtype == DType::Float32 && z.precision != Precision::Ieee;
  std::mt19937_64 random(2024);
  Wide worst = 0, bias = 0;  // bias: of the first data
  int64_t counted = 0, biased = 0;
  for (int data = 0; data < (magnitudes ? 3 : 2); ++data) {
    std::vector<int> e, other;
    const int highest = data == 0 ? 103 : 127;
    for (int64_t i = 0; i < summed && magnitudes && data < 2; ++i) {
      e.push_back(int(random() % uint64_t(highest + 150)) - 149);
      other.push_back(highest - 149 - e.back());
    }
    const bool signs = magnitudes || data == 1, at_random = magnitudes && data == 2;
    fill_real<T, Wide>(first, random, signs, first_dimension, e, at_random ? 127 : 0);
    fill_real<T, Wide>(second, random, signs, second_dimension, other, at_random ? -20 : 0);

    const auto sums = [&](bool of_magnitudes) {
      const Tensor a = widened<T, Wide>(first, of_magnitudes), b = widened<T, Wide>(second, of_magnitudes);
      Tensor exact = widened<T, Wide>(result, false);
      const Buffers of_reference{
          pass == Pass::Forward ? a.ref() : b.ref(), b.ref(), a.ref(), nullptr, 0, nullptr, false};
      run_exact<Wide, Wide, pass>(z, of_reference, exact);
      return exact;
    };
    const Tensor exact = sums(false), whole = sums(true);
    Buffers b{x.ref(), w.ref(), y.ref(), nullptr, 0, nullptr, false};
    const CudaPlan plan = make_cuda_plan(z, pass, candidate, &b);
    std::unique_ptr<char[]> workspace(new char[size_t(plan.workspace_bytes)]);
    b.workspace = workspace.get();
    memset(workspace.get(), 0xff, size_t(plan.workspace_bytes));
    result.each([&](int64_t at) { memset(result.memory + at * int64_t(sizeof(T)), 0xff, sizeof(T)); });
    if (const int error = launch_pass(pass, z, plan, b)) return "launch error " + std::to_string(error);
    const Tensor got = widened<T, Wide>(result, false);
    for (int64_t index = 0; index < got.elements; ++index) {
      const auto at = [&](const Tensor& t) { return reinterpret_cast<const Wide*>(t.memory)[index]; };
      const Wide all = at(whole), error = at(got) - at(exact);
      if (all >= Wide(0x1p127)) continue;  // float32 may overflow on the way
      const Wide allowed = (2 * std::sqrt(Wide(length)) * u + (rounded ? Wide(0x1p-10) : 0)) * all +
                           u_out * std::abs(at(exact)) + smallest;
      if (!(std::abs(error) <= allowed)) {
        std::ostringstream text;
        text << double(std::abs(error) / allowed) << " of the allowed error by " << candidate.name << " (data " << data
             << ", element " << index << ": " << double(at(got)) << " for " << double(at(exact)) << ")";
        return text.str();
      }
      ++counted;
      worst = std::max(worst, std::abs(error) / allowed);
      if (data > 0 || all == 0) continue;
      ++biased;
      bias += error / (u * all);
    }
  }
  if (counted == 0) return "no sum is small enough";
  std::ostringstream text;
  text.precision(3);
  text << "exact: " << double(worst) << " of the allowed error, bias " << double(bias / Wide(max_of(1, biased)))
       << " u by " << candidate.name << ", " << counted << " sums of " << length;
  return text.str();
}

template <class T, class Wide, Pass pass>
std::string check_pass(const Case& c) {
  const ConvProblem& z = c.z;
  const int64_t parts = parts_of(z.dtype), bytes = element_bytes(z.dtype);
  const std::string other = c.layout == "mixed" ? "contiguous" : c.layout;
  Tensor x({z.n, z.c, z.h, z.w}, c.layout == "mixed" ? "channels_last" : c.layout, bytes),
      w({z.k, z.group_c(), z.r, z.s}, other, bytes), y({z.n, z.k, z.p, z.q}, other, bytes),
      bias({1, z.k, 1, 1}, other, bytes);
  Tensor& result = pass == Pass::Forward ? y : pass == Pass::InputGrad ? x : w;
  Tensor expected({result.size[0], result.size[1], result.size[2], result.size[3]}, "contiguous", bytes);
  std::mt19937 random(12345);
  for (Tensor* t : {&x, &w, &y, &bias}) {
    if (t == &result) continue;
    t->each([&](int64_t at) {
      for (int64_t part = 0; part < parts; ++part)
        write<T>(reinterpret_cast<T*>(t->memory) + at * parts + part, Wide(int(random() % 7) - 3));
    });
  }
  if (special) {
    const Tensor &first = pass == Pass::Forward ? x : y, &second = pass == Pass::WeightGrad ? x : w;
    write<T>(reinterpret_cast<T*>(first.memory) + first.elements / 2 * parts, std::numeric_limits<Wide>::infinity());
    write<T>(reinterpret_cast<T*>(second.memory) + second.elements / 3 * parts, std::numeric_limits<Wide>::quiet_NaN());
  }
  if (huge) {  // products of the largest number with 1 and with a small one
    const Tensor &first = pass == Pass::Forward ? x : y, &second = pass == Pass::WeightGrad ? x : w;
    int64_t index = 0;
    second.each([&](int64_t at) { write<T>(reinterpret_cast<T*>(second.memory) + at * parts, Wide(index++ % 2)); });
    first.each([&](int64_t at) { write<T>(reinterpret_cast<T*>(first.memory) + at * parts, Wide(0)); });
    write<T>(reinterpret_cast<T*>(first.memory) + (first.elements - 1) * parts,
             Wide(std::numeric_limits<float>::max()));
  }
  Buffers b{x.ref(), w.ref(), y.ref(), c.bias ? bias.memory : nullptr, bias.stride[1], nullptr, c.relu};
  run_exact<T, Wide, pass>(z, b, expected);

  const char* reason = nullptr;
  const CudaCandidate* candidate = choose_cuda(z, pass, CudaTraits{c.capability}, c.algorithm.c_str(), &reason);
  if (candidate == nullptr) return std::string("declined: ") + reason;
  cuda::tensor_core = {c.capability >= 90 ? 25 : 24, c.capability < 90};
  if (ways == std::string("accuracy") || ways == std::string("magnitudes"))
    return check_accuracy<T, Wide, pass>(c, *candidate, x, w, y, result);
  if (std::string(ways) == "images") return check_images<T, Wide>(c, *candidate, x, w, y);
  const CudaPlan cuda_plan = make_cuda_plan(z, pass, *candidate, &b);
  std::unique_ptr<char[]> workspace(new char[size_t(cuda_plan.workspace_bytes)]);
  b.workspace = workspace.get();
  for (const char* each = ways; *each != 0; ++each) {
    const int way = *each - '0';
    cuda::machine.late = way & 1;
    cuda::machine.reversed = way & 2;
    memset(workspace.get(), 0xff, size_t(cuda_plan.workspace_bytes));
    result.each([&](int64_t at) { memset(result.memory + at * bytes, 0xff, size_t(bytes)); });
    if (const int error = launch_pass(pass, z, cuda_plan, b)) return "launch error " + std::to_string(error);
    int64_t wrong = 0, index = 0, first = -1;
    const T* wanted = reinterpret_cast<const T*>(expected.memory);
    result.each([&](int64_t at) {
      for (int64_t part = 0; part < parts; ++part, ++index) {
        const Wide got = read<Wide>(reinterpret_cast<const T*>(result.memory) + at * parts + part);
        const Wide right = read<Wide>(wanted + index);
        if (!(got == right || (std::isnan(got) && std::isnan(right))) && wrong++ == 0) first = index;
      }
    });
    if (wrong) {
      std::ostringstream text;
      text << wrong << " of " << index << " wrong by " << candidate->name << " (first at " << first << "), copies "
           << (way & 1 ? "late" : "eager") << ", warps " << (way & 2 ? "reversed" : "forward");
      return text.str();
    }
  }
  return std::string("exact: ") + candidate->name +
         (cuda_plan.tile_m > 64    ? " large"
          : cuda_plan.tile_m == 32 ? " narrow"
                                   : "") +
         (cuda_plan.splits > 1 ? " split" : "");
}

template <class T, class Wide>
std::string check_type(const Case& c) {
  if (c.pass == Pass::Forward) return check_pass<T, Wide, Pass::Forward>(c);
  if (c.pass == Pass::InputGrad) return check_pass<T, Wide, Pass::InputGrad>(c);
  return check_pass<T, Wide, Pass::WeightGrad>(c);
}

std::string check(const Case& c) {
  switch (c.z.dtype) {
    case DType::Float32:
    case DType::Complex64:
      return check_type<float, double>(c);
    case DType::Float64:
    case DType::Complex128:
      return check_type<double, long double>(c);
    case DType::BFloat16:
      return check_type<bfloat16, double>(c);
    case DType::Float16:
      return check_type<float16, double>(c);
  }
  return "no such dtype";
}

}  // namespace
}  // namespace conv_ext

int main(int count, char** arguments) {
  using namespace conv_ext;
  if (count > 1) ways = arguments[1];
  special = ways == std::string("special");
  huge = ways == std::string("huge");
  if (special || huge) ways = "03";
  bool right = true;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string pass, dtype, precision;
    Case c{};
    ConvProblem& z = c.z;
    words >> pass >> dtype >> precision >> c.layout >> c.algorithm >> c.capability >> c.bias >> c.relu;
    words >> z.n >> z.c >> z.h >> z.w >> z.k >> z.r >> z.s >> z.stride_h >> z.stride_w >> z.dilation_h >> z.dilation_w;
    words >> z.pad_top >> z.pad_bottom >> z.pad_left >> z.pad_right >> z.groups;
    if (!words) return 2;
    z.p = (z.h + z.pad_top + z.pad_bottom - z.dilation_h * (z.r - 1) - 1) / z.stride_h + 1;
    z.q = (z.w + z.pad_left + z.pad_right - z.dilation_w * (z.s - 1) - 1) / z.stride_w + 1;
    c.pass = Pass(index_of(kPassNames, pass));
    z.dtype = DType(index_of(kDTypeNames, dtype));
    z.precision = precision == "ieee" ? Precision::Ieee : precision == "tf32" ? Precision::TF32 : Precision::BF16;
    z.channels_last = c.layout == "channels_last" || c.layout == "mixed" || c.layout == "shifted";
    const std::string verdict = check(c);
    right = right && verdict.rfind("exact", 0) == 0;
    std::cout << verdict << " | " << line << std::endl;
  }
  return right ? 0 : 1;
}
