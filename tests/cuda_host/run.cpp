// Runs the CUDA kernels against the reference, on fibres of the CPU or on a device; kHelp has all of it.
//
// Start reading at check_pass. memory.h is all that differs between the two.
#include <array>
#include <cmath>
#include <iostream>
#include <limits>
#include <map>
#include <random>
#include <sstream>
#include <string>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cpu/reference/reference.h"
#include "memory.h"

namespace conv_ext {
namespace {

constexpr const char* kHelp = R"(usage: run                   problems from standard input, one a line
       run KEY=VALUE ...     one problem
       run --device          what it runs on
       run --help

A problem is one line of key=value, and its verdict comes in a line of its own: "exact: ... | the problem". What failed
runs again by itself where the problem is given as arguments.

  pass=forward|input_grad|weight_grad
  dtype=float32|float64|bfloat16|float16|complex64|complex128   precision=ieee|tf32|bf16 (ieee)
  n= c= h= w= k= r= s=             sizes: images, channels, height, width, channels of the result, kernel
  stride=1,1  dilation=1,1         down, across; one number: both
  padding=0,0,0,0                  top, bottom, left, right; one number: all, two: top and bottom, left and right
  groups=1
  bias=0|1  residual=0|1|2  activation=none|relu|clamp|silu|hardswish    (of forward)
                                   residual: laid out as the result; 2: at no multiple of 16 bytes
  layout=contiguous|channels_last|mixed|sliced|transposed|shifted    of the operands in memory; shifted is
                                   channels_last at no multiple of 16 bytes
  algorithm=auto|NAME              as in conv_ext.algorithm
  tile_m= tile_n= splits= parts=   instead of the plan's choice (tiles both or none; parts: of a sum, where the blocks
                                   that share it, splits, may be one)
  capability=                      10 major + minor, for the plan (the device's; 80 on fibres)
  check=exact                      small integers, whose sums are exact in every order
        special|huge               the same with an infinity and a NaN; with the largest numbers of float32
        images                     whether an image alone has the bits that it has in a batch, at any address, in any
                                   tile, with blocks that share a sum or not
        accuracy|magnitudes        real numbers: sums within the gate of docs/benchmarks.md; of all magnitudes at once
        sampled                    exact, but only some planes are compared: for large problems
  every=N                          sampled: one of so many planes (so that their sums have 10^8 products)
        none                       nothing is compared: for timing alone
  ways=                            what is varied: of 0123 on fibres (1, 3: late copies, 2, 3: warps reversed)
  time=MS                          on a device: samples of so many milliseconds together, behind the check
  memory=guarded|exact             on a device: NaN around every tensor, and nothing may be written there; exact
                                   memory that nobody has filled is for compute-sanitizer

Exit status: 0 all are right, 1 one is not (or no algorithm computes it), 2 a line says nothing, 3 there is no device,
4 the device fails; what was left of the lines is to be given to another process.
)";

constexpr const char* kPassNames[] = {"forward", "input_grad", "weight_grad"};
constexpr const char* kDTypeNames[] = {"float32", "float64", "bfloat16", "float16", "complex64", "complex128"};
constexpr const char* kPrecisionNames[] = {"ieee", "tf32", "bf16"};
constexpr const char* kLayoutNames[] = {"contiguous", "channels_last", "mixed", "sliced", "transposed", "shifted"};
constexpr const char* kCheckNames[] = {"exact",    "special",    "huge",    "images",
                                       "accuracy", "magnitudes", "sampled", "none"};
constexpr const char* kMemoryNames[] = {"guarded", "exact"};
constexpr const char* kActivationNames[] = {"none", "relu", "clamp", "silu", "hardswish"};
constexpr double kLow = -2, kHigh = 5;  // of activation clamp
enum class Check { Exact, Special, Huge, Images, Accuracy, Magnitudes, Sampled, None };

// The words of a line, of keys that kHelp has, each asked for once.
class Words {
 public:
  explicit Words(const std::string& line) {
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) throw std::invalid_argument("a problem is made of key=value, got " + word);
      const std::string key = word.substr(0, equals);
      if (key.empty() || std::string(kHelp).find(" " + key + "=") == std::string::npos) no_key(key);
      if (!values_.emplace(key, word.substr(equals + 1)).second)
        throw std::invalid_argument("a key must stand there once, got " + key + " again");
    }
  }
  std::string text(const std::string& key, const char* usual) {
    const auto found = values_.find(key);
    if (found == values_.end()) {
      if (usual == nullptr) throw std::invalid_argument("a problem must have " + key + "=");
      return usual;
    }
    const std::string value = found->second;
    values_.erase(found);
    return value;
  }
  template <size_t count>
  int name(const std::string& key, const char* const (&names)[count], const char* usual) {
    const std::string value = text(key, usual);
    std::string all;
    for (size_t i = 0; i < count; ++i) {
      if (value == names[i]) return int(i);
      all += (i ? ", " : "") + std::string(names[i]);
    }
    throw std::invalid_argument(key + " must be one of " + all + ", got " + value);
  }
  // As many numbers as are wanted, or a divisor of that: then each stands for several.
  template <size_t count>
  std::array<int64_t, count> numbers(const std::string& key, const char* usual, int64_t least, int64_t most) {
    const std::string value = text(key, usual);
    std::vector<int64_t> found;
    std::istringstream parts(value);
    for (std::string part; std::getline(parts, part, ',');) {
      size_t used = 0;
      int64_t number = 0;
      try {
        number = std::stoll(part, &used);
      } catch (const std::exception&) {
        used = 0;
      }
      if (used == 0 || used != part.size() || number < least || number > most)
        throw std::invalid_argument(key + " must be made of whole numbers from " + std::to_string(least) + " to " +
                                    std::to_string(most) + ", got " + value);
      found.push_back(number);
    }
    if (found.empty() || found.size() > count || count % found.size() != 0)
      throw std::invalid_argument(key + " must be up to " + std::to_string(count) + " numbers, got " + value);
    std::array<int64_t, count> all;
    for (size_t i = 0; i < count; ++i) all[i] = found[i / (count / found.size())];
    return all;
  }
  int64_t number(const std::string& key, const char* usual, int64_t least, int64_t most = int64_t(1) << 30) {
    return numbers<1>(key, usual, least, most)[0];
  }
  void end() const {
    if (!values_.empty()) no_key(values_.begin()->first);
  }

 private:
  [[noreturn]] static void no_key(const std::string& key) {
    throw std::invalid_argument("there is no key " + key + ": see --help");
  }
  std::map<std::string, std::string> values_;
};

