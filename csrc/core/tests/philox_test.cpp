#include "core/philox.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using vlarft::Philox4;

struct KnownAnswer {
  std::array<uint32_t, 4> counter;
  uint64_t key;
  std::array<uint32_t, 4> answer;
};

// Random123, tests/kat_vectors, the lines "philox4x32 10" (key words: low, then high).
constexpr KnownAnswer kKnownAnswers[] = {
    {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     0xffffffffffffffff,
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     0x299f31d0a4093822,
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

void test_known_answers() {
  for (const KnownAnswer& k : kKnownAnswers) {
    std::array<uint32_t, 4> out{};
    vlarft::philox_fill(k.counter.data(), out.data(), 1, k.key);
    CHECK(out == k.answer);
  }
}

void test_uniform_stays_inside_the_open_interval() {
  CHECK(vlarft::open_uniform(0) == 0x1p-25);
  CHECK(vlarft::open_uniform(0xffffffff) == 1.0 - 0x1p-25);
  CHECK(std::isfinite(vlarft::gumbel(0)) && std::isfinite(vlarft::gumbel(0xffffffff)));
  CHECK(vlarft::gumbel(0) < -2.8F && vlarft::gumbel(0xffffffff) > 17.3F);
}

// Every row width, also those that end inside a block of four; the value after the end is a guard.
void test_gumbel_addresses() {
  constexpr uint64_t kSeed = 0x123456789abcdef0;
  const std::vector<uint32_t> addresses{7, 0xffffffff, 3, 8, 2, 4};
  for (const int64_t ids : {0, 1, 3, 4, 5, 13}) {
    std::vector<float> out(static_cast<size_t>(2 * ids + 1), -99.0F);
    vlarft::gumbel_fill(addresses.data(), out.data(), 2, ids, kSeed);
    for (int64_t r = 0; r < 2; ++r) {
      for (int64_t id = 0; id < ids; ++id) {
        const uint32_t* a = addresses.data() + 3 * r;
        const Philox4 x =
            vlarft::philox4x32_10({{static_cast<uint32_t>(id / 4), a[0], a[1], a[2]}}, kSeed);
        CHECK(out[static_cast<size_t>(r * ids + id)] == vlarft::gumbel(x.word[id % 4]));
      }
    }
    CHECK(out.back() == -99.0F);
  }
}

// Noise has no state: threads that fill halves of a matrix agree with one call (and TSan is
// silent).
void test_threads() {
  constexpr int64_t kRows = 64, kIds = 37;
  std::vector<uint32_t> addresses(3 * kRows);
  for (size_t i = 0; i < addresses.size(); ++i)
    addresses[i] = static_cast<uint32_t>(i * 2654435761);
  std::vector<float> whole(kRows * kIds), parts(kRows * kIds);
  vlarft::gumbel_fill(addresses.data(), whole.data(), kRows, kIds, 5);
  std::vector<std::thread> threads;
  for (int64_t first = 0; first < kRows; first += kRows / 2) {
    threads.emplace_back([&, first] {
      vlarft::gumbel_fill(addresses.data() + 3 * first, parts.data() + kIds * first, kRows / 2,
                          kIds, 5);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(whole == parts);
}

}  // namespace

int main() {
  test_known_answers();
  test_uniform_stays_inside_the_open_interval();
  test_gumbel_addresses();
  test_threads();
}
