#include "compare/distance.h"

#include <algorithm>

namespace vlarft::compare {
namespace {

// Sums of a block are float32, of blocks double: fixed blocks, so that a pair's distance depends on
// that pair only.
constexpr int64_t kBlock = 4096;

}  // namespace

void l1(decode::Workers& workers, const decode::Kernels& kernels, const float* a, const float* b,
        int64_t n, const Pairs& pairs, float* out) {
  workers.pool.run(pairs.count, [&](int64_t p, int) {
    const float *x = a + pairs.first[p] * n, *y = b + pairs.second[p] * n;
    double sum = 0;
    for (int64_t i = 0; i < n; i += kBlock) {
      sum += kernels.absolute(x + i, y + i, std::min(kBlock, n - i));
    }
    out[p] = static_cast<float>(sum / static_cast<double>(n));
  });
}

void perceptual(decode::Workers& workers, const decode::Kernels& kernels, const float* a,
                const float* b, int64_t pixels, int64_t channels, const float* weight,
                const Pairs& pairs, float* out) {
  const int64_t n = pixels * channels, block = std::max<int64_t>(1, kBlock / channels);
  workers.pool.run(pairs.count, [&](int64_t p, int) {
    const float *x = a + pairs.first[p] * n, *y = b + pairs.second[p] * n;
    double sum = 0;
    for (int64_t i = 0; i < pixels; i += block) {
      sum += kernels.directions(x + i * channels, y + i * channels, std::min(block, pixels - i),
                                channels, weight);
    }
    out[p] += static_cast<float>(sum / static_cast<double>(pixels));
  });
}

}  // namespace vlarft::compare