struct Case {
  ConvProblem z;
  Pass pass;
  std::string layout, algorithm, ways;
  int64_t capability;
  bool bias, guarded;
  int64_t residual;
  Activation activation;
  Check check;
  int64_t every;
  CudaChoices wanted;
  double milliseconds;
};

Case read_case(const std::string& line, int64_t capability) {
  Words words(line);
  Case c{};
  ConvProblem& z = c.z;
  c.pass = Pass(words.name("pass", kPassNames, nullptr));
  z.dtype = DType(words.name("dtype", kDTypeNames, nullptr));
  z.precision = Precision(words.name("precision", kPrecisionNames, "ieee"));
  for (auto [key, size] :
       {std::pair("n", &z.n), {"c", &z.c}, {"h", &z.h}, {"w", &z.w}, {"k", &z.k}, {"r", &z.r}, {"s", &z.s}})
    *size = words.number(key, nullptr, 1);
  const auto stride = words.numbers<2>("stride", "1", 1, 1 << 30),
             dilation = words.numbers<2>("dilation", "1", 1, 1 << 30);
  const auto padding = words.numbers<4>("padding", "0", 0, 1 << 30);
  z.stride_h = stride[0], z.stride_w = stride[1], z.dilation_h = dilation[0], z.dilation_w = dilation[1];
  z.pad_top = padding[0], z.pad_bottom = padding[1], z.pad_left = padding[2], z.pad_right = padding[3];
  z.groups = words.number("groups", "1", 1);
  c.layout = kLayoutNames[words.name("layout", kLayoutNames, "contiguous")];
  z.channels_last = c.layout == "channels_last" || c.layout == "mixed" || c.layout == "shifted";
  c.bias = words.number("bias", "0", 0, 1);
  c.residual = words.number("residual", "0", 0, 2);
  c.activation = Activation(words.name("activation", kActivationNames, "none"));
  c.algorithm = words.text("algorithm", "auto");
  c.wanted = {words.number("tile_m", "0", 0), words.number("tile_n", "0", 0), words.number("splits", "0", 0),
              words.number("parts", "0", 0)};
  c.capability = words.number("capability", std::to_string(capability).c_str(), 10, 999);
  c.check = Check(words.name("check", kCheckNames, "exact"));
  c.ways =
      words.text("ways", c.check == Check::Special || c.check == Check::Huge ? (kOnDevice ? "0" : "03") : kUsualWays);
  c.every = words.number("every", "0", 0);
  c.milliseconds = double(words.number("time", "0", 0, 60000));
  c.guarded = words.name("memory", kMemoryNames, "guarded") == 0;
  words.end();
  if (z.c % z.groups != 0 || z.k % z.groups != 0)
    throw std::invalid_argument("c and k must be multiples of groups, got c=" + std::to_string(z.c) +
                                " k=" + std::to_string(z.k) + " groups=" + std::to_string(z.groups));
  const auto extent = [](const char* side, int64_t size, int64_t before, int64_t behind, int64_t taps,
                         int64_t dilation_, int64_t step) {
    const int64_t rest = size + before + behind - dilation_ * (taps - 1) - 1;
    if (rest < 0)
      throw std::invalid_argument(
          std::string("the kernel must not be ") + side + " than the padded input: it reaches over " +
          std::to_string(dilation_ * (taps - 1) + 1) + " of " + std::to_string(size + before + behind));
    return rest / step + 1;
  };
  z.p = extent("higher", z.h, z.pad_top, z.pad_bottom, z.r, z.dilation_h, z.stride_h);
  z.q = extent("wider", z.w, z.pad_left, z.pad_right, z.s, z.dilation_w, z.stride_w);
  const bool activates = c.activation != Activation::None;
  if (c.pass != Pass::Forward && (c.bias || c.residual || activates))
    throw std::invalid_argument("bias, residual and activation are for forward");
  if (is_complex(z.dtype) && activates) throw std::invalid_argument("activations are for real numbers");
  return c;
}

