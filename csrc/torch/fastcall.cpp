// The fast road of the Python layer: asks whether a call is plain, and runs an operator below the dispatcher. A module
// for one version of torch and of Python (conv_ext/_C.py stands in for it elsewhere), linked with the operators.
// Written against CPython's own calling convention: through the dispatcher a tiny call costs several times as much
// (docs/decisions/0001-operators-on-the-stable-abi.md has the figures).
#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <c10/core/GradMode.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <chrono>
#include <iterator>
#include <thread>

#include "old_glibc.h"
#include "operators.h"

namespace conv_ext {
namespace {

using torch::aot_inductor::tensor_handle_to_tensor_pointer, torch::aot_inductor::tensor_pointer_to_tensor_handle;

// Results by torch's C++ interface, whose errors keep their classes.
AtenTensorHandle allocate_by_torch(const int64_t* sizes, const int64_t* strides, int64_t dims, int32_t type,
                                   Device device) {
  const at::Device where(c10::DeviceType(device.type), c10::DeviceIndex(device.index));
  const auto options = at::TensorOptions(where).dtype(at::ScalarType(type));
  const at::IntArrayRef size(sizes, size_t(dims)), stride(strides, size_t(dims));
  return tensor_pointer_to_tensor_handle(new at::Tensor(at::empty_strided(size, stride, options)));
}

// What operand_of asks torch's interface for, at hand here.
Operand lent(const at::Tensor& tensor) {
  const AtenTensorHandle handle = tensor_pointer_to_tensor_handle(const_cast<at::Tensor*>(&tensor));
  if (tensor.layout() != at::kStrided) return operand_of(handle);
  Operand operand{};
  operand.tensor = handle;
  operand.sizes = {tensor.sizes().data(), size_t(tensor.dim())};
  operand.stride = tensor.strides().data();
  operand.device = {int32_t(tensor.device().type()), int32_t(tensor.device().index())};
  set_type(&operand, int32_t(tensor.scalar_type()));
  return operand;
}

// What kind of call it is: conv_ext._C.Road of Python, whose members have these numbers and names.
enum class Road { General, PlainGradient, Plain };
constexpr const char* kRoadNames[] = {"GENERAL", "PLAIN_GRADIENT", "PLAIN"};
PyObject* road_members[std::size(kRoadNames)];  // they live as long as the process

void add_roads(PyObject* module) {
  namespace py = pybind11;
  py::dict numbers;
  for (size_t i = 0; i < std::size(kRoadNames); ++i) numbers[kRoadNames[i]] = i;
  const py::object roads = py::module_::import("enum").attr("IntEnum")("Road", numbers);
  roads.attr("__module__") = PyModule_GetName(module);
  for (size_t i = 0; i < std::size(kRoadNames); ++i)
    road_members[i] = py::object(roads.attr(kRoadNames[i])).release().ptr();
  py::reinterpret_borrow<py::module_>(module).attr("Road") = roads;
}

PyObject* member(Road road) { return Py_NewRef(road_members[int(road)]); }

// Keys that a call may carry and still be plain: dense storage and ordinary autograd on the CPU or on CUDA.
// Anything else in the tensors or in this thread's state (functorch, autocast, tracing, a Python mode, a conjugate
// view, inference exclusions, ...) sends the call down the general road.
const uint64_t kPlainKeys =
    (c10::DispatchKeySet(c10::DispatchKey::CPU) | c10::DispatchKeySet(c10::DispatchKey::AutogradCPU) |
     c10::DispatchKeySet(c10::DispatchKey::CUDA) | c10::DispatchKeySet(c10::DispatchKey::AutogradCUDA) |
     c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView) | c10::DispatchKeySet(c10::DispatchKey::BackendSelect))
        .raw_repr();

bool plain(const at::Tensor& t, c10::impl::LocalDispatchKeySet local) {
  const c10::DispatchKeySet keys = (t.key_set() | local.included_) - local.excluded_;
  return (keys.raw_repr() & ~kPlainKeys) == 0 && !t._fw_grad(0).defined();
}

PyObject* road(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 3 && count != 4) {
    PyErr_SetString(PyExc_TypeError, "road takes an input, a weight, a bias or None, and a residual or None");
    return nullptr;
  }
  bool gradient = false;
  if (!at::impl::torch_function_mode_enabled()) {
    const auto local = c10::impl::tls_local_dispatch_key_set();
    bool all_plain = true;
    for (int i = 0; i < count && all_plain; ++i) {
      if (i >= 2 && arguments[i] == Py_None) continue;
      all_plain = false;
      if (!THPVariable_CheckExact(arguments[i])) break;
      const at::Tensor& t = THPVariable_Unpack(arguments[i]);
      // On several devices: the general road has the dispatcher's and the validator's errors.
      if (!plain(t, local) || (i > 0 && t.device() != THPVariable_Unpack(arguments[0]).device())) break;
      gradient = gradient || t.requires_grad();
      all_plain = true;
    }
    if (all_plain) return member(gradient && c10::GradMode::is_enabled() ? Road::PlainGradient : Road::Plain);
  }
  return member(Road::General);
  END_HANDLE_TH_ERRORS
}

