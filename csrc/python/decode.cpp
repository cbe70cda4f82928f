// Bindings of csrc/decode: argument checks and conversion.
#include "python/decode.h"

#include "core/errors.h"
#include "decode/convolution.h"
#include "python/dlpack_capsule.h"

namespace py = pybind11;

namespace vlarft::python {
namespace {

using decode::Activation;
using decode::Convolution;
using decode::Images;
using decode::Workers;

constexpr Device kCpu{DeviceKind::kCpu, 0};

Activation activation(const std::string& name, const char* what) {
  if (name == "none") return Activation::kNone;
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  throw Error(std::string(what) + " = '" + name + "'; allowed: none, silu, relu");
}

// A float32 tensor of the given sizes.
const float* numbers(const ImportedTensor& tensor, const std::string& what, const char* letters,
                     std::initializer_list<int64_t> sizes) {
  tensor.view().check(what, letters, Dtype::kFloat32, sizes).check_device(what, kCpu);
  return tensor.view().data<const float>();
}

Images images(const ImportedTensor& tensor, const std::string& what, const char* letters,
              std::initializer_list<int64_t> sizes) {
  const TensorView& view = tensor.view();
  const bool narrow = view.dtype() == Dtype::kBfloat16;
  view.check(what, letters, narrow ? Dtype::kBfloat16 : Dtype::kFloat32, sizes)
      .check_device(what, kCpu);
  return {view.data<char>(), narrow, view.size(0), view.size(1), view.size(2), view.size(3)};
}

std::unique_ptr<Workers> make_workers(int threads) {
  if (threads < 1) {
    throw Error("Workers: threads = " + std::to_string(threads) + "; give at least 1");
  }
  return std::make_unique<Workers>(threads);
}

std::unique_ptr<Convolution> make(const py::object& weight, const py::object& bias, bool upsample,
                                  const std::string& dtype, const std::string& kernels) {
  const ImportedTensor w(weight, "Convolution(): weight"), b(bias, "Convolution(): bias");
  const float* values =
      numbers(w, "Convolution(): weight", "out,in,size,size", {kAny, kAny, kAny, kAny});
  const int64_t out = w.view().size(0), in = w.view().size(1), size = w.view().size(2);
  if (size != w.view().size(3) || (size != 3 && (size != 1 || upsample)) || out < 1 || in < 1) {
    throw ShapeError(
        "Convolution(): weight must be [out,in,3,3], or [out,in,1,1] without upsample");
  }
  const float* summands = numbers(b, "Convolution(): bias", "out", {out});
  if (dtype != "float32" && dtype != "bfloat16") {
    throw DtypeError("Convolution(): dtype '" + dtype + "'; allowed: float32, bfloat16");
  }
  const decode::Kernels& table = kernels.empty() ? decode::kernels() : decode::kernels(kernels);
  return std::make_unique<Convolution>(values, summands, out, in, size, upsample,
                                       dtype == "bfloat16", table);
}

void run(const Convolution& self, Workers& workers, const py::object& x, const py::object& out,
         const py::object& scale, const py::object& shift, const std::string& before,
         const std::string& after, const py::object& residual) {
  const ImportedTensor in(x, "Convolution: x"), to(out, "Convolution: out");
  const Images from = images(in, "Convolution: x", "B,H,W,in", {kAny, kAny, kAny, self.in()});
  const int64_t height = from.height * self.scale(), width = from.width * self.scale();
  const Images into =
      images(to, "Convolution: out", "B,H',W',out", {from.images, height, width, self.out()});
  to.view().check_writable("Convolution: out");
  decode::Surroundings around;
  std::optional<ImportedTensor> factor, summand, added;
  if (scale.is_none() != shift.is_none()) throw Error("Convolution: give both scale and shift");
  if (!scale.is_none()) {
    factor.emplace(scale, "Convolution: scale");
    summand.emplace(shift, "Convolution: shift");
    around.scale = numbers(*factor, "Convolution: scale", "B,in", {from.images, self.in()});
    around.shift = numbers(*summand, "Convolution: shift", "B,in", {from.images, self.in()});
  }
  if (!residual.is_none()) {
    added.emplace(residual, "Convolution: residual");
    const Images other = images(*added, "Convolution: residual", "B,H',W',out",
                                {from.images, height, width, self.out()});
    if (other.narrow != into.narrow)
      throw DtypeError("Convolution: residual and out differ in type");
    around.residual = other.data;
  }
  around.before = activation(before, "Convolution: before");
  around.after = activation(after, "Convolution: after");
  const py::gil_scoped_release unlocked;
  const std::lock_guard lock(workers.busy);
  self.run(workers, from, into, around);
}

void group_norm(Workers& workers, const py::object& x, const py::object& weight,
                const py::object& bias, int64_t groups, double eps, const py::object& scale,
                const py::object& shift) {
  const ImportedTensor in(x, "group_norm(): x"), w(weight, "group_norm(): weight"),
      b(bias, "group_norm(): bias"), s(scale, "group_norm(): scale"),
      t(shift, "group_norm(): shift");
  const Images from = images(in, "group_norm(): x", "B,H,W,C", {kAny, kAny, kAny, kAny});
  if (groups < 1 || from.channels % groups != 0 || from.height * from.width < 1) {
    throw ShapeError("group_norm(): groups = " + std::to_string(groups) + " must divide the " +
                     std::to_string(from.channels) + " channels of a non-empty image");
  }
  const float* factors = numbers(w, "group_norm(): weight", "C", {from.channels});
  const float* summands = numbers(b, "group_norm(): bias", "C", {from.channels});
  numbers(s, "group_norm(): scale", "B,C", {from.images, from.channels});
  numbers(t, "group_norm(): shift", "B,C", {from.images, from.channels});
  s.view().check_writable("group_norm(): scale");
  t.view().check_writable("group_norm(): shift");
  const decode::Kernels& table = decode::kernels();
  const py::gil_scoped_release unlocked;
  const std::lock_guard lock(workers.busy);
  decode::group_norm(workers, table, from, factors, summands, groups, eps, s.view().data<float>(),
                     t.view().data<float>());
}

}  // namespace

void bind_decode(py::module_& m) {
  using py::literals::operator""_a;
  py::class_<Workers>(m, "Workers", "Threads of convolutions, with their scratch memory.")
      .def(py::init(&make_workers), "threads"_a)
      .def_property_readonly("threads", [](const Workers& w) { return w.pool.size(); });
  py::class_<Convolution>(m, "Convolution", "A packed convolution on the CPU, channels last.")
      .def(py::init(&make), "weight"_a, "bias"_a, py::kw_only(), "upsample"_a = false,
           "dtype"_a = "float32", "kernels"_a = "")
      .def_property_readonly("kernels", [](const Convolution& c) { return c.kernels().name; })
      .def_property_readonly("weight_bytes", &Convolution::weight_bytes)
      .def("run", &run, "workers"_a, "x"_a, "out"_a, py::kw_only(), "scale"_a = py::none(),
           "shift"_a = py::none(), "before"_a = "none", "after"_a = "none",
           "residual"_a = py::none());
  m.def("group_norm", &group_norm, "workers"_a, "x"_a, "weight"_a, "bias"_a, py::kw_only(),
        "groups"_a, "eps"_a, "scale"_a, "shift"_a,
        "Fill scale and shift (float32 [B,C]): GroupNorm of x [B,H,W,C] is x * scale + shift.");
}

}  // namespace vlarft::python
