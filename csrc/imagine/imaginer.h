// Prompts prefilled once, then rollouts: one model, its threads, and the memory that calls share.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "core/cpu_features.h"
#include "imagine/driver.h"

namespace vlarft::imagine {

class Imaginer {
 public:
  // `cache`: bytes of the last-level cache.
  Imaginer(const ModelConfig& config, const Tensors& tensors, const Kernels& kernels,
           int64_t cache = last_level_cache());

  const Transformer& transformer() const { return transformer_; }

  // Prompts [P,S] -> their keys and values.
  std::vector<std::shared_ptr<Prompt>> prefill(const int32_t* ids, int64_t scenes, int64_t length,
                                               int threads, const Poll& poll);

  // Scenes that are imagined together: all of them when the weights exceed the cache, else as many
  // as stay in it beside them, at least one.
  int64_t scenes_at_once(const Shape& shape) const;

  // Tokens [P,M,T,K]; -1 everywhere in a row whose logits were not finite. Prompts are of one
  // length. Buffers of the same shape are used again.
  Stats imagine(const Request& request, const Prompts& prompts, int threads, const Poll& poll,
                int32_t* tokens);

  // Logits [P,M,L,codes] of given suffixes [P,M,L], `chunk` tokens a pass: for measuring a model
  // and for checking that the result does not depend on the chunk.
  void score(const Prompts& prompts, const int32_t* ids, int64_t rows_a_scene, int64_t length,
             int64_t chunk, int threads, const Poll& poll, float* logits);

  // Seconds of one pass of `tokens` neighbouring tokens at the start of a sequence, with logits for
  // each: the best of a few.
  double pass_seconds(int64_t tokens, int threads);

  // What prefill and imagine take at most, all at once.
  Bytes plan(const Shape& shape) const;

  // What is kept for the next call, weights and prompts apart.
  int64_t held_bytes();
  void release();

 private:
  struct WorkShape {
    int64_t tokens, logit_rows;
    int threads;
    bool operator==(const WorkShape&) const = default;
  };

  WorkShape work_shape(const Shape& shape) const;
  Shape part_of(Shape shape) const;
  void prepare(const Shape& shape);
  ThreadPool& pool(int threads);

  Transformer transformer_;
  int64_t cache_;
  std::mutex busy_;  // one call at a time; other engines are independent
  std::unique_ptr<ThreadPool> pool_;
  Buffers buffers_;
  WorkShape work_{};
};

}  // namespace vlarft::imagine
