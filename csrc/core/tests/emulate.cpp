#include "core/tests/emulate.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Saves this fiber's registers and stack and goes on with another's (System V, x86-64).
extern "C" void vlarft_switch(void** from, void* to);
asm(R"(
.text
.globl vlarft_switch
.type vlarft_switch,@function
vlarft_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vlarft_switch,.-vlarft_switch
)");

struct EmulatedGraph {
  std::vector<std::function<void()>> work;
  // Of a loop: what it repeats, and whether it goes around again.
  std::shared_ptr<EmulatedGraph> body;
  std::shared_ptr<bool> again;
  cudaGraph_t body_address = nullptr;

  void run() const {
    for (const auto& part : work) part();
  }
};

namespace vlarft::emulate {
namespace {

constexpr size_t kStack = 256 * 1024;
constexpr int kWarp = 32;

struct Barrier {
  int arrived = 0, live = 0;
  int64_t generation = 0;
};

struct Fiber {
  std::unique_ptr<std::byte[]> stack;
  void* stack_pointer = nullptr;
  bool done = false;
  const Barrier* waits = nullptr;
  int64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  alignas(64) std::byte memory[kWarpMemory];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  Place place;
  void* scheduler = nullptr;
  const std::function<void()>* body = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
#endif
};

thread_local Block block;
thread_local bool backwards = false;
thread_local int64_t taken = 0, kernels = 0, waited = 0;
thread_local int64_t first_failure = -1;  // number of the kernel
thread_local int64_t launched = 0;
thread_local EmulatedGraph* capturing = nullptr;
thread_local bool asked = false;  // whether the last event was asked for already

Fiber& self() { return block.fibers[static_cast<size_t>(block.place.thread)]; }
Warp& own_warp() { return block.warps[static_cast<size_t>(block.place.thread / kWarp)]; }

void to_scheduler([[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, block.scheduler_bottom,
                                 block.scheduler_size);
#endif
  vlarft_switch(&self().stack_pointer, block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void release(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
}

void leave(Barrier& barrier) {
  --barrier.live;
  if (barrier.live > 0 && barrier.arrived == barrier.live) release(barrier);
}

void arrive(Barrier& barrier) {
  if (++barrier.arrived == barrier.live) {
    release(barrier);
    return;
  }
  self().waits = &barrier;
  self().generation = barrier.generation;
  to_scheduler(false);
}

[[noreturn]] void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_bottom, &block.scheduler_size);
#endif
  (*block.body)();
  leave(own_warp().barrier);
  leave(block.barrier);
  self().done = true;
  to_scheduler(true);
  std::abort();
}

void prepare(Fiber& fiber) {
  if (fiber.stack == nullptr) fiber.stack = std::make_unique<std::byte[]>(kStack);
  fiber.done = false;
  fiber.waits = nullptr;
  // Six registers, where to go on, and the alignment that a called function finds.
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStack) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top) - 8;
  std::fill(words, words + 8, nullptr);
  words[6] = reinterpret_cast<void*>(&enter);
  fiber.stack_pointer = words;
}

void go_on(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
  vlarft_switch(&block.scheduler, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void run_block(int threads) {
  block.fibers.resize(static_cast<size_t>(threads));
  block.warps.resize(static_cast<size_t>((threads + kWarp - 1) / kWarp));
  for (Fiber& fiber : block.fibers) prepare(fiber);
  block.barrier = {0, threads, 0};
  for (size_t w = 0; w < block.warps.size(); ++w) {
    block.warps[w].barrier = {0, std::min(kWarp, threads - static_cast<int>(w) * kWarp), 0};
  }
  int live = threads;
  while (live > 0) {
    bool moved = false;
    for (int i = 0; i < threads; ++i) {
      block.place.thread = backwards ? threads - 1 - i : i;
      Fiber& fiber = self();
      if (fiber.done) continue;
      if (fiber.waits != nullptr && fiber.waits->generation == fiber.generation) continue;
      fiber.waits = nullptr;
      go_on(fiber);
      moved = true;
      live -= fiber.done ? 1 : 0;
    }
    if (!moved) {
      std::fprintf(stderr, "emulated kernel: %d threads wait at a barrier for ever\n", live);
      std::abort();
    }
  }
}

}  // namespace

void run(dim3 grid, int threads, const std::function<void()>& body) {
  ++kernels;
  block.body = &body;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block.place.block_x = static_cast<int>(backwards ? grid.x - 1 - x : x);
      block.place.block_y = static_cast<int>(y);
      run_block(threads);
    }
  }
}

