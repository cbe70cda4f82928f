// CUDA on the CPU, for tests: kernels run thread by thread, so that their indices, barriers and
// shuffles are checked without a GPU, and by the sanitizers too.
//
// Each thread of a block is a fiber; a fiber runs until a barrier and then waits for the others, in
// ascending or descending order. Blocks run one after the other. A barrier that not all threads
// reach stops the program. What is not seen: races between blocks, and how fast anything is.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace vlarft::emulate {

// Runs `body` as every thread of every block of the grid.
void run(dim3 grid, int threads, const std::function<void()>& body);

// The order in which the threads of a block run, for what follows.
void run_backwards(bool yes);

// Kernels that have run so far, graphs that the host has launched, and how often it has waited for
// the device.
int64_t kernels_run();
int64_t graphs_launched();
int64_t waits();

// The next but `before`th kernel fails: whoever waits is told from then on. Below 0: none failed.
void fail_kernel(int64_t before);

// Memory that was taken and not given back.
int64_t allocated_bytes();

struct Place {
  int thread = 0, block_x = 0, block_y = 0;
};
const Place& place();
void block_barrier();
void warp_barrier();
std::byte* warp_memory();
inline constexpr size_t kWarpMemory = 8192;

}  // namespace vlarft::emulate

namespace vlarft::cuda {

inline int thread() { return emulate::place().thread; }
inline int block_x() { return emulate::place().block_x; }
inline int block_y() { return emulate::place().block_y; }
inline void block_barrier() { emulate::block_barrier(); }
inline void warp_barrier() { emulate::warp_barrier(); }
inline void device_fence() {}
inline void system_fence() {}

// The values of all lanes; a warp_barrier() must follow their last use.
template <class V>
const V* share_with_warp(const V& value) {
  static_assert(32 * sizeof(V) <= emulate::kWarpMemory);
  auto* all = reinterpret_cast<V*>(emulate::warp_memory());
  all[thread() % 32] = value;
  emulate::warp_barrier();
  return all;
}

template <class V>
V from_lane(V value, int lane) {
  const V found = share_with_warp(value)[lane % 32];
  emulate::warp_barrier();
  return found;
}

inline int add_atomic(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}
inline void add_atomic(uint64_t* at, uint64_t value) { *at += value; }
inline void min_atomic(int* at, int value) { *at = value < *at ? value : *at; }
inline float load_fresh(const float* from) { return *from; }

using Condition = uint64_t;  // address of the value
inline void set_condition(Condition condition, bool value) {
  *reinterpret_cast<bool*>(static_cast<uintptr_t>(condition)) = value;
}

}  // namespace vlarft::cuda

// The part of CUDA's runtime that csrc/core/cuda/runtime.h calls.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking, cudaEventDisableTiming, cudaHostAllocMapped };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
struct EmulatedGraph;
using cudaStream_t = void*;
using cudaEvent_t = void*;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
using cudaGraphNode_t = void*;
using cudaGraphConditionalHandle = uint64_t;
enum { cudaGraphCondAssignDefault = 1, cudaGraphNodeTypeConditional = 13 };
enum { cudaGraphCondTypeWhile = 1 };
struct cudaGraphNodeParams {
  int type = 0;
  struct {
    cudaGraphConditionalHandle handle = 0;
    int type = 0;
    unsigned size = 0;
    cudaGraph_t* phGraph_out = nullptr;
  } conditional;
};

const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                          const cudaGraphNode_t* after, const void* edges,
                                          size_t count, cudaStreamCaptureMode mode);
cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned flags);
cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph,
                                             unsigned at_launch, unsigned flags);
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                             const void* edges, size_t count, cudaGraphNodeParams* params);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventDestroy(cudaEvent_t event);

namespace vlarft::emulate {
// Runs now, or joins the graph that is being captured.
void submit(std::function<void()> work);
}  // namespace vlarft::emulate
