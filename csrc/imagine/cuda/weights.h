// A world model's weights in device memory, packed once for csrc/imagine/cuda/product.h.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda/runtime.h"
#include "imagine/cuda/product.h"
#include "imagine/model.h"

namespace vlarft::imagine::cuda {

inline int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t parts(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
inline int to_int(int64_t value) { return static_cast<int>(value); }

// Columns are packed [columns / 8][steps][lane].
struct Matrix {
  Memory weights;
  int32_t steps = 0, depth = 0, columns = 0;
};

struct Layer {
  Matrix qkv, out, gate_up, down;
  int64_t input_norm = 0, post_norm = 0;  // where in the norms
};

// T: what is multiplied.
template <class T>
struct DeviceWeights {
  // Throws Error naming a tensor that is missing, BackendError with CUDA's words.
  DeviceWeights(const ModelConfig& c, const Tensors& tensors, cudaStream_t stream);

  std::vector<Layer> layers;
  Matrix head;
  Memory embedding, norms, cosine, sine;
  int64_t last_norm = 0, bytes = 0;

 private:
  Matrix pack(const std::vector<const float*>& columns, int64_t depth, cudaStream_t stream) {
    return pack(columns, depth, stream, [](int64_t, int64_t) { return 1.0F; });
  }
  template <class Factor>  // (column, k) -> what the weight is multiplied by
  Matrix pack(const std::vector<const float*>& columns, int64_t depth, cudaStream_t stream,
              const Factor& factor);
  template <class V>
  Memory upload(const std::vector<V>& values, cudaStream_t stream);
};

template <class T>
template <class V>
Memory DeviceWeights<T>::upload(const std::vector<V>& values, cudaStream_t stream) {
  const auto count = static_cast<int64_t>(values.size());
  Memory out(count * static_cast<int64_t>(sizeof(V)), stream);
  copy_in(out.as<V>(), values.data(), count, stream);
  require(cudaStreamSynchronize(stream), "copying weights");
  bytes += out.bytes();
  return out;
}

// Columns are rows of the given matrices.
template <class T>
template <class Factor>
Matrix DeviceWeights<T>::pack(const std::vector<const float*>& columns, int64_t depth,
                              cudaStream_t stream, const Factor& factor) {
  Matrix out;
  const int64_t tiles = parts(static_cast<int64_t>(columns.size()), kColumns);
  out.steps = to_int(parts(depth, kStep));
  out.depth = to_int(depth);
  out.columns = to_int(static_cast<int64_t>(columns.size()));
  std::vector<Packed<T>> packed(static_cast<size_t>(tiles * out.steps * kWarp));
  for (size_t at = 0; at < packed.size(); ++at) {
    const auto i = static_cast<int64_t>(at);
    const int64_t g = i % kWarp / 4, t = i % 4;
    const int64_t step = i / kWarp % out.steps, column = i / kWarp / out.steps * kColumns + g;
    const float* from = column < out.columns ? columns[static_cast<size_t>(column)] : nullptr;
    const auto value = [&](int64_t k) {
      return from != nullptr && k < depth ? from[k] * factor(column, k) : 0.0F;
    };
    for (int half = 0; half < 2; ++half) {
      for (int part = 0; part < 2; ++part) {
        const int64_t k = step * kStep + half * 16 + part * 8 + 2 * t;
        packed[at].half[half].at[part] = pair_of<T>(value(k), value(k + 1));
      }
    }
  }
  out.weights = upload(packed, stream);
  return out;
}

template <class T>
DeviceWeights<T>::DeviceWeights(const ModelConfig& c, const Tensors& tensors, cudaStream_t stream) {
  const auto tensor = [&](const std::string& name) { return tensor_named(tensors, name); };
  const int64_t hidden_stride = up(c.hidden, kStep);
  const int64_t wide = c.heads * c.head_dim, half = c.head_dim / 2;
  const CacheScales scales = cache_scales(c, tensors);
  std::vector<float> all_norms;
  const auto place_norm = [&](const std::string& name) {
    const auto at = static_cast<int64_t>(all_norms.size());
    const float* from = tensor(name);
    for (int64_t i = 0; i < hidden_stride; ++i) {
      all_norms.push_back(i < c.hidden ? number(stored<T>(from[i])) : 0.0F);
    }
    return at;
  };
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    Layer layer;
    layer.input_norm = place_norm(at + "input_layernorm.weight");
    layer.post_norm = place_norm(at + "post_attention_layernorm.weight");
    std::vector<const float*> qkv, out, gate_up, down;
    const auto add_heads = [&](const std::string& name, int64_t heads, bool rotates) {
      const float* from = tensor(at + "self_attn." + name + ".weight");
      for (int64_t r = 0; r < heads * c.head_dim; ++r) {
        const int64_t head = r / c.head_dim, d = r % c.head_dim;
        // Those that rotate together become neighbours.
        const int64_t entry = rotates ? d / 2 + d % 2 * half : d;
        qkv.push_back(from + (head * c.head_dim + entry) * c.hidden);
      }
    };
    add_heads("q_proj", c.heads, true);
    add_heads("k_proj", c.kv_heads, true);
    add_heads("v_proj", c.kv_heads, false);
    const float* o = tensor(at + "self_attn.o_proj.weight");
    for (int64_t r = 0; r < c.hidden; ++r) out.push_back(o + r * wide);
    const float* gate = tensor(at + "mlp.gate_proj.weight");
    const float* raised = tensor(at + "mlp.up_proj.weight");
    for (int64_t r = 0; r < c.ffn; ++r) {
      gate_up.push_back(gate + r * c.hidden);
      gate_up.push_back(raised + r * c.hidden);
    }
    const float* lowered = tensor(at + "mlp.down_proj.weight");
    for (int64_t r = 0; r < c.hidden; ++r) down.push_back(lowered + r * c.ffn);
    // The cache holds keys and values divided by their scales, which are powers of two: queries
    // and the output projection bring them back, and no kernel knows of them.
    const auto kv_head = [&](int64_t head) {
      return i * c.kv_heads + head / (c.heads / c.kv_heads);
    };
    layer.qkv = pack(qkv, c.hidden, stream, [&](int64_t column, int64_t) {
      const int64_t head = column / c.head_dim, key = head - c.heads, value = key - c.kv_heads;
      if (key < 0) return scales.keys[static_cast<size_t>(kv_head(head))];
      return value < 0 ? 1 / scales.keys[static_cast<size_t>(i * c.kv_heads + key)]
                       : 1 / scales.values[static_cast<size_t>(i * c.kv_heads + value)];
    });
    layer.out = pack(out, wide, stream, [&](int64_t, int64_t k) {
      return scales.values[static_cast<size_t>(kv_head(k / c.head_dim))];
    });
    layer.gate_up = pack(gate_up, c.hidden, stream);
    layer.down = pack(down, c.ffn, stream);
    layers.push_back(std::move(layer));
  }
  last_norm = place_norm("model.norm.weight");
  norms = upload(all_norms, stream);
  const float* last = tensor("lm_head.weight");
  std::vector<const float*> codes;
  for (int64_t r = 0; r < c.frame_codes; ++r) codes.push_back(last + r * c.hidden);
  head = pack(codes, c.hidden, stream);
  const float* table = tensor("model.embed_tokens.weight");
  std::vector<T> embedded;
  embedded.reserve(static_cast<size_t>(c.vocabulary * c.hidden));
  for (int64_t i = 0; i < c.vocabulary * c.hidden; ++i) embedded.push_back(stored<T>(table[i]));
  embedding = upload(embedded, stream);
  const float *cosines = tensor("rotary.cos"), *sines = tensor("rotary.sin");
  cosine = upload(std::vector<float>(cosines, cosines + c.positions * half), stream);
  sine = upload(std::vector<float>(sines, sines + c.positions * half), stream);
}

}  // namespace vlarft::imagine::cuda
