// Implementation of the table for the instruction set that this file is compiled for.
#pragma once

#include "decode/cpu/kernels.h"
#include "imagine/cpu/elementwise.h"

namespace vlarft::decode::VLARFT_ISA {

using imagine::VLARFT_ISA::all;
using imagine::VLARFT_ISA::exp16;
using imagine::VLARFT_ISA::F16;
using imagine::VLARFT_ISA::load16;
using imagine::VLARFT_ISA::store16;
using imagine::VLARFT_ISA::U16;
using imagine::VLARFT_ISA::Vec;
namespace simd = imagine::VLARFT_ISA;

typedef uint16_t H16 __attribute__((vector_size(32)));

VLARFT_INLINE F16 widen(const uint16_t* p) {
  H16 half;
  __builtin_memcpy(&half, p, sizeof half);
  return reinterpret_cast<F16>(__builtin_convertvector(half, U16) << 16);
}

// Nearest bfloat16, ties to even; NaN stays NaN.
VLARFT_INLINE void narrow16(uint16_t* p, const F16& v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  __builtin_memcpy(p, &half, sizeof half);
#else
  const U16 bits = reinterpret_cast<U16>(v);
  const U16 rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  const U16 nan = (bits >> 16) | 0x40U;
  const H16 half = __builtin_convertvector(v == v ? rounded : nan, H16);
  __builtin_memcpy(p, &half, sizeof half);
#endif
}

// Up to sixteen numbers of a tensor; what lies beyond is zero.
VLARFT_INLINE F16 load_some(const void* data, bool narrow, int64_t at, int64_t count) {
  if (count >= 16) {
    return narrow ? widen(static_cast<const uint16_t*>(data) + at)
                  : load16(static_cast<const float*>(data) + at);
  }
  if (narrow) {
    uint16_t part[16] = {};
    __builtin_memcpy(part, static_cast<const uint16_t*>(data) + at, static_cast<size_t>(count) * 2);
    return widen(part);
  }
  float part[16] = {};
  __builtin_memcpy(part, static_cast<const float*>(data) + at, static_cast<size_t>(count) * 4);
  return load16(part);
}

VLARFT_INLINE void store_some(void* data, bool narrow, int64_t at, int64_t count, const F16& v) {
  if (narrow) {
    uint16_t part[16];
    uint16_t* const p = static_cast<uint16_t*>(data) + at;
    narrow16(count >= 16 ? p : part, v);
    if (count < 16) __builtin_memcpy(p, part, static_cast<size_t>(count) * 2);
    return;
  }
  float* const p = static_cast<float*>(data) + at;
  if (count >= 16) {
    store16(p, v);
  } else {
    float part[16];
    store16(part, v);
    __builtin_memcpy(p, part, static_cast<size_t>(count) * 4);
  }
}

VLARFT_INLINE F16 activated(const F16& v, Activation activation) {
  if (activation == Activation::kRelu) return v > 0.0F ? v : v != v ? v : F16{};
  if (activation == Activation::kNone) return v;
  // exp overflows beyond 88, where silu is 0 in float32 anyway.
  const F16 minus = -v;
  const F16 bounded = minus > 88.0F ? all(88.0F) : minus;
  return v / (1.0F + exp16(bounded));
}

static inline void pack(const Pixels& x, int64_t pixels, int64_t channels, const float* scale,
                        const float* shift, Activation activation, bool pairs, void* packed) {
  for (int64_t i = 0; i < channels; i += 16) {
    const int64_t count = channels - i < 16 ? channels - i : 16;
    const F16 a = scale != nullptr ? load_some(scale, false, i, count) : F16{};
    const F16 b = scale != nullptr ? load_some(shift, false, i, count) : F16{};
    for (int64_t p = 0; p < pixels; ++p) {
      F16 v = load_some(x.data, x.narrow, p * x.stride + i, count);
      if (scale != nullptr) v = v * a + b;
      v = activated(v, activation);
      if (pairs) {
        narrow16(static_cast<uint16_t*>(packed) + p * kDepth * 2 + i, v);
      } else {
        store16(static_cast<float*>(packed) + p * kDepth + i, v);
      }
    }
  }
}

struct Singles {
  VLARFT_INLINE Vec step(Vec weights, Vec x, Vec sum) {
    return simd::multiply_add(weights, x, sum);
  }
};

#if defined(__AVX512BF16__)
struct Pairs {
  VLARFT_INLINE Vec step(Vec weights, Vec x, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights),
                            reinterpret_cast<__m512bh>(x));
  }
};
#endif

