// Every runnable set of kernels against plain loops in double, with guard bands around outputs.
#include "imagine/cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/errors.h"
#include "core/philox.h"
#include "core/tests/check.h"

using namespace vlarft;
using namespace vlarft::imagine;

namespace {

constexpr float kGuard = -12345.0F;

float random(uint32_t& state) {
  state = state * 1664525U + 1013904223U;
  return static_cast<float>(state >> 8) * 0x1p-23F - 1.0F;
}

std::vector<float> random_values(int64_t n, uint32_t seed) {
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = random(seed);
  return out;
}

struct Product {
  const Gemm& gemm;
  bool bf16;
  int64_t depth, panels;
  std::vector<float> wide;       // [column][k], rounded as stored
  std::vector<float> f32;        // packed
  std::vector<uint16_t> narrow;  // packed

  Product(const Gemm& g, bool rounded, int64_t k, int64_t n, uint32_t seed)
      : gemm(g), bf16(rounded), depth(k), panels(n), wide(random_values(k * n * 16, seed)) {
    f32.resize(wide.size());
    narrow.resize(wide.size());
    for (int64_t c = 0; c < n * 16; ++c) {
      for (int64_t i = 0; i < k; ++i) {
        float& value = wide[static_cast<size_t>(c * k + i)];
        const int64_t panel = c / 16 * k * 16;
        if (rounded) {
          const uint16_t bits = to_bf16(value);
          value = from_bf16(bits);
          narrow[static_cast<size_t>(panel + i / 2 * 32 + c % 16 * 2 + i % 2)] = bits;
        } else {
          f32[static_cast<size_t>(panel + i * 16 + c % 16)] = value;
        }
      }
    }
  }

