// A Llama laid out for generation on the CPU, and its one operation: extend(rows, tokens).
//
// A row is a sequence of its own (`own` cache) that may stand on a shared prompt (`prefix` cache).
// Prefill is a row without a prefix, a frame border a row with 8 new tokens, a verifier one with as
// many as are guessed. Rows that share a prefix are neighbours and read it together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "imagine/cpu/kernels.h"
#include "imagine/memory.h"
#include "imagine/model.h"
#include "imagine/thread_pool.h"

namespace vlarft::imagine {

// Keys and values of one sequence: [layer][kv head], each keys [position/16][dim][16] and values
// [position/256][dim/16][position][16], both ready to be multiplied as weights are.
class Cache {
 public:
  Cache(const ModelConfig& config, int64_t capacity);
  static int64_t bytes(const ModelConfig& config, int64_t capacity);

  int64_t capacity() const { return capacity_; }
  int64_t bytes() const { return memory_.bytes(); }

  const std::byte* keys(int64_t layer, int64_t head) const { return block(layer, head); }
  const std::byte* values(int64_t layer, int64_t head, int64_t tile) const {
    return block(layer, head) + (key_elements_ + tile * kTile * value_dim_) * element_;
  }
  int64_t key_depth() const { return key_dim_; }
  int64_t value_panel_stride(int64_t tile) const {
    return std::min(kTile, capacity_ - tile * kTile) * kPanel;
  }
  void write(int64_t layer, int64_t head, int64_t position, const float* key, const float* value);

 private:
  std::byte* block(int64_t layer, int64_t head) const {
    return memory_.as<std::byte>() +
           (layer * kv_heads_ + head) * (key_elements_ + value_elements_) * element_;
  }

  int64_t kv_heads_, dim_, key_dim_, value_dim_, capacity_, element_;
  int64_t key_elements_, value_elements_;
  Storage storage_;
  Buffer memory_;
};

struct Row {
  const Cache* prefix = nullptr;
  int64_t prefix_length = 0;
  Cache* own = nullptr;
  int64_t length = 0;  // tokens that `own` holds already
  const int32_t* tokens = nullptr;
  int64_t count = 0;        // new tokens
  int64_t logits_from = 0;  // logits of tokens logits_from .. count-1; count: none
};

// Activations of one pass, taken once and reused.
class Workspace;

class Transformer {
 public:
  // Throws Error naming a tensor that is missing.
  Transformer(const ModelConfig& config, const Tensors& tensors, const Kernels& kernels);
  ~Transformer();

  const ModelConfig& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  int64_t weight_bytes() const { return weight_bytes_; }

  std::shared_ptr<Workspace> workspace(int64_t tokens, int64_t logit_rows, int threads) const;
  int64_t workspace_bytes(int64_t tokens, int64_t logit_rows, int threads) const;

  // Appends every row's tokens to its cache; rows with one prefix are neighbours. Without any
  // logits the last layer ends at its keys and values. Returns logits [sum of logit rows, stride].
  const float* extend(const std::vector<Row>& rows, Workspace& work, ThreadPool& pool) const;
  int64_t logit_stride() const;

 private:
  struct Matrix;
  struct Layer;
  struct Token;
  struct Pass;

  Matrix pack(const std::vector<const float*>& rows, int64_t depth, float scale = 1,
              int64_t scaled_rows = 0);
  void multiply(const Matrix& matrix, const void* packed, int64_t tile_stride, int64_t m,
                float* out, int64_t stride, bool add, ThreadPool& pool) const;
  void norm_and_pack(const float* x, const float* weight, int64_t m, void* packed,
                     int64_t tile_stride, Workspace& work, ThreadPool& pool) const;
  void rotate_and_store(int64_t layer, Pass& pass) const;
  void round_to_float8(int64_t layer, float* keys, float* values) const;
  void attend(int64_t layer, Pass& pass) const;
  void attend_block(int64_t layer, int64_t head, int64_t first, int64_t end, int thread,
                    Pass& pass) const;
  void feed_forward(const Layer& layer, Pass& pass) const;

  ModelConfig config_;
  const Kernels& kernels_;
  const Gemm& gemm_;         // weights
  const Gemm& gemm_kv_;      // cache
  const Gemm& gemm_prompt_;  // a prompt's cache, which a whole group reads
  std::vector<Layer> layers_;
  std::unique_ptr<Matrix> head_;
  Buffer embedding_, norms_, cos_, sin_;
  CacheScales scales_;
  int64_t weight_bytes_ = 0;
};

}  // namespace vlarft::imagine
