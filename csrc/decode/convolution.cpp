#include "decode/convolution.h"

#include <algorithm>
#include <cmath>

#include "imagine/cpu/kernels.h"

namespace vlarft::decode {
namespace {

using imagine::from_bf16;
using imagine::round_up;
using imagine::to_bf16;

constexpr int64_t kGroup = 16;            // output channels of a register
constexpr int64_t kTileFloats = 1 << 16;  // sums of a tile: 256 KiB, which stay in the L2 cache
constexpr int64_t kTileColumns = 64;
constexpr int64_t kMomentPixels = 256;  // a fixed block: its sums must not depend on the threads

// Where an output of parity `phase` finds the 3 taps of one axis among 2 source pixels.
int64_t folded(int64_t phase, int64_t tap) { return (phase + tap + 1) / 2 - phase; }

}  // namespace

void group_norm(Workers& workers, const Kernels& kernels, const Images& x, const float* weight,
                const float* bias, int64_t groups, double eps, float* scale, float* shift) {
  const int64_t pixels = x.height * x.width, channels = x.channels;
  const int64_t blocks = parts_of(pixels, kMomentPixels);
  std::vector<float> moments(static_cast<size_t>(x.images * blocks * 2 * channels));
  workers.pool.run(x.images * blocks, [&](int64_t task, int) {
    const int64_t image = task / blocks, first = task % blocks * kMomentPixels;
    const int64_t at = (image * pixels + first) * channels;
    float* const mean = moments.data() + task * 2 * channels;
    kernels.moments({x.at(at), x.narrow, channels}, std::min(kMomentPixels, pixels - first),
                    channels, mean, mean + channels);
  });
  const int64_t width = channels / groups;
  for (int64_t image = 0; image < x.images; ++image) {
    for (int64_t group = 0; group < groups; ++group) {
      // Chan, Golub and LeVeque's update, one block and channel after another.
      double count = 0, mean = 0, deviation = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        const float* const part =
            moments.data() + (image * blocks + block) * 2 * channels + group * width;
        const auto more =
            static_cast<double>(std::min(kMomentPixels, pixels - block * kMomentPixels));
        for (int64_t c = 0; c < width; ++c) {
          const double gap = part[c] - mean, total = count + more;
          mean += gap * more / total;
          deviation += part[channels + c] + gap * gap * count * more / total;
          count = total;
        }
      }
      const double factor = 1.0 / std::sqrt(deviation / count + eps);
      for (int64_t c = group * width; c < (group + 1) * width; ++c) {
        scale[image * channels + c] = static_cast<float>(weight[c] * factor);
        shift[image * channels + c] = static_cast<float>(bias[c] - weight[c] * factor * mean);
      }
    }
  }
}

Convolution::Convolution(const float* weight, const float* bias, int64_t out, int64_t in,
                         int64_t size, bool upsample, bool narrow, const Kernels& kernels)
    : in_(in),
      out_(out),
      size_(size),
      phases_(upsample ? 4 : 1),
      taps_(upsample ? 4 : size * size),
      parts_(0),
      depth_(0),
      padded_(round_up(out, kGroup)),
      upsample_(upsample),
      pairs_(narrow && kernels.pairs),
      kernels_(kernels),
      bias_(bias, bias + out) {
  if (size == 3 && !upsample && !narrow && Winograd::pays(out, in)) {
    winograd_ = std::make_unique<Winograd>(weight, bias, out, in, kernels);
    return;
  }
  depth_ = pairs_ ? 2 * kDepth : kDepth;  // input channels of one part
  parts_ = parts_of(in, depth_);
  const int64_t panels = parts_of(out, kPanel), edge = upsample ? 2 : size;
  int64_t total = 0;
  for (int64_t phase = 0; phase < phases_; ++phase) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t columns = std::min(kPanel, padded_ - panel * kPanel);
      for (int64_t part = 0; part < parts_; ++part) {
        begins_.push_back(total);
        total += taps_ * units(part) * columns;
      }
    }
  }
  weights_ = imagine::Buffer(total * 4);
  const auto place = [&](int64_t phase, int64_t tap, int64_t to, int64_t from, float value) {
    const int64_t panel = to / kPanel, part = from / depth_;
    const int64_t columns = std::min(kPanel, padded_ - panel * kPanel);
    const int64_t unit = pairs_ ? from % depth_ / 2 : from % depth_;
    const int64_t at = begins_[static_cast<size_t>((phase * panels + panel) * parts_ + part)] +
                       (tap * units(part) + unit) * columns + to % kPanel;
    if (pairs_) {
      weights_.as<uint16_t>()[at * 2 + from % 2] = to_bf16(value);
    } else {
      weights_.as<float>()[at] = narrow ? from_bf16(to_bf16(value)) : value;
    }
  };
  std::vector<double> sums(static_cast<size_t>(phases_ * taps_));
  for (int64_t to = 0; to < out; ++to) {
    for (int64_t from = 0; from < in; ++from) {
      const float* const w = weight + (to * in + from) * size * size;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t phase = 0; phase < phases_; ++phase) {
        for (int64_t tap = 0; tap < size * size; ++tap) {
          int64_t y = tap / size, x = tap % size;
          if (upsample) y = folded(phase / 2, y), x = folded(phase % 2, x);
          sums[static_cast<size_t>(phase * taps_ + y * edge + x)] += w[tap];
        }
        for (int64_t tap = 0; tap < taps_; ++tap) {
          place(phase, tap, to, from,
                static_cast<float>(sums[static_cast<size_t>(phase * taps_ + tap)]));
        }
      }
    }
  }
}

