// Norm, SwiGLU, softmax and sampling noise: one rounding per written operation (this file is
// compiled without contraction), so an entry does not depend on its neighbours or the vector width.
#pragma once

#include "imagine/cpu/kernels.h"
#include "imagine/cpu/simd.h"

namespace vlarft::imagine::VLARFT_ISA {

VLARFT_INLINE F16 all(float x) { return F16{} + x; }

// exp(x) for x <= 88, relative error below 2e-7; 0 below -87.3. Range reduction by ln 2 in two
// parts and a polynomial of degree 6 (coefficients of Cephes' expf, S. Moshier).
VLARFT_INLINE F16 exp16(const F16& given) {
  const F16 low = all(-87.33654F);
  const F16 x = given > low ? given : low;
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const F16 shifter = all(12582912.0F);
  const F16 shifted = x * 1.44269504F + shifter;
  const F16 n = shifted - shifter;
  const F16 r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  F16 p = all(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const I16 power = (__builtin_convertvector(n, I16) + 127) << 23;
  const F16 result = p * reinterpret_cast<F16>(power);
  return given > low ? result : F16{};
}

// log(x) for normal x > 0, relative error below 2e-7 (Cephes' logf).
VLARFT_INLINE F16 log16(const F16& x) {
  I16 bits = reinterpret_cast<I16>(x);
  // Mantissa in [sqrt(1/2), sqrt(2)).
  bits = bits - 0x3F3504F3;
  const F16 e = __builtin_convertvector(bits >> 23, F16);
  const F16 m = reinterpret_cast<F16>((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0F;
  const F16 z = m * m;
  F16 p = all(7.0376836292e-2F);
  p = p * m - 1.1514610310e-1F;
  p = p * m + 1.1676998740e-1F;
  p = p * m - 1.2420140846e-1F;
  p = p * m + 1.4249322787e-1F;
  p = p * m - 1.6668057665e-1F;
  p = p * m + 2.0000714765e-1F;
  p = p * m - 2.4999993993e-1F;
  p = p * m + 3.3333331174e-1F;
  F16 y = m * (z * p);
  y = y + e * -2.12194440e-4F;
  y = y - z * 0.5F;
  return (m + y) + e * 0.693359375F;
}

static inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F16 squares{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F16 v = load16(x + i);
    squares += v * v;
  }
  if (i < n) {
    F16 v{};
    for (int64_t j = i; j < n; ++j) v[j - i] = x[j];
    squares += v * v;
  }
  const float mean = fold_sum(squares) / static_cast<float>(n);
  const float factor = 1.0F / __builtin_sqrtf(mean + eps);
  for (int64_t j = 0; j < n; ++j) out[j] = weight[j] * (x[j] * factor);
}

static inline void swiglu(const float* gate_up, int64_t stride, int64_t m, int64_t pairs,
                          float* out, int64_t out_stride) {
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t p = 0; p < pairs; ++p) {
      const F16 gate = load16(gate_up + r * stride + 2 * p * kPanel);
      const F16 up = load16(gate_up + r * stride + (2 * p + 1) * kPanel);
      // exp overflows beyond 88, where silu is 0 in float32 anyway.
      const F16 bounded = gate > all(-80.0F) ? gate : all(-80.0F);
      store16(out + r * out_stride + p * kPanel, gate / (exp16(-bounded) + 1.0F) * up);
    }
  }
}

static inline float softmax_tile(float* scores, int64_t valid, int64_t padded, float* maximum,
                                 float* sum) {
  if (valid <= 0) {
    for (int64_t i = 0; i < padded; i += 16) store16(scores + i, F16{});
    return 1.0F;
  }
  constexpr float kLowest = -3.0e38F;
  for (int64_t i = valid; i < padded; ++i) scores[i] = kLowest;
  F16 best = all(*maximum);
  for (int64_t i = 0; i < valid; i += 16) {
    const F16 v = load16(scores + i);
    best = v > best ? v : best;
  }
  const float top = fold_max(best);
  F16 total{};
  for (int64_t i = 0; i < valid; i += 16) {
    const F16 e = exp16(load16(scores + i) - top);
    store16(scores + i, e);
    total += e;
  }
  for (int64_t i = (valid + 15) / 16 * 16; i < padded; i += 16) store16(scores + i, F16{});
  const float factor = exp16(all(*maximum - top))[0];
  *maximum = top;
  *sum = *sum * factor + fold_sum(total);
  return factor;
}

static inline void scale(float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) store16(x + i, load16(x + i) * factor);
}

