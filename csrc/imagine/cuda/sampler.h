// Choosing tokens on the GPU: temperature, top-k, top-p, then the largest logit plus addressed
// Gumbel noise, as csrc/imagine/sampler.h does on the CPU.
//
//   z = logit / temperature,  token = argmax over kept ids of z + gumbel(id),  ties: the lowest id
//   order of ids: z descending, id ascending; top-k keeps the first k of them, then top-p an id
//   while the mass before it is below p times the mass of those
//
// A block owns a row of logits. Nothing is sorted: a place in that order is a number (key of z,
// then id), and the last kept place is found digit by digit, from a histogram of the mass at each
// digit. Mass is counted in integers of 2^-40, so that no sum depends on the order of its atomics.
//
// With speculation, the same logits are asked once more with the noise of the next frame's place:
// that is the guess of Source::kLogits, and no logits are kept for it.
//
// Bytes: 4 ids a sweep, from L2; about 8 sweeps. Operations: two logarithms in float64 a kept id.
#pragma once

#include "core/cuda/fragment.h"
#include "core/philox.h"
#include "imagine/cuda/pass.h"
#include "imagine/model.h"

namespace vlarft::imagine::cuda {

inline constexpr int kSamplerThreads = 256;
inline constexpr int kDigitBits = 11;
inline constexpr int kBuckets = 1 << kDigitBits;
inline constexpr int kPlaceBits = 32 + 2 * kDigitBits;  // key, then id below 2^22
inline constexpr int kPlaceDigits = (kPlaceBits + kDigitBits - 1) / kDigitBits;
inline constexpr float kMassUnit = 0x1p40F;
inline constexpr float kNoScore = -3.0e38F;

struct Draws {
  int32_t *drawn, *finite, *coupled;  // [rows][W]; coupled: guesses for the next frame, or null
};

struct SampleRows {
  Pass pass;
  const float* logits;  // [logit rows][stride]
  const RowState* states;
  const uint32_t *keys, *members;  // noise words of scenes, of members
  Draws draws;
  const Sampling* sampling;
  int32_t stride, ids, width, frame_tokens;
};

// Where an id stands: larger z first, then smaller ids. top - z >= 0 has bits that order like it.
__device__ inline uint64_t place_of(float top, float z, int id) {
  return uint64_t{float_as_bits(top - z)} << (2 * kDigitBits) | static_cast<uint64_t>(id);
}

struct SamplerMemory {
  uint64_t mass[kBuckets];
  uint64_t sums[kWarp];
  uint64_t found_before, found_digit;
  float scores[2][kSamplerThreads];
  int ids[2][kSamplerThreads];
};

// The first place through which the mass of all places up to it reaches `target`.
template <class Mass>
__device__ uint64_t place_at(SamplerMemory& memory, int ids, uint64_t target, const Mass& mass_at) {
  uint64_t chosen = 0, before = 0;
  for (int digit = kPlaceDigits - 1; digit >= 0; --digit) {
    const int shift = digit * kDigitBits;
    for (int i = thread(); i < kBuckets; i += kSamplerThreads) memory.mass[i] = 0;
    block_barrier();
    for (int id = thread(); id < ids; id += kSamplerThreads) {
      uint64_t place = 0;
      const uint64_t mass = mass_at(id, &place);
      if (mass == 0 || place >> (shift + kDigitBits) != chosen) continue;
      add_atomic(&memory.mass[place >> shift & (kBuckets - 1)], mass);
    }
    block_barrier();
    constexpr int kShare = kBuckets / kWarp;
    if (thread() < kWarp) {
      uint64_t sum = 0;
      for (int i = 0; i < kShare; ++i) sum += memory.mass[thread() * kShare + i];
      memory.sums[thread()] = sum;
    }
    block_barrier();
    if (thread() == 0) {
      uint64_t so_far = before;
      int part = 0;
      while (part < kWarp - 1 && so_far + memory.sums[part] < target) so_far += memory.sums[part++];
      int bucket = part * kShare;
      while (bucket < (part + 1) * kShare - 1 && so_far + memory.mass[bucket] < target) {
        so_far += memory.mass[bucket++];
      }
      memory.found_before = so_far;
      memory.found_digit = static_cast<uint64_t>(bucket);
    }
    block_barrier();
    before = memory.found_before;
    chosen = chosen << kDigitBits | memory.found_digit;
  }
  return chosen;
}

__device__ inline bool comes_first(float score, int id, float other, int other_id) {
  return score > other || (score == other && id < other_id);
}

// The id with the largest score over all threads, ties to the lowest; `list` 0 or 1.
__device__ inline int best_of_block(SamplerMemory& memory, int list) {
  for (int half = kSamplerThreads / 2; half > 0; half /= 2) {
    if (thread() < half) {
      float& score = memory.scores[list][thread()];
      int& id = memory.ids[list][thread()];
      const float other = memory.scores[list][thread() + half];
      const int other_id = memory.ids[list][thread() + half];
      if (comes_first(other, other_id, score, id)) {
        score = other;
        id = other_id;
      }
    }
    block_barrier();
  }
  return memory.ids[list][0];
}

// Draws the token of row `index` of the logits; all threads of a block.
__device__ inline void sample_row(SamplerMemory& memory, const SampleRows& s, int index) {
  const Logit of = s.pass.logits[index];
  const RowState& state = s.states[of.row];
  const float* logits = s.logits + int64_t{index} * s.stride;
  const Sampling sampling = *s.sampling;
  const bool greedy = sampling.temperature == 0;
  const float temperature = greedy ? 1.0F : sampling.temperature;

  // The largest z, and whether all logits are finite.
  float most = kNoScore;
  int broken = 0;
  for (int id = thread(); id < s.ids; id += kSamplerThreads) {
    const float z = logits[id] / temperature;
    if (!(fabsf(logits[id]) < 3.4e38F)) broken = 1;
    most = fmaxf(most, z);
  }
  memory.scores[0][thread()] = most;
  memory.ids[0][thread()] = -broken;
  block_barrier();
  for (int half = kSamplerThreads / 2; half > 0; half /= 2) {
    if (thread() < half) {
      memory.scores[0][thread()] =
          fmaxf(memory.scores[0][thread()], memory.scores[0][thread() + half]);
      memory.ids[0][thread()] |= memory.ids[0][thread() + half];
    }
    block_barrier();
  }
  const float top = memory.scores[0][0];
  broken = memory.ids[0][0] != 0 ? 1 : 0;
  block_barrier();
  const auto softened = [&](int id) { return logits[id] / temperature; };

  uint64_t last = ~uint64_t{0};
  if (broken == 0 && !greedy && sampling.top_k > 0 && sampling.top_k < s.ids) {
    last = place_at(memory, s.ids, static_cast<uint64_t>(sampling.top_k),
                    [&](int id, uint64_t* place) {
                      *place = place_of(top, softened(id), id);
                      return uint64_t{1};
                    });
  }
  if (broken == 0 && !greedy && sampling.top_p < 1) {
    const uint64_t kept = last;
    const auto mass_at = [&](int id, uint64_t* place) {
      const float z = softened(id);
      *place = place_of(top, z, id);
      // An id whose mass rounds to nothing still has its place: one unit.
      return *place > kept ? uint64_t{0} : static_cast<uint64_t>(expf(z - top) * kMassUnit) + 1;
    };
    if (thread() == 0) memory.sums[0] = 0;
    block_barrier();
    uint64_t own = 0, place = 0;
    for (int id = thread(); id < s.ids; id += kSamplerThreads) own += mass_at(id, &place);
    add_atomic(&memory.sums[0], own);
    block_barrier();
    const uint64_t total = memory.sums[0];
    block_barrier();
    const double wanted = ceil(sampling.top_p * static_cast<double>(total));
    auto target = static_cast<uint64_t>(wanted);
    target = target < 1 ? 1 : (target > total ? total : target);
    last = place_at(memory, s.ids, target, mass_at);
  }

  const bool couples = s.draws.coupled != nullptr;
  const auto at = static_cast<uint32_t>(state.frame * s.frame_tokens + state.position + of.ahead);
  const uint32_t member = s.members[of.row % s.pass.rows_a_scene];
  const uint32_t key = s.keys[of.row / s.pass.rows_a_scene];
  for (int list = 0; list < (couples ? 2 : 1); ++list) {
    const NoiseAddress address{at + static_cast<uint32_t>(list * s.frame_tokens), member, key};
    float best = kNoScore;
    int best_id = s.ids;
    for (int first = 4 * thread(); first < s.ids; first += 4 * kSamplerThreads) {
      bool drawn = false;
      Philox4 x{};
      for (int id = first; id < s.ids && id < first + 4; ++id) {
        const float z = softened(id);
        float score = z;
        if (!greedy) {
          if (place_of(top, z, id) > last) continue;
          if (!drawn) x = noise_block(address, static_cast<uint32_t>(first / 4), sampling.seed);
          drawn = true;
          score += gumbel(x.word[id % 4]);
        }
        if (comes_first(score, id, best, best_id)) {
          best = score;
          best_id = id;
        }
      }
    }
    memory.scores[list][thread()] = best;
    memory.ids[list][thread()] = best_id;
    block_barrier();
    const int chosen = best_of_block(memory, list);
    if (thread() == 0) {
      const int token = chosen < s.ids ? chosen : 0;
      const int64_t to = int64_t{of.row} * s.width + of.ahead;
      (list == 0 ? s.draws.drawn : s.draws.coupled)[to] = token;
      if (list == 0) s.draws.finite[to] = 1 - broken;
    }
    block_barrier();  // the memory serves the next draw
  }
}

}  // namespace vlarft::imagine::cuda