int64_t Convolution::units(int64_t part) const {
  const int64_t channels = std::min(depth_, in_ - part * depth_);
  return pairs_ ? (channels + 1) / 2 : channels;
}

Convolution::Tile Convolution::tile(const Images& x, int threads) const {
  const int64_t columns = parts_of(x.width, parts_of(x.width, kTileColumns));
  int64_t rows = std::max<int64_t>(1, kTileFloats / (phases_ * padded_ * columns));
  // Enough tasks to keep every thread busy to the end, but no tile of few rows: its border is
  // packed, too.
  const int64_t wanted = parts_of(int64_t{4} * threads, x.images * parts_of(x.width, columns));
  rows = std::min(rows, std::max<int64_t>(4, x.height / wanted));
  return {std::min(rows, x.height), columns};
}

void Convolution::run(Workers& workers, const Images& x, const Images& out,
                      const Surroundings& around) const {
  if (winograd_) return winograd_->run(workers, x, out, around);
  const Tile most = tile(x, workers.pool.size());
  const int64_t border = size_ == 3 ? 1 : 0, panels = parts_of(out_, kPanel);
  const int64_t packed_width = most.columns + 2 * border, row_units = packed_width * kDepth;
  const int64_t packed_units = (most.rows + 2 * border) * row_units;
  const int64_t sums = phases_ * most.rows * most.columns * padded_;
  workers.reserve((round_up(packed_units, kGroup) + sums) * 4);
  std::vector<int64_t> taps;  // [phase][tap]
  for (int64_t phase = 0; phase < phases_; ++phase) {
    const int64_t edge = upsample_ ? 2 : size_;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      const int64_t row = tap / edge + (upsample_ ? phase / 2 : 0);
      const int64_t column = tap % edge + (upsample_ ? phase % 2 : 0);
      taps.push_back(row * row_units + column * kDepth);
    }
  }
  const int64_t down = parts_of(x.height, most.rows), across = parts_of(x.width, most.columns);
  workers.pool.run(x.images * down * across, [&](int64_t task, int thread) {
    const int64_t image = task / (down * across);
    const int64_t y0 = task / across % down * most.rows, x0 = task % across * most.columns;
    const int64_t rows = std::min(most.rows, x.height - y0);
    const int64_t columns = std::min(most.columns, x.width - x0);
    auto* const packed = workers.scratch[static_cast<size_t>(thread)].as<float>();
    float* const c = packed + round_up(packed_units, kGroup);
    for (int64_t part = 0; part < parts_; ++part) {
      const int64_t first = part * depth_, channels = std::min(depth_, in_ - first);
      pack_region(kernels_, x, around,
                  {image, y0 - border, x0 - border, rows + 2 * border, columns + 2 * border}, first,
                  channels, pairs_, packed, row_units);
      for (int64_t phase = 0; phase < phases_; ++phase) {
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t groups = std::min(kPanel, padded_ - panel * kPanel) / kGroup;
          const float* const w =
              weights_.as<float>() +
              begins_[static_cast<size_t>((phase * panels + panel) * parts_ + part)];
          for (int64_t r = 0; r < rows; ++r) {
            kernels_.multiply(packed + r * row_units, taps.data() + phase * taps_, taps_,
                              units(part), w, groups, columns, pairs_,
                              c + (phase * rows + r) * columns * padded_ + panel * kPanel, padded_,
                              part > 0);
          }
        }
      }
    }
    const int64_t zoom = scale(), bytes = out.narrow ? 2 : 4;
    for (int64_t phase = 0; phase < phases_; ++phase) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t oy = (y0 + r) * zoom + phase / 2, ox = x0 * zoom + phase % 2;
        const int64_t at = ((image * out.height + oy) * out.width + ox) * out_ * bytes;
        const auto* residual = static_cast<const char*>(around.residual);
        kernels_.finish(c + (phase * rows + r) * columns * padded_, padded_, columns, out_,
                        bias_.data(), around.after, residual == nullptr ? nullptr : residual + at,
                        static_cast<char*>(out.data) + at, out.narrow, zoom * out_);
      }
    }
  });
}

}  // namespace vlarft::decode
