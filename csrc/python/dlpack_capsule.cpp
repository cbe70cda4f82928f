#include "python/dlpack_capsule.h"

#include "core/dlpack.h"
#include "core/errors.h"

namespace py = pybind11;

namespace vlarft::python {
namespace {

// Asks for a versioned capsule, which says whether the memory may be written; exporters older than
// DLPack 1.0 do not know the argument and answer TypeError.
py::object export_capsule(const py::object& object, const std::string& what) {
  const py::object method = object.attr("__dlpack__");
  try {
    try {
      return method(py::arg("max_version") = py::make_tuple(dlpack::kMajorVersion, 0));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
    }
    return method();
  } catch (py::error_already_set& error) {
    throw BackendError(
        what + " cannot be shared with native code: " + std::string(py::str(error.value())));
  }
}

template <class Managed>
Managed* take(const py::object& capsule, const char* name, const char* used) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
  // The protocol's way to say that the memory now has a new owner.
  if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), used) != 0)
    throw py::error_already_set();
  return managed;
}

}  // namespace

template <class Managed>
void ImportedTensor::adopt(Managed* managed, bool writable, const std::string& what) {
  owner_ = {managed, [](void* pointer) {
              auto* owned = static_cast<Managed*>(pointer);
              if (owned->deleter != nullptr) owned->deleter(owned);
            }};
  view_.emplace(TensorView::from_dlpack(managed->tensor, writable, what));
}

ImportedTensor::ImportedTensor(const py::object& object, const std::string& what) {
  if (!py::hasattr(object, "__dlpack__")) {
    throw DtypeError(what + " must be a tensor or array (anything with __dlpack__), got " +
                     std::string(py::str(py::type::of(object).attr("__name__"))));
  }
  const py::object capsule = export_capsule(object, what);
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto* managed = take<dlpack::ManagedTensorVersioned>(capsule, "dltensor_versioned",
                                                         "used_dltensor_versioned");
    adopt(managed, (managed->flags & dlpack::kReadOnly) == 0, what);
  } else {
    // The older protocol has no flag: its exporters refuse to share read-only memory.
    adopt(take<dlpack::ManagedTensor>(capsule, "dltensor", "used_dltensor"), true, what);
  }
}

}  // namespace vlarft::python