template <class Wide, class T>
Wide read(const T* from) {
  return widen<Wide>(*from);
}
template <class T, class Wide>
void write(T* to, Wide value) {
  *to = narrow<T>(value);
}

// A tensor, on the host and where the kernels see it.
struct Tensor {
  int64_t size[4], stride[4], elements, bytes;
  std::unique_ptr<Memory> block;
  char* memory;  // on the host

  Tensor(std::array<int64_t, 4> sizes, const std::string& layout, int64_t element) : bytes(element) {
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
    allocate(layout == "shifted" ? bytes : 0);
  }
  void allocate(int64_t shift) {
    block.reset(new Memory(elements * bytes, shift));
    memory = block->host();
  }
  TensorRef host() const { return {memory, {stride[0], stride[1], stride[2], stride[3]}}; }
  TensorRef device() const { return {block->device(), {stride[0], stride[1], stride[2], stride[3]}}; }
  // Of an element, by its four indices.
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
  // Whether anything lies between the elements that was not there before.
  bool written_between() const {
    std::vector<char> all(memory, memory + elements * bytes);
    each([&](int64_t at) { memset(all.data() + at * bytes, 0xff, size_t(bytes)); });
    return std::any_of(all.begin(), all.end(), [](char byte) { return byte != char(0xff); });
  }
};

int launch_pass(Pass pass, const ConvProblem& z, const CudaPlan& plan, const Buffers& b, void* stream = nullptr) {
  const auto launch = pass == Pass::Forward     ? launch_forward
                      : pass == Pass::InputGrad ? launch_input_grad
                                                : launch_weight_grad;
  return launch(z, plan, b, stream);
}

