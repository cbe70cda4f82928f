// c[m, 16 panels] = x[m, k] . w[k, 16 panels]: skinny products, every panel streamed once.
//
// Registers hold MR rows x NP panels. Up to kOneBlock rows, a panel is read from memory once and
// used for all rows at that moment; beyond, blocks of rows read it again from the cache.
// Numerics: one accumulator per element, k ascending: the same bits for every m, MR and NP.
// Bytes: weights once, packed rows once per group of panels (from L1 or L2).
#pragma once

#include "imagine/cpu/kernels.h"
#include "imagine/cpu/simd.h"

namespace vlarft::imagine::VLARFT_ISA {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// The same loops in fewer sizes: instrumented, all of them would compile for many minutes.
inline constexpr int kOneBlock = 3;
inline constexpr int kBlock = 2;
#define VLARFT_PANELS(MR) ((MR) <= 2 ? 2 : 1)
#elif defined(__AVX512F__)
inline constexpr int kOneBlock = 28;  // 28 accumulators of the 32 registers
inline constexpr int kBlock = 14;     // 14 x 2 accumulators
#define VLARFT_PANELS(MR) ((MR) <= 3 ? 8 : (MR) <= 7 ? 4 : (MR) <= 14 ? 2 : 1)
#elif defined(__AVX2__)
inline constexpr int kOneBlock = 6;
inline constexpr int kBlock = 6;
#define VLARFT_PANELS(MR) ((MR) == 1 ? 4 : (MR) <= 3 ? 2 : 1)
#else
inline constexpr int kOneBlock = 2;
inline constexpr int kBlock = 2;
#define VLARFT_PANELS(MR) 1
#endif

inline constexpr int64_t kPrefetchLines = 64;  // 4 KiB ahead, of all streams together
inline constexpr int64_t kGroup = 8;           // panels that share a tile of rows

VLARFT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <int MR, int NP>
VLARFT_INLINE void finish(Vec (&sum)[MR][NP][kVecs], float* c, int64_t c_stride, bool add_to) {
  for (int r = 0; r < MR; ++r) {
    for (int p = 0; p < NP; ++p) {
      for (int v = 0; v < kVecs; ++v) {
        float* to = c + r * c_stride + p * kPanel + v * kLanes;
        store(to, add_to ? add(load(to), sum[r][p][v]) : sum[r][p][v]);
      }
    }
  }
}

struct F32Weights {
  using Element = float;
  using Unit = float;
  static constexpr int kPerUnit = 1;

  template <int MR, int NP>
  VLARFT_INLINE void step(const float* w, int64_t panel_stride, const float* x,
                          Vec (&sum)[MR][NP][kVecs]) {
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) {
      Vec column[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) column[v] = load(w + p * panel_stride + v * kLanes);
#pragma GCC unroll 28
      for (int r = 0; r < MR; ++r) {
        const Vec value = broadcast(x + r * kTileStride);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[r][p][v] = multiply_add(column[v], value, sum[r][p][v]);
        }
      }
    }
  }
};

// bfloat16 weights, float32 rows: widened in registers.
struct Bf16Weights {
  using Element = uint16_t;
  using Unit = float;
  static constexpr int kPerUnit = 1;

  template <int MR, int NP>
  VLARFT_INLINE void step(const uint16_t* w, int64_t panel_stride, const float* x,
                          Vec (&sum)[MR][NP][kVecs]) {
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) {
      Vec even[kVecs], odd[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        load_pairs(w + p * panel_stride + 2 * v * kLanes, &even[v], &odd[v]);
      }
#pragma GCC unroll 28
      for (int r = 0; r < MR; ++r) {
        const Vec first = broadcast(x + r * kTileStride);
        const Vec second = broadcast(x + r * kTileStride + 1);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[r][p][v] = multiply_add(even[v], first, sum[r][p][v]);
          sum[r][p][v] = multiply_add(odd[v], second, sum[r][p][v]);
        }
      }
    }
  }
};

#if defined(__AVX512BF16__)
// bfloat16 weights, bfloat16 pairs of rows, products and sums in float32.
struct Bf16Pairs {
  using Element = uint16_t;
  using Unit = uint32_t;
  static constexpr int kPerUnit = 2;

  template <int MR, int NP>
  VLARFT_INLINE void step(const uint16_t* w, int64_t panel_stride, const uint32_t* x,
                          Vec (&sum)[MR][NP][kVecs]) {
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) {
      const auto column = (__m512bh)_mm512_loadu_si512(w + p * panel_stride);
#pragma GCC unroll 28
      for (int r = 0; r < MR; ++r) {
        const auto value = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(x[r * kTileStride]));
        sum[r][p][0] = _mm512_dpbf16_ps(sum[r][p][0], column, value);
      }
    }
  }
};
#endif

// Elements of a panel that one step() takes: 16 floats, or 16 pairs.
template <class W>
inline constexpr int64_t kStepElements = sizeof(typename W::Element) == 4 ? 16 : 32;
template <class W>
inline constexpr int64_t kStepDepth = sizeof(typename W::Element) == 4 ? 1 : 2;

