// A pass through the world model on a GPU: embedding, layers, logits and, at its end, sampling.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "core/cuda/ranges.h"
#include "core/cuda/runtime.h"
#include "imagine/cuda/attention.h"
#include "imagine/cuda/finish.h"
#include "imagine/cuda/layout.h"
#include "imagine/cuda/product.h"
#include "imagine/cuda/weights.h"

namespace vlarft::imagine::cuda {

inline dim3 grid(int64_t x, int64_t y = 1) {
  dim3 out;
  out.x = static_cast<unsigned>(x);
  out.y = static_cast<unsigned>(y);
  return out;
}

// T: what is multiplied, C: what the cache stores, kDim: a head's entries there.
template <class T, class C, int kDim>
class Transformer {
 public:
  Transformer(const ModelConfig& c, const Tensors& tensors, cudaStream_t stream)
      : layout(c), weights_(c, tensors, stream) {}

  // Runs the tokens that `pass` lists through the model: keys and values go to the caches; with
  // `logits` also what comes next, and with `finish` the end of a rollout's pass.
  void run(const Pass& pass, const Work& work, const PassSizes& sizes, bool logits,
           const FinishPass* finish, int64_t fused_rows, cudaStream_t stream) const;

  int64_t weight_bytes() const { return weights_.bytes; }

  const Layout<T, C, kDim> layout;

 private:
  static constexpr int64_t kNarrowRows = 64;  // up to here a product is bound by its weights

  template <bool kNorm, int kColumnTiles, class Store, class Finish = Done>
  void multiply(const char* what, const Matrix& matrix, const void* rows, int64_t row_stride,
                int64_t norm, const Logit* of, const int32_t* count, int64_t most, bool wide,
                const Store& store, cudaStream_t stream, const Finish& finish = {}) const;

  const DeviceWeights<T> weights_;
};

template <class T, class C, int kDim>
template <bool kNorm, int kColumnTiles, class Store, class Finish>
void Transformer<T, C, kDim>::multiply(const char* what, const Matrix& matrix, const void* rows,
                                       int64_t row_stride, int64_t norm, const Logit* of,
                                       const int32_t* count, int64_t most, bool wide,
                                       const Store& store, cudaStream_t stream,
                                       const Finish& finish) const {
  constexpr int kRowTiles = 2;
  Product p{};
  p.weights = matrix.weights.template as<void>();
  p.rows = rows;
  p.norm = kNorm ? weights_.norms.template as<float>() + norm : nullptr;
  p.of = of;
  p.count = count;
  p.steps = matrix.steps;
  p.stride = to_int(row_stride);
  p.depth = matrix.depth;
  p.columns = matrix.columns;
  p.eps = layout.config.eps;
  if (wide) {
    launch(what, product_wide<T, kNorm, Store>,
           grid(parts(matrix.columns, kWideColumns), parts(most, kWideRows)), kProductThreads,
           stream, p, store);
  } else {
    launch(what, product_narrow<T, kNorm, kRowTiles, kColumnTiles, Store, Finish>,
           grid(parts(matrix.columns, kColumnTiles * kColumns), parts(most, kRowTiles * kRows)),
           kProductThreads, stream, p, store, finish);
  }
}

template <class T, class C, int kDim>
void Transformer<T, C, kDim>::run(const Pass& pass, const Work& work, const PassSizes& sizes,
                                  bool logits, const FinishPass* finish, int64_t fused_rows,
                                  cudaStream_t stream) const {
  const ModelConfig& c = layout.config;
  const auto heads = to_int(c.heads), kv_heads = to_int(c.kv_heads);
  const bool wide = sizes.typical > kNarrowRows;
  const int64_t attended_stride = layout.attended_stride();
  const int32_t* count = pass.counts;
  launch("embedding", embed_kernel<T>, grid(sizes.tokens), kEmbedThreads, stream, pass,
         static_cast<const T*>(weights_.embedding.template as<T>()), work.x, to_int(c.hidden),
         to_int(layout.x_stride()));
  const StoreResidual residual{work.x, to_int(layout.x_stride()), to_int(c.hidden)};
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const Range range("layer " + std::to_string(i));
    const Layer& layer = weights_.layers[i];
    const StoreQkv<T, C> qkv{pass,
                             static_cast<T*>(work.queries),
                             weights_.cosine.template as<float>(),
                             weights_.sine.template as<float>(),
                             to_int(static_cast<int64_t>(i)),
                             heads,
                             kv_heads,
                             to_int(c.head_dim),
                             kDim};
    multiply<true, 2>("query, key, value", layer.qkv, work.x, layout.x_stride(), layer.input_norm,
                      nullptr, count, sizes.tokens, wide, qkv, stream);
    if (!logits && i + 1 == weights_.layers.size()) return;
    Attention a{};
    a.pass = pass;
    a.queries = work.queries;
    a.attended = work.attended;
    a.partial = work.partial;
    a.extremes = work.extremes;
    a.arrived = work.arrived;
    a.layer = to_int(static_cast<int64_t>(i));
    a.heads = heads;
    a.kv_heads = kv_heads;
    a.head_dim = to_int(c.head_dim);
    a.stride = to_int(attended_stride);
    a.prefix_pieces = to_int(sizes.prefix_pieces);
    a.own_pieces = to_int(sizes.own_pieces);
    a.scale = static_cast<float>(std::pow(static_cast<double>(c.head_dim), -0.5));
    const int64_t blocks =
        kv_heads * (sizes.scenes * sizes.prefix_pieces + sizes.rows * sizes.own_pieces);
    launch("attention", attention_kernel<T, C, kDim>, grid(blocks), kAttentionThreads, stream, a);
    multiply<false, 1>("attention's output", layer.out, work.attended, attended_stride, 0, nullptr,
                       count, sizes.tokens, wide, residual, stream);
    const StoreGated<T> gated{static_cast<T*>(work.gated), to_int(layout.gated_stride())};
    multiply<true, 4>("gate and up", layer.gate_up, work.x, layout.x_stride(), layer.post_norm,
                      nullptr, count, sizes.tokens, wide, gated, stream);
    multiply<false, 1>("down", layer.down, work.gated, layout.gated_stride(), 0, nullptr, count,
                       sizes.tokens, wide, residual, stream);
  }
  const StoreLogits store{work.logits, to_int(layout.logit_stride()), to_int(c.frame_codes)};
  constexpr int kTiles = 4;
  const auto head = [&](const char* what, const auto&... finishing) {
    multiply<true, kTiles>(what, weights_.head, work.x, layout.x_stride(), weights_.last_norm,
                           pass.logits, pass.counts + 1, sizes.logits, wide, store, stream,
                           finishing...);
  };
  if (finish == nullptr) return head("logits");
  FinishPass last = *finish;
  if (sizes.logits <= fused_rows) {  // one row of blocks
    last.blocks = to_int(parts(c.frame_codes, kTiles * kColumns));
    return head("logits and sampling", last);
  }
  head("logits");
  last.blocks = to_int(sizes.logits);
  launch("sampling", sample_kernel, grid(sizes.logits), kSamplerThreads, stream, last);
}

}  // namespace vlarft::imagine::cuda
