// Vectors of the instruction set that this file is compiled for. No std templates here: an inline
// function of theirs, compiled with wide instructions, could replace the generic copy at link time.
#pragma once

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstdint>

namespace vlarft::imagine::VLARFT_ISA {

#define VLARFT_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

using Vec = __m512;
inline constexpr int kLanes = 16;
VLARFT_INLINE Vec zero() { return _mm512_setzero_ps(); }
VLARFT_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
VLARFT_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
VLARFT_INLINE Vec broadcast(const float* p) { return _mm512_set1_ps(*p); }
VLARFT_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
VLARFT_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
// A register of bfloat16 pairs: even k in the low halves, odd k in the high ones.
VLARFT_INLINE void load_pairs(const uint16_t* p, Vec* even, Vec* odd) {
  typedef uint32_t Bits __attribute__((vector_size(64)));
  Bits pairs;
  __builtin_memcpy(&pairs, p, sizeof pairs);
  *even = reinterpret_cast<Vec>(pairs << 16);
  *odd = reinterpret_cast<Vec>(pairs & 0xFFFF0000U);
}

#elif defined(__AVX2__)

using Vec = __m256;
inline constexpr int kLanes = 8;
VLARFT_INLINE Vec zero() { return _mm256_setzero_ps(); }
VLARFT_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
VLARFT_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
VLARFT_INLINE Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
VLARFT_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
VLARFT_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
VLARFT_INLINE void load_pairs(const uint16_t* p, Vec* even, Vec* odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  *odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

#else

typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;
VLARFT_INLINE Vec zero() { return Vec{}; }
VLARFT_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
VLARFT_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
VLARFT_INLINE Vec broadcast(const float* p) { return Vec{*p, *p, *p, *p}; }
VLARFT_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
VLARFT_INLINE Vec add(Vec a, Vec b) { return a + b; }
VLARFT_INLINE void load_pairs(const uint16_t* p, Vec* even, Vec* odd) {
  Bits pairs;
  __builtin_memcpy(&pairs, p, sizeof pairs);
  *even = reinterpret_cast<Vec>(pairs << 16);
  *odd = reinterpret_cast<Vec>(pairs & 0xFFFF0000U);
}

#endif

inline constexpr int kVecs = 16 / kLanes;  // registers of a panel

// Sixteen lanes for everything but products; narrower machines take several registers.
typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));

VLARFT_INLINE F16 load16(const float* p) {
  F16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
VLARFT_INLINE void store16(float* p, const F16& v) { __builtin_memcpy(p, &v, sizeof v); }

// One order, whatever the instruction set.
VLARFT_INLINE float fold_sum(const F16& v) {
  float x[16];
  __builtin_memcpy(x, &v, sizeof x);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  }
  return x[0];
}
VLARFT_INLINE float fold_max(const F16& v) {
  float best = v[0];
  for (int i = 1; i < 16; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

}  // namespace vlarft::imagine::VLARFT_ISA