// A tuple or list of a fixed number of ints.
template <size_t count>
struct Ints {
  std::array<int64_t, count> values{};
  bool parse(PyObject* object, const char* name) {
    const bool is_tuple = PyTuple_Check(object);
    if ((!is_tuple && !PyList_Check(object)) || Py_SIZE(object) != Py_ssize_t(count)) {
      PyErr_Format(PyExc_TypeError, "%s must be a tuple of %zu ints, got %R", name, count, object);
      return false;
    }
    for (size_t i = 0; i < count; ++i) {
      PyObject* item = is_tuple ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i);
      values[i] = PyLong_AsLongLong(item);
      if (values[i] == -1 && PyErr_Occurred()) return false;
    }
    return true;
  }
};

// Lets other Python threads run while `work` computes. A thread that comes back to an interpreter that has ended is
// ended by Python up to 3.13, with its stack unwound, which this stack's owners do not survive (the process aborts, as
// it does with torch's operators). It waits for the end of the process instead, as from Python 3.14 on.
template <class Work>
void without_gil(const Work& work) {
  struct Return {
    PyThreadState* state = PyEval_SaveThread();
    ~Return() noexcept(false) {
      struct Wait {
        bool returned = false;
        ~Wait() {
          while (!returned) std::this_thread::sleep_for(std::chrono::hours(1));
        }
      } wait;
      PyEval_RestoreThread(state);
      wait.returned = true;
    }
  } back;
  work();
}

bool parse_text(PyObject* object, const char* name, std::string_view* text) {
  Py_ssize_t length = 0;
  const char* data = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &length) : nullptr;
  if (data == nullptr) {
    if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "%s must be a str, got %R", name, object);
    return false;
  }
  *text = {data, size_t(length)};
  return true;
}

