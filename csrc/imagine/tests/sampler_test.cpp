// The sampler against sorting the whole vocabulary.
#include "imagine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/tests/check.h"

using namespace vlarft;
using namespace vlarft::imagine;

namespace {

std::vector<char> kept_by_sorting(const std::vector<float>& logits, const Sampling& s) {
  const auto n = static_cast<int64_t>(logits.size());
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto z = [&](int64_t id) { return logits[static_cast<size_t>(id)] / s.temperature; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return z(a) > z(b); });
  const int64_t most = s.top_k > 0 ? std::min(s.top_k, n) : n;
  double total = 0, before = 0;
  const auto mass = [&](int64_t id) { return std::exp(static_cast<double>(z(id)) - z(order[0])); };
  for (int64_t i = 0; i < most; ++i) total += mass(order[static_cast<size_t>(i)]);
  std::vector<char> kept(logits.size());
  for (int64_t i = 0; i < most && (i == 0 || s.top_p == 1 || before < s.top_p * total); ++i) {
    kept[static_cast<size_t>(order[static_cast<size_t>(i)])] = 1;
    before += mass(order[static_cast<size_t>(i)]);
  }
  return kept;
}

int32_t sample_by_sorting(const std::vector<float>& logits, const Sampling& s,
                          NoiseAddress address) {
  const std::vector<char> kept = kept_by_sorting(logits, s);
  int32_t best = -1;
  float best_score = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!kept[id]) continue;
    const Philox4 x = noise_block(address, static_cast<uint32_t>(id / 4), s.seed);
    const float score = logits[id] / s.temperature + gumbel(x.word[id % 4]);
    if (best < 0 || score > best_score) {
      best = static_cast<int32_t>(id);
      best_score = score;
    }
  }
  return best;
}

void test_against_sorting(const Kernels& kernels) {
  uint32_t state = 1;
  const auto random = [&] {
    state = state * 1664525U + 1013904223U;
    return static_cast<float>(state >> 8) * 0x1p-24F;
  };
  for (int round = 0; round < 400; ++round) {
    const int64_t ids = 1 + static_cast<int64_t>(random() * 300);
    std::vector<float> logits(static_cast<size_t>(ids));
    // Coarse steps make ties, a wide range makes weights that underflow.
    const float range = round % 3 == 0 ? 400.0F : 8.0F;
    for (float& l : logits) l = std::round(random() * 64) / 64 * range;
    Sampling s;
    s.seed = state;
    s.temperature = 0.25F + 2 * random();
    s.top_k = round % 2 == 0 ? 0 : 1 + static_cast<int64_t>(random() * 50);
    s.top_p = round % 5 == 0 ? 1.0 : 0.01 + 0.98 * random();
    Sampler sampler(kernels, ids);
    for (uint32_t position = 0; position < 8; ++position) {
      const NoiseAddress address{position, 0xFFFFFFFFU, 9};
      CHECK(sampler.sample(logits.data(), s, address) == sample_by_sorting(logits, s, address));
    }
  }
}

void test_greedy_ties(const Kernels& kernels) {
  const std::vector<float> logits = {1, 3, 2, 3};
  Sampling s;
  s.temperature = 0;
  CHECK(Sampler(kernels, 4).sample(logits.data(), s, {0, 0, 0}) == 1);
}

// 40,000 draws against the exact probabilities of the kept ids; 23.2 is the 99.9 % point of chi^2
// with 7 degrees of freedom plus slack for a fixed seed.
void test_frequencies(const Kernels& kernels) {
  const std::vector<float> logits = {0, 1, 2, 0.5F, 1.5F, -1, 2, 0.25F, -3, 1};
  Sampling s;
  s.temperature = 0.8F;
  s.top_p = 0.97;
  const std::vector<char> kept = kept_by_sorting(logits, s);
  std::vector<double> share(logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) total += kept[i] ? std::exp(logits[i] / 0.8) : 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    share[i] = kept[i] ? std::exp(logits[i] / 0.8) / total : 0;
  }
  constexpr int kDraws = 40000;
  std::vector<int> count(logits.size());
  Sampler sampler(kernels, static_cast<int64_t>(logits.size()));
  for (uint32_t i = 0; i < kDraws; ++i) {
    ++count[static_cast<size_t>(sampler.sample(logits.data(), s, {i, 4, 2}))];
  }
  double chi = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!kept[i]) {
      CHECK(count[i] == 0);
      continue;
    }
    chi += std::pow(count[i] - kDraws * share[i], 2) / (kDraws * share[i]);
  }
  CHECK(chi < 24.3);
}

}  // namespace

int main() {
  for (const std::string& name : runnable_kernels()) {
    test_against_sorting(kernels(name));
    test_greedy_ties(kernels(name));
    test_frequencies(kernels(name));
  }
}
