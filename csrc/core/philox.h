// Philox4x32-10: a counter-based random function, out = f(key, counter), with no state.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// Random123's published known-answer vectors are in csrc/core/tests/philox_test.cpp.
// The same inline functions serve the host and the device, so both draw the same numbers.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace vlarft {

struct Philox4 {
  uint32_t word[4];
};

VLARFT_HOST_DEVICE inline Philox4 philox4x32_10(Philox4 c, uint64_t key) {
  auto k0 = static_cast<uint32_t>(key);
  auto k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53U} * c.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57U} * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9U;  // 2^32 / golden ratio
    k1 += 0xBB67AE85U;  // 2^32 * (sqrt(3) - 1)
  }
  return c;
}

// u = ((x >> 8) + 0.5) * 2^-24, always inside (0, 1). Its 25 bits need float64: in float32 the
// largest value would round to 1 and give a Gumbel number of plus infinity, once in 2^24 draws.
VLARFT_HOST_DEVICE inline double open_uniform(uint32_t x) {
  return (static_cast<double>(x >> 8) + 0.5) * 0x1p-24;
}

// Gumbel(0, 1) = -log(-log(u)), rounded once to float32; between -2.9 and 17.4.
VLARFT_HOST_DEVICE inline float gumbel(uint32_t x) {
  return static_cast<float>(-log(-log(open_uniform(x))));
}

// Where a row of noise lives: everything of a token's counter but the token id.
struct NoiseAddress {
  uint32_t position;  // frame * tokens per frame + position in the frame
  uint32_t member;    // 0xFFFFFFFF: shared by the group; 0xFFFFFFFE: the expert; else the rollout
  uint32_t scene;     // scene key
};

// Noise of the ids 4*block .. 4*block + 3: counter (block, position, member, scene), lane = id % 4.
VLARFT_HOST_DEVICE inline Philox4 noise_block(NoiseAddress a, uint32_t block, uint64_t seed) {
  return philox4x32_10({{block, a.position, a.member, a.scene}}, seed);
}

// out[i] = philox4x32_10(counters[i], key)
void philox_fill(const uint32_t* counters /*[n,4]*/, uint32_t* out /*[n,4]*/, int64_t n,
                 uint64_t key);

// out[r, id] = Gumbel noise of token `id` at addresses[r]
void gumbel_fill(const uint32_t* addresses /*[rows,3]*/, float* out /*[rows,ids]*/, int64_t rows,
                 int64_t ids, uint64_t seed);

}  // namespace vlarft