// What a block multiplies: `k` elements of NP panels with one tile of rows or several.
template <class W>
struct Span {
  const typename W::Element* w;
  int64_t panel_stride;
  int64_t k;
  const typename W::Unit* x;
  int64_t tile_stride;
  const typename W::Element* next;  // read after this span: prefetched before its end
};

template <class W, int MR, int NP>
VLARFT_INLINE void accumulate(const Span<W>& span, Vec (&sum)[MR][NP][kVecs]) {
  constexpr int64_t depth = kTile * W::kPerUnit;
  constexpr int64_t lead = kPrefetchLines / NP * kStepElements<W>;
  const typename W::Element* w = span.w;
  const typename W::Element* const end = w + span.k * kPanel;
  const typename W::Element* ahead = lead < end - w ? w + lead : span.next;
  const typename W::Unit* x = span.x;
  for (int64_t done = 0; done < span.k; done += depth, x += span.tile_stride) {
    const int64_t part = least(depth, span.k - done);
    const typename W::Unit* unit = x;
    for (int64_t i = 0; i < part; i += kStepDepth<W>) {
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) __builtin_prefetch(ahead + p * span.panel_stride);
      ahead += kStepElements<W>;
      ahead = ahead == end ? span.next : ahead;
      W::template step<MR, NP>(w, span.panel_stride, unit, sum);
      w += kStepElements<W>;
      unit += kStepDepth<W> / W::kPerUnit;
    }
  }
}

template <class W, int MR, int NP>
VLARFT_INLINE void clear(Vec (&sum)[MR][NP][kVecs]) {
  for (int r = 0; r < MR; ++r) {
    for (int p = 0; p < NP; ++p) {
      for (int v = 0; v < kVecs; ++v) sum[r][p][v] = zero();
    }
  }
}

template <class W, int MR, int NP>
void block(const Span<W>& span, float* c, int64_t c_stride, bool add_to) {
  Vec sum[MR][NP][kVecs];
  clear<W, MR, NP>(sum);
  accumulate<W, MR, NP>(span, sum);
  finish<MR, NP>(sum, c, c_stride, add_to);
}

// The same sums in parts of one tile each, kept in `partial` between them: the registers' values
// survive a store and a load unchanged, so the chain of multiply-adds is the same.
template <class W, int MR>
void tile_block(const Span<W>& span, float* partial, bool first, bool last, float* c,
                int64_t c_stride, bool add_to) {
  Vec sum[MR][1][kVecs];
  if (first) {
    clear<W, MR, 1>(sum);
  } else {
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < kVecs; ++v) sum[r][0][v] = load(partial + r * kPanel + v * kLanes);
    }
  }
  accumulate<W, MR, 1>(span, sum);
  if (last) {
    finish<MR, 1>(sum, c, c_stride, add_to);
  } else {
    finish<MR, 1>(sum, partial, kPanel, false);
  }
}

// Rows whose tile fits into the first cache while all of them do not: tile by tile, every panel of
// a group meets it, and only the weights come from farther away.
template <class W, int MR>
void panels_by_tile(const typename W::Element* w, int64_t panel_stride, int64_t k,
                    const typename W::Unit* x, int64_t tile_stride, int64_t panels, float* c,
                    int64_t c_stride, bool add_to) {
  constexpr int64_t depth = kTile * W::kPerUnit;
  alignas(64) float partial[kGroup * MR * kPanel];
  for (int64_t group = 0; group < panels; group += kGroup) {
    const int64_t end = least(panels, group + kGroup);
    for (int64_t done = 0; done < k; done += depth) {
      const typename W::Unit* tile = x + done / depth * tile_stride;
      const int64_t part = least(depth, k - done);
      for (int64_t p = group; p < end; ++p) {
        const typename W::Element* from = w + p * panel_stride + done * kPanel;
        const bool wraps = p + 1 == end;
        const bool over = done + depth >= k;
        const typename W::Element* next = !wraps ? from + panel_stride
                                          : over
                                              ? w + end * panel_stride
                                              : w + group * panel_stride + (done + depth) * kPanel;
        tile_block<W, MR>({from, panel_stride, part, tile, tile_stride, next},
                          partial + (p - group) * MR * kPanel, done == 0, over, c + p * kPanel,
                          c_stride, add_to);
      }
    }
  }
}

