// The GPU's sampler, run on the CPU: against the CPU's own sampler at the size of a real
// vocabulary, and its frequencies against exact probabilities.
#define VLARFT_EMULATE
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/tests/check.h"
#include "imagine/cuda/sampler.h"
#include "imagine/sampler.h"

using namespace vlarft;
using namespace vlarft::imagine;
namespace gpu = vlarft::imagine::cuda;

namespace {

constexpr uint32_t kKey = 9, kMember = 0xFFFFFFFFU;

// Draws of a kernel: row i samples `logits` for position i of the first frame.
struct Drawn {
  std::vector<int32_t> tokens, finite, coupled;
};

// `together`: by one block in turn, as behind the head's product, instead of a block a row.
Drawn draw(const std::vector<float>& logits, int rows, const Sampling& sampling,
           bool together = false) {
  const auto count = static_cast<size_t>(rows);
  std::vector<float> all;
  std::vector<gpu::Logit> of;
  std::vector<RowState> states(count);
  for (int row = 0; row < rows; ++row) {
    all.insert(all.end(), logits.begin(), logits.end());
    of.push_back({0, row, 0});
    states[static_cast<size_t>(row)].position = row;
  }
  Drawn out{std::vector<int32_t>(count + 1, -77), std::vector<int32_t>(count),
            std::vector<int32_t>(count)};
  std::vector<int32_t> counts = {0, rows};
  const std::vector<uint32_t> keys = {kKey}, members(count, kMember);
  gpu::SampleRows s{};
  s.pass.counts = counts.data();
  s.pass.logits = of.data();
  s.pass.rows = s.pass.rows_a_scene = rows;
  s.logits = all.data();
  s.states = states.data();
  s.keys = keys.data();
  s.members = members.data();
  s.draws = {out.tokens.data(), out.finite.data(), out.coupled.data()};
  s.sampling = &sampling;
  s.stride = s.ids = static_cast<int32_t>(logits.size());
  s.width = 1;
  s.frame_tokens = rows;
  dim3 grid;
  grid.x = together ? 1 : static_cast<unsigned>(rows);
  emulate::run(grid, gpu::kSamplerThreads, [&] {
    __shared__ gpu::SamplerMemory memory;
    for (int row = gpu::block_x(); row < rows; row += static_cast<int>(grid.x)) {
      gpu::sample_row(memory, s, row);
    }
  });
  CHECK(out.tokens.back() == -77);
  out.tokens.pop_back();
  return out;
}

void check_against_cpu() {
  uint32_t state = 1;
  const auto random = [&] {
    state = state * 1664525U + 1013904223U;
    return static_cast<float>(state >> 8) * 0x1p-24F;
  };
  for (int round = 0; round < 24; ++round) {
    const int ids = round % 4 == 0 ? 9008 : 1 + static_cast<int>(random() * 1500);
    std::vector<float> logits(static_cast<size_t>(ids));
    // Coarse steps make ties, a wide range makes weights that underflow.
    const float range = round % 3 == 0 ? 400.0F : 12.0F;
    for (float& l : logits) l = std::round(random() * 256) / 256 * range;
    Sampling s;
    s.seed = state;
    s.temperature = round % 7 == 6 ? 0 : 0.25F + 2 * random();
    s.top_k = round % 2 == 0 ? 0 : 1 + static_cast<int64_t>(random() * 200);
    s.top_p = round % 5 == 0 ? 1.0 : 0.02 + 0.97 * static_cast<double>(random());
    constexpr int kRows = 6;
    const Drawn drawn = draw(logits, kRows, s), together = draw(logits, kRows, s, true);
    CHECK(together.tokens == drawn.tokens && together.coupled == drawn.coupled);
    Sampler sampler(kernels("portable"), ids);
    for (uint32_t row = 0; row < kRows; ++row) {
      CHECK(drawn.tokens[row] == sampler.sample(logits.data(), s, {row, kMember, kKey}));
      // The guess for the next frame: the same logits with the noise of that place.
      CHECK(drawn.coupled[row] == sampler.sample(logits.data(), s, {row + kRows, kMember, kKey}));
      CHECK(drawn.finite[row] == 1);
    }
  }
}

// 4,000 draws: 21.7 is the 99 % point of chi^2 with 9 degrees of freedom. One id is cut off by
// top-p.
void check_frequencies() {
  const std::vector<float> logits = {0, 1, 2, 0.5F, 1.5F, -1, 2, 0.25F, -3.4F, 1, 0.7F};
  Sampling s;
  s.temperature = 0.8F;
  s.top_p = 0.998;
  std::vector<double> mass;
  double total = 0;
  for (const float l : logits) mass.push_back(std::exp(static_cast<double>(l) / 0.8));
  for (const double m : mass) total += m;
  const size_t cut = 8;
  CHECK(mass[cut] < 0.002 * total && mass[5] > 0.002 * total);
  total -= mass[cut];
  constexpr int kDraws = 4000;
  std::vector<int> count(logits.size());
  for (const int32_t token : draw(logits, kDraws, s).tokens) ++count[static_cast<size_t>(token)];
  double chi = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double expected = kDraws * mass[i] / total;
    if (i != cut) chi += std::pow(count[i] - expected, 2) / expected;
  }
  CHECK(count[cut] == 0);
  CHECK(chi < 21.7);
}

void check_not_finite() {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits(300, 1.0F);
    logits[299] = bad;
    const Drawn drawn = draw(logits, 2, {});
    CHECK(drawn.finite[0] == 0 && drawn.finite[1] == 0);
    CHECK(drawn.tokens[0] >= 0 && drawn.tokens[0] < 300);
  }
}

}  // namespace

int main() {
  check_against_cpu();
  check_frequencies();
  check_not_finite();
}
