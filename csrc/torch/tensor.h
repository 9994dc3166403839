// Torch's tensors as the operators see them: by its stable C interface, so that one binary serves every version from
// 2.11 on (docs/decisions). No other file of the operators calls torch but for registration.h and what cpu.cpp and
// cuda.cpp say.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <string.h>

#include <iterator>
#include <memory>

#include "../common/buffers.h"
#include "errors.h"
#include "sizes.h"

// Of torch 2.13: the message of what failed. Older ones have printed it.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace conv_ext {

// After a call of torch's interface, which gives an error code.
inline void check_torch(AOTITorchError error, const char* what) {
  if (error == AOTI_TORCH_SUCCESS) return;
  const bool known = torch_exception_get_what_without_backtrace != nullptr;
  throw std::runtime_error(known ? torch_exception_get_what_without_backtrace() : text_of("torch failed to ", what));
}

// ---- dtypes, devices, layouts

struct TorchType {
  int32_t code;
  const char* name;  // Python's
  int32_t bytes;
};
// The first six are DTypes, in their order; torch gives the codes.
inline const TorchType* torch_types(int* count) {
  static const TorchType types[] = {
      {aoti_torch_dtype_float32(), "float32", 4},
      {aoti_torch_dtype_float64(), "float64", 8},
      {aoti_torch_dtype_bfloat16(), "bfloat16", 2},
      {aoti_torch_dtype_float16(), "float16", 2},
      {aoti_torch_dtype_complex64(), "complex64", 8},
      {aoti_torch_dtype_complex128(), "complex128", 16},
      {aoti_torch_dtype_complex32(), "complex32", 4},
      {aoti_torch_dtype_uint8(), "uint8", 1},
      {aoti_torch_dtype_int8(), "int8", 1},
      {aoti_torch_dtype_int16(), "int16", 2},
      {aoti_torch_dtype_int32(), "int32", 4},
      {aoti_torch_dtype_int64(), "int64", 8},
      {aoti_torch_dtype_bool(), "bool", 1},
      {aoti_torch_dtype_uint16(), "uint16", 2},
      {aoti_torch_dtype_uint32(), "uint32", 4},
      {aoti_torch_dtype_uint64(), "uint64", 8},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2", 1},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn", 1},
  };
  *count = int(std::size(types));
  return types;
}
inline int32_t type_code(DType dtype) {
  int count;
  return torch_types(&count)[int(dtype)].code;
}

struct Device {
  int32_t type, index;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};
inline Text& operator<<(Text& out, const Device& device) {
  static const struct {
    int32_t type;
    const char* name;
  } names[] = {{aoti_torch_device_type_cpu(), "cpu"},   {aoti_torch_device_type_cuda(), "cuda"},
               {aoti_torch_device_type_meta(), "meta"}, {aoti_torch_device_type_xpu(), "xpu"},
               {aoti_torch_device_type_mps(), "mps"},   {aoti_torch_device_type_privateuse1(), "privateuseone"}};
  const char* found = nullptr;
  for (const auto& row : names)
    if (row.type == device.type) found = row.name;
  found ? out << found : out << "device type " << device.type;
  return device.index >= 0 ? out << ":" << device.index : out;
}

inline const char* layout_name(int32_t layout) {
  const std::pair<int32_t, const char*> names[] = {
      {aoti_torch_layout_sparse_coo(), "layout Sparse"},    {aoti_torch_layout_sparse_csr(), "layout SparseCsr"},
      {aoti_torch_layout_sparse_csc(), "layout SparseCsc"}, {aoti_torch_layout_sparse_bsr(), "layout SparseBsr"},
      {aoti_torch_layout_sparse_bsc(), "layout SparseBsc"}, {aoti_torch_layout__mkldnn(), "layout Mkldnn"},
      {aoti_torch_layout_jagged(), "layout Jagged"}};
  for (const auto& [code, name] : names)
    if (code == layout) return name;
  return "another layout";
}

// ---- operands