template <class W, int MR, int NP>
void panels_of(const typename W::Element* w, int64_t panel_stride, int64_t k,
               const typename W::Unit* x, int64_t tile_stride, int64_t panels, float* c,
               int64_t c_stride, bool add_to) {
  if constexpr (NP == 1 && MR > 1) {
    if (k > kTile * W::kPerUnit) {
      panels_by_tile<W, MR>(w, panel_stride, k, x, tile_stride, panels, c, c_stride, add_to);
      return;
    }
  }
  int64_t p = 0;
  for (; p + NP <= panels; p += NP) {
    const typename W::Element* from = w + p * panel_stride;
    block<W, MR, NP>({from, panel_stride, k, x, tile_stride, from + NP * panel_stride},
                     c + p * kPanel, c_stride, add_to);
  }
  if constexpr (NP > 1) {
    if (p < panels) {
      panels_of<W, MR, NP / 2>(w + p * panel_stride, panel_stride, k, x, tile_stride, panels - p,
                               c + p * kPanel, c_stride, add_to);
    }
  }
}

template <class W>
using Block = void (*)(const typename W::Element*, int64_t, int64_t, const typename W::Unit*,
                       int64_t, int64_t, float*, int64_t, bool);

template <int... I>
struct Numbers {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Numbers<I...>;
};

template <class W, int... I>
VLARFT_INLINE Block<W> pick(int64_t rows, Numbers<I...>) {
  static constexpr Block<W> table[] = {&panels_of<W, I + 1, VLARFT_PANELS(I + 1)>...};
  return table[rows - 1];
}

template <class W>
void multiply(const void* weights, int64_t panel_stride, int64_t k, const void* packed,
              int64_t tile_stride, int64_t m, int64_t panels, float* c, int64_t c_stride,
              bool add_to) {
  using Kinds = typename Count<kOneBlock>::type;
  const auto* w = static_cast<const typename W::Element*>(weights);
  const auto* x = static_cast<const typename W::Unit*>(packed);
  if (m <= kOneBlock) {
    if (m > 0) {
      pick<W>(m, Kinds{})(w, panel_stride, k, x, tile_stride, panels, c, c_stride, add_to);
    }
    return;
  }
  // Panels outside, rows inside: a group of panels stays in the cache while the rows pass.
  constexpr int64_t group = VLARFT_PANELS(kBlock);
  const int64_t blocks = (m + kBlock - 1) / kBlock;
  for (int64_t p = 0; p < panels; p += group) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = m * b / blocks;
      const int64_t rows = m * (b + 1) / blocks - first;
      pick<W>(rows, Kinds{})(w + p * panel_stride, panel_stride, k, x + first * kTileStride,
                             tile_stride, least(group, panels - p),
                             c + first * c_stride + p * kPanel, c_stride, add_to);
    }
  }
}

static inline void pack_floats(const float* x, int64_t x_stride, int64_t m, int64_t first,
                               int64_t n, void* packed, int64_t tile_stride) {
  auto* out = static_cast<float*>(packed);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t k = first; k < first + n;) {
      const int64_t room = least(kTile - k % kTile, first + n - k);
      float* const to = out + k / kTile * tile_stride + r * kTileStride + k % kTile;
      const float* const from = x + r * x_stride + (k - first);
      int64_t i = 0;  // short copies of unknown length: a call would take longer than they do
      for (; i + 16 <= room; i += 16) store16(to + i, load16(from + i));
      for (; i < room; ++i) to[i] = from[i];
      k += room;
    }
  }
}

static inline void pack_pairs(const float* x, int64_t x_stride, int64_t m, int64_t first, int64_t n,
                              void* packed, int64_t tile_stride) {
  auto* out = static_cast<uint32_t*>(packed);
  for (int64_t r = 0; r < m; ++r) {
    const float* from = x + r * x_stride;
    for (int64_t unit = first / 2; unit < (first + n + 1) / 2;) {
      const int64_t room = least(kTile - unit % kTile, (first + n + 1) / 2 - unit);
      uint32_t* to = out + unit / kTile * tile_stride + r * kTileStride + unit % kTile;
      const float* pair = from + 2 * unit - first;
      const int64_t whole = least(room, (first + n) / 2 - unit);
      int64_t i = 0;
#if defined(__AVX512BF16__)
      for (; i + 16 <= whole; i += 16) {
        const __m512bh units = _mm512_cvtne2ps_pbh(load(pair + 2 * i + 16), load(pair + 2 * i));
        __builtin_memcpy(to + i, &units, sizeof units);
      }
      for (; i + 8 <= whole; i += 8) {
        const __m256bh units = _mm512_cvtneps_pbh(load(pair + 2 * i));
        __builtin_memcpy(to + i, &units, sizeof units);
      }
#endif
      for (; i < whole; ++i) {
        to[i] = to_bf16(pair[2 * i]) | uint32_t{to_bf16(pair[2 * i + 1])} << 16;
      }
      if (whole < room) to[whole] = to_bf16(pair[2 * whole]);
      unit += room;
    }
  }
}

inline constexpr Gemm kF32 = {false, &pack_floats, &multiply<F32Weights>};
#if defined(__AVX512BF16__)
inline constexpr Gemm kBf16 = {true, &pack_pairs, &multiply<Bf16Pairs>};
#else
inline constexpr Gemm kBf16 = {false, &pack_floats, &multiply<Bf16Weights>};
#endif

}  // namespace vlarft::imagine::VLARFT_ISA