// Without a bias or an epilogue.
Buffers buffers_of(const TensorRef& input, const TensorRef& weight, const TensorRef& output) {
  Buffers b{};
  b.input = input, b.weight = weight, b.output = output;
  return b;
}

// Starts a pass in a workspace of its own, and waits for it; why it could not be started.
std::string run_pass(Pass pass, const ConvProblem& z, const CudaCandidate& candidate, Buffers b) {
  const CudaPlan plan = make_cuda_plan(z, pass, candidate, &b);
  Memory workspace(plan.workspace_bytes, 0);
  b.workspace = workspace.device();
  const int error = launch_pass(pass, z, plan, b);
  if (error) return "failed: launch error " + std::to_string(error);
  wait_for_device();
  const std::string damage = workspace.damage();
  return damage.empty() ? "" : "wrong: something was written " + damage + " (the workspace)";
}

std::string plan_text(const CudaPlan& plan) {
  std::ostringstream text;
  text << " (tile " << plan.product.tile_m << " x " << plan.product.tile_n << ", " << plan.parts << " parts, "
       << plan.splits << " splits of " << plan.steps << " steps, " << plan.blocks << " blocks, " << plan.workspace_bytes
       << " B of workspace)";
  return text.str();
}

// forward, input_grad: whether each image alone gives the bits that it gives in the batch, and whether the batch gives
// them at addresses that are no multiple of a vector. Operands are real numbers.
template <class T, class Wide>
std::string check_images(const Case& c, const CudaCandidate& candidate, Tensor& x, Tensor& w, Tensor& y) {
  const int64_t bytes = element_bytes(c.z.dtype);
  const bool forward = c.pass == Pass::Forward;
  Tensor &source = forward ? x : y, &result = forward ? y : x;
  std::mt19937 random(54321);
  for (Tensor* t : {&source, &w}) {
    t->each([&](int64_t at) {
      for (int64_t part = 0; part < parts_of(c.z.dtype); ++part)
        write<T>(reinterpret_cast<T*>(t->memory + at * bytes) + part, Wide(random()) / Wide(1u << 31) - 1);
    });
    t->block->upload();
  }
  std::string failed;
  const auto run = [&](int64_t first, int64_t images) {
    ConvProblem z = c.z;
    z.n = images;
    Buffers b = buffers_of(x.device(), w.device(), y.device());
    b.input.data = static_cast<char*>(b.input.data) + first * x.stride[0] * bytes;
    b.output.data = static_cast<char*>(b.output.data) + first * y.stride[0] * bytes;
    if (failed.empty()) failed = run_pass(c.pass, z, candidate, b);
  };
  const auto bits = [&] {
    result.block->download();
    return std::vector<char>(result.memory, result.memory + result.elements * bytes);
  };
  run(0, c.z.n);
  const std::vector<char> together = bits();
  result.block->forget();
  for (int64_t n = 0; n < c.z.n; ++n) run(n, 1);
  if (!failed.empty()) return failed;
  if (bits() != together) return std::string("wrong: other bits alone than in a batch, by ") + candidate.name;
  const CudaPlan usual = make_cuda_plan(c.z, c.pass, candidate);
  int ways = 0;
  for (const auto& [tile_m, tile_n] : {std::pair(64, 64), {32, 128}, {64, 128}, {128, 128}, {256, 128}})
    for (int64_t splits = 1; splits <= usual.parts; splits += max_of(1, usual.parts - 1)) {  // one, or all
      CudaCandidate other = candidate;
      other.wanted = {tile_m, tile_n, splits, usual.parts};
      if (cuda_choices_decline(c.z, c.pass, other) != nullptr) continue;
      const CudaPlan plan = make_cuda_plan(c.z, c.pass, other);
      if (plan.parts != usual.parts || plan.product.chain_steps != usual.product.chain_steps) continue;
      result.block->forget();
      if (std::string why = run_pass(c.pass, c.z, other, buffers_of(x.device(), w.device(), y.device())); !why.empty())
        return why;
      if (bits() != together)
        return std::string("wrong: other bits in other blocks, by ") + candidate.name + plan_text(plan);
      ++ways;
    }
  for (Tensor* t : {&x, &w, &y}) {
    const std::vector<char> numbers(t->memory, t->memory + t->elements * bytes);
    t->allocate(bytes);
    memcpy(t->memory, numbers.data(), numbers.size());
    if (t != &result) t->block->upload();
  }
  result.block->forget();
  run(0, c.z.n);
  if (!failed.empty()) return failed;
  if (bits() != together) return std::string("wrong: other bits at other addresses, by ") + candidate.name;
  return std::string("exact: the same bits by ") + candidate.name + ", in blocks of " + std::to_string(ways) + " kinds";
}

