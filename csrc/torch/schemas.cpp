// The operators' schemas.
#include "registration.h"

// Of torch 2.12: a schema with tags.
extern "C" __attribute__((weak)) AOTITorchError torch_library_def_with_tags(TorchLibraryHandle, const char* schema,
                                                                            const int32_t* tags, int32_t count);
extern "C" __attribute__((weak)) int32_t torch_tag_pt2_compliant_tag();

namespace conv_ext {
namespace {

#define CONV_EXT_GEOMETRY                                                    \
  "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups, " \
  "str precision=\"ieee\", str algorithm=\"auto\""
#define CONV_EXT_EPILOGUE ", str activation=\"none\", Tensor? residual=None, float low=0, float high=0"
constexpr const char* kTraced[] = {
    "forward(Tensor input, Tensor weight, Tensor? bias, " CONV_EXT_GEOMETRY CONV_EXT_EPILOGUE ") -> Tensor",
    "forward_packed(Tensor input, Tensor weight, Tensor packed, Tensor? bias, " CONV_EXT_GEOMETRY CONV_EXT_EPILOGUE
    ") -> Tensor",
    "input_grad(Tensor grad_output, Tensor weight, SymInt[2] input_size, " CONV_EXT_GEOMETRY ") -> Tensor",
    "weight_grad(Tensor grad_output, Tensor input, SymInt[2] kernel_size, " CONV_EXT_GEOMETRY ") -> Tensor",
};
// Its result has a size that the plan alone knows.
constexpr const char* kPack =
    "pack(Tensor weight, Tensor input, int[2] stride, int[4] padding, int[2] dilation, int groups, "
    "str precision=\"ieee\", str algorithm=\"auto\") -> Tensor";

// Defines them as long as the process lasts.
const bool kDefined = [] {
  TorchLibraryHandle library = nullptr;
  check_torch(aoti_torch_library_init_def("conv_ext", __FILE__, __LINE__, &library), "open a library of operators");
  for (const char* schema : kTraced) {
    if (torch_library_def_with_tags != nullptr) {
      const int32_t compliant = torch_tag_pt2_compliant_tag();
      check_torch(torch_library_def_with_tags(library, schema, &compliant, 1), "define an operator");
    } else {
      check_torch(aoti_torch_library_def(library, schema), "define an operator");
    }
  }
  check_torch(aoti_torch_library_def(library, kPack), "define an operator");
  return true;
}();

}  // namespace
}  // namespace conv_ext
