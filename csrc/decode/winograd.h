// 3x3 convolution in float32 by Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144.
//
// A tile of 6x6 inputs and the kernel are evaluated at the points 0, +-5/8, +-3/2 and infinity of
// each axis, multiplied there, and 4x4 outputs are interpolated (Lavin and Gray, arXiv 1509.09308).
// The usual points 0, +-1, +-2 lose 2.5 times as much precision; these, whose squares, products and
// sums are exact in float32, stay within twice the error of the direct sum.
//
// Operations: 36/16 x 2 C D a pixel instead of 18 C D. Bytes: the transformed weights (4 times the
// direct ones) once for each block of tiles, everything else from the caches.
#pragma once

#include <cstdint>

#include "decode/surroundings.h"

namespace vlarft::decode {

class Winograd {
 public:
  // Whether the products saved outweigh the transforms. Measured: docs/decode.md.
  static bool pays(int64_t out, int64_t in) { return out >= kLeast && in >= kLeast; }

  // `weight` [out][in][3][3], zero padding.
  Winograd(const float* weight, const float* bias, int64_t out, int64_t in, const Kernels& kernels);

  int64_t weight_bytes() const { return weights_.bytes(); }

  // Output pixels do not depend on the other images, the blocks or the threads, bit for bit.
  void run(Workers& workers, const Images& x, const Images& out, const Surroundings& around) const;

 private:
  static constexpr int64_t kLeast = 32;

  // What a task computes: tiles of `images` images, `rows` by `columns` of each.
  struct Block {
    int64_t images, rows, columns;
    int64_t tiles() const { return images * rows * columns; }
  };

  Block block(const Images& x, int threads) const;

  int64_t in_, out_, parts_, padded_;
  const Kernels& kernels_;
  imagine::Buffer weights_;  // [point][panel][padded in][16 * group]
  imagine::Buffer bias_;     // padded
};

}  // namespace vlarft::decode
