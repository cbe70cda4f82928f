// Products of weights, and of a group with its prompt, with AMX tiles. Everything else is that of
// avx512_bf16.
#define VLARFT_ISA amx
#include "imagine/cpu/elementwise.h"
#include "imagine/cpu/gemm.h"
#include "imagine/cpu/tiles.h"

namespace vlarft::imagine::amx {
namespace {

// Packed rows, tile of kTile units by tile, and panels of weights (kernels.h).
struct Factors {
  const char* x;
  const char* w;
  int64_t depth, tile_bytes, panel_bytes;  // depth in units
  static constexpr int64_t row_bytes = kTileStride * 4;
  static constexpr int64_t unit_bytes = 64;

  int64_t parts() const { return (depth + kTile - 1) / kTile; }
  int64_t units(int64_t part) const { return least(kTile, depth - part * kTile); }
  const char* rows(int64_t part) const { return x + part * tile_bytes; }
  const char* columns(int64_t part) const { return w + part * kTile * unit_bytes; }
  void move_rows(int64_t count) { x += count * row_bytes; }
  void move_panels(int64_t count) { w += count * panel_bytes; }
};

constexpr int64_t kSumRows = 2 * kTileRows, kSumPanels = 8;  // 16 KiB

void multiply_tiles(const void* weights, int64_t panel_stride, int64_t k, const void* packed,
                    int64_t tile_stride, int64_t m, int64_t panels, float* c, int64_t c_stride,
                    bool add_to) {
  const Factors all = {static_cast<const char*>(packed), static_cast<const char*>(weights), k / 2,
                       tile_stride * 4, panel_stride * 2};
  if (!add_to) {
    multiply_by_tiles(all, m, panels, c, c_stride, false);
    return;
  }
  // A product is summed before it is added, as everywhere.
  alignas(64) float sums[kSumRows * kSumPanels * kPanel];
  for (int64_t p = 0; p < panels; p += kSumPanels) {
    const int64_t wide = least(kSumPanels, panels - p);
    for (int64_t first = 0; first < m; first += kSumRows) {
      const int64_t rows = least(kSumRows, m - first);
      Factors some = all;
      some.move_rows(first);
      some.move_panels(p);
      multiply_by_tiles(some, rows, wide, sums, wide * kPanel, false);
      for (int64_t r = 0; r < rows; ++r) {
        float* const to = c + (first + r) * c_stride + p * kPanel;
        for (int64_t i = 0; i < wide * kPanel; i += 16) {
          store16(to + i, load16(to + i) + load16(sums + r * wide * kPanel + i));
        }
      }
    }
  }
}

}  // namespace

extern const Kernels kTable;
const Kernels kTable = {"amx",         kF32,      {true, &pack_pairs, &multiply_tiles},
                        kBf16,         &rms_norm, &swiglu,
                        &softmax_tile, &scale,    &soften,
                        &noisy};

}  // namespace vlarft::imagine::amx
