// float8 e4m3: a sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, 0x7F and 0xFF are
// NaN. Largest 448, smallest normal 2^-6, steps of 2^-9 below; relative error of a normal at most
// 2^-4. Source: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace vlarft {

struct Float8 {
  uint8_t bits;
};

inline constexpr float kFloat8Largest = 448;

union Float32Bits {
  float value;
  uint32_t bits;
};

// Rounds to the nearest, ties to even. What is not finite or rounds beyond 448 becomes NaN: callers
// scale so that no number does, and an error must stay visible.
VLARFT_HOST_DEVICE inline Float8 to_float8(float x) {
  const Float32Bits given = {x};
  const uint32_t sign = given.bits >> 24 & 0x80U, size = given.bits & 0x7FFFFFFFU;
  uint32_t code = 0;
  if (size < 0x3C800000U) {  // below 2^-6: 2^14 has steps of 2^-9, so the sum rounds as wanted
    Float32Bits sum = {};
    sum.bits = size;
    sum.value += 0x1p14F;
    code = sum.bits - 0x46800000U;
  } else {
    code = ((size + 0x7FFFFU + (size >> 20 & 1U)) >> 20) - (120U << 3);
    if (code > 0x7FU) code = 0x7FU;
  }
  return {static_cast<uint8_t>(sign | code)};
}

VLARFT_HOST_DEVICE inline float from_float8(Float8 x) {
  const uint32_t code = x.bits & 0x7FU;
  Float32Bits size = {};
  if (code == 0x7FU) {
    size.bits = 0x7FC00000U;
  } else if (code < 8U) {
    size.value = static_cast<float>(code) * 0x1p-9F;
  } else {
    size.bits = (code + (120U << 3)) << 20;
  }
  return (x.bits & 0x80U) != 0 ? -size.value : size.value;
}

}  // namespace vlarft
