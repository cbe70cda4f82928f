// Choosing a token: temperature, top-k, top-p, then the largest logit plus addressed Gumbel noise.
#pragma once

#include <cstdint>
#include <vector>

#include "core/philox.h"
#include "imagine/cpu/kernels.h"
#include "imagine/model.h"

namespace vlarft::imagine {

class Sampler {
 public:
  Sampler(const Kernels& kernels, int64_t ids);

  // One id in [0, ids). Order of ids: probability descending, id ascending; top-k keeps the first
  // k, then top-p an id while the mass before it is < p. Ties of the final score: the lowest id.
  int32_t sample(const float* logits /*[ids]*/, const Sampling& sampling, NoiseAddress address);

  static int64_t bytes(int64_t ids);

 private:
  // The last kept id in that order, as (key, id) in one word.
  uint64_t last_kept(const Sampling& sampling, float top);

  const Kernels& kernels_;
  int64_t ids_;
  std::vector<float> z_, weight_, noisy_;
  std::vector<uint64_t> order_;
  std::vector<uint32_t> inside_;
  std::vector<double> mass_;
};

}  // namespace vlarft::imagine
