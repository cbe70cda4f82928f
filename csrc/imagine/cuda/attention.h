// Attention of a group of rows: to the prompt they share, and each row to its own tokens.
//
//   o[i] = sum over j of softmax_j(q[i] . k[j] / sqrt(h)) v[j],   j: prompt, then own up to itself
//
// Positions are cut into pieces of kPiece, at fixed places, of the prompt and of a row's own cache.
// A block owns one piece: of a scene's prompt and a key/value head, for all rows of the scene
// together (their queries are the rows of one product, so keys and values are read once a group);
// or of a row's own cache. Each of its warps keeps kPositions keys and values in registers and
// meets 16 queries at a time. A piece gives (maximum, sum, output) of each query; the last block of
// a scene and head merges the pieces in ascending order. So the result of a query depends on the
// positions it sees and on nothing else.
//
// Keys and values are stored as they are multiplied, or as Float8 (1 byte an entry): widened
// exactly when they are loaded. Their scales are in the weights around attention, see weights.h.
//
// Bytes of a layer: keys and values of each scene's prompt once, of each row's own tokens once;
// partial results 4 (D + 2) a query and piece, from and to L2. Operations: 4 D a query and
// position.
#pragma once

#include "core/cuda/fragment.h"
#include "imagine/cuda/pass.h"

namespace vlarft::imagine::cuda {

inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr int kPiece = kAttentionWarps * kPositions;
inline constexpr float kNothing = -3.0e38F;  // maximum of a piece that a query does not see

struct Attention {
  Pass pass;
  const void* queries;  // T [tokens][heads][D]
  void* attended;       // T [tokens][stride], columns head * head_dim + d
  float* partial;       // [tokens][heads][pieces][D]
  float* extremes;      // [tokens][heads][pieces][maximum, sum]
  int32_t* arrived;     // blocks of a scene and head that are done [scenes][kv_heads]; 0 between
  int32_t layer, heads, kv_heads, head_dim, stride;
  int32_t prefix_pieces, own_pieces;  // of the longest prompt and row
  float scale;

  __device__ int pieces() const { return prefix_pieces + own_pieces; }
};

// The block's piece, and the queries that look at it.
struct Piece {
  int scene, head, index;  // index: among all pieces of a query
  int first_token, end_token;
  int first_position, length;  // of the cache that it lies in, tokens held
  int capacity, room;          // room: positions that may be read
  bool own;
  const void* cache;
};

__device__ inline Piece piece_of(const Attention& a, int block) {
  const Pass& pass = a.pass;
  const int scenes = pass.rows / pass.rows_a_scene;
  const int prefix_blocks = scenes * a.kv_heads * a.prefix_pieces;
  Piece p{};
  p.own = block >= prefix_blocks;
  const int pieces = p.own ? a.own_pieces : a.prefix_pieces;
  const int rest = p.own ? block - prefix_blocks : block;
  const int at = rest % pieces, sequence = rest / pieces / a.kv_heads;
  p.head = rest / pieces % a.kv_heads;
  p.first_position = at * kPiece;
  if (p.own) {
    p.scene = sequence / pass.rows_a_scene;
    p.index = a.prefix_pieces + at;
    p.first_token = pass.first_token[sequence];
    p.end_token = pass.first_token[sequence + 1];
    p.length = p.end_token > p.first_token ? pass.tokens[p.end_token - 1].place + 1 : 0;
    p.capacity = pass.own_capacity;
    p.room = pass.own_room;
    p.cache = pass.own[sequence];
  } else {
    p.scene = sequence;
    p.index = at;
    p.first_token = pass.first_token[sequence * pass.rows_a_scene];
    p.end_token = pass.first_token[(sequence + 1) * pass.rows_a_scene];
    p.length = pass.prefix_length[sequence];
    p.capacity = p.room = pass.prefix_capacity;
    p.cache = pass.prefix[sequence];
  }
  return p;
}

// Four entries a word, read at once.
template <int kWords>
struct alignas(kWords < 4 ? 4 * kWords : 16) FourBytes {
  uint32_t at[kWords];
};

// One warp's 32 positions against 16 queries: (maximum, sum, output) of each query.
template <class T, int kDim>
struct WarpPiece {
  FragmentB<T> keys[kPositions / 8][kDim / 16];
  FragmentB<T> values[kPositions / 16][kDim / 8];