// What the rules of a call ask of a tensor.
template <class Int>
struct OperandOf {
  List<Int> sizes;
  const char* type_name;  // Python's, of its dtype, in letters of any size
  int32_t dtype;          // DType, or a number beyond them
  Device device;
  const char* unlike;  // what a tensor is that is not strided, else nullptr
};

// A tensor that the call has lent.
struct Operand : OperandOf<int64_t> {
  AtenTensorHandle tensor;
  const int64_t* stride;
  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    return count;
  }
};

// By torch's number of a dtype.
inline void set_type(Operand* operand, int32_t code) {
  int count;
  const TorchType* const types = torch_types(&count);
  for (operand->dtype = 0; operand->dtype < count && types[operand->dtype].code != code;) ++operand->dtype;
  const auto other = torch::headeronly::ScalarType(code);
  const bool known = operand->dtype < count;
  operand->type_name = known ? types[operand->dtype].name : torch::headeronly::toString(other);
  if (!known && torch::headeronly::isQIntType(other)) operand->unlike = "a quantized tensor";
}

inline Operand operand_of(AtenTensorHandle tensor) {
  Operand operand{};
  operand.tensor = tensor;
  int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
  int32_t code = 0, layout = 0;
  static const int32_t strided = aoti_torch_layout_strided();
  check_torch(aoti_torch_get_dim(tensor, &dims) || aoti_torch_get_sizes(tensor, &sizes) ||
                  aoti_torch_get_dtype(tensor, &code) || aoti_torch_get_layout(tensor, &layout) ||
                  aoti_torch_get_device_type(tensor, &operand.device.type) ||
                  aoti_torch_get_device_index(tensor, &operand.device.index),
              "describe a tensor");
  operand.sizes = {sizes, size_t(dims)};
  set_type(&operand, code);
  if (layout != strided) {
    operand.unlike = layout_name(layout);
    return operand;
  }
  check_torch(aoti_torch_get_strides(tensor, &strides), "describe a tensor");
  operand.stride = strides;
  return operand;
}

inline bool is_cpu(const OperandOf<int64_t>& t) { return t.device.type == aoti_torch_device_type_cpu(); }
inline bool is_cuda(const OperandOf<int64_t>& t) { return t.device.type == aoti_torch_device_type_cuda(); }

// A tensor that is ours to give back.
struct Release {
  void operator()(AtenTensorHandle tensor) const { aoti_torch_delete_tensor_object(tensor); }
};
using Tensor = std::unique_ptr<AtenTensorOpaque, Release>;

// Who allocates: torch's own interface, or the fast road with its C++ classes of errors (fastcall.cpp).
using Allocate = AtenTensorHandle (*)(const int64_t* sizes, const int64_t* strides, int64_t dims, int32_t type,
                                      Device device);
extern __attribute__((visibility("default"))) Allocate allocate;

inline Tensor empty(const List<int64_t>& sizes, const List<int64_t>& strides, int32_t type, Device device) {
  return Tensor(allocate(sizes.data(), strides.data(), int64_t(sizes.size()), type, device));
}
inline void* mutable_data(const Tensor& tensor) {
  void* data = nullptr;
  check_torch(torch_get_mutable_data_ptr(tensor.get(), &data), "give a tensor's memory");
  return data;
}
inline void* const_data(AtenTensorHandle tensor) {
  const void* data = nullptr;
  check_torch(torch_get_const_data_ptr(tensor, &data), "give a tensor's memory");
  return const_cast<void*>(data);
}

// The strides of a dense 4-D tensor as torch makes them.
inline std::array<int64_t, 4> dense_stride(const List<int64_t>& n, bool channels_last) {
  const auto least_one = [](int64_t size) { return size > 1 ? size : 1; };
  if (channels_last) return {n[1] * n[3] * n[2], 1, n[1] * n[3], n[1]};
  const int64_t row = least_one(n[3]), plane = least_one(n[2]) * row;
  return {least_one(n[1]) * plane, plane, row, 1};
}

// A dense 4-D tensor with the dtype and the device of another.
inline Tensor empty_like_this(const std::array<int64_t, 4>& sizes, bool channels_last, const Operand& other) {
  return empty(sizes, dense_stride(sizes, channels_last), type_code(DType(other.dtype)), other.device);
}

