// Python object -> TensorView through the DLPack protocol; owns the capsule while the view is used.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/tensor_view.h"

namespace vlarft::python {

class ImportedTensor {
 public:
  // `what` names the argument in messages, such as "philox(): counters".
  // Throws DtypeError when the object does not speak DLPack, BackendError when its owner refuses to
  // share it (a tensor that needs gradients, for one), else what TensorView::from_dlpack throws.
  ImportedTensor(const pybind11::object& object, const std::string& what);

  const TensorView& view() const { return *view_; }

 private:
  template <class Managed>
  void adopt(Managed* managed, bool writable, const std::string& what);

  std::unique_ptr<void, std::function<void(void*)>> owner_;  // calls the exporter's deleter
  std::optional<TensorView> view_;
};

}  // namespace vlarft::python
