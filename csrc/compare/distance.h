// Distances of image pairs, one pass over what is compared.
#pragma once

#include <cstdint>

#include "decode/convolution.h"

namespace vlarft::compare {

// Pair p compares entry first[p] of one list of tensors with entry second[p] of another.
struct Pairs {
  const int64_t* first;
  const int64_t* second;
  int64_t count;
};

// out[p] = mean |a - b| over `n` numbers; 0 exactly when the two are equal.
void l1(decode::Workers& workers, const decode::Kernels& kernels, const float* a, const float* b,
        int64_t n, const Pairs& pairs, float* out);

// out[p] += mean over pixels of sum over channels of weight * (a / |a| - b / |b|)^2, where |a| is
// the channels' norm + 1e-10: one level of LPIPS on features [entry][pixel][channel].
void perceptual(decode::Workers& workers, const decode::Kernels& kernels, const float* a,
                const float* b, int64_t pixels, int64_t channels, const float* weight,
                const Pairs& pairs, float* out);

}  // namespace vlarft::compare