// Whether a tensor fills its memory in that order: its strides say nothing of the dimensions of size 1.
inline bool lies_so(const Operand& t, bool channels_last) {
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t expected = 1;
  if (t.elements() == 0) return true;
  for (const int d : order[channels_last]) {
    if (t.sizes[size_t(d)] != 1 && t.stride[d] != expected) return false;
    expected *= t.sizes[size_t(d)];
  }
  return true;
}

// Whether torch calls a 4-D tensor channels_last, as the result of F.conv2d follows it: each of C, W, H and N steps at
// least over all of what came before. Strides of dimensions of size 1 are heeded, those of channels of stride 0 and
// what is ambiguous between both orders are not channels_last.
inline bool suggests_channels_last(const Operand& t) {
  int64_t covered = 0;
  if (t.stride[1] == 0) return false;
  for (const int d : {1, 3, 2, 0}) {
    const int64_t size = t.sizes[size_t(d)], stride = t.stride[d];
    if (size == 0 || stride < covered || (d == 0 && covered == t.stride[1])) return false;
    covered = size > 1 ? stride * size : stride;
  }
  return true;
}

// ---- torch's operators

inline void copy(const Tensor& to, AtenTensorHandle from) {
  check_torch(aoti_torch_copy_(to.get(), from, 0), "copy a tensor");
}
// An operator that changes its first argument, which it returns.
template <class... Arguments>
void call_in_place(const char* name, const char* overload, const Tensor& self, Arguments... arguments) {
  AtenTensorHandle first = nullptr;
  check_torch(aoti_torch_new_tensor_handle(self.get(), &first), "share a tensor");
  StableIValue stack[] = {StableIValue(reinterpret_cast<uintptr_t>(first)), StableIValue(arguments)...};
  check_torch(aoti_torch_call_dispatcher(name, overload, stack), name);
  aoti_torch_delete_tensor_object(reinterpret_cast<AtenTensorHandle>(uintptr_t(stack[0])));
}

// Between two bounds, as tensors: torch's interface carries no Scalar.
inline void clamp(const Tensor& self, double low, double high) {
  const Operand t = operand_of(self.get());
  StableIValue* optional[2];
  for (int i = 0; i < 2; ++i) {
    int32_t type = type_code(DType(t.dtype)), device = t.device.type;
    AtenTensorHandle bound = nullptr;
    check_torch(
        aoti_torch_aten_full(nullptr, 0, i == 0 ? low : high, &type, nullptr, &device, t.device.index, nullptr, &bound),
        "make a number a tensor");
    optional[i] = new StableIValue(reinterpret_cast<uintptr_t>(bound));  // the call takes both
  }
  call_in_place("aten::clamp_", "Tensor", self, reinterpret_cast<uintptr_t>(optional[0]),
                reinterpret_cast<uintptr_t>(optional[1]));
}

// Whether anybody listens, as the fast road finds out for less than torch's stable interface asks for; without it every
// call is told of.
using IsListening = bool (*)();
extern __attribute__((visibility("default"))) IsListening profiler_listens;

// What a profiler shows of a call.
class ProfilerScope {
 public:
  ProfilerScope(const char* pass, const char* algorithm) {
    if (profiler_listens != nullptr && !profiler_listens()) return;
    char name[64];
    char* end = name;
    for (const char* part : {"conv_ext::", pass, "[", algorithm, "]"})
      end = stpncpy(end, part, size_t(name + 63 - end));
    *end = '\0';
    if (aoti_record_function_start(name, nullptr, nullptr, 0, &record_) != AOTI_TORCH_SUCCESS) record_ = nullptr;
  }
  ~ProfilerScope() {
    if (record_ != nullptr) aoti_record_function_end(record_);
  }
  ProfilerScope(const ProfilerScope&) = delete;
  ProfilerScope& operator=(const ProfilerScope&) = delete;

 private:
  AtenRecordFunctionHandle record_ = nullptr;
};

}  // namespace conv_ext
