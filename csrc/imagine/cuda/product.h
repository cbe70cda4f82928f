// rows . weights on tensor cores, with what comes before and after in the same kernel:
//
//   RMSNorm -> query, key, value -> rotary -> cache      (StoreQkv)
//   attention's output -> residual                       (StoreResidual)
//   RMSNorm -> gate, up -> SwiGLU                        (StoreGated)
//   gated -> residual                                    (StoreResidual)
//   RMSNorm -> logits of frame codes                     (StoreLogits)
//
// RMSNorm(x) . W = ((x * weight) . W) / sqrt(mean(x^2) + eps): the factor of a row comes after the
// product, so x is read once.
//
// Order of sums, the same for any number of rows: the depth is cut into kChunks, each is one chain
// of warp products in ascending depth, and chunks are added in ascending order. `product_narrow`
// gives a chunk to each warp of a block (few rows: all warps stream weights), `product_wide` gives
// each warp its own outputs (many rows: weights are used more often). Both give the same numbers.
//
// Weights are packed once, [8 columns][32 deep][lane], so that a lane reads what it multiplies in
// one piece. Bytes of a product: weights once a block row; rows once a block column, from L2.
#pragma once

#include <cstdint>

#include "core/cuda/fragment.h"
#include "imagine/cuda/pass.h"

namespace vlarft::imagine::cuda {

inline constexpr int kChunks = 8;
inline constexpr int kStep = 32;  // depth of a packed piece of weights
inline constexpr int kColumns = 8;
inline constexpr int kRows = 16;
inline constexpr int kProductThreads = kChunks * kWarp;

template <class T>
struct alignas(2 * sizeof(FragmentB<T>)) Packed {
  FragmentB<T> half[2];
};

struct Product {
  const void* weights;    // Packed<T> [columns / 8][steps][lane]
  const void* rows;       // float32, normalised on the way, or T; [.., stride]
  const float* norm;      // weight of RMSNorm [depth]; null: rows are taken as they are
  const Logit* of;        // rows are those of these tokens; null: 0, 1, 2, ..
  const int32_t* count;   // rows of this pass
  int32_t steps, stride;  // of kStep; elements
  int32_t depth, columns;
  float eps;
};

// Rows of A at depth k and k + 8 of a half step. Rows beyond the count are read and not stored.
template <class T>
__device__ FragmentA<T> load_rows(const T* upper, const T* lower, int k) {
  const auto pair = [](const T* at) { return *reinterpret_cast<const Pair<T>*>(at); };
  return {{pair(upper + k), pair(lower + k), pair(upper + k + 8), pair(lower + k + 8)}};
}

template <class T>
__device__ FragmentA<T> load_normed(const float* upper, const float* lower, const float* norm,
                                    int k, float* squares) {
  FragmentA<T> a;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = k + 8 * (i / 2);
    const auto x = *reinterpret_cast<const Pair<float>*>((i % 2 == 0 ? upper : lower) + at);
    const auto w = *reinterpret_cast<const Pair<float>*>(norm + at);
    squares[i % 2] = fmaf(x.high, x.high, fmaf(x.low, x.low, squares[i % 2]));
    a.at[i] = pair_of<T>(x.low * w.low, x.high * w.high);
  }
  return a;
}

// Chunk `chunk` of the product of kRowTiles x 16 rows and kColumnTiles x 8 columns.
template <class T, bool kNorm, int kRowTiles, int kColumnTiles>
__device__ void multiply_chunk(const Product& p, int chunk, int first_row, int first_tile,
                               int count, FragmentC (&sum)[kRowTiles][kColumnTiles],
                               float (&squares)[kRowTiles][2]) {
  using X = std::conditional_t<kNorm, float, T>;
  const int g = lane() / 4, t = lane() % 4;
  const int tiles = (p.columns + kColumns - 1) / kColumns;
  const auto* weights = static_cast<const Packed<T>*>(p.weights);
  const X* rows[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int wanted = first_row + r * kRows + half * 8 + g;
      const int i = wanted < count ? wanted : count - 1;
      const int64_t row = p.of == nullptr ? i : p.of[i].token;
      rows[r][half] = static_cast<const X*>(p.rows) + row * p.stride + 2 * t;
      squares[r][half] = 0;
    }
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) sum[r][c] = FragmentC{};
  }
  for (int step = p.steps * chunk / kChunks; step < p.steps * (chunk + 1) / kChunks; ++step) {
    Packed<T> b[kColumnTiles];
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const int64_t tile = first_tile + c < tiles ? first_tile + c : tiles - 1;
      b[c] = weights[(tile * p.steps + step) * kWarp + lane()];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = step * kStep + half * 16;
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        FragmentA<T> a;
        if constexpr (kNorm) {
          a = load_normed<T>(rows[r][0], rows[r][1], p.norm + 2 * t, k, squares[r]);
        } else {
          a = load_rows<T>(rows[r][0], rows[r][1], k);
        }
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) multiply_add(sum[r][c], a, b[c].half[half]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& mine = squares[r][half];
      mine += from_lane_xor(mine, 1);
      mine += from_lane_xor(mine, 2);
    }
  }
}

