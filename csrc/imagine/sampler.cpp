#include "imagine/sampler.h"

#include <algorithm>
#include <bit>

namespace vlarft::imagine {
namespace {

// How far the vectorised noise may be from the exact one; measured error: below 1e-5.
constexpr float kSlack = 1e-3F;

constexpr int kDigits = 3;
constexpr int kShift[kDigits] = {21, 10, 0};
constexpr uint32_t kBuckets = 2048;

// top - z >= 0, and the bits of non-negative floats order like the numbers.
uint32_t key_of(float top, float z) { return std::bit_cast<uint32_t>(top - z); }

}  // namespace

Sampler::Sampler(const Kernels& kernels, int64_t ids)
    : kernels_(kernels),
      ids_(ids),
      z_(static_cast<size_t>(ids)),
      weight_(static_cast<size_t>(ids)),
      noisy_(static_cast<size_t>(ids)),
      order_(static_cast<size_t>(ids)),
      inside_(static_cast<size_t>(ids)),
      mass_(kBuckets) {}

int64_t Sampler::bytes(int64_t ids) {
  return ids * static_cast<int64_t>(3 * sizeof(float) + sizeof(uint64_t) + sizeof(uint32_t)) +
         static_cast<int64_t>(kBuckets * sizeof(double));
}

int32_t Sampler::sample(const float* logits, const Sampling& sampling, NoiseAddress address) {
  if (sampling.temperature == 0) {
    return static_cast<int32_t>(std::max_element(logits, logits + ids_) - logits);
  }
  const float top = kernels_.soften(logits, ids_, sampling.temperature, z_.data(), weight_.data());
  const uint32_t words[3] = {address.position, address.member, address.scene};
  kernels_.noisy(z_.data(), ids_, words, sampling.seed, noisy_.data());
  if (sampling.top_p < 1 || (sampling.top_k > 0 && sampling.top_k < ids_)) {
    const uint64_t last = last_kept(sampling, top);
    for (int64_t id = 0; id < ids_; ++id) {
      const auto i = static_cast<size_t>(id);
      const uint64_t place = (uint64_t{key_of(top, z_[i])} << 32) | static_cast<uint64_t>(id);
      if (place > last) noisy_[i] = -3.0e38F;
    }
  }
  // The vectorised scores choose who is worth an exact one.
  const float bound = *std::max_element(noisy_.begin(), noisy_.end()) - kSlack;
  int32_t best = 0;
  float best_score = -3.0e38F;
  for (int64_t id = 0; id < ids_; ++id) {
    const auto i = static_cast<size_t>(id);
    if (!(noisy_[i] >= bound)) continue;
    const Philox4 x = noise_block(address, static_cast<uint32_t>(id / 4), sampling.seed);
    const float score = z_[i] + gumbel(x.word[id % 4]);
    if (score > best_score) {
      best_score = score;
      best = static_cast<int32_t>(id);
    }
  }
  return best;
}

uint64_t Sampler::last_kept(const Sampling& sampling, float top) {
  uint64_t last = ~uint64_t{0};
  if (sampling.top_k > 0 && sampling.top_k < ids_) {
    for (size_t id = 0; id < order_.size(); ++id) {
      order_[id] = (uint64_t{key_of(top, z_[id])} << 32) | id;
    }
    const auto kth = order_.begin() + (sampling.top_k - 1);
    std::nth_element(order_.begin(), kth, order_.end());
    last = *kth;
  }
  if (sampling.top_p >= 1) return last;

  // Top-p: a histogram of mass over the leading digits of the key finds the bucket in which the
  // mass crosses p, and so on inside it, digit by digit; equal keys are taken by id.
  size_t count = 0;
  double total = 0;
  for (size_t id = 0; id < z_.size(); ++id) {
    if (((uint64_t{key_of(top, z_[id])} << 32) | id) > last) continue;
    inside_[count++] = static_cast<uint32_t>(id);
    total += weight_[id];
  }
  const double target = sampling.top_p * total;
  double before = 0;
  for (const int shift : kShift) {
    std::fill(mass_.begin(), mass_.end(), 0.0);
    const auto bucket_of = [&](uint32_t id) {
      return (key_of(top, z_[id]) >> shift) & (kBuckets - 1);
    };
    for (size_t i = 0; i < count; ++i) mass_[bucket_of(inside_[i])] += weight_[inside_[i]];
    uint32_t bucket = 0;
    while (bucket < kBuckets && before + mass_[bucket] < target) before += mass_[bucket++];
    if (bucket == kBuckets) {
      // Sums in another order fell short of the target: the last id in order is the one.
      bucket = 0;
      for (size_t i = 0; i < count; ++i) bucket = std::max(bucket, bucket_of(inside_[i]));
      before -= mass_[bucket];
    }
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      if (bucket_of(inside_[i]) == bucket) inside_[kept++] = inside_[i];
    }
    count = kept;
  }
  for (size_t i = 0; i < count; ++i) {
    const uint32_t id = inside_[i];
    before += weight_[id];
    if (before >= target || i + 1 == count) {
      return (uint64_t{key_of(top, z_[id])} << 32) | id;
    }
  }
  return last;
}

}  // namespace vlarft::imagine
