// Convolutions and normalisation of a decoder, channels last, with everything that surrounds a
// convolution done while its data is in the cache: scale, shift and activation of the input (a
// GroupNorm followed by SiLU), bias, activation and residual of the output.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decode/surroundings.h"
#include "decode/winograd.h"

namespace vlarft::decode {

// GroupNorm as one factor and one summand a channel: x * scale + shift, both [image][channel].
void group_norm(Workers& workers, const Kernels& kernels, const Images& x, const float* weight,
                const float* bias, int64_t groups, double eps, float* scale, float* shift);

class Convolution {
 public:
  // `weight` [out][in][size][size]; size 1, or 3 with zero padding. `upsample`: the input is
  // enlarged by 2 (nearest) first, which folds into four 2x2 convolutions: each output parity sees
  // two source rows and columns, with the weights of a source pixel's copies summed.
  // `narrow` rounds the (summed) weights and the activated input to bfloat16. In float32, size 3
  // without upsampling goes by Winograd's transforms where they pay.
  Convolution(const float* weight, const float* bias, int64_t out, int64_t in, int64_t size,
              bool upsample, bool narrow, const Kernels& kernels);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  int64_t scale() const { return upsample_ ? 2 : 1; }
  int64_t weight_bytes() const { return winograd_ ? winograd_->weight_bytes() : weights_.bytes(); }
  const Kernels& kernels() const { return kernels_; }

  // Output pixels do not depend on the other images, the tiles or the threads, bit for bit.
  void run(Workers& workers, const Images& x, const Images& out, const Surroundings& around) const;

 private:
  struct Tile {
    int64_t rows, columns;
  };

  Tile tile(const Images& x, int threads) const;
  int64_t units(int64_t part) const;

  int64_t in_, out_, size_, phases_, taps_, parts_, depth_, padded_;
  bool upsample_, pairs_;
  const Kernels& kernels_;
  imagine::Buffer weights_;      // [phase][panel][part][tap][unit][16 * group]
  std::vector<int64_t> begins_;  // where [phase][panel][part] begins, in units
  std::vector<float> bias_;
  std::unique_ptr<Winograd> winograd_;  // instead of the weights, where it pays
};

}  // namespace vlarft::decode