void run_backwards(bool yes) { backwards = yes; }
int64_t kernels_run() { return kernels; }
int64_t graphs_launched() { return launched; }
int64_t waits() { return waited; }
void fail_kernel(int64_t before) { first_failure = before < 0 ? -1 : kernels + before; }
cudaError_t status() {
  return first_failure >= 0 && kernels > first_failure ? cudaErrorIllegalAddress : cudaSuccess;
}
cudaError_t wait() {
  ++waited;
  return status();
}
int64_t allocated_bytes() { return taken; }
const Place& place() { return block.place; }
void block_barrier() { arrive(block.barrier); }
void warp_barrier() { arrive(own_warp().barrier); }
std::byte* warp_memory() { return own_warp().memory; }

void submit(std::function<void()> work) {
  if (capturing != nullptr) {
    capturing->work.push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace vlarft::emulate

using vlarft::emulate::asked;
using vlarft::emulate::capturing;
using vlarft::emulate::taken;

// A header before each piece of memory holds its size.
constexpr size_t kHeader = 64;

const char* cudaGetErrorString(cudaError_t status) {
  if (status == cudaErrorIllegalAddress) return "an illegal memory access was encountered";
  return status == cudaSuccess ? "no error" : "out of memory";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  auto* all = static_cast<std::byte*>(std::malloc(bytes + kHeader));
  if (all == nullptr) return cudaErrorMemoryAllocation;
  std::memcpy(all, &bytes, sizeof(bytes));
  std::memset(all + kHeader, 0xFF, bytes);  // NaN, so that what is read before it is written shows
  taken += static_cast<int64_t>(bytes);
  *memory = all + kHeader;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  auto* all = static_cast<std::byte*>(memory) - kHeader;
  size_t bytes = 0;
  std::memcpy(&bytes, all, sizeof(bytes));
  taken -= static_cast<int64_t>(bytes);
  std::free(all);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  vlarft::emulate::submit([=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  vlarft::emulate::submit([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return vlarft::emulate::wait(); }

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  capturing = new EmulatedGraph;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t, cudaGraph_t graph, const cudaGraphNode_t*,
                                          const void*, size_t, cudaStreamCaptureMode) {
  capturing = graph;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = std::exchange(capturing, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = new EmulatedGraph;
  return cudaSuccess;
}
cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph,
                                             unsigned at_launch, unsigned) {
  graph->again = std::make_shared<bool>(false);
  graph->work.push_back([again = graph->again, at_launch] { *again = at_launch != 0; });
  *handle = reinterpret_cast<uintptr_t>(graph->again.get());
  return cudaSuccess;
}
cudaError_t cudaGraphAddNode(cudaGraphNode_t*, cudaGraph_t graph, const cudaGraphNode_t*,
                             const void*, size_t, cudaGraphNodeParams* params) {
  graph->body = std::make_shared<EmulatedGraph>();
  graph->work.push_back([again = graph->again, body = graph->body] {
    while (*again) body->run();
  });
  graph->body_address = graph->body.get();
  params->conditional.phGraph_out = &graph->body_address;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned) {
  *exec = new EmulatedGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  ++vlarft::emulate::launched;
  exec->run();
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  asked = false;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {  // not yet, for whoever asks first
  return std::exchange(asked, true) ? vlarft::emulate::status() : cudaErrorNotReady;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
