// A small Llama with random weights, and random ids.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "imagine/model.h"

namespace vlarft::imagine {

struct Model {
  ModelConfig config;
  std::map<std::string, std::vector<float>> values;
  Tensors tensors;
};

inline ModelConfig small_config(Storage storage) {
  ModelConfig c;
  c.layers = 2, c.hidden = 20, c.heads = 6, c.kv_heads = 3, c.head_dim = 6, c.ffn = 37;
  c.vocabulary = 40, c.frame_codes = 23, c.positions = 64, c.eps = 1e-6F, c.storage = storage;
  return c;
}

// A Llama of `c`, whose rotary angles fall by tens.
inline Model random_model(const ModelConfig& config) {
  Model m;
  m.config = config;
  const ModelConfig& c = m.config;
  uint32_t state = 5;
  const auto place = [&](const std::string& name, int64_t n, float scale, float middle) {
    auto& v = m.values[name];
    for (int64_t i = 0; i < n; ++i) {
      state = state * 1664525U + 1013904223U;
      v.push_back(middle + scale * (static_cast<float>(state >> 8) * 0x1p-23F - 1.0F));
    }
    m.tensors[name] = v.data();
  };
  const int64_t wide = c.heads * c.head_dim, narrow = c.kv_heads * c.head_dim;
  place("model.embed_tokens.weight", c.vocabulary * c.hidden, 1, 0);
  place("lm_head.weight", c.vocabulary * c.hidden, 1, 0);
  place("model.norm.weight", c.hidden, 0.1F, 1);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    place(at + "input_layernorm.weight", c.hidden, 0.1F, 1);
    place(at + "post_attention_layernorm.weight", c.hidden, 0.1F, 1);
    place(at + "self_attn.q_proj.weight", wide * c.hidden, 0.5F, 0);
    place(at + "self_attn.k_proj.weight", narrow * c.hidden, 0.5F, 0);
    place(at + "self_attn.v_proj.weight", narrow * c.hidden, 0.5F, 0);
    place(at + "self_attn.o_proj.weight", c.hidden * wide, 0.5F, 0);
    place(at + "mlp.gate_proj.weight", c.ffn * c.hidden, 0.5F, 0);
    place(at + "mlp.up_proj.weight", c.ffn * c.hidden, 0.5F, 0);
    place(at + "mlp.down_proj.weight", c.hidden * c.ffn, 0.5F, 0);
  }
  for (const bool cosine : {true, false}) {
    auto& v = m.values[cosine ? "rotary.cos" : "rotary.sin"];
    for (int64_t p = 0; p < c.positions; ++p) {
      for (int64_t d = 0; d < c.head_dim / 2; ++d) {
        const double angle = static_cast<double>(p) * std::pow(10.0, -static_cast<double>(d));
        v.push_back(static_cast<float>(cosine ? std::cos(angle) : std::sin(angle)));
      }
    }
    m.tensors[cosine ? "rotary.cos" : "rotary.sin"] = v.data();
  }
  return m;
}

inline std::vector<int32_t> ids(int64_t n, int32_t vocabulary, uint32_t state) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525U + 1013904223U;
    out.push_back(static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(vocabulary)));
  }
  return out;
}

}  // namespace vlarft::imagine
