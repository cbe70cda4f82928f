#include "core/philox.h"

#include <algorithm>

namespace vlarft {

void philox_fill(const uint32_t* counters, uint32_t* out, int64_t n, uint64_t key) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t* c = counters + 4 * i;
    const Philox4 x = philox4x32_10({{c[0], c[1], c[2], c[3]}}, key);
    std::copy(x.word, x.word + 4, out + 4 * i);
  }
}

void gumbel_fill(const uint32_t* addresses, float* out, int64_t rows, int64_t ids, uint64_t seed) {
  for (int64_t r = 0; r < rows; ++r) {
    const NoiseAddress address{addresses[3 * r], addresses[3 * r + 1], addresses[3 * r + 2]};
    float* line = out + r * ids;
    for (int64_t first = 0; first < ids; first += 4) {
      const Philox4 x = noise_block(address, static_cast<uint32_t>(first / 4), seed);
      const int64_t lanes = std::min<int64_t>(4, ids - first);
      for (int64_t lane = 0; lane < lanes; ++lane) line[first + lane] = gumbel(x.word[lane]);
    }
  }
}

}  // namespace vlarft
