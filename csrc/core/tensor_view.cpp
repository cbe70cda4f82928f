#include "core/tensor_view.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/errors.h"

namespace vlarft {
namespace {

struct DtypeRow {
  Dtype dtype;
  uint8_t code;
  uint8_t bits;
  const char* name;
};

constexpr std::array<DtypeRow, 9> kDtypes{{
    {Dtype::kBool, dlpack::kBool, 8, "bool"},
    {Dtype::kUint8, dlpack::kUInt, 8, "uint8"},
    {Dtype::kInt32, dlpack::kInt, 32, "int32"},
    {Dtype::kUint32, dlpack::kUInt, 32, "uint32"},
    {Dtype::kInt64, dlpack::kInt, 64, "int64"},
    {Dtype::kFloat16, dlpack::kFloat, 16, "float16"},
    {Dtype::kBfloat16, dlpack::kBfloat, 16, "bfloat16"},
    {Dtype::kFloat32, dlpack::kFloat, 32, "float32"},
    {Dtype::kFloat64, dlpack::kFloat, 64, "float64"},
}};

const DtypeRow& row(Dtype dtype) {
  return *std::find_if(kDtypes.begin(), kDtypes.end(),
                       [dtype](const DtypeRow& r) { return r.dtype == dtype; });
}

Dtype dtype_of(const dlpack::DataType& type, std::string_view what) {
  for (const DtypeRow& r : kDtypes) {
    if (r.code == type.code && r.bits == type.bits && type.lanes == 1) return r.dtype;
  }
  std::string known;
  for (const DtypeRow& r : kDtypes) {
    if (!known.empty()) known += ", ";
    known += r.name;
  }
  throw DtypeError(std::string(what) + " has an element type that native code does not read (" +
                   "DLPack code " + std::to_string(type.code) + ", " + std::to_string(type.bits) +
                   " bits, " + std::to_string(type.lanes) + " lanes); allowed: " + known);
}

Device device_of(const dlpack::Device& device, std::string_view what) {
  switch (device.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      return {DeviceKind::kCpu, 0};
    case dlpack::kCuda:
    case dlpack::kCudaManaged:
      return {DeviceKind::kCuda, device.id};
    default:
      throw BackendError(std::string(what) + " lives on a device of DLPack type " +
                         std::to_string(device.type) + "; allowed: cpu, cuda. Move it first");
  }
}

std::string brackets(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    if (text.size() > 1) text += ',';
    text += std::to_string(size);
  }
  return text += ']';
}

bool compact(const dlpack::Tensor& tensor) {
  const bool empty = std::count(tensor.shape, tensor.shape + tensor.ndim, 0) > 0;
  if (tensor.strides == nullptr || empty) return true;
  int64_t expected = 1;
  for (int32_t dim = tensor.ndim; dim-- > 0;) {
    // The stride of a dimension of size 1 is never used, so any value is fine.
    if (tensor.shape[dim] != 1 && tensor.strides[dim] != expected) return false;
    expected *= tensor.shape[dim];
  }
  return true;
}

}  // namespace

std::string name(Dtype dtype) { return row(dtype).name; }

std::string name(Device device) {
  return device.kind == DeviceKind::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

int64_t element_bytes(Dtype dtype) { return row(dtype).bits / 8; }

TensorView::TensorView(void* data, Dtype dtype, Device device, std::vector<int64_t> shape,
                       bool writable)
    : data_(data), dtype_(dtype), device_(device), shape_(std::move(shape)), writable_(writable) {}

TensorView TensorView::from_dlpack(const dlpack::Tensor& tensor, bool writable,
                                   std::string_view what) {
  std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  const Dtype dtype = dtype_of(tensor.dtype, what);
  const Device device = device_of(tensor.device, what);
  if (!compact(tensor)) {
    throw ShapeError(std::string(what) + " must be contiguous, got a strided " + name(dtype) + " " +
                     brackets(shape) + "; call .contiguous() first");
  }
  // An empty tensor may have no memory at all, and a null pointer takes no offset.
  auto* base = static_cast<std::byte*>(tensor.data);
  void* data = base == nullptr ? nullptr : base + tensor.byte_offset;
  return TensorView(data, dtype, device, std::move(shape), writable);
}

const TensorView& TensorView::check(std::string_view what, std::string_view letters, Dtype dtype,
                                    std::initializer_list<int64_t> sizes) const {
  const auto message = [&] {
    return std::string(what) + " must be " + name(dtype) + " [" + std::string(letters) + "], got " +
           describe();
  };
  if (dtype_ != dtype) throw DtypeError(message());
  if (shape_.size() != sizes.size()) throw ShapeError(message());
  size_t dim = 0;
  for (const int64_t size : sizes) {
    if (size != kAny && size != shape_[dim]) throw ShapeError(message());
    ++dim;
  }
  return *this;
}

const TensorView& TensorView::check_device(std::string_view what, Device device) const {
  if (device_ != device) {
    throw BackendError(std::string(what) + " must be on " + name(device) + ", got " + describe());
  }
  return *this;
}

const TensorView& TensorView::check_writable(std::string_view what) const {
  if (!writable_) throw BackendError(std::string(what) + " is read-only; pass a writable tensor");
  return *this;
}

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape_) count *= size;
  return count;
}

std::string TensorView::describe() const {
  return name(dtype_) + " " + brackets(shape_) + " on " + name(device_);
}

}  // namespace vlarft
