// A Llama and the sampling of its tokens, as every device is told of them.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace vlarft::imagine {

enum class Storage { kFloat32, kBfloat16 };

struct ModelConfig {
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  int64_t vocabulary = 0;
  int64_t frame_codes = 0;  // ids 0 .. frame_codes-1 may be sampled: the head has no other columns
  int64_t positions = 0;    // longest sequence, prompt included
  float eps = 0;
  Storage storage = Storage::kFloat32;
};

// float32 weights of a Llama under transformers' names, row-major, borrowed while packing.
// "rotary.cos" and "rotary.sin" [positions, head_dim / 2] come with them.
using Tensors = std::map<std::string, const float*>;

// Throws Error naming a tensor that is missing.
const float* tensor_named(const Tensors& tensors, const std::string& name);

struct Sampling {
  uint64_t seed = 0;
  float temperature = 1;  // 0: argmax
  int64_t top_k = 0;      // 0: all
  double top_p = 1;
};

}  // namespace vlarft::imagine