  // Positions beyond the room are not read; those beyond the length are masked.
  __device__ void load(const Float8* cache, int first, int capacity, int room) {
    const int g = lane() / 4, t = lane() % 4;
    const bool there = first < room;
    const Pair<T> broken = pair_of<T>(bits_as_float(0x7FC00000U), bits_as_float(0x7FC00000U));
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
      using Words = FourBytes<kDim / 16>;
      const int at = (first + n * 8 + g) * kDim + t * (kDim / 4);
      const Words words = there ? *reinterpret_cast<const Words*>(cache + at) : Words{};
      uint32_t nan = 0;
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        keys[n][k] = {widen<T>(words.at[k]), widen<T>(words.at[k] << 8)};
        nan |= float8_nan(words.at[k]);
      }
      if (nan != 0) keys[n][0].at[0] = broken;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      using Words = FourBytes<4>;
      const int at = (capacity + first) * kDim + (n / 2 * kWarp + lane()) * 16;
      const Words words = there ? *reinterpret_cast<const Words*>(cache + at) : Words{};
      uint32_t nan = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[i % 2][n + i / 2] = {widen<T>(words.at[i]), widen<T>(words.at[i] << 8)};
        nan |= float8_nan(words.at[i]);
      }
      if (nan != 0) values[0][n].at[0] = values[0][n + 1].at[0] = broken;
    }
  }

  __device__ void load(const T* cache, int first, int capacity, int room) {
    const int g = lane() / 4, t = lane() % 4;
    const bool there = first < room;
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
      const T* key = cache + key_index<T>(first + n * 8 + g, 2 * t, kDim);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          keys[n][k].at[half] =
              there ? *reinterpret_cast<const Pair<T>*>(key + 16 * k + 8 * half) : Pair<T>{};
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T* value =
            cache + value_index<T>(first + k * 16 + 8 * half + 2 * t, g, capacity, kDim);
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          values[k][n].at[half] =
              there ? *reinterpret_cast<const Pair<T>*>(value + 16 * n) : Pair<T>{};
        }
      }
    }
  }

  // limits: position up to which the lane's two queries see, from the piece's first on.
  __device__ void attend(const FragmentA<T> (&query)[kDim / 16], const int (&limits)[2],
                         float scale, FragmentC (&out)[kDim / 8], float (&maxima)[2],
                         float (&sums)[2]) const {
    const int t = lane() % 4;
    FragmentC scores[kPositions / 8];
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
      scores[n] = FragmentC{};
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) multiply_add(scores[n], query[k], keys[n][k]);
    }
    maxima[0] = maxima[1] = kNothing;
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool seen = n * 8 + 2 * t + i % 2 < limits[i / 2];
        float& score = scores[n].at[i];
        score = seen ? score * scale : kNothing;
        maxima[i / 2] = fmaxf(maxima[i / 2], score);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maxima[half] = fmaxf(maxima[half], from_lane_xor(maxima[half], 1));
      maxima[half] = fmaxf(maxima[half], from_lane_xor(maxima[half], 2));
      sums[half] = 0;
    }
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool seen = n * 8 + 2 * t + i % 2 < limits[i / 2];
        float& score = scores[n].at[i];
        score = seen ? expf(score - maxima[i / 2]) : 0.0F;
        sums[i / 2] += score;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += from_lane_xor(sums[half], 1);
      sums[half] += from_lane_xor(sums[half], 2);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) out[n] = FragmentC{};
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
      // Scores of two column tiles lie where a row operand has its depth.
      FragmentA<T> shares;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const FragmentC& from = scores[2 * k + i / 2];
        shares.at[i] = pair_of<T>(from.at[2 * (i % 2)], from.at[2 * (i % 2) + 1]);
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) multiply_add(out[n], shares, values[k][n]);
    }
  }
};

