// Products with AMX tiles: 16 rows x 16 columns x 32 bfloat16 a tile operation. Everything else is
// that of avx512_bf16. Every row count takes the same path, so a row's sums never depend on it.
#define VLARFT_ISA amx
#include "imagine/cpu/elementwise.h"
#include "imagine/cpu/gemm.h"

namespace vlarft::imagine::amx {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

constexpr int64_t kRows = 16;
constexpr int64_t kUnits = 16;  // pairs of k in a tile

// Tiles 0, 1: sums of a full block of rows; 2, 3: of the last, shorter one; 4, 5: its rows; 6, 7:
// two panels of weights.
void configure(int64_t tail) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool short_one = tile == 2 || tile == 3 || tile == 5;
    config.rows[tile] = static_cast<uint8_t>(short_one && tail > 0 ? tail : kRows);
    config.row_bytes[tile] = 64;
  }
  _tile_loadconfig(&config);
}

struct Operands {
  const uint16_t* w[2];
  const uint32_t* x;
  int64_t units, tile_stride;
};

#define VLARFT_TILE_SUMS(C0, C1, A)                                          \
  _tile_zero(C0);                                                            \
  _tile_zero(C1);                                                            \
  for (int64_t u = 0; u < o.units; u += kUnits) {                            \
    _tile_loadd(A, o.x + u / kTile * o.tile_stride + u % kTile, row_stride); \
    _tile_loadd(6, o.w[0] + u * 32, 64);                                     \
    _tile_loadd(7, o.w[1] + u * 32, 64);                                     \
    _tile_dpbf16ps(C0, A, 6);                                                \
    _tile_dpbf16ps(C1, A, 7);                                                \
  }                                                                          \
  _tile_stored(C0, sums[0], 64);                                             \
  _tile_stored(C1, sums[1], 64);

void sum_tiles(const Operands& o, bool full, float (*sums)[kRows * kPanel]) {
  constexpr int64_t row_stride = kTileStride * 4;
  if (full) {
    VLARFT_TILE_SUMS(0, 1, 4)
  } else {
    VLARFT_TILE_SUMS(2, 3, 5)
  }
}

void multiply_tiles(const void* weights, int64_t panel_stride, int64_t k, const void* packed,
                    int64_t tile_stride, int64_t m, int64_t panels, float* c, int64_t c_stride,
                    bool add_to) {
  const auto* w = static_cast<const uint16_t*>(weights);
  const auto* x = static_cast<const uint32_t*>(packed);
  alignas(64) float sums[2][kRows * kPanel];
  configure(m % kRows);
  for (int64_t p = 0; p < panels; p += 2) {
    const int64_t wide = least(2, panels - p);
    for (int64_t first = 0; first < m; first += kRows) {
      const int64_t rows = least(kRows, m - first);
      // A lone last panel is multiplied twice; the copy is dropped.
      const uint16_t* panel = w + p * panel_stride;
      sum_tiles(
          {{panel, panel + (wide - 1) * panel_stride}, x + first * kTileStride, k / 2, tile_stride},
          rows == kRows, sums);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t q = 0; q < wide; ++q) {
          float* to = c + (first + r) * c_stride + (p + q) * kPanel;
          const F16 sum = load16(sums[q] + r * kPanel);
          store16(to, add_to ? load16(to) + sum : sum);
        }
      }
    }
  }
  _tile_release();
}

}  // namespace

extern const Kernels kTable;
const Kernels kTable = {"amx",         kF32,      {true, &pack_pairs, &multiply_tiles},
                        kBf16,         &rms_norm, &swiglu,
                        &softmax_tile, &scale,    &soften,
                        &noisy};

}  // namespace vlarft::imagine::amx