__device__ inline float norm_factor(float squares, const Product& p) {
  return 1.0F / sqrtf(squares / static_cast<float>(p.depth) + p.eps);
}

// What a block does when its outputs are stored: nothing, or FinishPass of finish.h. All threads
// call it, with memory that the product needs no more.
struct Done {
  using Memory = char;
  __device__ void operator()(Memory&) const {}
};

// Two blocks a multiprocessor: with few rows a grid has no more, and registers are not spilled to
// make room for a third.
template <class T, bool kNorm, int kRowTiles, int kColumnTiles, class Store, class Finish>
__global__ void __launch_bounds__(kProductThreads, 2)
    product_narrow(Product p, Store store, Finish finish) {
  constexpr int kBlockRows = kRowTiles * kRows, kBlockColumns = kColumnTiles * kColumns;
  union Memory {  // first for the product, then for what follows it
    float parts[kChunks][kBlockRows][kBlockColumns];
    typename Finish::Memory finish;
  };
  __shared__ Memory memory;
  auto& parts = memory.parts;
  __shared__ float squares_of[kChunks][kBlockRows];
  const int count = *p.count, first_row = block_y() * kBlockRows;
  if (first_row >= count) return;
  const int g = lane() / 4, t = lane() % 4;
  FragmentC sum[kRowTiles][kColumnTiles];
  float squares[kRowTiles][2];
  multiply_chunk<T, kNorm, kRowTiles, kColumnTiles>(p, warp(), first_row, block_x() * kColumnTiles,
                                                    count, sum, squares);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = r * kRows + i / 2 * 8 + g;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        parts[warp()][row][c * kColumns + 2 * t + i % 2] = sum[r][c].at[i];
      }
      if (kNorm && t == 0 && i % 2 == 0) squares_of[warp()][row] = squares[r][i / 2];
    }
  }
  block_barrier();
  for (int i = thread(); i < kBlockRows * kBlockColumns / 2; i += kProductThreads) {
    const int row = i / (kBlockColumns / 2), at = i % (kBlockColumns / 2) * 2;
    const int column = block_x() * kBlockColumns + at;
    if (first_row + row >= count || column >= p.columns) continue;
    float low = parts[0][row][at], high = parts[0][row][at + 1];
    for (int chunk = 1; chunk < kChunks; ++chunk) {
      low += parts[chunk][row][at];
      high += parts[chunk][row][at + 1];
    }
    if constexpr (kNorm) {
      float all = squares_of[0][row];
      for (int chunk = 1; chunk < kChunks; ++chunk) all += squares_of[chunk][row];
      const float factor = norm_factor(all, p);
      low *= factor;
      high *= factor;
    }
    store(first_row + row, column, low, high);
  }
  finish(memory.finish);
}

inline constexpr int kWideRows = 128, kWideColumns = 64;

