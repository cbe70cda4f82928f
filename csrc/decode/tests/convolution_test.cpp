// Every runnable table against plain loops in double, with guard bands around outputs.
#include "decode/convolution.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "compare/distance.h"
#include "core/tests/check.h"
#include "imagine/cpu/kernels.h"

using namespace vlarft;
using namespace vlarft::decode;

namespace {

constexpr float kGuard = -12345.0F;

std::vector<float> values(int64_t n, uint32_t state) {
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) {
    state = state * 1664525U + 1013904223U;
    x = static_cast<float>(state >> 8) * 0x1p-23F - 1.0F;
  }
  return out;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

// silu(x * scale + shift) at a source pixel, zero outside.
struct Source {
  const std::vector<float>&x, &scale, &shift;
  int64_t height, width, channels;

  double at(int64_t image, int64_t y, int64_t column, int64_t c) const {
    if (y < 0 || y >= height || column < 0 || column >= width) return 0;
    const auto moved = static_cast<size_t>(image * channels + c);
    const auto place = static_cast<size_t>(((image * height + y) * width + column) * channels + c);
    return silu(double{x[place]} * scale[moved] + shift[moved]);
  }
};

void test_convolution(const Kernels& kernels, int64_t in, int64_t out, int64_t size, bool upsample,
                      int64_t height, int64_t width, int threads) {
  const int64_t images = 2, zoom = upsample ? 2 : 1, border = size / 2;
  const auto weight = values(out * in * size * size, 1), bias = values(out, 2);
  auto x = values(images * height * width * in, 3);
  const auto scale = values(images * in, 4), shift = values(images * in, 5);
  const int64_t pixels = images * height * width * zoom * zoom;
  const auto residual = values(pixels * out, 6);
  std::vector<float> y(static_cast<size_t>((pixels + 2) * out), kGuard);
  Workers workers(threads);
  const Convolution convolution(weight.data(), bias.data(), out, in, size, upsample, false,
                                kernels);
  convolution.run(
      workers, {x.data(), false, images, height, width, in},
      {y.data() + out, false, images, height * zoom, width * zoom, out},
      {scale.data(), shift.data(), Activation::kSilu, Activation::kNone, residual.data()});
  const Source source{x, scale, shift, height, width, in};
  for (int64_t i = 0; i < out; ++i) {
    CHECK(y[static_cast<size_t>(i)] == kGuard);
    CHECK(y[static_cast<size_t>((pixels + 1) * out + i)] == kGuard);
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const int64_t image = p / (height * width * zoom * zoom);
    const int64_t row = p / (width * zoom) % (height * zoom), column = p % (width * zoom);
    for (int64_t o = 0; o < out; o += 7) {
      double sum =
          double{bias[static_cast<size_t>(o)]} + residual[static_cast<size_t>(p * out + o)];
      for (int64_t c = 0; c < in; ++c) {
        for (int64_t tap = 0; tap < size * size; ++tap) {
          const int64_t sy = row + tap / size - border, sx = column + tap % size - border;
          const bool inside = sy >= 0 && sx >= 0;  // -1 / 2 would be pixel 0
          const auto at = static_cast<size_t>((o * in + c) * size * size + tap);
          if (inside) sum += weight[at] * source.at(image, sy / zoom, sx / zoom, c);
        }
      }
      CHECK(std::abs(sum - y[static_cast<size_t>((p + 1) * out + o)]) < 2e-4);
    }
  }
}

// In bfloat16, of numbers that are bfloat16 already: only sums of folded weights are rounded.
void test_narrow(const Kernels& kernels, int64_t in, int64_t out, int64_t size, bool upsample,
                 int64_t height, int64_t width) {
  const auto rounded = [](std::vector<float> all) {
    for (float& one : all) one = imagine::from_bf16(imagine::to_bf16(one));
    return all;
  };
  const int64_t zoom = upsample ? 2 : 1, border = size / 2;
  const auto weight = rounded(values(out * in * size * size, 1)), bias = values(out, 2);
  const auto x = rounded(values(height * width * in, 3));
  std::vector<uint16_t> halves(x.size());
  std::transform(x.begin(), x.end(), halves.begin(), imagine::to_bf16);
  const int64_t pixels = height * width * zoom * zoom;
  std::vector<float> one(static_cast<size_t>(pixels * out)), two(one.size());
  const Convolution convolution(weight.data(), bias.data(), out, in, size, upsample, true, kernels);
  for (int threads = 1; threads <= 2; ++threads) {
    Workers workers(threads);
    auto& y = threads == 1 ? one : two;
    convolution.run(workers, {halves.data(), true, 1, height, width, in},
                    {y.data(), false, 1, height * zoom, width * zoom, out}, {});
  }
  CHECK(one == two);
  for (int64_t p = 0; p < pixels; ++p) {
    const int64_t row = p / (width * zoom), column = p % (width * zoom);
    for (int64_t o = 0; o < out; o += 5) {
      double sum = double{bias[static_cast<size_t>(o)]};
      for (int64_t tap = 0; tap < size * size; ++tap) {
        const int64_t sy = row + tap / size - border, sx = column + tap % size - border;
        if (sy < 0 || sx < 0 || sy >= height * zoom || sx >= width * zoom) continue;
        const int64_t from = (sy / zoom * width + sx / zoom) * in;
        for (int64_t c = 0; c < in; ++c) {
          sum += double{weight[static_cast<size_t>((o * in + c) * size * size + tap)]} *
                 double{x[static_cast<size_t>(from + c)]};
        }
      }
      const double error = std::abs(sum - double{one[static_cast<size_t>(p * out + o)]});
      CHECK(error < (upsample ? 0.01 * std::sqrt(static_cast<double>(in * 9)) : 2e-4));
    }
  }
}

void test_distances(const Kernels& kernels, int64_t pixels, int64_t channels) {
  const int64_t n = pixels * channels;
  const auto a = values(3 * n, 7), b = values(2 * n, 8), weight = values(channels, 9);
  const int64_t first[] = {2, 0, 1, 2}, second[] = {0, 1, 1, 1};
  const compare::Pairs pairs{first, second, 4};
  Workers workers(2);
  std::vector<float> near(4, kGuard), far(4, 0.5F);
  compare::l1(workers, kernels, a.data(), b.data(), n, pairs, near.data());
  compare::perceptual(workers, kernels, a.data(), b.data(), pixels, channels, weight.data(), pairs,
                      far.data());
  for (size_t p = 0; p < 4; ++p) {
    const float *x = a.data() + first[p] * n, *y = b.data() + second[p] * n;
    double absolute = 0, total = 0;
    for (int64_t i = 0; i < n; ++i) absolute += std::abs(double{x[i]} - y[i]);
    for (int64_t i = 0; i < pixels; ++i) {
      double nx = 0, ny = 0;
      for (int64_t c = 0; c < channels; ++c) {
        nx += double{x[i * channels + c]} * x[i * channels + c];
        ny += double{y[i * channels + c]} * y[i * channels + c];
      }
      for (int64_t c = 0; c < channels; ++c) {
        const double d = x[i * channels + c] / std::sqrt(nx) - y[i * channels + c] / std::sqrt(ny);
        total += double{weight[static_cast<size_t>(c)]} * d * d;
      }
    }
    CHECK(std::abs(near[p] - absolute / static_cast<double>(n)) < 1e-6);
    CHECK(std::abs(far[p] - 0.5 - total / static_cast<double>(pixels)) < 1e-6);
  }
  compare::l1(workers, kernels, a.data(), a.data(), n, {first, first, 4}, near.data());
  for (const float d : near) CHECK(d == 0.0F);
}

}  // namespace