// The reference's result into `to`, of T or of wider numbers: one of `every` so many planes, the last among them.
template <class T, class Wide, Pass pass>
void run_exact(const ConvProblem& z, Buffers b, const Tensor& to, int64_t every = 1) {
  (pass == Pass::Forward ? b.output : pass == Pass::InputGrad ? b.input : b.weight) = to.host();
  const Reference<T, Wide> reference(z, b);
  for (int64_t i = planes_of(z, pass) - 1; i >= 0; i -= every) reference.template compute_plane<pass>(i);
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
  const bool magnitudes = c.check == Check::Magnitudes;
  if (is_complex(z.dtype) || (magnitudes && z.dtype != DType::Float32))
    return "declined: there are no such numbers of this type";
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
      const Buffers of_reference = buffers_of(pass == Pass::Forward ? a.host() : b.host(), b.host(), a.host());
      run_exact<Wide, Wide, pass>(z, of_reference, exact);
      return exact;
    };
    const Tensor exact = sums(false), whole = sums(true);
    first.block->upload();
    second.block->upload();
    result.block->forget();
    const Buffers b = buffers_of(x.device(), w.device(), y.device());
    if (const std::string failed = run_pass(pass, z, candidate, b); !failed.empty()) return failed;
    result.block->download();
    const Tensor got = widened<T, Wide>(result, false);
    for (int64_t index = 0; index < got.elements; ++index) {
      const auto at = [&](const Tensor& t) { return reinterpret_cast<const Wide*>(t.memory)[index]; };
      const Wide all = at(whole), error = at(got) - at(exact);
      if (all >= Wide(0x1p127)) continue;  // float32 may overflow on the way
      const Wide allowed = (2 * std::sqrt(Wide(length)) * u + (rounded ? Wide(0x1p-10) : 0)) * all +
                           u_out * std::abs(at(exact)) + smallest;
      if (!(std::abs(error) <= allowed)) {
        std::ostringstream text;
        text << "wrong: " << double(std::abs(error) / allowed) << " of the allowed error by " << candidate.name
             << " (data " << data << ", element " << index << ": " << double(at(got)) << " for " << double(at(exact))
             << ")";
        return text.str();
      }
      ++counted;
      worst = std::max(worst, std::abs(error) / allowed);
      if (data > 0 || all == 0) continue;
      ++biased;
      bias += error / (u * all);
    }
  }
  if (counted == 0) return "declined: no sum is small enough";
  std::ostringstream text;
  text.precision(3);
  text << "exact: " << double(worst) << " of the allowed error, bias " << double(bias / Wide(max_of(1, biased)))
       << " u by " << candidate.name << ", " << counted << " sums of " << length;
  return text.str();
}

// Real numbers, the first million of which are repeated: nobody looks at them.
template <class T, class Wide>
void fill_at_random(Tensor* t, int64_t parts) {
  std::mt19937 random(1);
  const int64_t numbers = t->elements * parts, different = min_of(numbers, 1 << 20);
  T* const to = reinterpret_cast<T*>(t->memory);
  for (int64_t i = 0; i < different; ++i) write<T>(to + i, Wide(random()) / Wide(1u << 31) - 1);
  for (int64_t done = different; done < numbers; done += different)
    memcpy(to + done, to, size_t(min_of(different, numbers - done)) * sizeof(T));
}

// The operands of a case.
struct Operands {
  Tensor x, w, y, bias, residual;

