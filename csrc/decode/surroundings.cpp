#include "decode/surroundings.h"

namespace vlarft::decode {

void Workers::reserve(int64_t bytes) {
  for (imagine::Buffer& buffer : scratch) {
    if (buffer.bytes() < bytes) buffer = imagine::Buffer(bytes);
  }
}

void pack_region(const Kernels& kernels, const Images& x, const Surroundings& around,
                 const Region& region, int64_t first, int64_t channels, bool pairs, float* packed,
                 int64_t row_units) {
  const int64_t left = std::clamp<int64_t>(region.x, 0, x.width);
  const int64_t right = std::clamp<int64_t>(region.x + region.columns, left, x.width);
  const int64_t moved = region.image * x.channels + first;
  for (int64_t r = 0; r < region.rows; ++r) {
    const int64_t y = region.y + r;
    float* const line = packed + r * row_units;
    if (y < 0 || y >= x.height) {
      std::fill_n(line, region.columns * kDepth, 0.0F);
      continue;
    }
    float* const begin = line + (left - region.x) * kDepth;
    float* const end = line + (right - region.x) * kDepth;
    std::fill(line, begin, 0.0F);
    std::fill(end, line + region.columns * kDepth, 0.0F);
    const void* from = x.at(((region.image * x.height + y) * x.width + left) * x.channels + first);
    kernels.pack({from, x.narrow, x.channels}, right - left, channels,
                 around.scale == nullptr ? nullptr : around.scale + moved,
                 around.scale == nullptr ? nullptr : around.shift + moved, around.before, pairs,
                 begin);
  }
}

}  // namespace vlarft::decode
