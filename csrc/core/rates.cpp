#include "core/rates.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vlarft {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool has(const char* feature) {
  static const std::vector<std::string> features = cpu_features();
  return std::find(features.begin(), features.end(), feature) != features.end();
}

// Runs work(thread) on all threads at once and returns the seconds from the common start to the
// end of the last one; starting threads is not counted.
template <class Work>
double together(int threads, const Work& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      work(t);
    });
  }
  while (ready.load() < threads) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  go.store(true, std::memory_order_release);
  for (std::thread& thread : team) thread.join();
  return since(start);
}

uint64_t read_plain(const uint8_t* data, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    __builtin_memcpy(&word, data + i, 8);
    sum += word;
  }
  return sum;
}

// Each body runs `rounds` times 12 multiply-adds in chains of their own (latency 4, two a cycle).
constexpr int kChains = 12;

double plain_rounds(int64_t rounds) {
  volatile float seed = 0.5F;
  float x[kChains * 16];
  const float a = seed, b = seed;
  for (float& value : x) value = seed;
  for (int64_t r = 0; r < rounds; ++r) {
    for (float& value : x) value = value * a + b;
  }
  float sum = 0;
  for (const float value : x) sum += value;
  seed = sum;
  return 2.0 * kChains * 16;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t* data, size_t bytes) {
  __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                    _mm512_setzero_si512()};
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(data + i + 64 * j));
    }
  }
  sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, sum[0]);
  return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
}

__attribute__((target("avx512f"))) double avx512_rounds(int64_t rounds) {
  volatile float seed = 0.5F;
  const __m512 a = _mm512_set1_ps(seed), b = _mm512_set1_ps(seed);
  __m512 x[kChains];
  for (__m512& value : x) value = _mm512_set1_ps(seed);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = _mm512_fmadd_ps(x[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) x[0] = _mm512_add_ps(x[0], x[i]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, x[0]);
  seed = lanes[0];
  return 2.0 * kChains * 16;
}

__attribute__((target("avx2,fma"))) double avx2_rounds(int64_t rounds) {
  volatile float seed = 0.5F;
  const __m256 a = _mm256_set1_ps(seed), b = _mm256_set1_ps(seed);
  __m256 x[kChains];
  for (__m256& value : x) value = _mm256_set1_ps(seed);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = _mm256_fmadd_ps(x[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) x[0] = _mm256_add_ps(x[0], x[i]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, x[0]);
  seed = lanes[0];
  return 2.0 * kChains * 8;
}

__attribute__((target("avx512f,avx512bf16"))) double bf16_rounds(int64_t rounds) {
  volatile float seed = 0.5F;
  const __m512 ones = _mm512_set1_ps(seed);
  const __m512bh a = _mm512_cvtne2ps_pbh(ones, ones);
  __m512 x[kChains];
  for (__m512& value : x) value = _mm512_set1_ps(seed);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = _mm512_dpbf16_ps(x[i], a, a);
  }
  for (int i = 1; i < kChains; ++i) x[0] = _mm512_add_ps(x[0], x[i]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, x[0]);
  seed = lanes[0];
  return 2.0 * kChains * 32;
}
#endif

using Rounds = double (*)(int64_t);

Rounds rounds_of(Multiply kind) {
#if defined(__x86_64__)
  if (kind == Multiply::kBfloat16) return has("avx512_bf16") ? &bf16_rounds : nullptr;
  if (has("avx512f")) return &avx512_rounds;
  if (has("avx2") && has("fma")) return &avx2_rounds;
#endif
  return kind == Multiply::kFloat32 ? &plain_rounds : nullptr;
}

}  // namespace

double read_seconds(const uint8_t* data, size_t bytes, int threads) {
  uint64_t (*read)(const uint8_t*, size_t) = &read_plain;
#if defined(__x86_64__)
  if (has("avx512f")) read = &read_avx512;
#endif
  std::atomic<uint64_t> sink{0};
  const size_t part = bytes / static_cast<size_t>(threads);
  return together(threads,
                  [&](int t) { sink.fetch_xor(read(data + static_cast<size_t>(t) * part, part)); });
}

double multiply_rate(Multiply kind, int threads, double seconds) {
  const Rounds rounds = rounds_of(kind);
  if (rounds == nullptr) return 0;
  constexpr int64_t kBatch = 20000;  // a few tens of microseconds between looks at the clock
  std::vector<double> rates(static_cast<size_t>(threads));
  together(threads, [&](int t) {
    const Clock::time_point start = Clock::now();
    double done = 0, elapsed = 0;
    do {
      done += rounds(kBatch) * kBatch;
      elapsed = since(start);
    } while (elapsed < seconds);
    rates[static_cast<size_t>(t)] = done / elapsed;
  });
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

}  // namespace vlarft
