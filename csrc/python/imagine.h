#pragma once

#include <pybind11/pybind11.h>

namespace vlarft::python {

// Imaginer, Prompt and the list of kernels.
void bind_imagine(pybind11::module_& m);

}  // namespace vlarft::python
