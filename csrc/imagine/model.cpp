#include "imagine/model.h"

#include <algorithm>
#include <cmath>

#include "core/errors.h"
#include "core/float8.h"

namespace vlarft::imagine {
namespace {

constexpr double kRounding = 1.0 + 1.0 / 32;  // of bfloat16 weights and activations

// The smallest power of two that brings `bound` down to 448; 1 for what is not a positive number.
float scale_of(double bound) {
  if (!(bound > 0) || !std::isfinite(bound)) return 1;
  int exponent = 0;
  const double mantissa = std::frexp(bound * kRounding / kFloat8Largest, &exponent);
  return std::ldexp(1.0F, mantissa == 0.5 ? exponent - 1 : exponent);
}

}  // namespace

const float* tensor_named(const Tensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw Error("Imaginer: the weights lack " + name);
  return found->second;
}

CacheScales cache_scales(const ModelConfig& c, const Tensors& tensors) {
  const auto count = static_cast<size_t>(c.layers * c.kv_heads);
  CacheScales out{std::vector<float>(count, 1), std::vector<float>(count, 1)};
  if (c.cache != CacheStorage::kFloat8) return out;
  const int64_t half = c.head_dim / 2;
  // The tables' factor is the cosine of the first position, whose angle is 0.
  const double turn = std::abs(static_cast<double>(tensor_named(tensors, "rotary.cos")[0]));
  for (int64_t at = 0; at < c.layers * c.kv_heads; ++at) {
    const std::string layer = "model.layers." + std::to_string(at / c.kv_heads) + ".";
    const float* norm = tensor_named(tensors, layer + "input_layernorm.weight");
    // Square of the largest entry `d` of this head.
    const auto square = [&](const char* name, int64_t d) {
      const float* row = tensor_named(tensors, layer + "self_attn." + name + ".weight") +
                         (at % c.kv_heads * c.head_dim + d) * c.hidden;
      double sum = 0;
      for (int64_t i = 0; i < c.hidden; ++i) {
        const double product = static_cast<double>(row[i]) * static_cast<double>(norm[i]);
        sum += product * product;
      }
      return sum * static_cast<double>(c.hidden);
    };
    double key = 0, value = 0;
    for (int64_t d = 0; d < half; ++d) {
      key = std::max(key, turn * std::sqrt(square("k_proj", d) + square("k_proj", d + half)));
      value = std::max(value, std::sqrt(std::max(square("v_proj", d), square("v_proj", d + half))));
    }
    out.keys[static_cast<size_t>(at)] = scale_of(key);
    out.values[static_cast<size_t>(at)] = scale_of(value);
  }
  return out;
}

}  // namespace vlarft::imagine
