// What a pass of a GPU is about, in device memory: nothing in it is known to the host.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cuda/fragment.h"
#include "imagine/row.h"

namespace vlarft::imagine::cuda {

using namespace vlarft::cuda;

struct Token {
  int32_t row, place, position, id;  // place: in the row's own cache
};

// A token whose logits are wanted: the one that decides position `ahead` of the row's next ones.
struct Logit {
  int32_t token, row, ahead;
};

// Tokens of a row are neighbours, rows in order; rows of a scene are neighbours.
struct Pass {
  int32_t* counts;         // tokens, logits
  Token* tokens;           // [tokens]
  Logit* logits;           // [logits]
  int32_t* first_token;    // of each row, and behind the last [rows + 1]
  void** prefix;           // cache of each scene's prompt [scenes]
  int32_t* prefix_length;  // tokens it holds [scenes]
  void** own;              // cache of each row [rows]
  int32_t rows, rows_a_scene;
  int32_t prefix_capacity, own_capacity;  // positions, of all of them
  int32_t own_room;                       // positions behind `own`, less when it points inside
};

// A cache: [layer][kv head], each keys, then values, of `capacity` positions and D entries. C, what
// it stores, is the type that is multiplied or Float8:
//   multiplied  keys [position][D], values [position / 2][D][2 positions]
//   Float8      in the order of fragments (csrc/core/cuda/fragment.h), so that a lane reads all it
//               needs in whole words: keys [position][lane % 4][D / 16][4 bytes], values of
//               kPositions positions together [D / 16][lane][16 bytes]; of 4 bytes, the second and
//               fourth are a fragment's first pair, the first and third its second
inline constexpr int kPositions = 32;  // of a warp

__device__ inline int64_t cache_block(int64_t layer, int64_t kv_heads, int64_t head,
                                      int64_t capacity, int64_t dim) {
  return (layer * kv_heads + head) * 2 * capacity * dim;
}

// Places inside the block of a layer and head. Entry d + 1 of an even d lies kKeyStep or kValueStep
// behind entry d.
template <class C>
inline constexpr int kKeyStep = std::is_same_v<C, Float8> ? 2 : 1;
template <class C>
inline constexpr int kValueStep = std::is_same_v<C, Float8> ? 64 : 2;

template <class C>
__device__ int key_index(int position, int d, int dim) {
  if constexpr (!std::is_same_v<C, Float8>) {
    return position * dim + d;
  } else {
    return position * dim + d % 8 / 2 * (dim / 4) + d / 16 * 4 + d % 2 * 2 + 1 - d % 16 / 8;
  }
}

template <class C>
__device__ int value_index(int position, int d, int capacity, int dim) {
  if constexpr (!std::is_same_v<C, Float8>) {
    return capacity * dim + (position / 2 * dim + d) * 2 + position % 2;
  } else {
    const int block = position / kPositions * kPositions * dim;
    const int word = (d / 16 * kWarp + d % 8 * 4 + position % 8 / 2) * 4 + d % 16 / 8 * 2 +
                     position % kPositions / 16;
    return capacity * dim + block + word * 4 + position % 2 * 2 + 1 - position % 16 / 8;
  }
}

}  // namespace vlarft::imagine::cuda
