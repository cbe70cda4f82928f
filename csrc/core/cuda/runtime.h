// CUDA's runtime with errors as exceptions and resources that free themselves.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "core/cuda/intrinsics.h"
#include "core/environment.h"
#include "core/errors.h"

namespace vlarft::cuda {

// Whether each launch outside of a graph is waited for, so that an error of a kernel names it;
// slow. Passes of a rollout are then launched kernel by kernel.
inline bool checked() { return switched_on("VLARFT_CUDA_CHECKED"); }

// What a user can do about an error, or nothing.
inline const char* hint_of(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "; ask for fewer scenes or rollouts, or call release() on engines that wait";
    case cudaErrorInsufficientDriver:
      return "; install a driver for the CUDA version that `vlarft info` names";
    case cudaErrorNoKernelImageForDevice:
      return "; build again with CMAKE_CUDA_ARCHITECTURES set to this GPU's";
    case cudaErrorIllegalAddress:  // of a kernel, told by a later call
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return checked() ? "; this process cannot use the GPU any more: report it, with what "
                         "compute-sanitizer says"
                       : "; this process cannot use the GPU any more: run again with "
                         "VLARFT_CUDA_CHECKED=1, which names the kernel, or under "
                         "compute-sanitizer, and report it";
    default:
      return "";
  }
}

// Throws BackendError naming what was done, what CUDA says, and a hint.
inline void require(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) {
    throw BackendError("CUDA: " + what + ": " + cudaGetErrorString(status) + hint_of(status));
  }
}

// Runs `work`; an error of CUDA's also says in which call.
template <class Work>
auto naming(const std::string& call, const Work& work) {
  try {
    return work();
  } catch (const BackendError& error) {
    throw BackendError(error.what() + (" (in " + call + ")"));
  }
}

// Makes `device` current and restores the caller's device at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    require(cudaGetDevice(&previous_), "reading the current device");
    require(cudaSetDevice(device), "selecting device " + std::to_string(device));
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

// Device memory, zeroed in the order of `stream`.
class Memory {
 public:
  Memory() = default;
  Memory(int64_t bytes, cudaStream_t stream) : bytes_(bytes) {
    if (bytes == 0) return;
    require(cudaMalloc(&data_, static_cast<size_t>(bytes)),
            "taking " + std::to_string(bytes) + " bytes");
    const cudaError_t status = cudaMemsetAsync(data_, 0, static_cast<size_t>(bytes), stream);
    if (status != cudaSuccess) {
      cudaFree(data_);
      require(status, "clearing memory");
    }
  }
  ~Memory() { cudaFree(data_); }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Host memory that kernels write and the host reads meanwhile.
class Mapped {
 public:
  explicit Mapped(size_t bytes) {
    require(cudaHostAlloc(&host_, bytes, cudaHostAllocMapped), "taking mapped memory");
    require(cudaHostGetDevicePointer(&device_, host_, 0), "mapping memory");
  }
  ~Mapped() { cudaFreeHost(host_); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  template <class T>
  volatile T* host() const {
    return static_cast<T*>(host_);
  }
  template <class T>
  T* device() const {
    return static_cast<T*>(device_);
  }

 private:
  void *host_ = nullptr, *device_ = nullptr;
};

class Event {
 public:
  Event() { require(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { require(cudaEventRecord(event_, stream), "an event"); }

  // Whether all that was queued before `record` is done; `what` names that where it failed.
  bool done(const std::string& what) const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    require(status, what);
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Launches that are captured once and repeated as one.
class Graph {
 public:
  Graph() = default;
  ~Graph() { cudaGraphExecDestroy(exec_); }
  Graph(Graph&& other) noexcept { std::swap(exec_, other.exec_); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // What work(stream) queues.
  template <class Work>
  static Graph capture(const Work& work) {
    cudaGraph_t graph = nullptr;
    on_side_stream([&](cudaStream_t stream) {
      require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
      try {
        work(stream);
      } catch (...) {
        if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
        throw;
      }
      require(cudaStreamEndCapture(stream, &graph), "ending a capture");
    });
    return Graph(graph);
  }

  // What work(stream, again) queues, done over and over by the device itself, at least once, until
  // one of its kernels says `set_condition(again, false)`: the host has no part in it.
  template <class Work>
  static Graph capture_loop(const Work& work) {
    cudaGraph_t graph = nullptr;
    require(cudaGraphCreate(&graph, 0), "making a graph");
    try {
      Condition again = 0;
      require(cudaGraphConditionalHandleCreate(&again, graph, 1, cudaGraphCondAssignDefault),
              "making a loop's condition");
      cudaGraphNodeParams loop = {};
      loop.type = cudaGraphNodeTypeConditional;
      loop.conditional.handle = again;
      loop.conditional.type = cudaGraphCondTypeWhile;
      loop.conditional.size = 1;
      cudaGraphNode_t node = nullptr;
      require(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &loop), "making a loop");
      on_side_stream([&](cudaStream_t stream) {
        cudaGraph_t body = loop.conditional.phGraph_out[0];  // the graph's own
        require(cudaStreamBeginCaptureToGraph(stream, body, nullptr, nullptr, 0,
                                              cudaStreamCaptureModeThreadLocal),
                "capturing a loop");
        try {
          work(stream, again);
        } catch (...) {
          cudaStreamEndCapture(stream, &body);
          throw;
        }
        require(cudaStreamEndCapture(stream, &body), "ending a loop's capture");
      });
    } catch (...) {
      cudaGraphDestroy(graph);
      throw;
    }
    return Graph(graph);
  }

  void launch(cudaStream_t stream) const { require(cudaGraphLaunch(exec_, stream), "a graph"); }

 private:
  // Takes the graph, and destroys it.
  explicit Graph(cudaGraph_t graph) {
    const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    require(status, "instantiating a graph");
  }

  template <class Work>
  static void on_side_stream(const Work& work) {
    cudaStream_t stream = nullptr;
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    try {
      work(stream);
    } catch (...) {
      cudaStreamDestroy(stream);
      throw;
    }
    cudaStreamDestroy(stream);
  }

  cudaGraphExec_t exec_ = nullptr;
};

// Queues a kernel of 1-D blocks; `what` names it where CUDA refuses it or, when checked, it fails.
template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, int threads,
            cudaStream_t stream, const Arguments&... arguments) {
  const auto required = [&](cudaError_t status) {
    if (status == cudaSuccess) return;
    require(status, std::string(what) + ", grid " + std::to_string(grid.x) + " x " +
                        std::to_string(grid.y) + ", " + std::to_string(threads) + " threads");
  };
#ifdef VLARFT_EMULATE
  emulate::submit([=] { emulate::run(grid, threads, [&] { kernel(arguments...); }); });
#else
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  required(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
#endif
  if (!checked()) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  required(cudaStreamIsCapturing(stream, &capture));
  if (capture == cudaStreamCaptureStatusNone) required(cudaStreamSynchronize(stream));
}

template <class T>
void copy_in(T* to, const T* from, int64_t count, cudaStream_t stream) {
  require(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyHostToDevice,
                          stream),
          "copying to the device");
}

template <class T>
void copy_out(T* to, const T* from, int64_t count, cudaStream_t stream) {
  require(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost,
                          stream),
          "copying to the host");
}

}  // namespace vlarft::cuda
