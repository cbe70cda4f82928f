// Bindings of csrc/compare: argument checks and conversion.
#include "python/compare.h"

#include "compare/distance.h"
#include "core/errors.h"
#include "python/dlpack_capsule.h"

namespace py = pybind11;

namespace vlarft::python {
namespace {

using compare::Pairs;
using decode::Workers;

constexpr Device kCpu{DeviceKind::kCpu, 0};

const TensorView& checked(const ImportedTensor& tensor, const std::string& what,
                          const char* letters, Dtype dtype, std::initializer_list<int64_t> sizes) {
  return tensor.view().check(what, letters, dtype, sizes).check_device(what, kCpu);
}

const int64_t* indices(const TensorView& view, int64_t entries, const std::string& what) {
  const auto* values = view.data<const int64_t>();
  for (int64_t i = 0; i < view.elements(); ++i) {
    if (values[i] < 0 || values[i] >= entries) {
      throw ShapeError(what + " must lie in [0, " + std::to_string(entries) + "), got " +
                       std::to_string(values[i]));
    }
  }
  return values;
}

// a [I,n], b [J,n], first and second [B] -> out [B].
void l1(Workers& workers, const py::object& a, const py::object& b, const py::object& first,
        const py::object& second, const py::object& out) {
  const ImportedTensor x(a, "l1(): a"), y(b, "l1(): b"), i(first, "l1(): first"),
      j(second, "l1(): second"), o(out, "l1(): out");
  checked(x, "l1(): a", "I,n", Dtype::kFloat32, {kAny, kAny});
  const int64_t n = x.view().size(1);
  checked(y, "l1(): b", "J,n", Dtype::kFloat32, {kAny, n});
  checked(i, "l1(): first", "B", Dtype::kInt64, {kAny});
  const int64_t count = i.view().size(0);
  checked(j, "l1(): second", "B", Dtype::kInt64, {count});
  checked(o, "l1(): out", "B", Dtype::kFloat32, {count}).check_writable("l1(): out");
  const Pairs pairs{indices(i.view(), x.view().size(0), "l1(): first"),
                    indices(j.view(), y.view().size(0), "l1(): second"), count};
  const decode::Kernels& table = decode::kernels();
  const py::gil_scoped_release unlocked;
  const std::lock_guard lock(workers.busy);
  compare::l1(workers, table, x.view().data<const float>(), y.view().data<const float>(), n, pairs,
              o.view().data<float>());
}

void perceptual(Workers& workers, const py::object& a, const py::object& b,
                const py::object& weight, const py::object& first, const py::object& second,
                const py::object& out) {
  const ImportedTensor x(a, "perceptual(): a"), y(b, "perceptual(): b"),
      w(weight, "perceptual(): weight"), i(first, "perceptual(): first"),
      j(second, "perceptual(): second"), o(out, "perceptual(): out");
  checked(x, "perceptual(): a", "I,pixels,C", Dtype::kFloat32, {kAny, kAny, kAny});
  const int64_t pixels = x.view().size(1), channels = x.view().size(2);
  checked(y, "perceptual(): b", "J,pixels,C", Dtype::kFloat32, {kAny, pixels, channels});
  checked(w, "perceptual(): weight", "C", Dtype::kFloat32, {channels});
  checked(i, "perceptual(): first", "B", Dtype::kInt64, {kAny});
  const int64_t count = i.view().size(0);
  checked(j, "perceptual(): second", "B", Dtype::kInt64, {count});
  checked(o, "perceptual(): out", "B", Dtype::kFloat32, {count})
      .check_writable("perceptual(): out");
  if (pixels < 1 || channels < 1) throw ShapeError("perceptual(): a holds no features");
  const Pairs pairs{indices(i.view(), x.view().size(0), "perceptual(): first"),
                    indices(j.view(), y.view().size(0), "perceptual(): second"), count};
  const decode::Kernels& table = decode::kernels();
  const py::gil_scoped_release unlocked;
  const std::lock_guard lock(workers.busy);
  compare::perceptual(workers, table, x.view().data<const float>(), y.view().data<const float>(),
                      pixels, channels, w.view().data<const float>(), pairs,
                      o.view().data<float>());
}

}  // namespace

void bind_compare(py::module_& m) {
  using py::literals::operator""_a;
  m.def("l1", &l1, "workers"_a, "a"_a, "b"_a, "first"_a, "second"_a, "out"_a,
        "Fill out (float32 [B]) with mean |a[first] - b[second]| of float32 [I,n], [J,n].");
  m.def("perceptual", &perceptual, "workers"_a, "a"_a, "b"_a, "weight"_a, "first"_a, "second"_a,
        "out"_a, "Add one level of LPIPS of features [I,pixels,C], [J,pixels,C] to out [B].");
}

}  // namespace vlarft::python
