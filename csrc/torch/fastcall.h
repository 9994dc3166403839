// Adds Road, road, forward, input_grad and weight_grad to a Python module; see fastcall.cpp.
#pragma once

#include <Python.h>

namespace conv_ext {

void add_fast_functions(PyObject* module);

}  // namespace conv_ext