// forward:                 (input, weight, bias, stride, padding, dilation, groups, precision, algorithm, activation)
//                          and, if wanted, (residual, low, high)
// forward_packed:          the same with `packed` as the last argument
// input_grad, weight_grad: (first, second, size, stride, padding, dilation, groups, precision, algorithm)
template <Pass pass, bool with_packed = false>
PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  constexpr bool is_forward = pass == Pass::Forward;
  constexpr int wanted = is_forward ? 10 + with_packed : 9;
  const bool has_epilogue = is_forward && count == wanted + 3;
  if (count != wanted && !has_epilogue) {
    PyErr_Format(PyExc_TypeError, "%s takes %d arguments%s, got %zd", pass_name(pass), wanted,
                 is_forward ? " or 3 more" : "", count);
    return nullptr;
  }
  if (with_packed && !THPVariable_Check(arguments[count - 1])) {
    PyErr_Format(PyExc_TypeError, "packed must be a Tensor, got %R", (PyObject*)Py_TYPE(arguments[count - 1]));
    return nullptr;
  }
  const bool has_bias = is_forward && arguments[2] != Py_None;
  for (int i = 0; i < 2 + has_bias; ++i) {
    if (!THPVariable_Check(arguments[i])) {
      PyErr_Format(PyExc_TypeError, "%s: argument %d must be a Tensor, got %R", pass_name(pass), i + 1,
                   (PyObject*)Py_TYPE(arguments[i]));
      return nullptr;
    }
  }
  const bool has_residual = has_epilogue && arguments[10] != Py_None;
  if (has_residual && !THPVariable_Check(arguments[10])) {
    PyErr_Format(PyExc_TypeError, "residual must be a Tensor, got %R", (PyObject*)Py_TYPE(arguments[10]));
    return nullptr;
  }
  Ints<2> size, stride, dilation;
  Ints<4> padding;
  CallArguments a{};
  a.activation = "none";
  if (!is_forward && !size.parse(arguments[2], pass == Pass::InputGrad ? "input_size" : "kernel_size")) return nullptr;
  if (!stride.parse(arguments[3], "stride") || !padding.parse(arguments[4], "padding") ||
      !dilation.parse(arguments[5], "dilation"))
    return nullptr;
  a.groups = PyLong_AsLongLong(arguments[6]);
  if (a.groups == -1 && PyErr_Occurred()) return nullptr;
  if (!parse_text(arguments[7], "precision", &a.precision) || !parse_text(arguments[8], "algorithm", &a.algorithm))
    return nullptr;
  if (is_forward && !parse_text(arguments[9], "activation", &a.activation)) return nullptr;
  if (has_epilogue) {
    a.low = PyFloat_AsDouble(arguments[11]);
    a.high = PyFloat_AsDouble(arguments[12]);
    if (PyErr_Occurred()) return nullptr;
  }
  a.size = size.values;
  a.stride = stride.values;
  a.padding = padding.values;
  a.dilation = dilation.values;
  const at::Tensor first = THPVariable_Unpack(arguments[0]), second = THPVariable_Unpack(arguments[1]);
  at::Tensor bias, residual, packed, result;
  if (has_bias) bias = THPVariable_Unpack(arguments[2]);
  if (has_residual) residual = THPVariable_Unpack(arguments[10]);
  if (with_packed) packed = THPVariable_Unpack(arguments[count - 1]);
  without_gil([&] {
    at::AutoDispatchBelowADInplaceOrView below;  // the operators called inside record nothing
    Operand lent_bias, lent_residual, lent_packed;
    if (has_bias) lent_bias = lent(bias);
    if (has_residual) a.residual = &(lent_residual = lent(residual));
    if (with_packed) a.packed = &(lent_packed = lent(packed));
    const RunPass run = first.is_cuda() ? run_cuda : run_cpu;
    try {
      const Tensor computed = run(pass, lent(first), lent(second), has_bias ? &lent_bias : nullptr, a);
      result = std::move(*tensor_handle_to_tensor_pointer(computed.get()));
    } catch (const NotImplemented& error) {
      C10_THROW_ERROR(NotImplementedError, error.what());
    }
  });
  return THPVariable_Wrap(std::move(result));
  END_HANDLE_TH_ERRORS
}

template <class F>
PyCFunction method(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef kMethods[] = {
    {"road", method(road), METH_FASTCALL,
     "road(input, weight, bias, residual=None) -> Road.PLAIN: plain tensors, no gradient needed; Road.PLAIN_GRADIENT: "
     "plain tensors, "
     "one is needed; Road.GENERAL: anything else"},
    {"forward", method(call<Pass::Forward>), METH_FASTCALL,
     "conv_ext::forward below the dispatcher, for plain tensors"},
    {"forward_packed", method(call<Pass::Forward, true>), METH_FASTCALL,
     "conv_ext::forward_packed below the dispatcher, for plain tensors; the packed weight is the last argument"},
    {"input_grad", method(call<Pass::InputGrad>), METH_FASTCALL,
     "conv_ext::input_grad below the dispatcher, for plain tensors"},
    {"weight_grad", method(call<Pass::WeightGrad>), METH_FASTCALL,
     "conv_ext::weight_grad below the dispatcher, for plain tensors"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace conv_ext

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace conv_ext;
  module.doc() = "The fast road of conv_ext, for one version of torch and of Python: see conv_ext/_C.py.";
  add_roads(module.ptr());
  PyModule_AddFunctions(module.ptr(), kMethods);
  allocate = allocate_by_torch;
  profiler_listens = [] { return at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value(); };
}
