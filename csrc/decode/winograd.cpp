#include "decode/winograd.h"

#include <algorithm>
#include <cstring>

#include "imagine/cpu/kernels.h"

namespace vlarft::decode {
namespace {

using imagine::round_up;

constexpr int64_t kGroup = 16;                // output channels of a register
constexpr int64_t kPoints = 36;               // 6 a dimension
constexpr int64_t kEdge = 4;                  // outputs of a tile a dimension
constexpr int64_t kBytes = int64_t{4} << 20;  // transformed inputs and outputs of a block
constexpr int64_t kFewest = 12, kMost = 48;   // tiles of a block: weights are read once for them
constexpr int64_t kAcross = 16;               // tiles of a block side by side
// Points that lie a power of two apart would share sets of the first cache.
constexpr int64_t kApart = 16;

// A kernel at the six points: row i of G.
constexpr double kA = 0.625, kB = 1.5, kAA = kA * kA, kBB = kB * kB;
constexpr double kOfA = 1 / (2 * kAA * (kAA - kBB)), kOfB = 1 / (2 * kBB * (kBB - kAA));
constexpr double kG[6][3] = {
    {1 / (kAA * kBB), 0, 0},       {kOfA, kA * kOfA, kAA * kOfA},  {kOfA, -kA * kOfA, kAA * kOfA},
    {kOfB, kB * kOfB, kBB * kOfB}, {kOfB, -kB * kOfB, kBB * kOfB}, {0, 0, 1},
};

}  // namespace

Winograd::Winograd(const float* weight, const float* bias, int64_t out, int64_t in,
                   const Kernels& kernels)
    : in_(in),
      out_(out),
      parts_(parts_of(in, kDepth)),
      padded_(round_up(out, kGroup)),
      kernels_(kernels),
      weights_(kPoints * parts_ * kDepth * padded_ * 4),
      bias_(padded_ * 4) {
  std::copy_n(bias, out, bias_.as<float>());
  const int64_t depth = parts_ * kDepth;
  for (int64_t to = 0; to < out; ++to) {
    const int64_t panel = to / kPanel, columns = std::min(kPanel, padded_ - panel * kPanel);
    float* const base = weights_.as<float>() + panel * kPanel * depth + to % kPanel;
    for (int64_t from = 0; from < in; ++from) {
      const float* const w = weight + (to * in + from) * 9;
      double half[6][3];
      for (int i = 0; i < 6; ++i) {
        for (int x = 0; x < 3; ++x) {
          half[i][x] = kG[i][0] * w[x] + kG[i][1] * w[3 + x] + kG[i][2] * w[6 + x];
        }
      }
      for (int i = 0; i < 6; ++i) {
        for (int j = 0; j < 6; ++j) {
          const double value =
              kG[j][0] * half[i][0] + kG[j][1] * half[i][1] + kG[j][2] * half[i][2];
          base[(i * 6 + j) * depth * padded_ + from * columns] = static_cast<float>(value);
        }
      }
    }
  }
}

Winograd::Block Winograd::block(const Images& x, int threads) const {
  const int64_t down = parts_of(x.height, kEdge), across = parts_of(x.width, kEdge);
  const int64_t tile = kPoints * (parts_ * kDepth + padded_) * 4;
  const int64_t most = std::clamp(kBytes / tile, kFewest, kMost);
  Block block{1, 1, parts_of(across, parts_of(across, kAcross))};
  block.rows = std::clamp<int64_t>(most / block.columns, 1, down);
  if (block.rows == down && block.columns == across) {
    block.images = std::clamp<int64_t>(most / (down * across), 1, x.images);
  }
  // Enough tasks to keep every thread busy to the end, as long as weights are worth their way.
  const auto tasks = [&] {
    return parts_of(x.images, block.images) * parts_of(down, block.rows) *
           parts_of(across, block.columns);
  };
  while (tasks() < 4 * threads && block.tiles() >= 2 * kFewest) {
    int64_t& larger = block.images > 1 ? block.images : block.rows > 1 ? block.rows : block.columns;
    larger = parts_of(larger, 2);
  }
  if (tasks() < threads && block.rows > 1) block.rows = parts_of(block.rows, 2);
  return block;
}

void Winograd::run(Workers& workers, const Images& x, const Images& out,
                   const Surroundings& around) const {
  const Block most = block(x, workers.pool.size());
  const int64_t depth = parts_ * kDepth;
  const int64_t row_units = (kEdge * most.columns + 2) * kDepth;
  const int64_t part_units = most.tiles() * kDepth;
  const int64_t plane_in = parts_ * part_units + kApart;
  const int64_t plane_out = most.tiles() * padded_ + kApart;
  const int64_t packed_units = (kEdge * most.rows + 2) * row_units;
  const int64_t pixel_row = kEdge * most.columns * kPanel;
  workers.reserve((packed_units + kPoints * (plane_in + plane_out) + kEdge * pixel_row) * 4);
  std::vector<int64_t> parts;
  for (int64_t part = 0; part < parts_; ++part) parts.push_back(part * part_units);

  const int64_t down = parts_of(parts_of(x.height, kEdge), most.rows);
  const int64_t across = parts_of(parts_of(x.width, kEdge), most.columns);
  const int64_t stacks = parts_of(x.images, most.images);
  workers.pool.run(stacks * down * across, [&](int64_t task, int thread) {
    const int64_t first_image = task / (down * across) * most.images;
    const int64_t images = std::min(most.images, x.images - first_image);
    const int64_t y0 = task / across % down * most.rows * kEdge;
    const int64_t x0 = task % across * most.columns * kEdge;
    const int64_t rows = std::min(most.rows, parts_of(x.height - y0, kEdge));
    const int64_t columns = std::min(most.columns, parts_of(x.width - x0, kEdge));
    const int64_t tiles = images * rows * columns;
    auto* const packed = workers.scratch[static_cast<size_t>(thread)].as<float>();
    float* const points_in = packed + packed_units;
    float* const points_out = points_in + kPoints * plane_in;
    float* const pixels = points_out + kPoints * plane_out;

    for (int64_t i = 0; i < images; ++i) {
      const Region region{first_image + i, y0 - 1, x0 - 1, kEdge * rows + 2, kEdge * columns + 2};
      for (int64_t part = 0; part < parts_; ++part) {
        const int64_t first = part * kDepth, channels = std::min(kDepth, in_ - first);
        if (channels < kDepth) std::memset(packed, 0, static_cast<size_t>(packed_units) * 4);
        pack_region(kernels_, x, around, region, first, channels, false, packed, row_units);
        for (int64_t r = 0; r < rows; ++r) {
          kernels_.to_points(packed + r * kEdge * row_units, row_units, columns,
                             points_in + part * part_units + (i * rows + r) * columns * kDepth,
                             plane_in);
        }
      }
    }
    for (int64_t point = 0; point < kPoints; ++point) {
      for (int64_t channel = 0; channel < padded_; channel += kPanel) {
        const float* const w = weights_.as<float>() + (point * padded_ + channel) * depth;
        kernels_.multiply(points_in + point * plane_in, parts.data(), parts_, kDepth, w,
                          std::min(kPanel, padded_ - channel) / kGroup, tiles, false,
                          points_out + point * plane_out + channel, padded_, false);
      }
    }
    for (int64_t channel = 0; channel < out_; channel += kPanel) {
      const int64_t channels = std::min(kPanel, out_ - channel);
      for (int64_t t = 0; t < images * rows; ++t) {
        kernels_.from_points(points_out + t * columns * padded_ + channel, plane_out, padded_,
                             columns, parts_of(channels, kGroup), pixels, pixel_row);
        const int64_t y = y0 + t % rows * kEdge, image = first_image + t / rows;
        for (int64_t r = 0; r < std::min(kEdge, x.height - y); ++r) {
          const int64_t at = ((image * x.height + y + r) * x.width + x0) * out_ + channel;
          const int64_t bytes = at * (out.narrow ? 2 : 4);
          const auto* residual = static_cast<const char*>(around.residual);
          kernels_.finish(pixels + r * pixel_row, kPanel, std::min(kEdge * columns, x.width - x0),
                          channels, bias_.as<float>() + channel, around.after,
                          residual == nullptr ? nullptr : residual + bytes, out.at(at), out.narrow,
                          out_);
        }
      }
    }
  });
}

}  // namespace vlarft::decode
