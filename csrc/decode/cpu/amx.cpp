// Products with AMX tiles, on the layouts of kernels.h as they are. Everything else is that of
// avx512_bf16, products over input channels that do not fill a tile, too.
#define VLARFT_ISA amx
#include "decode/cpu/operations.h"
#include "imagine/cpu/tiles.h"

namespace vlarft::decode::amx {
namespace {

// Pixels of a packed region, tap by tap, and the weights of one panel.
struct Factors {
  const char* x;
  const int64_t* taps;
  int64_t tap_count, depth;  // units of a tap
  const char* w;
  int64_t unit_bytes;
  static constexpr int64_t row_bytes = kDepth * 4;
  static constexpr int64_t panel_bytes = 64;

  int64_t parts() const { return tap_count; }
  int64_t units(int64_t) const { return depth; }
  const char* rows(int64_t tap) const { return x + taps[tap] * 4; }
  const char* columns(int64_t tap) const { return w + tap * depth * unit_bytes; }
  void move_rows(int64_t count) { x += count * row_bytes; }
  void move_panels(int64_t count) { w += count * panel_bytes; }
};

void multiply_tiles(const void* packed, const int64_t* taps, int64_t tap_count, int64_t units,
                    const void* weights, int64_t groups, int64_t pixels, bool pairs, float* c,
                    int64_t c_stride, bool add) {
  if (!pairs || units % simd::kTileUnits != 0) {
    multiply(packed, taps, tap_count, units, weights, groups, pixels, pairs, c, c_stride, add);
    return;
  }
  const Factors from = {static_cast<const char*>(packed),  taps,       tap_count, units,
                        static_cast<const char*>(weights), groups * 64};
  simd::multiply_by_tiles(from, pixels, groups, c, c_stride, add);
}

}  // namespace

extern const Kernels kTable;
const Kernels kTable = {"amx",        true,    &pack,    &multiply_tiles, &to_points,
                        &from_points, &finish, &moments, &absolute,       &directions};

}  // namespace vlarft::decode::amx
