// The operations of convolutional networks on the CPU, once per instruction set.
//
// Activations are [image][row][column][channel]. A product works on "units" of 4 bytes: one float32
// or two bfloat16 of neighbouring input channels. Layouts:
//   packed   [row][column][kDepth]             a part of the input, zero around its border
//   weights  [tap][unit][16 * group]           of one panel and one part of the input channels
#pragma once

#include <cstdint>
#include <string>

namespace vlarft::decode {

inline constexpr int64_t kDepth = 32;  // units of a packed pixel; a compile-time stride
inline constexpr int64_t kPanel = 64;  // output channels that share one stream of weights

enum class Activation { kNone, kSilu, kRelu };

// One part of an image's channels: float32, or bfloat16 when `narrow`.
struct Pixels {
  const void* data;
  bool narrow;
  int64_t stride;  // elements from pixel to pixel
};

struct Kernels {
  const char* name;
  bool pairs;  // products of bfloat16 pairs; without, bfloat16 is widened to float32

  // packed[pixel] = activation(x * scale + shift) of `channels` channels; scale may be null.
  // As pairs of bfloat16 when `pairs`; an odd last channel gets a zero beside it.
  void (*pack)(const Pixels& x, int64_t pixels, int64_t channels, const float* scale,
               const float* shift, Activation activation, bool pairs, void* packed);

  // c[pixel][16 * groups] (+)= sum over taps and units; `pixels` neighbours in one packed row.
  void (*multiply)(const void* packed, const int64_t* taps /*units*/, int64_t tap_count,
                   int64_t units, const void* weights, int64_t groups, int64_t pixels, bool pairs,
                   float* c, int64_t c_stride, bool add);

  // A row of Winograd tiles (csrc/decode/winograd.h), `columns` of them side by side, at 36 points:
  // points[point * plane + tile * kDepth + unit] from packed[6 rows][4 * columns + 2][kDepth].
  void (*to_points)(const float* packed, int64_t row_units, int64_t columns, float* points,
                    int64_t plane);

  // And back: c[4 rows][4 * columns pixels][kPanel], `groups` of 16 channels, from
  // points[point * plane + tile * stride + channel].
  void (*from_points)(const float* points, int64_t plane, int64_t stride, int64_t columns,
                      int64_t groups, float* c, int64_t c_row);

  // out = activation(c + bias) + residual. `residual` has the layout of `out`, or is null.
  void (*finish)(const float* c, int64_t c_stride, int64_t pixels, int64_t channels,
                 const float* bias, Activation activation, const void* residual, void* out,
                 bool narrow, int64_t out_stride);

  // Mean and sum of squared deviations of every channel over some pixels.
  void (*moments)(const Pixels& x, int64_t pixels, int64_t channels, float* mean, float* deviation);

  // Sum of |a - b|.
  float (*absolute)(const float* a, const float* b, int64_t n);

  // Sum over pixels and channels of weight * (a / (|a| + 1e-10) - b / (|b| + 1e-10))^2, |.| over
  // the channels of a pixel. Two sweeps over a pixel: without the squares the difference would
  // cancel.
  float (*directions)(const float* a, const float* b, int64_t pixels, int64_t channels,
                      const float* weight);
};

// The table that goes with the kernels of csrc/imagine: one choice (VLARFT_CPU) for both.
const Kernels& kernels();
const Kernels& kernels(const std::string& name);

}  // namespace vlarft::decode