// Merges the pieces of every query of a scene and key/value head.
template <class T, int kDim>
__device__ void merge_pieces(const Attention& a, int scene, int head) {
  const Pass& pass = a.pass;
  const int first = pass.first_token[scene * pass.rows_a_scene];
  const int end = pass.first_token[(scene + 1) * pass.rows_a_scene];
  const int groups = a.heads / a.kv_heads;
  const int prompt_pieces = (pass.prefix_length[scene] + kPiece - 1) / kPiece;
  for (int i = thread(); i < (end - first) * groups * kDim; i += kAttentionThreads) {
    const int d = i % kDim, query_head = head * groups + i / kDim % groups;
    const int token = first + i / kDim / groups;
    if (d >= a.head_dim) continue;
    const int own_pieces = pass.tokens[token].place / kPiece + 1;
    const int64_t line = (int64_t{token} * a.heads + query_head) * a.pieces();
    const float* extremes = a.extremes + 2 * line;
    const float* outputs = a.partial + line * kDim + d;
    float maximum = kNothing;
    for (int n = 0; n < prompt_pieces + own_pieces; ++n) {
      const int piece = n < prompt_pieces ? n : a.prefix_pieces + n - prompt_pieces;
      maximum = fmaxf(maximum, load_fresh(extremes + 2 * piece));
    }
    float sum = 0, out = 0;
    for (int n = 0; n < prompt_pieces + own_pieces; ++n) {
      const int piece = n < prompt_pieces ? n : a.prefix_pieces + n - prompt_pieces;
      const float share = expf(load_fresh(extremes + 2 * piece) - maximum);
      sum = fmaf(share, load_fresh(extremes + 2 * piece + 1), sum);
      out = fmaf(share, load_fresh(outputs + int64_t{piece} * kDim), out);
    }
    T* to = static_cast<T*>(a.attended) + int64_t{token} * a.stride + query_head * a.head_dim + d;
    *to = stored<T>(out / sum);
  }
}

template <class T, class C, int kDim>
__global__ void __launch_bounds__(kAttentionThreads) attention_kernel(Attention a) {
  constexpr int kQueries = 16;
  __shared__ float outputs[kAttentionWarps][kQueries][kDim + 1];
  __shared__ float extremes[kAttentionWarps][kQueries][2];
  const Pass& pass = a.pass;
  const Piece p = piece_of(a, block_x());
  const int groups = a.heads / a.kv_heads;
  const int queries = (p.end_token - p.first_token) * groups;
  const int g = lane() / 4, t = lane() % 4;
  if (p.first_position < p.length) {
    const int first_position = p.first_position + warp() * kPositions;
    const C* cache =
        static_cast<const C*>(p.cache) + cache_block(a.layer, a.kv_heads, p.head, p.capacity, kDim);
    WarpPiece<T, kDim> piece;
    piece.load(cache, first_position, p.capacity, p.room);
    for (int first = 0; first < queries; first += kQueries) {
      FragmentA<T> query[kDim / 16];
      int limits[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = first + 8 * half + g;
        const int token = p.first_token + i / groups, head = p.head * groups + i % groups;
        const bool real = i < queries;
        const int end = !real ? 0 : (p.own ? pass.tokens[token].place + 1 : p.length);
        limits[half] = end - first_position;
        const T* from = static_cast<const T*>(a.queries) +
                        (int64_t{real ? token : p.first_token} * a.heads + head) * kDim + 2 * t;
#pragma unroll
        for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            query[k].at[half + 2 * part] =
                *reinterpret_cast<const Pair<T>*>(from + 16 * k + 8 * part);
          }
        }
      }
      FragmentC out[kDim / 8];
      float maxima[2], sums[2];
      piece.attend(query, limits, a.scale, out, maxima, sums);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 8 * half + g;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          outputs[warp()][row][8 * n + 2 * t] = out[n].at[2 * half];
          outputs[warp()][row][8 * n + 2 * t + 1] = out[n].at[2 * half + 1];
        }
        if (t == 0) {
          extremes[warp()][row][0] = maxima[half];
          extremes[warp()][row][1] = sums[half];
        }
      }
      block_barrier();
      for (int i = thread(); i < kQueries * kDim; i += kAttentionThreads) {
        const int row = i / kDim, d = i % kDim;
        if (first + row >= queries) continue;
        float maximum = extremes[0][row][0];
        for (int w = 1; w < kAttentionWarps; ++w) maximum = fmaxf(maximum, extremes[w][row][0]);
        float sum = 0, out_d = 0;
        for (int w = 0; w < kAttentionWarps; ++w) {
          const float share = expf(extremes[w][row][0] - maximum);
          sum = fmaf(share, extremes[w][row][1], sum);
          out_d = fmaf(share, outputs[w][row][d], out_d);
        }
        const int token = p.first_token + (first + row) / groups;
        const int head = p.head * groups + (first + row) % groups;
        const int64_t line = (int64_t{token} * a.heads + head) * a.pieces() + p.index;
        a.partial[line * kDim + d] = out_d;
        if (d == 0) {
          a.extremes[2 * line] = maximum;
          a.extremes[2 * line + 1] = sum;
        }
      }
      block_barrier();
    }
  }
  const int all = a.prefix_pieces + pass.rows_a_scene * a.own_pieces;
  if (!last_block(a.arrived + p.scene * a.kv_heads + p.head, all)) return;
  merge_pieces<T, kDim>(a, p.scene, p.head);
}

}  // namespace vlarft::imagine::cuda
