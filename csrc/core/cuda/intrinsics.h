// What kernels use of a GPU: indices, barriers, shuffles, atomics, and the 16x8x16 product of a
// warp.
//
// csrc/core/tests/emulate.h implements the same names on the CPU, so that kernels run in tests
// without a GPU, thread by thread.
#pragma once

#ifdef VLARFT_EMULATE
#include "core/tests/emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace vlarft::cuda {

inline __device__ int thread() { return static_cast<int>(threadIdx.x); }
inline __device__ int block_x() { return static_cast<int>(blockIdx.x); }
inline __device__ int block_y() { return static_cast<int>(blockIdx.y); }
inline __device__ void block_barrier() { __syncthreads(); }
inline __device__ void device_fence() { __threadfence(); }
inline __device__ void system_fence() { __threadfence_system(); }

// The value of lane `lane` of this warp; every lane takes part.
template <class V>
__device__ V from_lane(V value, int lane) {
  return __shfl_sync(0xFFFFFFFFU, value, lane);
}

inline __device__ int add_atomic(int* at, int value) { return atomicAdd(at, value); }
inline __device__ void add_atomic(uint64_t* at, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
inline __device__ void min_atomic(int* at, int value) { atomicMin(at, value); }

// Whether the loop that a kernel is in goes around again (`Graph::capture_loop`).
using Condition = cudaGraphConditionalHandle;
inline __device__ void set_condition(Condition condition, bool value) {
  cudaGraphSetConditional(condition, value ? 1U : 0U);
}

// Reads what another block wrote in this launch: past the first-level cache.
inline __device__ float load_fresh(const float* from) { return __ldcg(from); }

}  // namespace vlarft::cuda
#endif

namespace vlarft::cuda {

inline constexpr int kWarp = 32;

inline __device__ int lane() { return thread() % kWarp; }
inline __device__ int warp() { return thread() / kWarp; }

// Whether this block is the last of `all` to come here; it then finds what the others wrote before.
// Every thread of a block asks. The last one leaves the counter at 0, so that the launch can be
// repeated.
inline __device__ bool last_block(int* arrived, int all) {
  __shared__ int last;
  device_fence();  // what this thread wrote, before the block is counted
  block_barrier();
  if (thread() == 0) {
    last = add_atomic(arrived, 1) + 1 == all ? 1 : 0;
    if (last != 0) *arrived = 0;
  }
  block_barrier();
  if (last == 0) return false;
  device_fence();  // what the others wrote, before any of it is read
  return true;
}

template <class V>
__device__ V from_lane_xor(V value, int mask) {
  return from_lane(value, lane() ^ mask);
}

}  // namespace vlarft::cuda
