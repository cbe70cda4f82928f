// What every convolution shares: threads, images, and what is done around the products.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "decode/cpu/kernels.h"
#include "imagine/memory.h"
#include "imagine/thread_pool.h"

namespace vlarft::decode {

// Threads and their scratch memory; one operation at a time.
class Workers {
 public:
  explicit Workers(int threads) : pool(threads), scratch(static_cast<size_t>(threads)) {}

  // At least `bytes` for every thread, kept for the next operation.
  void reserve(int64_t bytes);

  imagine::ThreadPool pool;
  std::vector<imagine::Buffer> scratch;
  std::mutex busy;
};

// Images [image][row][column][channel], compact; float32, or bfloat16 when `narrow`.
struct Images {
  void* data;
  bool narrow;
  int64_t images, height, width, channels;

  // Element `index` of the data.
  void* at(int64_t index) const { return static_cast<char*>(data) + index * (narrow ? 2 : 4); }
};

struct Surroundings {
  const float* scale = nullptr;  // of the input, [image][channel], with `shift`; or null
  const float* shift = nullptr;
  Activation before = Activation::kNone;  // of the input, after scale and shift
  Activation after = Activation::kNone;   // of the output, before the residual
  const void* residual = nullptr;         // layout and type of the output; or null
};

// A rectangle of one image, which may reach beyond its edges.
struct Region {
  int64_t image, y, x, rows, columns;
};

// Scales, activates and lays out channels [first, first + channels) of a region for products:
// [row][column][kDepth] with `row_units` from row to row, zero outside the image.
void pack_region(const Kernels& kernels, const Images& x, const Surroundings& around,
                 const Region& region, int64_t first, int64_t channels, bool pairs, float* packed,
                 int64_t row_units);

inline int64_t parts_of(int64_t n, int64_t most) { return (n + most - 1) / most; }

}  // namespace vlarft::decode