int main() {
  for (const std::string& name : imagine::runnable_kernels()) {
    const Kernels& table = kernels(name);
    CHECK(name == table.name);
    test_convolution(table, 3, 5, 3, false, 4, 3, 1);
    test_convolution(table, 31, 70, 3, false, 5, 9, 2);
    // By Winograd's transforms: edges that are no multiples of a tile, parts of channels, several
    // images in a block, several blocks of an image.
    test_convolution(table, 40, 70, 3, false, 5, 9, 2);
    test_convolution(table, 32, 130, 3, false, 4, 3, 1);
    test_convolution(table, 96, 33, 3, false, 30, 75, 2);
    test_convolution(table, 65, 32, 3, true, 3, 5, 2);
    test_convolution(table, 33, 48, 1, false, 6, 70, 2);
    // Whole tiles of 16 pixels by 32 channels, and all that is left beside them.
    test_narrow(table, 32, 32, 3, false, 2, 32);
    test_narrow(table, 64, 48, 3, false, 3, 53);
    test_narrow(table, 96, 130, 3, false, 2, 70);
    test_narrow(table, 160, 16, 1, false, 1, 9);
    test_narrow(table, 64, 96, 3, true, 3, 37);
    test_narrow(table, 3, 20, 3, false, 4, 33);
    test_narrow(table, 80, 33, 3, false, 3, 18);
    test_distances(table, 37, 64);
    test_distances(table, 5000, 3);
  }
  return 0;
}
