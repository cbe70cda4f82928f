// How memory on a GPU is divided: for a pass, a prefill and a rollout.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "imagine/cuda/attention.h"
#include "imagine/cuda/pass.h"
#include "imagine/cuda/product.h"
#include "imagine/cuda/rows.h"
#include "imagine/cuda/sampler.h"
#include "imagine/cuda/weights.h"
#include "imagine/model.h"
#include "imagine/request.h"

namespace vlarft::imagine::cuda {

inline constexpr int64_t kPrefillTokens = kPiece;  // of a prompt and pass
inline constexpr int64_t kPrefillScenes = 16;      // prefilled together

// Hands out pieces of one memory; without a memory, only counts.
class Carver {
 public:
  explicit Carver(const void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  T* take(int64_t count) {
    auto* out = reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(used_));
    used_ += up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return out;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 256;

  uintptr_t base_;
  int64_t used_ = 0;
};

// Sizes of a pass, in which its memory is laid out.
struct PassSizes {
  int64_t scenes, rows, tokens, logits;  // at most
  int64_t prefix_pieces, own_pieces;
  int64_t typical;  // rows of most products
};

// Activations of a pass.
struct Work {
  float *x, *logits, *partial, *extremes;
  void *queries, *attended, *gated;
  int32_t* arrived;
};

struct Rollout {
  Pass pass;
  Work work;
  Rows rows;
  std::byte* suffixes;
  int32_t* actions;
  uint32_t *keys, *members;
  Sampling* sampling;
  int32_t* arrived;
};

// T: what is multiplied, C: what the cache stores, kDim: a head's entries there.
template <class T, class C, int kDim>
class Layout {
 public:
  explicit Layout(const ModelConfig& c) : config(c) {}

  int64_t cache_elements(int64_t capacity) const {
    return config.layers * config.kv_heads * 2 * capacity * kDim;
  }
  int64_t suffix_capacity(const Shape& shape) const { return up(shape.suffix(), kPositions); }

  // Rows of activations are padded to whole steps of a product.
  int64_t x_stride() const { return up(config.hidden, kStep); }
  int64_t attended_stride() const { return up(config.heads * config.head_dim, kStep); }
  int64_t gated_stride() const { return up(config.ffn, kStep); }
  int64_t logit_stride() const { return up(config.frame_codes, kStep); }

  PassSizes rollout_sizes(const Shape& shape) const;
  PassSizes prefill_sizes(int64_t scenes, int64_t length) const;

  Pass carve_pass(Carver& carver, const PassSizes& sizes) const;
  Work carve_work(Carver& carver, const PassSizes& sizes) const;
  Rollout carve_rollout(Carver& carver, const Shape& shape, bool couples) const;

  int64_t prefill_bytes(int64_t scenes, int64_t length) const;
  int64_t rollout_bytes(const Shape& shape) const;
  Bytes plan(const Shape& shape, int64_t weight_bytes) const;