  // c [m, 16 panels] with `gap` guarded columns at the end of each row and a guarded row around.
  std::vector<float> run(const std::vector<float>& x, int64_t m, bool add, float start,
                         int64_t gap) const {
    const int64_t tiles = (depth + kTile - 1) / kTile;
    std::vector<float> packed(static_cast<size_t>(tiles * m * kTileStride));
    gemm.pack(x.data(), depth, m, 0, depth, packed.data(), m * kTileStride);
    const int64_t stride = panels * 16 + gap;
    std::vector<float> c(static_cast<size_t>((m + 2) * stride), kGuard);
    for (int64_t r = 0; r < m; ++r) {
      std::fill_n(c.begin() + (r + 1) * stride, panels * 16, start);
    }
    const void* w = bf16 ? static_cast<const void*>(narrow.data()) : f32.data();
    gemm.multiply(w, depth * 16, depth, packed.data(), m * kTileStride, m, panels,
                  c.data() + stride, stride, add);
    for (int64_t i = 0; i < (m + 2) * stride; ++i) {
      const bool inside = i / stride > 0 && i / stride <= m && i % stride < panels * 16;
      CHECK(inside || c[static_cast<size_t>(i)] == kGuard);
    }
    std::vector<float> out;
    for (int64_t r = 0; r < m; ++r) {
      const auto line = c.begin() + (r + 1) * stride;
      out.insert(out.end(), line, line + panels * 16);
    }
    return out;
  }
};

void test_products(const Kernels& kernels) {
  struct Case {
    const Gemm& gemm;
    bool bf16;
    int64_t unit;
  };
  const Case cases[] = {
      {kernels.f32, false, 1}, {kernels.bf16, true, kBf16Depth}, {kernels.bf16_kv, true, 2}};
  for (const Case& kind : cases) {
    for (const int64_t depth : {int64_t{2}, int64_t{64}, int64_t{256}, int64_t{600}}) {
      for (const int64_t panels : {int64_t{1}, int64_t{3}, int64_t{11}}) {
        const int64_t k = round_up(depth, kind.unit);
        const Product product(kind.gemm, kind.bf16, k, panels, 7);
        constexpr int64_t kRows = 61;
        const std::vector<float> x = random_values(kRows * k, 11);
        const std::vector<float> all = product.run(x, kRows, false, 0.0F, 5);
        for (int64_t r = 0; r < kRows; r += 20) {
          for (int64_t c = 0; c < panels * 16; c += 3) {
            double sum = 0;
            for (int64_t i = 0; i < k; ++i) {
              float value = x[static_cast<size_t>(r * k + i)];
              if (kind.gemm.pairs) value = from_bf16(to_bf16(value));
              sum += static_cast<double>(value) * product.wide[static_cast<size_t>(c * k + i)];
            }
            CHECK(std::abs(sum - all[static_cast<size_t>(r * panels * 16 + c)]) < 2e-4);
          }
        }
        // The same bits for every number of rows, and start + product when adding.
        for (int64_t m = 1; m < kRows; m += m < 33 ? 1 : 9) {
          const auto some = product.run(x, m, false, 0.0F, 0);
          CHECK(std::equal(some.begin(), some.end(), all.begin()));
          const auto added = product.run(x, m, true, 0.5F, 1);
          for (size_t i = 0; i < added.size(); ++i) CHECK(added[i] == 0.5F + all[i]);
        }
      }
    }
  }
}

// Packing writes the columns it was given and nothing else of the tiles around them.
void test_pack_guards(const Kernels& kernels) {
  constexpr int64_t kRows = 3, kFirst = 250, kCount = 300;
  const auto x = random_values(kRows * kCount, 9);
  for (const Gemm* gemm : {&kernels.f32, &kernels.bf16, &kernels.bf16_kv}) {
    const int64_t unit = gemm->pairs ? 2 : 1, stride = kRows * kTileStride;
    std::vector<float> packed(static_cast<size_t>(3 * stride), kGuard);
    gemm->pack(x.data(), kCount, kRows, kFirst, kCount, packed.data(), stride);
    int64_t written = 0;
    for (int64_t i = 0; i < 3 * stride; ++i) {
      const int64_t column = i % kTileStride, depth = i / stride * kTile + column;
      const bool inside =
          column < kTile && depth >= kFirst / unit && depth < (kFirst + kCount) / unit;
      CHECK(inside == (packed[static_cast<size_t>(i)] != kGuard));
      written += inside ? 1 : 0;
    }
    CHECK(written == kRows * kCount / unit);
  }
}

void test_soften_and_scale(const Kernels& kernels) {
  for (const int64_t n : {int64_t{1}, int64_t{16}, int64_t{37}}) {
    const auto logits = random_values(n, 4);
    std::vector<float> z(static_cast<size_t>(n + 1), kGuard), weight = z;
    const float top = kernels.soften(logits.data(), n, 0.5F, z.data(), weight.data());
    for (size_t i = 0; i < logits.size(); ++i) {
      CHECK(z[i] == logits[i] / 0.5F && z[i] <= top);
      CHECK(std::abs(weight[i] - std::exp(static_cast<double>(z[i]) - top)) < 1e-6);
    }
    CHECK(z.back() == kGuard && weight.back() == kGuard);
  }
  std::vector<float> x(33, kGuard);
  std::fill_n(x.begin(), 32, 3.0F);
  kernels.scale(x.data(), 0.5F, 32);
  for (int i = 0; i < 32; ++i) CHECK(x[static_cast<size_t>(i)] == 1.5F);
  CHECK(x.back() == kGuard);
}

void test_softmax(const Kernels& kernels) {
  const std::vector<float> scores = random_values(80, 3);
  std::vector<float> tile(96, kGuard);
  std::copy(scores.begin(), scores.begin() + 80, tile.begin());
  float maximum = -3.0e38F, sum = 0;
  CHECK(kernels.softmax_tile(tile.data(), 37, 80, &maximum, &sum) == 0.0F);
  CHECK(maximum == *std::max_element(scores.begin(), scores.begin() + 37));
  double expected = 0;
  for (int i = 0; i < 37; ++i) expected += std::exp(static_cast<double>(scores[i]) - maximum);
  CHECK(std::abs(sum - expected) < 1e-5);
  for (int i = 0; i < 96; ++i) {
    const double want = i < 37 ? std::exp(static_cast<double>(scores[i]) - maximum) : 0;
    CHECK(i < 80 ? std::abs(tile[i] - want) < 1e-6 : tile[i] == kGuard);
  }
  // A second tile with a larger maximum rescales what came before.
  const float before = maximum, old_sum = sum;
  std::vector<float> next(16, 3.0F);
  const float factor = kernels.softmax_tile(next.data(), 2, 16, &maximum, &sum);
  CHECK(maximum == 3.0F && std::abs(factor - std::exp(before - 3.0F)) < 1e-6);
  CHECK(std::abs(sum - (old_sum * factor + 2.0F)) < 1e-4);
  // Nothing visible: nothing changes.
  CHECK(kernels.softmax_tile(next.data(), 0, 16, &maximum, &sum) == 1.0F && next[0] == 0.0F);
}

void test_norm_and_swiglu(const Kernels& kernels) {
  for (const int64_t n : {int64_t{1}, int64_t{16}, int64_t{37}}) {
    const auto x = random_values(n, 5), weight = random_values(n, 6);
    std::vector<float> out(static_cast<size_t>(n + 1), kGuard);
    kernels.rms_norm(x.data(), weight.data(), n, 1e-6F, out.data());
    double squares = 0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6);
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(std::abs(out[i] - x[i] * factor * weight[i]) < 1e-5);
    }
    CHECK(out.back() == kGuard);
  }
  auto gate_up = random_values(3 * 64, 8);
  gate_up[0] = -200.0F;
  gate_up[1] = 200.0F;
  std::vector<float> out(3 * 33, kGuard);
  kernels.swiglu(gate_up.data(), 64, 3, 2, out.data(), 33);
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 32; ++c) {
      const double gate = gate_up[static_cast<size_t>(r * 64 + c / 16 * 32 + c % 16)];
      const double up = gate_up[static_cast<size_t>(r * 64 + c / 16 * 32 + 16 + c % 16)];
      const double want = gate / (1 + std::exp(-gate)) * up;
      CHECK(std::abs(out[static_cast<size_t>(r * 33 + c)] - want) < 1e-5 * (1 + std::abs(want)));
    }
    CHECK(out[static_cast<size_t>(r * 33 + 32)] == kGuard);
  }
}