// P pixels by G groups of 16 output channels, all sums in registers.
template <class Kind, int P, int G>
static void block(const float* x, const int64_t* taps, int64_t tap_count, int64_t units,
                  const float* w, int64_t columns, float* c, int64_t c_stride, bool add) {
  constexpr int kV = G * simd::kVecs;
  Vec sum[P][kV];
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sum[p][v] = add ? simd::load(c + p * c_stride + v * simd::kLanes) : simd::zero();
    }
  }
  for (int64_t tap = 0; tap < tap_count; ++tap) {
    const float* from = x + taps[tap];
    for (int64_t unit = 0; unit < units; ++unit, ++from, w += columns) {
      Vec weights[kV];
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) weights[v] = simd::load(w + v * simd::kLanes);
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p) {
        const Vec one = simd::broadcast(from + p * kDepth);
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[p][v] = Kind::step(weights[v], one, sum[p][v]);
      }
    }
  }
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) simd::store(c + p * c_stride + v * simd::kLanes, sum[p][v]);
  }
}

// Registers: P * G sums, G weights and one pixel, of 32 (AVX-512) or 16.
#if defined(__AVX512F__)
inline constexpr int kGroups = 4;
template <int G>
inline constexpr int kPixels = G == 4   ? 6
                               : G == 3 ? 8
                               : G == 2 ? 12
                                        : 16;
#elif defined(__AVX2__)
inline constexpr int kGroups = 1;
template <int G>
inline constexpr int kPixels = 6;
#else
inline constexpr int kGroups = 1;
template <int G>
inline constexpr int kPixels = 3;
#endif

using Block = void (*)(const float*, const int64_t*, int64_t, int64_t, const float*, int64_t,
                       float*, int64_t, bool);

template <class Kind, int G, int P = kPixels<G>>
VLARFT_INLINE Block block_of(int64_t pixels) {
  if (pixels == P) return &block<Kind, P, G>;
  if constexpr (P > 1) return block_of<Kind, G, P - 1>(pixels);
  return nullptr;
}

template <class Kind, int G>
static void row(const float* x, const int64_t* taps, int64_t tap_count, int64_t units,
                const float* w, int64_t columns, int64_t pixels, float* c, int64_t c_stride,
                bool add) {
  // Parts of nearly equal length: a short last one would wait for its own additions.
  const int64_t parts = (pixels + kPixels<G> - 1) / kPixels<G>;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = pixels * part / parts, next = pixels * (part + 1) / parts;
    block_of<Kind, G>(next - first)(x + first * kDepth, taps, tap_count, units, w, columns,
                                    c + first * c_stride, c_stride, add);
  }
}

template <class Kind>
static void panel(const float* x, const int64_t* taps, int64_t tap_count, int64_t units,
                  const float* w, int64_t groups, int64_t pixels, float* c, int64_t c_stride,
                  bool add) {
  const int64_t columns = groups * 16;
  for (int64_t done = 0; done < groups;) {
    const int64_t left = groups - done < kGroups ? groups - done : kGroups;
    const float* const from = w + done * 16;
    float* const to = c + done * 16;
    if (left == 1)
      row<Kind, 1>(x, taps, tap_count, units, from, columns, pixels, to, c_stride, add);
#if defined(__AVX512F__)
    if (left == 2)
      row<Kind, 2>(x, taps, tap_count, units, from, columns, pixels, to, c_stride, add);
    if (left == 3)
      row<Kind, 3>(x, taps, tap_count, units, from, columns, pixels, to, c_stride, add);
    if (left == 4)
      row<Kind, 4>(x, taps, tap_count, units, from, columns, pixels, to, c_stride, add);
#endif
    done += left;
  }
}

