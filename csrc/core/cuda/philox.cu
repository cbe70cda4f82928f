// gumbel_fill:  out[r, id] = -log(-log(u)),  u from Philox4x32-10 at (id/4, addresses[r])[id%4]
// A thread owns one block of four ids of one row, in a grid-stride loop.
// Reads 12 bytes a row, writes 4 * rows * ids bytes.
// Logarithms in float64, one rounding at the store: see open_uniform in core/philox.h.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "core/cuda/philox.h"
#include "core/errors.h"
#include "core/philox.h"

namespace vlarft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;

__global__ void gumbel_fill_kernel(const uint32_t* addresses, float* out, int64_t rows, int64_t ids,
                                   uint64_t seed) {
  const int64_t blocks = (ids + 3) / 4;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * blocks; i += step) {
    const int64_t r = i / blocks;
    const int64_t first = 4 * (i % blocks);
    const NoiseAddress address{addresses[3 * r], addresses[3 * r + 1], addresses[3 * r + 2]};
    const Philox4 x = noise_block(address, static_cast<uint32_t>(first / 4), seed);
    for (int lane = 0; lane < 4 && first + lane < ids; ++lane) {
      out[r * ids + first + lane] = gumbel(x.word[lane]);
    }
  }
}

void require(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw BackendError(std::string("gumbel(): ") + what + ": " + cudaGetErrorString(status));
  }
}

// Makes `device` current and restores the caller's device at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    require(cudaGetDevice(&previous_), "reading the current device");
    require(cudaSetDevice(device), "selecting the device");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace

void gumbel_fill(const uint32_t* addresses, float* out, int64_t rows, int64_t ids, uint64_t seed,
                 int device, uintptr_t stream) {
  const int64_t threads = rows * ((ids + 3) / 4);
  if (threads == 0) return;
  const DeviceGuard guard(device);
  const auto blocks = std::min((threads + kThreads - 1) / kThreads, kMaxBlocks);
  gumbel_fill_kernel<<<static_cast<unsigned>(blocks), kThreads, 0,
                       reinterpret_cast<cudaStream_t>(stream)>>>(addresses, out, rows, ids, seed);
  require(cudaGetLastError(), "launch");
}

}  // namespace vlarft::cuda
