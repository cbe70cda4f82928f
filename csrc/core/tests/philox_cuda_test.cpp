// Device noise against its host twin; returns 77 (skipped) on a machine without a visible GPU.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.h"
#include "core/cuda/philox.h"
#include "core/philox.h"

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device is visible");
    return 77;
  }
  constexpr int64_t kRows = 5, kIds = 4377;  // a row ends inside a block of four
  constexpr uint64_t kSeed = 0xfeedface12345678;
  std::vector<uint32_t> addresses(3 * kRows);
  for (size_t i = 0; i < addresses.size(); ++i)
    addresses[i] = static_cast<uint32_t>(i * 2654435761);
  std::vector<float> host(kRows * kIds), device(kRows * kIds + 1, 0.0F);
  vlarft::gumbel_fill(addresses.data(), host.data(), kRows, kIds, kSeed);

  uint32_t* d_addresses = nullptr;
  float* d_out = nullptr;
  CHECK(cudaMalloc(&d_addresses, addresses.size() * sizeof(uint32_t)) == cudaSuccess);
  CHECK(cudaMalloc(&d_out, device.size() * sizeof(float)) == cudaSuccess);
  device.back() = -99.0F;  // guard behind the end
  CHECK(cudaMemcpy(d_out, device.data(), device.size() * sizeof(float), cudaMemcpyHostToDevice) ==
        cudaSuccess);
  CHECK(cudaMemcpy(d_addresses, addresses.data(), addresses.size() * sizeof(uint32_t),
                   cudaMemcpyHostToDevice) == cudaSuccess);
  vlarft::cuda::gumbel_fill(d_addresses, d_out, kRows, kIds, kSeed, 0, 0);
  CHECK(cudaMemcpy(device.data(), d_out, device.size() * sizeof(float), cudaMemcpyDeviceToHost) ==
        cudaSuccess);
  CHECK(cudaFree(d_addresses) == cudaSuccess && cudaFree(d_out) == cudaSuccess);

  CHECK(device.back() == -99.0F);
  for (size_t i = 0; i < host.size(); ++i) {
    // Float64 logarithms differ by an ulp between libraries: at most one float32 rounding apart.
    CHECK(std::abs(host[i] - device[i]) <= 2e-6F * (1.0F + std::abs(host[i])));
  }
}
