// A Llama and the sampling of its tokens, as every device is told of them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vlarft::imagine {

enum class Storage { kFloat32, kBfloat16 };
enum class CacheStorage { kAsWeights, kFloat8 };

struct ModelConfig {
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  int64_t vocabulary = 0;
  int64_t frame_codes = 0;  // ids 0 .. frame_codes-1 may be sampled: the head has no other columns
  int64_t positions = 0;    // longest sequence, prompt included
  float eps = 0;
  Storage storage = Storage::kFloat32;
  CacheStorage cache = CacheStorage::kAsWeights;
};

// float32 weights of a Llama under transformers' names, row-major, borrowed while packing.
// "rotary.cos" and "rotary.sin" [positions, head_dim / 2] come with them.
using Tensors = std::map<std::string, const float*>;

// Throws Error naming a tensor that is missing.
const float* tensor_named(const Tensors& tensors, const std::string& name);

// Powers of two by which keys and values are divided to be stored as float8, [layers][kv heads]; 1
// everywhere when the cache is stored otherwise.
struct CacheScales {
  std::vector<float> keys, values;
};

// The smallest that let nothing exceed 448. An entry of a key or value is w . (g * x / rms(x)) with
// a row w of the projection and the norm's weight g, hence at most sqrt(hidden) |w * g| (Cauchy and
// Schwarz); rotation joins two entries of a key, and its tables may carry a factor (YaRN). So no
// input can overflow, nothing is calibrated, and an entry depends on its token alone.
CacheScales cache_scales(const ModelConfig& config, const Tensors& tensors);

struct Sampling {
  uint64_t seed = 0;
  float temperature = 1;  // 0: argmax
  int64_t top_k = 0;      // 0: all
  double top_p = 1;
};

}  // namespace vlarft::imagine