template <class T, bool kNorm, class Store>
__global__ void __launch_bounds__(kProductThreads) product_wide(Product p, Store store) {
  constexpr int kRowTiles = 2, kColumnTiles = 4;
  const int count = *p.count;
  const int first_row = block_y() * kWideRows + warp() / 2 * kRowTiles * kRows;
  const int first_tile = (block_x() * 2 + warp() % 2) * kColumnTiles;
  if (first_row >= count || first_tile * kColumns >= p.columns) return;
  const int g = lane() / 4, t = lane() % 4;
  FragmentC total[kRowTiles][kColumnTiles];
  float all[kRowTiles][2];
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    FragmentC sum[kRowTiles][kColumnTiles];
    float squares[kRowTiles][2];
    multiply_chunk<T, kNorm, kRowTiles, kColumnTiles>(p, chunk, first_row, first_tile, count, sum,
                                                      squares);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          total[r][c].at[i] = chunk == 0 ? sum[r][c].at[i] : total[r][c].at[i] + sum[r][c].at[i];
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        all[r][half] = chunk == 0 ? squares[r][half] : all[r][half] + squares[r][half];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + r * kRows + half * 8 + g;
      if (row >= count) continue;
      const float factor = kNorm ? norm_factor(all[r][half], p) : 1.0F;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int column = (first_tile + c) * kColumns + 2 * t;
        float low = total[r][c].at[2 * half], high = total[r][c].at[2 * half + 1];
        if constexpr (kNorm) {
          low *= factor;
          high *= factor;
        }
        if (column < p.columns) store(row, column, low, high);
      }
    }
  }
}

// --- what becomes of two neighbouring outputs ------------------------------------------------

// Columns: heads of queries, of keys, of values. Entries of a query or key head come in the order
// 0, h/2, 1, h/2 + 1, ..: the two that rotate together are neighbours, and stay so in the cache,
// where the order does not matter to their product. C: what the cache stores.
//   low' = low cos - high sin,  high' = high cos + low sin     (RoPE, arXiv 2104.09864)
template <class T, class C>
struct StoreQkv {
  Pass pass;
  T* queries;                                     // [tokens][heads][D]
  const float *cosine, *sine;                     // [positions][head_dim / 2]
  int32_t layer, heads, kv_heads, head_dim, dim;  // dim: D

  __device__ void operator()(int row, int column, float low, float high) const {
    const Token token = pass.tokens[row];
    const int head = column / head_dim, d = column % head_dim;
    if (head < heads + kv_heads) {
      const int64_t at = int64_t{token.position} * (head_dim / 2) + d / 2;
      const float c = cosine[at], s = sine[at], x = low;
      low = x * c - high * s;
      high = high * c + x * s;
    }
    if (head < heads) {
      T* query = queries + (int64_t{row} * heads + head) * dim + d;
      *reinterpret_cast<Pair<T>*>(query) = pair_of<T>(low, high);
      return;
    }
    const int kv_head = (head - heads) % kv_heads;
    C* cache = static_cast<C*>(pass.own[token.row]) +
               cache_block(layer, kv_heads, kv_head, pass.own_capacity, dim);
    if (head >= heads + kv_heads) {
      C* value = cache + value_index<C>(token.place, d, pass.own_capacity, dim);
      value[0] = stored<C>(low);
      value[kValueStep<C>] = stored<C>(high);
      return;
    }
    C* key = cache + key_index<C>(token.place, d, dim);
    if constexpr (std::is_same_v<C, T>) {
      *reinterpret_cast<Pair<T>*>(key) = pair_of<T>(low, high);
    } else {
      key[0] = stored<C>(low);
      key[kKeyStep<C>] = stored<C>(high);
    }
  }
};

// x += product
struct StoreResidual {
  float* x;  // [tokens][stride]
  int32_t stride, columns;

  __device__ void operator()(int row, int column, float low, float high) const {
    float* at = x + int64_t{row} * stride + column;
    at[0] += low;
    if (column + 1 < columns) at[1] += high;
  }
};

// Columns are gate and up in turn: silu(gate) * up  (SwiGLU, arXiv 2002.05202)
template <class T>
struct StoreGated {
  T* gated;  // [tokens][stride]
  int32_t stride;

  __device__ void operator()(int row, int column, float gate, float up) const {
    gated[int64_t{row} * stride + column / 2] = stored<T>(gate / (1.0F + expf(-gate)) * up);
  }
};

struct StoreLogits {
  float* logits;  // [logit rows][stride]
  int32_t stride, columns;

  __device__ void operator()(int row, int column, float low, float high) const {
    float* at = logits + int64_t{row} * stride + column;
    at[0] = low;
    if (column + 1 < columns) at[1] = high;
  }
};

}  // namespace vlarft::imagine::cuda