static inline void multiply(const void* packed, const int64_t* taps, int64_t tap_count,
                            int64_t units, const void* weights, int64_t groups, int64_t pixels,
                            bool pairs, float* c, int64_t c_stride, bool add) {
  const auto* const x = static_cast<const float*>(packed);
  const auto* const w = static_cast<const float*>(weights);
#if defined(__AVX512BF16__)
  if (pairs) {
    panel<Pairs>(x, taps, tap_count, units, w, groups, pixels, c, c_stride, add);
    return;
  }
#endif
  static_cast<void>(pairs);
  panel<Singles>(x, taps, tap_count, units, w, groups, pixels, c, c_stride, add);
}

// Six inputs of one axis at the points 0, a, -a, b, -b and infinity, a = 5/8, b = 3/2: rows of B^T,
// unscaled, so that every coefficient is exact.
VLARFT_INLINE void points_of(const F16* x, int64_t stride, F16* out, int64_t out_stride) {
  constexpr float a = 0.625F, b = 1.5F, aa = a * a, bb = b * b;
  const F16 x0 = x[0], x1 = x[stride], x2 = x[2 * stride], x3 = x[3 * stride], x4 = x[4 * stride],
            x5 = x[5 * stride];
  const F16 even_a = x4 - bb * x2, odd_a = a * (x3 - bb * x1);
  const F16 even_b = x4 - aa * x2, odd_b = b * (x3 - aa * x1);
  out[0] = (aa * bb) * x0 - (aa + bb) * x2 + x4;
  out[out_stride] = even_a + odd_a;
  out[2 * out_stride] = even_a - odd_a;
  out[3 * out_stride] = even_b + odd_b;
  out[4 * out_stride] = even_b - odd_b;
  out[5 * out_stride] = (aa * bb) * x1 - (aa + bb) * x3 + x5;
}

// Four outputs of one axis from six points: A^T.
VLARFT_INLINE void outputs_of(const F16* m, int64_t stride, F16* out, int64_t out_stride) {
  constexpr float a = 0.625F, b = 1.5F, aa = a * a, bb = b * b;
  const F16 sum_a = m[stride] + m[2 * stride], gap_a = m[stride] - m[2 * stride];
  const F16 sum_b = m[3 * stride] + m[4 * stride], gap_b = m[3 * stride] - m[4 * stride];
  out[0] = m[0] + sum_a + sum_b;
  out[out_stride] = a * gap_a + b * gap_b;
  out[2 * out_stride] = aa * sum_a + bb * sum_b;
  out[3 * out_stride] = (a * aa) * gap_a + (b * bb) * gap_b + m[5 * stride];
}

static inline void to_points(const float* packed, int64_t row_units, int64_t columns, float* points,
                             int64_t plane) {
  for (int64_t lane = 0; lane < kDepth; lane += 16) {
    F16 t[6][6];  // [vertical point][column]
    const auto vertical = [&](int64_t column, int place) {
      F16 x[6];
      for (int64_t r = 0; r < 6; ++r)
        x[r] = load16(packed + r * row_units + column * kDepth + lane);
      points_of(x, 1, &t[0][place], 6);
    };
    vertical(0, 4);
    vertical(1, 5);
    for (int64_t tile = 0; tile < columns; ++tile) {
      for (auto& row : t) row[0] = row[4], row[1] = row[5];  // neighbours share two columns
      for (int place = 2; place < 6; ++place) vertical(4 * tile + place, place);
      float* to = points + tile * kDepth + lane;
      for (auto& row : t) {
        F16 y[6];
        points_of(row, 1, y, 1);
        for (const F16& one : y) {
          store16(to, one);
          to += plane;
        }
      }
    }
  }
}

