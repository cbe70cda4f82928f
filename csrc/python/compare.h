#pragma once

#include <pybind11/pybind11.h>

namespace vlarft::python {

// l1 and perceptual.
void bind_compare(pybind11::module_& m);

}  // namespace vlarft::python