  explicit Operands(const Case& c)
      : x({c.z.n, c.z.c, c.z.h, c.z.w}, c.layout == "mixed" ? "channels_last" : c.layout, element_bytes(c.z.dtype)),
        w({c.z.k, c.z.group_c(), c.z.r, c.z.s}, of_others(c), element_bytes(c.z.dtype)),
        y({c.z.n, c.z.k, c.z.p, c.z.q}, of_others(c), element_bytes(c.z.dtype)),
        bias({1, c.z.k, 1, 1}, of_others(c), element_bytes(c.z.dtype)),
        residual(c.residual ? std::array<int64_t, 4>{c.z.n, c.z.k, c.z.p, c.z.q} : std::array<int64_t, 4>{1, 1, 1, 1},
                 of_others(c), element_bytes(c.z.dtype)) {
    if (c.residual == 2) residual.allocate(residual.bytes);
  }
  static std::string of_others(const Case& c) { return c.layout == "mixed" ? "contiguous" : c.layout; }
  std::array<Tensor*, 5> all() { return {&x, &w, &y, &bias, &residual}; }

  // As the kernels see them, or as the reference does.
  Buffers buffers(const Case& c, bool on_host) const {
    const auto ref = [&](const Tensor& t) { return on_host ? t.host() : t.device(); };
    Buffers b = buffers_of(ref(x), ref(w), ref(y));
    if (c.bias) b.bias = ref(bias).data, b.bias_stride = bias.stride[1];
    if (c.residual) b.epilogue.residual = ref(residual);
    b.epilogue.activation = c.activation;
    b.epilogue.low = kLow, b.epilogue.high = kHigh;
    return b;
  }
};

// Small integers, whose sums are exact in every order, and what `special` and `huge` put among them.
template <class T, class Wide, Pass pass>
void fill_operands(const Case& c, Operands& o, const Tensor& result) {
  const int64_t parts = parts_of(c.z.dtype);
  std::mt19937 random(12345);
  for (Tensor* t : o.all()) {
    if (t == &result) continue;
    if (c.check == Check::None) {
      fill_at_random<T, Wide>(t, parts);
      continue;
    }
    t->each([&](int64_t at) {
      for (int64_t part = 0; part < parts; ++part)
        write<T>(reinterpret_cast<T*>(t->memory) + at * parts + part, Wide(int(random() % 7) - 3));
    });
  }
  const Tensor &first = pass == Pass::Forward ? o.x : o.y, &second = pass == Pass::WeightGrad ? o.x : o.w;
  T *const of_first = reinterpret_cast<T*>(first.memory), *const of_second = reinterpret_cast<T*>(second.memory);
  if (c.check == Check::Special) {
    write<T>(of_first + first.elements / 2 * parts, std::numeric_limits<Wide>::infinity());
    write<T>(of_second + second.elements / 3 * parts, std::numeric_limits<Wide>::quiet_NaN());
  }
  if (c.check == Check::Huge) {  // products of the largest number with 1 and with a small one
    int64_t index = 0;
    second.each([&](int64_t at) { write<T>(of_second + at * parts, Wide(index++ % 2)); });
    first.each([&](int64_t at) { write<T>(of_first + at * parts, Wide(0)); });
    write<T>(of_first + (first.elements - 1) * parts, Wide(std::numeric_limits<float>::max()));
  }
}

// What the reference makes of the operands.
template <class T, class Wide, Pass pass>
std::unique_ptr<Tensor> expected_of(const Case& c, Operands& o, const Tensor& result) {
  const ConvProblem& z = c.z;
  std::unique_ptr<Tensor> expected(new Tensor({result.size[0], result.size[1], result.size[2], result.size[3]},
                                              "contiguous", element_bytes(z.dtype)));
  constexpr double kMostOperations = 2e8;  // of the samples
  const int64_t every = c.check != Check::Sampled ? 1
                        : c.every                 ? c.every
                                                  : int64_t(std::ceil(z.flops() / kMostOperations));
  run_exact<T, Wide, pass>(z, o.buffers(c, true), *expected, every);
  return expected;
}

