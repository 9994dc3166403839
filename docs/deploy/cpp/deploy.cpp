// A program without Python that runs a converted network in three ways.
//
//   deploy OPERATORS PACKAGE TRACE EXAMPLE
//
//   OPERATORS  libconv_ext_operators.so of the installed package, beside which lib/ has its kernels
//   PACKAGE    what torch._inductor.aoti_compile_and_package made
//   TRACE      what torch.jit.trace(...).save made
//   EXAMPLE    a dict by torch.save: images, scores (what the network makes of them), weight (of one 3x3 kernel)
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/script.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

// The operators register themselves with torch's dispatcher when their library is opened. Their kernels, those of the
// processor's best instruction set or of CONV_EXT_ISA, are opened by the first call.
void open_operators(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
}

c10::impl::GenericDict read_example(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return torch::jit::pickle_load(bytes).toGenericDict();
}

void compare(const char* name, const at::Tensor& found, const at::Tensor& wanted, double most) {
  TORCH_CHECK(found.sizes() == wanted.sizes(), name, ": the result is ", found.sizes(), ", not ", wanted.sizes());
  const double error = (found - wanted).abs().max().item<double>();
  std::printf("%-32s largest difference %.2g\n", name, error);
  TORCH_CHECK(error <= most, name, ": the largest difference is ", error, ", and may be ", most);
}

// The operator by its name, as any library's. Every argument of its schema has to be given, defaults included: torch
// cannot compare this type with the schema, and reads beyond what is given.
at::Tensor forward(const at::Tensor& input, const at::Tensor& weight) {
  using Forward =
      at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, c10::SymIntArrayRef,
                 c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymInt, std::string_view, std::string_view,
                 std::string_view, const std::optional<at::Tensor>&, double, double);
  static const auto found = c10::Dispatcher::singleton().findSchemaOrThrow("conv_ext::forward", "").typed<Forward>();
  const std::vector<c10::SymInt> ones{1, 1}, padding{1, 1, 1, 1};
  return found.call(input, weight, std::nullopt, ones, padding, ones, 1, "ieee", "auto", "none", std::nullopt, 0.0,
                    0.0);
}

int main(int count, char** arguments) try {
  if (count != 5) {
    std::fprintf(stderr, "usage: deploy OPERATORS PACKAGE TRACE EXAMPLE\n");
    return 2;
  }
  open_operators(arguments[1]);
  c10::InferenceMode inference;
  const auto example = read_example(arguments[4]);
  const auto tensor = [&](const char* name) { return example.at(name).toTensor(); };
  const at::Tensor images = tensor("images"), scores = tensor("scores"), weight = tensor("weight");

  torch::inductor::AOTIModelPackageLoader package(arguments[2]);
  compare("AOTInductor package", package.run({images}).at(0), scores, 1e-4);

  torch::jit::Module trace = torch::jit::load(arguments[3]);
  compare("TorchScript trace", trace.forward({images}).toTensor(), scores, 1e-4);

  compare("conv_ext::forward, beside torch", forward(images, weight), at::conv2d(images, weight, {}, 1, 1), 1e-4);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "deploy: %s\n", error.what());
  return 1;
}
