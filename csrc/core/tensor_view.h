// TensorView: a borrowed tensor on any device, as native code sees it. Whoever makes the view keeps
// the memory alive. Checks happen once, at the host edge, in the caller's words; inside, none.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/dlpack.h"

namespace vlarft {

enum class Dtype {
  kBool,
  kUint8,
  kInt32,
  kUint32,
  kInt64,
  kFloat16,
  kBfloat16,
  kFloat32,
  kFloat64
};

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;  // always 0 on the CPU

  bool operator==(const Device&) const = default;
};

std::string name(Dtype dtype);       // "float32"
std::string name(Device device);     // "cpu", "cuda:0"
int64_t element_bytes(Dtype dtype);  // 4 for float32

// Sizes that a check accepts: a value, or kAny.
inline constexpr int64_t kAny = -1;

class TensorView {
 public:
  TensorView(void* data, Dtype dtype, Device device, std::vector<int64_t> shape, bool writable);

  // Throws DtypeError for an element type outside Dtype, BackendError for a device other than a CPU
  // or CUDA, ShapeError for a tensor that is not compact row-major.
  static TensorView from_dlpack(const dlpack::Tensor& tensor, bool writable, std::string_view what);

  // `what` opens every message, such as "philox(): counters"; `letters` names the sizes ("n,4").
  // Throws DtypeError, ShapeError or BackendError: what was wanted and what was given.
  const TensorView& check(std::string_view what, std::string_view letters, Dtype dtype,
                          std::initializer_list<int64_t> sizes) const;
  const TensorView& check_device(std::string_view what, Device device) const;
  const TensorView& check_writable(std::string_view what) const;

  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  int64_t dims() const { return static_cast<int64_t>(shape_.size()); }
  int64_t size(int64_t dim) const { return shape_[static_cast<size_t>(dim)]; }
  int64_t elements() const;
  int64_t bytes() const { return elements() * element_bytes(dtype_); }
  std::string describe() const;  // "uint32 [3,4] on cpu"

  // Elements; T must have the width of dtype(), which check() has made sure of.
  template <class T>
  T* data() const {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  Dtype dtype_;
  Device device_;
  std::vector<int64_t> shape_;
  bool writable_;
};

}  // namespace vlarft
