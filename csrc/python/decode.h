#pragma once

#include <pybind11/pybind11.h>

namespace vlarft::python {

// Workers, Convolution and group_norm.
void bind_decode(pybind11::module_& m);

}  // namespace vlarft::python
