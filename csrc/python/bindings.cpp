// Table of contents of vlarft._native: argument checks and conversion, nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/build_info.h"
#include "core/cpu_features.h"
#include "core/errors.h"
#include "core/philox.h"
#include "core/rates.h"
#include "core/tensor_view.h"
#include "python/compare.h"
#include "python/decode.h"
#include "python/dlpack_capsule.h"
#include "python/imagine.h"
#if VLARFT_WITH_CUDA
#include "core/cuda/philox.h"
#endif

namespace py = pybind11;

namespace vlarft::python {
namespace {

constexpr Device kCpu{DeviceKind::kCpu, 0};

py::array_t<uint32_t> philox(const py::object& counters, uint64_t key) {
  const ImportedTensor c(counters, "philox(): counters");
  c.view().check("philox(): counters", "n,4", Dtype::kUint32, {kAny, 4});
  c.view().check_device("philox(): counters", kCpu);
  const int64_t n = c.view().size(0);
  py::array_t<uint32_t> out({n, int64_t{4}});
  const auto* in = c.view().data<const uint32_t>();
  auto* result = out.mutable_data();
  const py::gil_scoped_release unlocked;
  philox_fill(in, result, n, key);
  return out;
}

void gumbel(const py::object& addresses, const py::object& out, uint64_t seed, uintptr_t stream) {
  const ImportedTensor a(addresses, "gumbel(): addresses");
  const ImportedTensor o(out, "gumbel(): out");
  a.view().check("gumbel(): addresses", "rows,3", Dtype::kUint32, {kAny, 3});
  const int64_t rows = a.view().size(0);
  o.view().check("gumbel(): out", std::to_string(rows) + ",ids", Dtype::kFloat32, {rows, kAny});
  o.view().check_writable("gumbel(): out").check_device("gumbel(): out", a.view().device());
  const auto* from = a.view().data<const uint32_t>();
  auto* to = o.view().data<float>();
  const int64_t ids = o.view().size(1);
  const Device device = o.view().device();
  const py::gil_scoped_release unlocked;
  if (device == kCpu) {
    gumbel_fill(from, to, rows, ids, seed);
    return;
  }
#if VLARFT_WITH_CUDA
  cuda::gumbel_fill(from, to, rows, ids, seed, device.index, stream);
#else
  static_cast<void>(stream);
  throw BackendError("gumbel(): out is on " + name(device) + ", but this build has no CUDA code (" +
                     build::kCudaReason + "); reinstall with -C cmake.define.VLARFT_CUDA=ON");
#endif
}

double read_seconds(const py::object& data, int threads) {
  const ImportedTensor d(data, "read_seconds(): data");
  d.view().check("read_seconds(): data", "bytes", Dtype::kUint8, {kAny});
  d.view().check_device("read_seconds(): data", kCpu);
  if (threads < 1) throw ShapeError("read_seconds(): threads must be at least 1");
  const auto* bytes = d.view().data<const uint8_t>();
  const auto size = static_cast<size_t>(d.view().size(0));
  const py::gil_scoped_release unlocked;
  return vlarft::read_seconds(bytes, size, threads);
}

double multiply_rate(const std::string& dtype, int threads, double seconds) {
  if (dtype != "float32" && dtype != "bfloat16") {
    throw DtypeError("multiply_rate(): dtype must be float32 or bfloat16, got " + dtype);
  }
  if (threads < 1) throw ShapeError("multiply_rate(): threads must be at least 1");
  const Multiply kind = dtype == "float32" ? Multiply::kFloat32 : Multiply::kBfloat16;
  const py::gil_scoped_release unlocked;
  return vlarft::multiply_rate(kind, threads, seconds);
}

py::dict build_info() {
  py::dict info;
  info["version"] = build::kVersion;
  info["compiler"] = build::kCompiler;
  info["build_type"] = build::kType;
  info["sanitizers"] = build::kSanitizers;
  info["cuda"] = build::kCuda;
  info["cuda_version"] = build::kCudaVersion;
  info["cuda_architectures"] = build::kCudaArchitectures;
  info["cuda_reason"] = build::kCudaReason;
  return info;
}

void raise_as(const char* class_name, const Error& error) {
  const py::object type = py::module_::import("vlarft.errors").attr(class_name);
  PyErr_SetString(type.ptr(), error.what());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const ShapeError& error) {
    raise_as("ShapeError", error);
  } catch (const DtypeError& error) {
    raise_as("DtypeError", error);
  } catch (const BackendError& error) {
    raise_as("BackendError", error);
  } catch (const Error& error) {
    raise_as("VlarftError", error);
  }
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "Native core of vlarft. Tensors are anything with __dlpack__: NumPy, torch, ...";
  py::register_local_exception_translator(&translate);
  using py::literals::operator""_a;

  bind_imagine(m);
  bind_decode(m);
  bind_compare(m);
  m.def("cpu_features", &cpu_features, "Instruction sets that this processor and system run.");
  m.def("build_info", &build_info, "How this module was built.");
  m.def("philox", &philox, "counters"_a, "key"_a,
        "Philox4x32-10 of counters (uint32 [n,4], on the CPU): uint32 [n,4].");
  m.def("gumbel", &gumbel, "addresses"_a, "out"_a, "seed"_a, py::kw_only(), "stream"_a = 0,
        "Fill out (float32 [rows,ids]) with the Gumbel noise at addresses (uint32 [rows,3]: "
        "position, member, scene key), on the CPU or queued on a CUDA stream.");
  m.def("read_seconds", &read_seconds, "data"_a, "threads"_a,
        "Seconds to read data (uint8 [bytes]) once with several threads.");
  m.def("multiply_rate", &multiply_rate, "dtype"_a, "threads"_a, "seconds"_a,
        "Multiply-adds from registers, operations a second; 0 without such instructions.");
}

}  // namespace vlarft::python