  const ModelConfig config;
};

template <class T, class C, int kDim>
Work Layout<T, C, kDim>::carve_work(Carver& carver, const PassSizes& sizes) const {
  const int64_t pieces = sizes.prefix_pieces + sizes.own_pieces;
  const int64_t lines = sizes.tokens * config.heads * pieces;
  Work w{};
  w.x = carver.take<float>(sizes.tokens * x_stride());
  w.queries = carver.take<T>(sizes.tokens * config.heads * kDim);
  w.attended = carver.take<T>(sizes.tokens * attended_stride());
  w.gated = carver.take<T>(sizes.tokens * gated_stride());
  w.partial = carver.take<float>(lines * kDim);
  w.extremes = carver.take<float>(lines * 2);
  w.arrived = carver.take<int32_t>(sizes.scenes * config.kv_heads);
  w.logits = carver.take<float>(sizes.logits * logit_stride());
  return w;
}

template <class T, class C, int kDim>
Pass Layout<T, C, kDim>::carve_pass(Carver& carver, const PassSizes& sizes) const {
  Pass p{};
  p.counts = carver.take<int32_t>(2);
  p.tokens = carver.take<Token>(sizes.tokens);
  p.logits = carver.take<Logit>(sizes.logits);
  p.first_token = carver.take<int32_t>(sizes.rows + 1);
  p.prefix = carver.take<void*>(sizes.scenes);
  p.prefix_length = carver.take<int32_t>(sizes.scenes);
  p.own = carver.take<void*>(sizes.rows);
  p.rows = to_int(sizes.rows);
  p.rows_a_scene = to_int(sizes.rows / sizes.scenes);
  return p;
}

template <class T, class C, int kDim>
PassSizes Layout<T, C, kDim>::rollout_sizes(const Shape& shape) const {
  const int64_t rows = shape.rows();
  return {shape.scenes,
          rows,
          rows * (shape.action_dim + shape.width),
          rows * shape.width,
          parts(shape.prompt, kPiece),
          parts(shape.suffix(), kPiece),
          rows * shape.width};
}

template <class T, class C, int kDim>
PassSizes Layout<T, C, kDim>::prefill_sizes(int64_t scenes, int64_t length) const {
  const int64_t rows = std::min(scenes, kPrefillScenes);
  const int64_t tokens = rows * std::min(length, kPrefillTokens);
  return {rows, rows, tokens, 0, parts(length, kPiece), 1, tokens};
}

template <class T, class C, int kDim>
Rollout Layout<T, C, kDim>::carve_rollout(Carver& carver, const Shape& shape, bool couples) const {
  const PassSizes sizes = rollout_sizes(shape);
  const int64_t rows = sizes.rows, width = shape.width;
  Rollout r{};
  r.pass = carve_pass(carver, sizes);
  r.work = carve_work(carver, sizes);
  r.pass.prefix_capacity = to_int(up(shape.prompt, kPositions));
  r.pass.own_capacity = r.pass.own_room = to_int(suffix_capacity(shape));
  r.rows.states = carver.take<RowState>(rows);
  r.rows.input = carver.take<int32_t>(rows * (shape.action_dim + width));
  r.rows.source = carver.take<int32_t>(rows * width);
  r.rows.leftover = carver.take<int32_t>(rows * width);
  r.rows.known = carver.take<int32_t>(rows * shape.frame_tokens);
  r.rows.draws.drawn = carver.take<int32_t>(rows * width);
  r.rows.draws.finite = carver.take<int32_t>(rows * width);
  int32_t* coupled = carver.take<int32_t>(rows * width);
  r.rows.draws.coupled = couples ? coupled : nullptr;
  r.rows.tokens = carver.take<int32_t>(rows * shape.frames * shape.frame_tokens);
  r.rows.waiting = carver.take<int32_t>(1);
  r.actions = carver.take<int32_t>(rows * shape.frames * shape.action_dim);
  r.rows.actions = r.actions;
  r.keys = carver.take<uint32_t>(shape.scenes);
  r.members = carver.take<uint32_t>(shape.rows_a_scene);
  r.sampling = carver.take<Sampling>(1);
  r.arrived = carver.take<int32_t>(1);
  r.suffixes =
      reinterpret_cast<std::byte*>(carver.take<C>(rows * cache_elements(suffix_capacity(shape))));
  return r;
}

template <class T, class C, int kDim>
int64_t Layout<T, C, kDim>::prefill_bytes(int64_t scenes, int64_t length) const {
  Carver counter(nullptr);
  const PassSizes sizes = prefill_sizes(scenes, length);
  carve_pass(counter, sizes);
  carve_work(counter, sizes);
  return counter.used();
}

template <class T, class C, int kDim>
int64_t Layout<T, C, kDim>::rollout_bytes(const Shape& shape) const {
  Carver counter(nullptr);
  carve_rollout(counter, shape, true);
  return counter.used();
}

template <class T, class C, int kDim>
Bytes Layout<T, C, kDim>::plan(const Shape& shape, int64_t weight_bytes) const {
  const auto element = static_cast<int64_t>(sizeof(C));
  const int64_t suffix = shape.rows() * cache_elements(suffix_capacity(shape)) * element;
  return {
      weight_bytes, shape.scenes * cache_elements(up(shape.prompt, kPositions)) * element, suffix,
      std::max(rollout_bytes(shape) - suffix, prefill_bytes(shape.scenes, shape.prompt) - suffix)};
}

}  // namespace vlarft::imagine::cuda