static inline float soften(const float* logits, int64_t n, float temperature, float* z,
                           float* weight) {
  float top = -3.0e38F;
  for (int64_t i = 0; i < n; ++i) {
    z[i] = logits[i] / temperature;
    top = z[i] > top ? z[i] : top;
  }
  for (int64_t i = 0; i < n; i += 16) {
    F16 v{};
    if (i + 16 <= n) {
      v = exp16(load16(z + i) - top);
      store16(weight + i, v);
    } else {
      for (int64_t j = i; j < n; ++j) v[j - i] = z[j] - top;
      v = exp16(v);
      for (int64_t j = i; j < n; ++j) weight[j] = v[j - i];
    }
  }
  return top;
}

// Sixteen Philox4x32-10 blocks at once, then -log(-log(u)) in float32. u = (n + 0.5) / 2^24 is
// exact in float32 below one half, and so is 1 - u above it; there -log(u) = u' + u'^2/2 + ... is
// taken by log(1 - u'), accurate enough for choosing who is computed exactly.
static inline void noisy(const float* z, int64_t n, const uint32_t* words, uint64_t seed,
                         float* out) {
  typedef uint64_t U64 __attribute__((vector_size(128)));
  const U16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t first = 0; first < n; first += 64) {
    U16 c0 = lanes + static_cast<uint32_t>(first / 4);
    U16 c1 = U16{} + words[0], c2 = U16{} + words[1], c3 = U16{} + words[2];
    auto k0 = static_cast<uint32_t>(seed);
    auto k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const U64 p0 = __builtin_convertvector(c0, U64) * 0xD2511F53ULL;
      const U64 p1 = __builtin_convertvector(c2, U64) * 0xCD9E8D57ULL;
      c0 = __builtin_convertvector(p1 >> 32, U16) ^ c1 ^ k0;
      c2 = __builtin_convertvector(p0 >> 32, U16) ^ c3 ^ k1;
      c1 = __builtin_convertvector(p1, U16);
      c3 = __builtin_convertvector(p0, U16);
      k0 += 0x9E3779B9U;
      k1 += 0xBB67AE85U;
    }
    const U16 blocks[4] = {c0, c1, c2, c3};
    float noise[4][16];
    for (int word = 0; word < 4; ++word) {
      const I16 bits = reinterpret_cast<I16>(blocks[word] >> 8);
      const I16 upper = bits >= 0x800000;
      const I16 mirrored = upper ? 0xFFFFFF - bits : bits;
      const F16 part = (__builtin_convertvector(mirrored, F16) + 0.5F) * 0x1p-24F;
      // -log(1 - v) for v < 1/2 without cancellation: v * (log(w) / (w - 1)), w = 1 - v rounded.
      const F16 w = 1.0F - part;
      const F16 gap = 1.0F - w;
      const F16 near = gap > 0.0F ? -log16(w) * (part / gap) : part;
      const F16 small = -log16(part);
      const F16 energy = upper ? near : small;
      const F16 g = -log16(energy);
      store16(noise[word], g);
    }
    const int64_t count = n - first < 64 ? n - first : 64;
    for (int64_t i = 0; i < count; ++i) out[first + i] = z[first + i] + noise[i % 4][i / 4];
  }
}

}  // namespace vlarft::imagine::VLARFT_ISA
