#include "core/tensor_view.h"

#include <array>
#include <cstdint>
#include <string>

#include "check.h"
#include "core/errors.h"

namespace {

using namespace vlarft;

dlpack::Tensor tensor(void* data, int64_t* shape, int64_t* strides, int32_t ndim) {
  return {data, {dlpack::kCpu, 0}, ndim, {dlpack::kFloat, 32, 1}, shape, strides, 0};
}

void test_reads_dlpack() {
  std::array<float, 8> values{};
  std::array<int64_t, 2> shape{2, 3}, strides{3, 1};
  dlpack::Tensor t = tensor(values.data(), shape.data(), strides.data(), 2);
  t.byte_offset = 2 * sizeof(float);
  const TensorView view = TensorView::from_dlpack(t, true, "f(): x");
  CHECK(view.data<float>() == values.data() + 2);
  CHECK(view.dims() == 2 && view.size(0) == 2 && view.size(1) == 3);
  CHECK(view.elements() == 6 && view.bytes() == 24);
  CHECK(view.describe() == "float32 [2,3] on cpu");
  t.strides = nullptr;  // null strides mean row-major
  CHECK(TensorView::from_dlpack(t, true, "f(): x").elements() == 6);
}

void test_strides() {
  std::array<float, 8> values{};
  std::array<int64_t, 2> shape{2, 3}, transposed{1, 2};
  const dlpack::Tensor t = tensor(values.data(), shape.data(), transposed.data(), 2);
  const std::string text =
      message_of<ShapeError>([&] { TensorView::from_dlpack(t, true, "f(): x"); });
  CHECK(text == "f(): x must be contiguous, got a strided float32 [2,3]; call .contiguous() first");
  // A dimension of size 1 may have any stride, and an empty tensor has no memory.
  std::array<int64_t, 2> row{1, 3}, odd{77, 1}, empty{0, 3}, any{5, 9};
  CHECK(TensorView::from_dlpack(tensor(values.data(), row.data(), odd.data(), 2), true, "x")
            .elements() == 3);
  CHECK(
      TensorView::from_dlpack(tensor(nullptr, empty.data(), any.data(), 2), true, "x").elements() ==
      0);
}

void test_unknown_types_and_devices() {
  std::array<float, 2> values{};
  std::array<int64_t, 1> shape{2};
  dlpack::Tensor t = tensor(values.data(), shape.data(), nullptr, 1);
  t.dtype = {5, 64, 1};  // complex
  CHECK(message_of<DtypeError>([&] {
          TensorView::from_dlpack(t, true, "f(): x");
        }).find("f(): x has an element type") == 0);
  t.dtype = {dlpack::kFloat, 32, 4};
  message_of<DtypeError>([&] { TensorView::from_dlpack(t, true, "f(): x"); });
  t.dtype = {dlpack::kFloat, 32, 1};
  t.device = {8, 0};  // Metal
  message_of<BackendError>([&] { TensorView::from_dlpack(t, true, "f(): x"); });
  t.device = {dlpack::kCuda, 3};
  CHECK(name(TensorView::from_dlpack(t, true, "f(): x").device()) == "cuda:3");
}

void test_checks() {
  std::array<float, 6> values{};
  const TensorView view(values.data(), Dtype::kFloat32, {}, {2, 3}, false);
  CHECK(&view.check("f(): x", "n,3", Dtype::kFloat32, {kAny, 3}) == &view);
  CHECK(message_of<ShapeError>([&] { view.check("f(): x", "n,4", Dtype::kFloat32, {kAny, 4}); }) ==
        "f(): x must be float32 [n,4], got float32 [2,3] on cpu");
  message_of<ShapeError>([&] { view.check("f(): x", "n", Dtype::kFloat32, {kAny}); });
  CHECK(message_of<DtypeError>([&] { view.check("f(): x", "n,3", Dtype::kInt64, {kAny, 3}); }) ==
        "f(): x must be int64 [n,3], got float32 [2,3] on cpu");
  CHECK(message_of<BackendError>([&] { view.check_device("f(): x", {DeviceKind::kCuda, 1}); }) ==
        "f(): x must be on cuda:1, got float32 [2,3] on cpu");
  message_of<BackendError>([&] { view.check_writable("f(): x"); });
}

}  // namespace

int main() {
  test_reads_dlpack();
  test_strides();
  test_unknown_types_and_devices();
  test_checks();
}
