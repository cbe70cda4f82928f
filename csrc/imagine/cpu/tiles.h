// Products with AMX tiles: 16 rows x 16 columns x 32 bfloat16 (16 "units" of two) an operation.
// Included by the files that are compiled for AMX only.
//
// Every row count takes the same path and every element adds the same units in the same order, so
// a row's sums depend on that row alone.
#pragma once

#include "imagine/cpu/simd.h"

namespace vlarft::imagine::VLARFT_ISA {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileUnits = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 0;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The thread's tiles for as long as it lives: what another library had configured comes back.
class Tiles {
 public:
  Tiles() { _tile_storeconfig(&before_); }
  ~Tiles() {
    if (before_.palette != 0) {
      _tile_loadconfig(&before_);
    } else {
      _tile_release();
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // Tiles 0 to 3: sums of two blocks of rows by two panels of columns; 4, 5: the blocks; 6, 7: the
  // panels. A block has `rows` rows, at most 16.
  void configure(int64_t rows) {
    TileConfig config;
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : kTileRows);
      config.row_bytes[tile] = 64;
    }
    _tile_loadconfig(&config);
  }

 private:
  TileConfig before_;
};

// Sums go on from what is stored, or begin at zero.
#define VLARFT_BEGIN(TILE, FROM)         \
  {                                      \
    if (add_to) {                        \
      _tile_loadd(TILE, FROM, c_stride); \
    } else {                             \
      _tile_zero(TILE);                  \
    }                                    \
  }

// c (+)= rows . columns: M blocks of 16 rows (or one shorter block) by G panels of 16 columns.
//
// `from` gives both factors in parts, each of some units that is a multiple of kTileUnits:
//   parts(), units(part)
//   rows(part)      units of the first row; `row_bytes` from row to row
//   columns(part)   16 columns of the first unit; `unit_bytes` from unit to unit
//   panel_bytes     from panel to panel
template <int M, int G, class Factors>
VLARFT_INLINE void sum_tiles(const Factors& from, float* c, int64_t stride, bool add_to) {
  const int64_t c_stride = stride * 4;
  float* const below = c + kTileRows * stride;
  VLARFT_BEGIN(0, c)
  if constexpr (G > 1) VLARFT_BEGIN(1, c + 16)
  if constexpr (M > 1) VLARFT_BEGIN(2, below)
  if constexpr (M > 1 && G > 1) VLARFT_BEGIN(3, below + 16)
  for (int64_t part = 0; part < from.parts(); ++part) {
    const char* x = from.rows(part);
    const char* w = from.columns(part);
    const char* const end = x + from.units(part) * 4;
    for (; x < end; x += kTileUnits * 4, w += kTileUnits * from.unit_bytes) {
      _tile_loadd(4, x, from.row_bytes);
      _tile_loadd(6, w, from.unit_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (G > 1) {
        _tile_loadd(7, w + from.panel_bytes, from.unit_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (M > 1) {
        _tile_loadd(5, x + kTileRows * from.row_bytes, from.row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (G > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, c, c_stride);
  if constexpr (G > 1) _tile_stored(1, c + 16, c_stride);
  if constexpr (M > 1) _tile_stored(2, below, c_stride);
  if constexpr (M > 1 && G > 1) _tile_stored(3, below + 16, c_stride);
}
#undef VLARFT_BEGIN

// The same for all panels of M blocks from row `first` on.
template <int M, class Factors>
VLARFT_INLINE void sum_panels(Factors from, int64_t first, int64_t panels, float* c, int64_t stride,
                              bool add_to) {
  from.move_rows(first);
  c += first * stride;
  for (; panels > 1; panels -= 2, from.move_panels(2), c += 32) {
    sum_tiles<M, 2>(from, c, stride, add_to);
  }
  if (panels > 0) sum_tiles<M, 1>(from, c, stride, add_to);
}

// c[rows, 16 * panels] (+)= rows . columns.
template <class Factors>
void multiply_by_tiles(const Factors& from, int64_t rows, int64_t panels, float* c, int64_t stride,
                       bool add_to) {
  Tiles tiles;
  int64_t done = 0;
  if (rows >= kTileRows) {
    tiles.configure(kTileRows);
    for (; done + 2 * kTileRows <= rows; done += 2 * kTileRows) {
      sum_panels<2>(from, done, panels, c, stride, add_to);
    }
    if (done + kTileRows <= rows) {
      sum_panels<1>(from, done, panels, c, stride, add_to);
      done += kTileRows;
    }
  }
  if (done < rows) {
    tiles.configure(rows - done);
    sum_panels<1>(from, done, panels, c, stride, add_to);
  }
}

}  // namespace vlarft::imagine::VLARFT_ISA