static inline void from_points(const float* points, int64_t plane, int64_t stride, int64_t columns,
                               int64_t groups, float* c, int64_t c_row) {
  for (int64_t tile = 0; tile < columns; ++tile) {
    for (int64_t group = 0; group < groups; ++group) {
      const float* from = points + tile * stride + group * 16;
      F16 t[6][4];  // [vertical point][column]
      for (auto& row : t) {
        F16 m[6];
        for (F16& one : m) {
          one = load16(from);
          from += plane;
        }
        outputs_of(m, 1, row, 1);
      }
      for (int64_t x = 0; x < 4; ++x) {
        F16 y[4];
        outputs_of(&t[0][x], 4, y, 1);
        float* const to = c + (4 * tile + x) * kPanel + group * 16;
        for (int64_t r = 0; r < 4; ++r) store16(to + r * c_row, y[r]);
      }
    }
  }
}

static inline void finish(const float* c, int64_t c_stride, int64_t pixels, int64_t channels,
                          const float* bias, Activation activation, const void* residual, void* out,
                          bool narrow, int64_t out_stride) {
  for (int64_t i = 0; i < channels; i += 16) {
    const int64_t count = channels - i < 16 ? channels - i : 16;
    const F16 b = load_some(bias, false, i, count);
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t at = p * out_stride + i;
      F16 v = activated(load16(c + p * c_stride + i) + b, activation);
      if (residual != nullptr) v += load_some(residual, narrow, at, count);
      store_some(out, narrow, at, count, v);
    }
  }
}

// Two sweeps: sums of squares minus squared sums would cancel.
static inline void moments(const Pixels& x, int64_t pixels, int64_t channels, float* mean,
                           float* deviation) {
  for (int64_t i = 0; i < channels; i += 64) {
    const int64_t here = channels - i < 64 ? channels - i : 64;
    const int64_t vectors = (here + 15) / 16;
    F16 total[4] = {}, squares[4] = {};
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t v = 0; v < vectors; ++v) {
        total[v] += load_some(x.data, x.narrow, p * x.stride + i + v * 16, here - v * 16);
      }
    }
    for (int64_t v = 0; v < vectors; ++v) total[v] /= static_cast<float>(pixels);
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t v = 0; v < vectors; ++v) {
        const F16 d =
            load_some(x.data, x.narrow, p * x.stride + i + v * 16, here - v * 16) - total[v];
        squares[v] += d * d;
      }
    }
    for (int64_t v = 0; v < vectors; ++v) {
      store_some(mean, false, i + v * 16, here - v * 16, total[v]);
      store_some(deviation, false, i + v * 16, here - v * 16, squares[v]);
    }
  }
}

static inline float absolute(const float* a, const float* b, int64_t n) {
  F16 sum{};
  for (int64_t i = 0; i < n; i += 16) {
    const F16 d = load_some(a, false, i, n - i) - load_some(b, false, i, n - i);
    sum += d < 0.0F ? -d : d;
  }
  return simd::fold_sum(sum);
}

// 1 / (norm + 1e-10)
VLARFT_INLINE float inverse_norm(const float* x, int64_t n) {
  F16 squares{};
  for (int64_t i = 0; i < n; i += 16) {
    const F16 v = load_some(x, false, i, n - i);
    squares += v * v;
  }
  return 1.0F / (__builtin_sqrtf(simd::fold_sum(squares)) + 1e-10F);
}

static inline float directions(const float* a, const float* b, int64_t pixels, int64_t channels,
                               const float* weight) {
  F16 sum{};
  for (int64_t p = 0; p < pixels; ++p, a += channels, b += channels) {
    const float na = inverse_norm(a, channels), nb = inverse_norm(b, channels);
    for (int64_t i = 0; i < channels; i += 16) {
      const int64_t left = channels - i;
      const F16 d = load_some(a, false, i, left) * na - load_some(b, false, i, left) * nb;
      sum += load_some(weight, false, i, left) * (d * d);
    }
  }
  return simd::fold_sum(sum);
}

}  // namespace vlarft::decode::VLARFT_ISA