void test_noise(const Kernels& kernels) {
  constexpr int64_t kIds = 4097;
  const std::vector<float> z(kIds, 0.0F);
  const NoiseAddress address{77, 0xFFFFFFFFU, 3};
  const uint32_t words[3] = {address.position, address.member, address.scene};
  double worst = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::vector<float> out(kIds + 1, kGuard);
    kernels.noisy(z.data(), kIds, words, seed << 33 | 5, out.data());
    CHECK(out.back() == kGuard);
    for (int64_t id = 0; id < kIds; ++id) {
      const Philox4 x = noise_block(address, static_cast<uint32_t>(id / 4), seed << 33 | 5);
      const double gap = out[static_cast<size_t>(id)] - gumbel(x.word[id % 4]);
      worst = std::max(worst, std::abs(gap));
    }
  }
  CHECK(worst < 1e-4);
}

void test_selection() {
  for (const std::string& name : runnable_kernels()) CHECK(kernels(name).name == name);
  const std::string unknown = message_of<BackendError>([] { kernels("avx9"); });
  CHECK(unknown.find("'avx9' is unknown") != std::string::npos);
  CHECK(unknown.find("portable") != std::string::npos);
  for (const std::string& name : built_kernels()) {
    const auto can = runnable_kernels();
    if (std::find(can.begin(), can.end(), name) != can.end()) continue;
    const std::string message = message_of<BackendError>([&] { kernels(name); });
    CHECK(message.find("cannot run on this machine") != std::string::npos);
  }
}

}  // namespace

int main() {
  test_selection();
  for (const std::string& name : runnable_kernels()) {
    std::printf("%s\n", name.c_str());
    const Kernels& chosen = kernels(name);
    test_products(chosen);
    test_pack_guards(chosen);
    test_soften_and_scale(chosen);
    test_softmax(chosen);
    test_norm_and_swiglu(chosen);
    test_noise(chosen);
  }
}
