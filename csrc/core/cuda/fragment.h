// The product of a warp, [16 rows, 16 deep] x [16 deep, 8 columns] added to [16 rows, 8 columns].
//
// Layout of mma.sync.m16n8k16 (PTX ISA 9.0, "Matrix fragments for mma.m16n8k16"), with g = lane / 4
// and t = lane % 4; a pair is two neighbours along the depth:
//   A   pairs at depth 2t of rows g and g + 8, then at depth 2t + 8 of rows g and g + 8
//   B   pairs at depth 2t and 2t + 8 of column g
//   C   columns 2t and 2t + 1 of row g, then of row g + 8
// bfloat16 runs on tensor cores with float32 sums. float32 has the same layout and is exact to
// float32: one chain of multiply-adds in ascending depth. Whatever the type, an element of C
// depends on its row of A and its column of B alone, so results do not depend on batch mates.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cuda/intrinsics.h"
#include "core/float8.h"

namespace vlarft::cuda {

struct Bf16 {
  uint16_t bits;
};

inline __host__ __device__ float bits_as_float(uint32_t bits) {
  union {
    uint32_t from;
    float to;
  } word = {bits};
  return word.to;
}

inline __host__ __device__ uint32_t float_as_bits(float x) {
  union {
    float from;
    uint32_t to;
  } word = {x};
  return word.to;
}

// Rounds to the nearest, ties to even; NaN stays NaN.
inline __host__ __device__ Bf16 to_bf16(float x) {
  const uint32_t bits = float_as_bits(x);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
}

template <class T>
struct Pair;

template <>
struct alignas(8) Pair<float> {
  float low, high;
};

template <>
struct alignas(4) Pair<Bf16> {
  uint32_t bits;
};

template <class T>
__host__ __device__ T stored(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, Float8>) {
    return to_float8(x);
  } else {
    return to_bf16(x);
  }
}

inline __host__ __device__ float number(float x) { return x; }
inline __host__ __device__ float number(Bf16 x) { return bits_as_float(uint32_t{x.bits} << 16); }

template <class T>
__host__ __device__ Pair<T> pair_of(float low, float high) {
  if constexpr (std::is_same_v<T, float>) {
    return {low, high};
  } else {
#ifdef __CUDA_ARCH__
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return {*reinterpret_cast<const uint32_t*>(&both)};
#else
    return {uint32_t{to_bf16(low).bits} | uint32_t{to_bf16(high).bits} << 16};
#endif
  }
}

inline __host__ __device__ float low_of(Pair<float> x) { return x.low; }
inline __host__ __device__ float high_of(Pair<float> x) { return x.high; }
inline __host__ __device__ float low_of(Pair<Bf16> x) { return bits_as_float(x.bits << 16); }
inline __host__ __device__ float high_of(Pair<Bf16> x) {
  return bits_as_float(x.bits & 0xFFFF0000U);
}

// 2^120 times both.
inline __host__ __device__ Pair<Bf16> raised(Pair<Bf16> x) {
#ifdef __CUDA_ARCH__
  const __nv_bfloat162 both =
      __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&x.bits), __float2bfloat162_rn(0x1p120F));
  return {*reinterpret_cast<const uint32_t*>(&both)};
#else
  return pair_of<Bf16>(low_of(x) * 0x1p120F, high_of(x) * 0x1p120F);
#endif
}

// Two neighbours stored as float8, in the second and fourth byte of a word; the others are ignored.
// Exponent and mantissa in bfloat16's places are the same number 2^120 times smaller, subnormal
// where float8 is: exact, but NaN becomes 480. float8_nan() finds it.
template <class T>
__host__ __device__ Pair<T> widen(uint32_t word) {
  const Pair<Bf16> small = {(word & 0x80008000U) | (word & 0x7F007F00U) >> 4};
  if constexpr (std::is_same_v<T, Bf16>) {
    return raised(small);
  } else {
    return {low_of(small) * 0x1p120F, high_of(small) * 0x1p120F};
  }
}

// Not 0 where one of a word's four float8 is NaN.
inline __host__ __device__ uint32_t float8_nan(uint32_t word) {
  return ((word & 0x7F7F7F7FU) + 0x01010101U) & 0x80808080U;
}

template <class T>
struct FragmentA {
  Pair<T> at[4];
};

template <class T>
struct FragmentB {
  Pair<T> at[2];
};

struct FragmentC {
  float at[4];
};

// float32 on a GPU: each lane fetches what it multiplies from those that hold it.
inline __device__ void multiply_add_by_shuffles(FragmentC& c, const FragmentA<float>& a,
                                                const FragmentB<float>& b) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int k = 0; k < 16; ++k) {
    const int half = k / 8, owner = k % 8 / 2;
    const bool low = k % 2 == 0;
    const Pair<float>&upper = a.at[2 * half], &lower = a.at[2 * half + 1], &own = b.at[half];
    const float top = from_lane(low ? upper.low : upper.high, 4 * g + owner);
    const float bottom = from_lane(low ? lower.low : lower.high, 4 * g + owner);
    const float column = low ? own.low : own.high;
    const float left = from_lane(column, 8 * t + owner);
    const float right = from_lane(column, 8 * t + 4 + owner);
    c.at[0] = fmaf(top, left, c.at[0]);
    c.at[1] = fmaf(top, right, c.at[1]);
    c.at[2] = fmaf(bottom, left, c.at[2]);
    c.at[3] = fmaf(bottom, right, c.at[3]);
  }
}

#ifndef VLARFT_EMULATE

inline __device__ void multiply_add(FragmentC& c, const FragmentA<Bf16>& a,
                                    const FragmentB<Bf16>& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(a.at[0].bits), "r"(a.at[1].bits), "r"(a.at[2].bits), "r"(a.at[3].bits),
        "r"(b.at[0].bits), "r"(b.at[1].bits));
}

// Not inlined: kernels hold dozens of these, which took registers that they did not have, and ptxas
// minutes. What bounds them is the 64 shuffles, not the call.
inline __device__ __noinline__ FragmentC added_by_shuffles(FragmentC c, FragmentA<float> a,
                                                           FragmentB<float> b) {
  multiply_add_by_shuffles(c, a, b);
  return c;
}

inline __device__ void multiply_add(FragmentC& c, const FragmentA<float>& a,
                                    const FragmentB<float>& b) {
  c = added_by_shuffles(c, a, b);
}

#else

// All lanes' fragments at once: one exchange instead of 64.
template <class T>
void multiply_add(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b) {
  struct Given {
    FragmentA<T> a;
    FragmentB<T> b;
  };
  const Given* all = share_with_warp(Given{a, b});
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    float sum = c.at[i];
    for (int k = 0; k < 16; ++k) {
      const Pair<T> x = all[4 * (row % 8) + k % 8 / 2].a.at[row / 8 + 2 * (k / 8)];
      const Pair<T> y = all[4 * column + k % 8 / 2].b.at[k / 8];
      sum = k % 2 == 0 ? fmaf(low_of(x), low_of(y), sum) : fmaf(high_of(x), high_of(y), sum);
    }
    c.at[i] = sum;
  }
  warp_barrier();
}

#endif

}  // namespace vlarft::cuda
