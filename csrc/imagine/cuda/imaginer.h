// Prompts prefilled once, then rollouts, on a GPU: the twin of csrc/imagine/imaginer.h.
//
// A rollout is one graph, replayed once a pass; lengths, positions and tokens are read from device
// memory, so that the host only queues the next pass. Everything is queued on the caller's stream.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "imagine/request.h"

namespace vlarft::imagine::cuda {

// Keys and values of a scene's prompt.
struct Prompt {
  std::shared_ptr<void> cache;  // device memory
  int64_t length = 0, bytes = 0;
  int64_t layout[4] = {};  // layers, kv heads, D, bytes an entry: of whom can read it
};
using Prompts = std::vector<std::shared_ptr<const Prompt>>;

class Imaginer {
 public:
  // Throws Error naming a tensor that is missing or a head that is too wide, BackendError with
  // CUDA's words. Streams are cudaStream_t of `device`.
  Imaginer(const ModelConfig& config, const Tensors& tensors, int device, uintptr_t stream);
  ~Imaginer();

  const ModelConfig& config() const;
  int device() const;
  int64_t weight_bytes() const;
  bool made(const Prompt& prompt) const;  // by this one or one with the same cache

  // Prompts [P,S], ids in host memory -> their keys and values.
  std::vector<std::shared_ptr<Prompt>> prefill(const int32_t* ids, int64_t scenes, int64_t length,
                                               uintptr_t stream, const Poll& poll);

  // Tokens [P,M,T,K] in device memory; -1 everywhere in a row whose logits were not finite. Prompts
  // are of one length; the request's arrays are in host memory. Returns when the tokens are there.
  Stats imagine(const Request& request, const Prompts& prompts, uintptr_t stream, const Poll& poll,
                int32_t* tokens);

  // Seconds of one pass of `tokens` neighbouring tokens at the start of a sequence, with logits for
  // each: the best of a few.
  double pass_seconds(int64_t tokens, uintptr_t stream);

  // What prefill and imagine take at most, all at once; threads do not matter.
  Bytes plan(const Shape& shape) const;

  // Seconds that captures of graphs have taken.
  double capture_seconds() const;

  // What is kept for the next call, weights and prompts apart.
  int64_t held_bytes();
  void release();

  class Engine;

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace vlarft::imagine::cuda
