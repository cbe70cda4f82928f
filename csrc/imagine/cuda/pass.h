// What a pass of a GPU is about, in device memory: nothing in it is known to the host.
#pragma once

#include <cstdint>

#include "core/cuda/intrinsics.h"
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
  int64_t prefix_capacity, own_capacity;  // positions, of all of them
  int64_t own_room;                       // positions behind `own`, less when it points inside
};

// A cache: [layer][kv head], each keys [capacity][D] and values [capacity / 2][D][2 positions].
// Entry (position, d) of a layer and head:
__device__ inline int64_t cache_block(int64_t layer, int64_t kv_heads, int64_t head,
                                      int64_t capacity, int64_t dim) {
  return (layer * kv_heads + head) * 2 * capacity * dim;
}
__device__ inline int64_t key_index(int64_t position, int64_t d, int64_t dim) {
  return position * dim + d;
}
__device__ inline int64_t value_index(int64_t position, int64_t d, int64_t capacity, int64_t dim) {
  return capacity * dim + (position / 2 * dim + d) * 2 + position % 2;
}

}  // namespace vlarft::imagine::cuda