// By how much a result may differ: silu's exponentials by 4 units in the last place of a number of 32 bits or more, by
// one where fewer are left; hardswish has a rounding more than the reference.
template <class Wide>
Wide allowed_of(const Case& c, Wide right) {
  if (c.activation != Activation::Silu && c.activation != Activation::HardSwish) return 0;
  switch (c.z.dtype) {
    case DType::BFloat16:
      return std::abs(right) * Wide(0x1p-7) + Wide(0x1p-126);
    case DType::Float16:
      return std::abs(right) * Wide(0x1p-10) + Wide(0x1p-24);
    case DType::Float64:
      return std::abs(right) * Wide(0x1p-50) + Wide(0x1p-1022);
    default:
      return std::abs(right) * Wide(0x1p-21) + Wide(0x1p-126);
  }
}

// What is wrong with a result that has been brought to the host; nothing where it is right.
template <class T, class Wide>
std::string difference(const Case& c, const Tensor& result, const Tensor& expected) {
  const int64_t parts = parts_of(c.z.dtype);
  int64_t wrong = 0, index = 0, first_wrong = -1;
  Wide got_there = 0, wanted_there = 0;
  const T* wanted = reinterpret_cast<const T*>(expected.memory);
  result.each([&](int64_t at) {
    for (int64_t part = 0; part < parts; ++part, ++index) {
      const Wide got = read<Wide>(reinterpret_cast<const T*>(result.memory) + at * parts + part);
      const Wide right = read<Wide>(wanted + index);
      // Of what is not sampled nothing is known but that it is a number.
      const bool same =
          c.check == Check::Sampled && std::isnan(right)
              ? !std::isnan(got)
              : got == right || (std::isnan(got) && std::isnan(right)) || std::abs(got - right) <= allowed_of(c, right);
      if (!same && wrong++ == 0) first_wrong = index, got_there = got, wanted_there = right;
    }
  });
  std::ostringstream text;
  if (wrong)
    text << "wrong: " << wrong << " of " << index << " (first at " << first_wrong << ": " << double(got_there)
         << " for " << double(wanted_there) << ")";
  return text.str();
}

// Runs the plan in each way that the case names, and compares; what is wrong.
template <class T, class Wide>
std::string check_ways(const Case& c, const char* name, const CudaPlan& plan, Operands& o, const Buffers& b,
                       Memory& workspace, Tensor& result, const Tensor* expected) {
  const auto failed = [&](const std::string& what, char way) {
    return what + " by " + name + way_text(way) + plan_text(plan);
  };
  for (const char way : expected ? c.ways : c.ways.substr(0, 1)) {
    set_way(way);
    workspace.forget();
    result.block->forget();
    if (const int error = launch_pass(c.pass, c.z, plan, b))
      return failed("failed: launch error " + std::to_string(error), way);
    wait_for_device();
    if (expected == nullptr) break;
    result.block->download();
    for (auto [tensor, damage] : {std::pair("input", o.x.block->damage()),
                                  {"weight", o.w.block->damage()},
                                  {"output", o.y.block->damage()},
                                  {"residual", o.residual.block->damage()},
                                  {"workspace", workspace.damage()}})
      if (!damage.empty()) return failed("wrong: something was written " + damage + " (" + tensor + ")", way);
    const std::string wrong = difference<T, Wide>(c, result, *expected);
    if (!wrong.empty()) return failed(wrong, way);
    if (c.guarded && result.written_between()) return failed("wrong: something was written between the elements", way);
  }
  return "";
}

std::string plan_words(const CudaPlan& plan) {
  const int64_t m = plan.product.tile_m;
  return std::string(m > 128   ? " wide"
                     : m > 64  ? " large"
                     : m == 32 ? " narrow"
                               : "") +
         (plan.splits > 1 ? " split" : "");
}
std::string time_text(const Case& c, const CudaPlan& plan, const Buffers& b) {
  const std::vector<double> samples =
      milliseconds([&](void* stream) { return launch_pass(c.pass, c.z, plan, b, stream); }, c.milliseconds);
  const double median = samples[samples.size() / 2];
  std::ostringstream text;
  text << ", " << median << " ms (" << samples.front() << " to " << samples.back() << ", " << samples.size()
       << " samples), " << c.z.flops() / median / 1e9 << " TFLOP/s, " << c.z.bytes() / median / 1e6 << " GB/s"
       << plan_text(plan);
  return text.str();
}

