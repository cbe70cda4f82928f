// The operations of the world model's transformer on the CPU, once per instruction set.
//
// Everything is batch-invariant: what is computed for a row depends on that row only. A product
// element is one chain of multiply-adds over k in ascending order, whatever the number of rows,
// panels or threads; a softmax sums 16 lanes at fixed positions and folds them in one order.
//
// Layouts (a "unit" is 4 bytes: one float32, or two bfloat16 of neighbouring k):
//   weights  [panel][k / per unit][16 columns]     a panel is 16 output columns, streamed once
//   rows     [tile][row][kTileStride]              a tile is kTile units of every row
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vlarft::imagine {

inline constexpr int64_t kPanel = 16;  // output columns that share one stream of weights
inline constexpr int64_t kTile = 256;  // units of a row tile, positions of an attention tile
// A compile-time stride lets every row be addressed from one register; 17 cache lines, so that
// rows do not fall into the same cache sets.
inline constexpr int64_t kTileStride = 272;

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Products of float32 rows with stored weights. `k` counts elements of the weights' padded depth.
struct Gemm {
  bool pairs;  // rows are packed as pairs of bfloat16 instead of float32

  // Columns [first, first + n) of `m` rows of x into packed rows; `first` is even.
  void (*pack)(const float* x, int64_t x_stride, int64_t m, int64_t first, int64_t n, void* packed,
               int64_t tile_stride /*units*/);

  // c[m, 16 * panels] = rows . weights, or += when `add`.
  void (*multiply)(const void* weights, int64_t panel_stride /*elements*/, int64_t k,
                   const void* packed, int64_t tile_stride /*units*/, int64_t m, int64_t panels,
                   float* c, int64_t c_stride, bool add);
};

struct Kernels {
  const char* name;
  Gemm f32;      // float32 weights and cache
  Gemm bf16;     // bfloat16 weights, depth padded to kBf16Depth
  Gemm bf16_kv;  // bfloat16 cache, depth padded to an even number

  // out = x / sqrt(mean(x^2) + eps) * weight, n entries
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);

  // out[r, c] = silu(gate) * up; `gate_up` holds panels of gate and of up in turn
  void (*swiglu)(const float* gate_up, int64_t stride, int64_t m, int64_t pairs, float* out,
                 int64_t out_stride);

  // One tile of a running softmax: scores[0, valid) become exp(score - maximum), the rest of
  // [0, padded) zero; returns the factor that older sums and outputs take.
  float (*softmax_tile)(float* scores, int64_t valid, int64_t padded, float* maximum, float* sum);

  // x *= factor, n a multiple of 16
  void (*scale)(float* x, float factor, int64_t n);

  // weight[i] = exp(-(top - z[i])), z = logits / temperature; returns the largest z
  float (*soften)(const float* logits, int64_t n, float temperature, float* z, float* weight);

  // out[id] = z[id] + Gumbel noise within 1e-4; words: the Philox counter after the block
  void (*noisy)(const float* z, int64_t n, const uint32_t* words /*[3]*/, uint64_t seed,
                float* out);
};

inline constexpr int64_t kBf16Depth = 32;  // one AMX tile of bfloat16

// The fastest kernels that this processor runs, or those that the environment variable VLARFT_CPU
// names. Chosen at the first call. Throws BackendError for an unknown or unsupported name.
const Kernels& kernels();
const Kernels& kernels(const std::string& forced);  // empty: the fastest

std::vector<std::string> built_kernels();     // best first
std::vector<std::string> runnable_kernels();  // best first

// Internal linkage: a copy compiled with wide instructions must not replace the generic one.
// Round to nearest, ties to even; a NaN stays a NaN.
static inline uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40U;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFU) > 0x7F800000U ? nan : rounded);
}

static inline float from_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  __builtin_memcpy(&x, &wide, sizeof x);
  return x;
}

}  // namespace vlarft::imagine