template <class T, class Wide, Pass pass>
std::string check_pass(const Case& c) {
  const ConvProblem& z = c.z;
  const char* reason = nullptr;
  const CudaCandidate* chosen = choose_cuda(z, pass, CudaTraits{c.capability}, c.algorithm.c_str(), &reason);
  if (chosen == nullptr) return std::string("declined: ") + reason;
  CudaCandidate candidate = *chosen;
  candidate.wanted = c.wanted;
  if ((reason = cuda_choices_decline(z, pass, candidate)) != nullptr)
    return std::string("declined: ") + candidate.name + ": " + reason;

  Memory::guarded = c.guarded;
  Operands o(c);
  Tensor& result = pass == Pass::Forward ? o.y : pass == Pass::InputGrad ? o.x : o.w;
  if (c.check == Check::Accuracy || c.check == Check::Magnitudes)
    return check_accuracy<T, Wide, pass>(c, candidate, o.x, o.w, o.y, result);
  if (c.check == Check::Images) {
    if (pass == Pass::WeightGrad) return "declined: weight_grad sums over images";
    return check_images<T, Wide>(c, candidate, o.x, o.w, o.y);
  }
  fill_operands<T, Wide, pass>(c, o, result);
  std::unique_ptr<Tensor> expected;
  if (c.check != Check::None) expected = expected_of<T, Wide, pass>(c, o, result);
  for (Tensor* t : o.all())
    if (t != &result) t->block->upload();
  Buffers b = o.buffers(c, false);
  const CudaPlan plan = make_cuda_plan(z, pass, candidate, &b);
  Memory workspace(plan.workspace_bytes, 0);
  b.workspace = workspace.device();
  const std::string wrong = check_ways<T, Wide>(c, candidate.name, plan, o, b, workspace, result, expected.get());
  if (!wrong.empty()) return wrong;
  return (expected ? "exact: " : "ran: ") + std::string(candidate.name) + plan_words(plan) +
         (c.milliseconds > 0 ? time_text(c, plan, b) : "");
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

// Whether the verdict is one that a test may wait for.
bool good(const std::string& verdict) { return verdict.rfind("exact", 0) == 0 || verdict.rfind("ran", 0) == 0; }

int run(int count, char** arguments) {
  std::string given;
  for (int i = 1; i < count; ++i) given += (i > 1 ? " " : "") + std::string(arguments[i]);
  if (given == "--help" || given == "-h") {
    std::cout << kHelp;
    return 0;
  }
  // What is wrong with the one problem is told where there is no device, too.
  if (!given.empty() && given != "--device") read_case(given, 80);
  const int64_t capability = open_device(0);
  if (given == "--device") {
    std::cout << device_text() << std::endl;
    return 0;
  }
  bool right = true;
  std::istringstream one(given);
  std::istream& lines = given.empty() ? std::cin : one;
  for (std::string line; std::getline(lines, line);) {
    const Case c = read_case(line, capability);
    std::string verdict;
    try {
      verdict = check(c);
    } catch (const DeviceError& error) {
      std::cout << "failed: " << error.what() << " | " << line << std::endl;
      return 4;
    }
    right = right && good(verdict);
    std::cout << verdict << " | " << line << std::endl;
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace conv_ext

int main(int count, char** arguments) {
  try {
    return conv_ext::run(count, arguments);
  } catch (const std::invalid_argument& error) {
    std::cerr << arguments[0] << ": " << error.what() << std::endl;
    return 2;
  } catch (const conv_ext::NoDevice& error) {
    std::cerr << arguments[0] << ": there is no CUDA device to run on (" << error.what() << ")" << std::endl;
    return 3;
  } catch (const std::exception& error) {
    std::cerr << arguments[0] << ": " << error.what() << std::endl;
    return 4;
  }
}
