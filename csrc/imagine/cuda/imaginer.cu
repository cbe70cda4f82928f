#include <algorithm>
#include <chrono>
#include <cmath>
#include <list>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "core/cuda/ranges.h"
#include "core/cuda/runtime.h"
#include "core/errors.h"
#include "imagine/cuda/attention.h"
#include "imagine/cuda/finish.h"
#include "imagine/cuda/imaginer.h"
#include "imagine/cuda/product.h"
#include "imagine/cuda/rows.h"
#include "imagine/cuda/weights.h"

namespace vlarft::imagine::cuda {

namespace {

constexpr int64_t kPrefillTokens = kPiece;  // of a prompt and pass
constexpr int64_t kPrefillScenes = 16;      // prefilled together
constexpr int64_t kNarrowRows = 64;         // up to here a product is bound by its weights
constexpr int64_t kGraphs = 4;              // shapes whose graphs are kept
constexpr int64_t kAhead = 16;              // passes between two looks at the progress
constexpr int64_t kTimedPasses = 3;
constexpr int64_t kAlignment = 256;

dim3 grid(int64_t x, int64_t y = 1) {
  dim3 out;
  out.x = static_cast<unsigned>(x);
  out.y = static_cast<unsigned>(y);
  return out;
}
std::string words(const Request& request, const Prompts& prompts) {
  return "a rollout of " + std::to_string(request.scenes) + " x " +
         std::to_string(request.rows_a_scene) + " rows, prompt " +
         std::to_string(prompts.front()->length) + ", " + std::to_string(request.frames) +
         " frames, W " + std::to_string(request.width);
}
cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

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

}  // namespace

struct GraphKey {
  int64_t scenes, rows_a_scene, prompt, frames, action_dim, frame_tokens, width;
  std::vector<Source> sources;
  bool operator==(const GraphKey&) const = default;
};

struct CapturedGraph {
  GraphKey key;
  Graph graph;
};

class Imaginer::Engine {
 public:
  virtual ~Engine() = default;
  virtual std::vector<std::shared_ptr<Prompt>> prefill(const int32_t* ids, int64_t scenes,
                                                       int64_t length, cudaStream_t stream,
                                                       const Poll& poll) = 0;
  virtual Stats imagine(const Request& request, const Prompts& prompts, cudaStream_t stream,
                        const Poll& poll, int32_t* tokens) = 0;
  virtual double pass_seconds(int64_t tokens, cudaStream_t stream) = 0;
  virtual Bytes plan(const Shape& shape) const = 0;
  virtual bool made(const Prompt& prompt) const = 0;

  ModelConfig config;
  int device = 0;
  int64_t weight_bytes = 0;
  double capture_seconds = 0;
  int64_t fused_rows = kFusedRows;
  std::mutex busy;  // one call at a time; other engines are independent
  Memory arena;
  std::list<CapturedGraph> graphs;  // most recently used first
};

namespace {

// T: what is multiplied, C: what the cache stores.
template <class T, class C, int kDim>
class TypedEngine final : public Imaginer::Engine {
 public:
  TypedEngine(const ModelConfig& c, const Tensors& tensors, int on, cudaStream_t stream)
      : weights_(c, tensors, stream) {
    config = c;
    device = on;
    weight_bytes = weights_.bytes;
    layout_[0] = c.layers;
    layout_[1] = c.kv_heads;
    layout_[2] = kDim;
    layout_[3] = sizeof(C);
  }

  std::vector<std::shared_ptr<Prompt>> prefill(const int32_t* ids, int64_t scenes, int64_t length,
                                               cudaStream_t stream, const Poll& poll) override;
  Stats imagine(const Request& request, const Prompts& prompts, cudaStream_t stream,
                const Poll& poll, int32_t* tokens) override;
  double pass_seconds(int64_t tokens, cudaStream_t stream) override;
  Bytes plan(const Shape& shape) const override;
  bool made(const Prompt& prompt) const override {
    return std::equal(prompt.layout, prompt.layout + 4, layout_);
  }

 private:
  int64_t cache_elements(int64_t capacity) const {
    return config.layers * config.kv_heads * 2 * capacity * kDim;
  }
  int64_t stride(int64_t columns) const { return up(columns, kStep); }
  int64_t x_stride() const { return stride(config.hidden); }
  int64_t logit_stride() const { return stride(config.frame_codes); }

  Work carve_work(Carver& carver, const PassSizes& sizes) const;
  Pass carve_pass(Carver& carver, const PassSizes& sizes) const;
  PassSizes rollout_sizes(const Shape& shape) const;
  PassSizes prefill_sizes(int64_t scenes, int64_t length) const;
  Rollout carve_rollout(Carver& carver, const Shape& shape, bool couples) const;
  int64_t suffix_capacity(const Shape& shape) const { return up(shape.suffix(), kPositions); }
  void hold(int64_t bytes, cudaStream_t stream);

  // Runs the tokens that `pass` lists through the model.
  void run(const Pass& pass, const Work& work, const PassSizes& sizes, bool logits,
           const FinishPass* finish, cudaStream_t stream);
  template <bool kNorm, int kColumnTiles, class Store, class Finish = Done>
  void multiply(const char* what, const Matrix& matrix, const void* rows, int64_t row_stride,
                int64_t norm, const Logit* of, const int32_t* count, int64_t most, bool wide,
                const Store& store, cudaStream_t stream, const Finish& finish = {});
  void queue_pass(const Rollout& r, const PassSizes& sizes, cudaStream_t stream);
  const Graph& graph_of(const GraphKey& key, const Rollout& r, const PassSizes& sizes);

  DeviceWeights<T> weights_;
  int64_t layout_[4] = {};
  Mapped progress_{3 * sizeof(int32_t)};
};

// --- memory ---------------------------------------------------------------------------------

template <class T, class C, int kDim>
Work TypedEngine<T, C, kDim>::carve_work(Carver& carver, const PassSizes& sizes) const {
  const int64_t pieces = sizes.prefix_pieces + sizes.own_pieces;
  const int64_t lines = sizes.tokens * config.heads * pieces;
  Work w{};
  w.x = carver.take<float>(sizes.tokens * x_stride());
  w.queries = carver.take<T>(sizes.tokens * config.heads * kDim);
  w.attended = carver.take<T>(sizes.tokens * stride(config.heads * config.head_dim));
  w.gated = carver.take<T>(sizes.tokens * stride(config.ffn));
  w.partial = carver.take<float>(lines * kDim);
  w.extremes = carver.take<float>(lines * 2);
  w.arrived = carver.take<int32_t>(sizes.scenes * config.kv_heads);
  w.logits = carver.take<float>(sizes.logits * logit_stride());
  return w;
}

template <class T, class C, int kDim>
Pass TypedEngine<T, C, kDim>::carve_pass(Carver& carver, const PassSizes& sizes) const {
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
PassSizes TypedEngine<T, C, kDim>::rollout_sizes(const Shape& shape) const {
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
PassSizes TypedEngine<T, C, kDim>::prefill_sizes(int64_t scenes, int64_t length) const {
  const int64_t rows = std::min(scenes, kPrefillScenes);
  const int64_t tokens = rows * std::min(length, kPrefillTokens);
  return {rows, rows, tokens, 0, parts(length, kPiece), 1, tokens};
}

template <class T, class C, int kDim>
Rollout TypedEngine<T, C, kDim>::carve_rollout(Carver& carver, const Shape& shape,
                                               bool couples) const {
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

// At least so much in one piece; graphs hold its addresses.
template <class T, class C, int kDim>
void TypedEngine<T, C, kDim>::hold(int64_t bytes, cudaStream_t stream) {
  if (arena.bytes() >= bytes) return;
  graphs.clear();
  arena = Memory();  // before the larger one is taken
  arena = Memory(bytes, stream);
}

template <class T, class C, int kDim>
Bytes TypedEngine<T, C, kDim>::plan(const Shape& shape) const {
  Carver rollout(nullptr), prefill(nullptr);
  carve_rollout(rollout, shape, true);
  const PassSizes sizes = prefill_sizes(shape.scenes, shape.prompt);
  carve_pass(prefill, sizes);
  carve_work(prefill, sizes);
  const auto element = static_cast<int64_t>(sizeof(C));
  const int64_t suffix = shape.rows() * cache_elements(suffix_capacity(shape)) * element;
  return {weight_bytes, shape.scenes * cache_elements(up(shape.prompt, kPositions)) * element,
          suffix, std::max(rollout.used() - suffix, prefill.used() - suffix)};
}

// --- a pass ---------------------------------------------------------------------------------

template <class T, class C, int kDim>
template <bool kNorm, int kColumnTiles, class Store, class Finish>
void TypedEngine<T, C, kDim>::multiply(const char* what, const Matrix& matrix, const void* rows,
                                       int64_t row_stride, int64_t norm, const Logit* of,
                                       const int32_t* count, int64_t most, bool wide,
                                       const Store& store, cudaStream_t stream,
                                       const Finish& finish) {
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
  p.eps = config.eps;
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
void TypedEngine<T, C, kDim>::run(const Pass& pass, const Work& work, const PassSizes& sizes,
                                  bool logits, const FinishPass* finish, cudaStream_t stream) {
  const auto heads = to_int(config.heads), kv_heads = to_int(config.kv_heads);
  const bool wide = sizes.typical > kNarrowRows;
  const int64_t attended_stride = stride(config.heads * config.head_dim);
  const int32_t* count = pass.counts;
  launch("embedding", embed_kernel<T>, grid(sizes.tokens), kEmbedThreads, stream, pass,
         static_cast<const T*>(weights_.embedding.template as<T>()), work.x, to_int(config.hidden),
         to_int(x_stride()));
  const StoreResidual residual{work.x, to_int(x_stride()), to_int(config.hidden)};
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
                             to_int(config.head_dim),
                             kDim};
    multiply<true, 2>("query, key, value", layer.qkv, work.x, x_stride(), layer.input_norm, nullptr,
                      count, sizes.tokens, wide, qkv, stream);
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
    a.head_dim = to_int(config.head_dim);
    a.stride = to_int(attended_stride);
    a.prefix_pieces = to_int(sizes.prefix_pieces);
    a.own_pieces = to_int(sizes.own_pieces);
    a.scale = static_cast<float>(std::pow(static_cast<double>(config.head_dim), -0.5));
    const int64_t blocks =
        kv_heads * (sizes.scenes * sizes.prefix_pieces + sizes.rows * sizes.own_pieces);
    launch("attention", attention_kernel<T, C, kDim>, grid(blocks), kAttentionThreads, stream, a);
    multiply<false, 1>("attention's output", layer.out, work.attended, attended_stride, 0, nullptr,
                       count, sizes.tokens, wide, residual, stream);
    const StoreGated<T> gated{static_cast<T*>(work.gated), to_int(stride(config.ffn))};
    multiply<true, 4>("gate and up", layer.gate_up, work.x, x_stride(), layer.post_norm, nullptr,
                      count, sizes.tokens, wide, gated, stream);
    multiply<false, 1>("down", layer.down, work.gated, stride(config.ffn), 0, nullptr, count,
                       sizes.tokens, wide, residual, stream);
  }
  const StoreLogits store{work.logits, to_int(logit_stride()), to_int(config.frame_codes)};
  constexpr int kTiles = 4;
  const auto head = [&](const char* what, const auto&... finishing) {
    multiply<true, kTiles>(what, weights_.head, work.x, x_stride(), weights_.last_norm, pass.logits,
                           pass.counts + 1, sizes.logits, wide, store, stream, finishing...);
  };
  if (finish == nullptr) return head("logits");
  FinishPass last = *finish;
  if (sizes.logits <= fused_rows) {  // one row of blocks
    last.blocks = to_int(parts(config.frame_codes, kTiles * kColumns));
    return head("logits and sampling", last);
  }
  head("logits");
  last.blocks = to_int(sizes.logits);
  launch("sampling", sample_kernel, grid(sizes.logits), kSamplerThreads, stream, last);
}

// --- prefill --------------------------------------------------------------------------------

template <class T, class C, int kDim>
std::vector<std::shared_ptr<Prompt>> TypedEngine<T, C, kDim>::prefill(
    const int32_t* ids, int64_t scenes, int64_t length, cudaStream_t stream, const Poll& poll) {
  const int64_t capacity = up(length, kPositions);
  std::vector<std::shared_ptr<Prompt>> prompts;
  for (int64_t p = 0; p < scenes; ++p) {
    auto prompt = std::make_shared<Prompt>();
    const auto bytes = cache_elements(capacity) * static_cast<int64_t>(sizeof(C));
    const auto memory = std::make_shared<Memory>(bytes, stream);
    prompt->cache = {memory, memory->template as<void>()};
    prompt->length = length;
    prompt->bytes = bytes;
    std::copy_n(layout_, 4, prompt->layout);
    prompts.push_back(std::move(prompt));
  }
  const PassSizes most = prefill_sizes(scenes, length);
  {
    Carver counter(nullptr);
    carve_pass(counter, most);
    carve_work(counter, most);
    hold(counter.used(), stream);
  }
  for (int64_t first = 0; first < scenes; first += kPrefillScenes) {
    const int64_t together = std::min(kPrefillScenes, scenes - first);
    for (int64_t done = 0; done < length; done += kPrefillTokens) {
      poll(0);
      const int64_t part = std::min(kPrefillTokens, length - done);
      const PassSizes sizes{together, together,       together * part, 0, parts(done, kPiece),
                            1,        together * part};
      require(cudaMemsetAsync(arena.as<void>(), 0, static_cast<size_t>(arena.bytes()), stream),
              "clearing memory");
      Carver carver(arena.as<void>());
      Pass pass = carve_pass(carver, sizes);
      const Work work = carve_work(carver, sizes);
      pass.prefix_capacity = pass.own_capacity = to_int(capacity);
      pass.own_room = to_int(capacity - done);
      const std::vector<int32_t> counts = {to_int(sizes.tokens), 0};
      std::vector<Token> tokens;
      std::vector<int32_t> first_token = {0}, prefix_length;
      std::vector<void*> prefix, own;
      for (int64_t r = 0; r < together; ++r) {
        C* cache = static_cast<C*>(prompts[static_cast<size_t>(first + r)]->cache.get());
        prefix.push_back(cache);
        own.push_back(cache + done * kDim);  // both keys and values move on by so many positions
        prefix_length.push_back(to_int(done));
        for (int64_t i = 0; i < part; ++i) {
          tokens.push_back(
              {to_int(r), to_int(i), to_int(done + i), ids[(first + r) * length + done + i]});
        }
        first_token.push_back(to_int(static_cast<int64_t>(tokens.size())));
      }
      copy_in(pass.counts, counts.data(), 2, stream);
      copy_in(pass.tokens, tokens.data(), sizes.tokens, stream);
      copy_in(pass.first_token, first_token.data(), together + 1, stream);
      copy_in(pass.prefix, prefix.data(), together, stream);
      copy_in(pass.prefix_length, prefix_length.data(), together, stream);
      copy_in(pass.own, own.data(), together, stream);
      run(pass, work, sizes, false, nullptr, stream);
    }
  }
  require(cudaStreamSynchronize(stream), "a prefill's kernels");
  return prompts;
}

// --- rollout --------------------------------------------------------------------------------

template <class T, class C, int kDim>
void TypedEngine<T, C, kDim>::queue_pass(const Rollout& r, const PassSizes& sizes,
                                         cudaStream_t stream) {
  FinishPass finish{};
  finish.rows = r.rows;
  finish.arrived = r.arrived;
  SampleRows& s = finish.sample;
  s.pass = r.pass;
  s.logits = r.work.logits;
  s.states = r.rows.states;
  s.keys = r.keys;
  s.members = r.members;
  s.draws = r.rows.draws;
  s.sampling = r.sampling;
  s.stride = to_int(logit_stride());
  s.ids = to_int(config.frame_codes);
  s.width = r.rows.rules.width;
  s.frame_tokens = r.rows.rules.frame_tokens;
  run(r.pass, r.work, sizes, true, &finish, stream);
}

template <class T, class C, int kDim>
const Graph& TypedEngine<T, C, kDim>::graph_of(const GraphKey& key, const Rollout& r,
                                               const PassSizes& sizes) {
  const auto found = std::find_if(graphs.begin(), graphs.end(),
                                  [&](const CapturedGraph& g) { return g.key == key; });
  if (found != graphs.end()) {
    graphs.splice(graphs.begin(), graphs, found);
    return graphs.front().graph;
  }
  const auto start = std::chrono::steady_clock::now();
  graphs.push_front({key, Graph::capture([&](cudaStream_t own) { queue_pass(r, sizes, own); })});
  if (static_cast<int64_t>(graphs.size()) > kGraphs) graphs.pop_back();
  capture_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return graphs.front().graph;
}

template <class T, class C, int kDim>
Stats TypedEngine<T, C, kDim>::imagine(const Request& request, const Prompts& prompts,
                                       cudaStream_t stream, const Poll& poll, int32_t* tokens) {
  const Shape shape{request.scenes, request.rows_a_scene, prompts.front()->length,
                    request.frames, request.action_dim,   request.frame_tokens,
                    request.width,  request.uses(kLogits)};
  const PassSizes sizes = rollout_sizes(shape);
  {
    Carver counter(nullptr);
    carve_rollout(counter, shape, true);
    hold(counter.used(), stream);
  }
  require(cudaMemsetAsync(arena.as<void>(), 0, static_cast<size_t>(arena.bytes()), stream),
          "clearing memory");
  Carver carver(arena.as<void>());
  Rollout r = carve_rollout(carver, shape, request.uses(kLogits));
  r.rows.rules = request.rules();
  r.rows.progress = progress_.device<int32_t>();
  std::vector<Source> sources;
  if (request.width > 1) sources = request.guesses;
  r.rows.source_count = to_int(static_cast<int64_t>(sources.size()));
  std::copy(sources.begin(), sources.end(), r.rows.sources);

  std::vector<void*> prefix, own;
  std::vector<int32_t> prefix_length;
  for (const auto& prompt : prompts) {
    prefix.push_back(prompt->cache.get());
    prefix_length.push_back(to_int(prompt->length));
  }
  for (int64_t row = 0; row < sizes.rows; ++row) {
    own.push_back(reinterpret_cast<C*>(r.suffixes) + row * cache_elements(suffix_capacity(shape)));
  }
  copy_in(r.pass.prefix, prefix.data(), shape.scenes, stream);
  copy_in(r.pass.prefix_length, prefix_length.data(), shape.scenes, stream);
  copy_in(r.pass.own, own.data(), sizes.rows, stream);
  copy_in(r.actions, request.actions, sizes.rows * shape.frames * shape.action_dim, stream);
  copy_in(r.keys, request.keys, shape.scenes, stream);
  copy_in(r.members, request.members, shape.rows_a_scene, stream);
  copy_in(r.sampling, &request.sampling, 1, stream);
  volatile int32_t* progress = progress_.host<int32_t>();
  progress[0] = 0;
  progress[1] = to_int(sizes.rows);
  launch("starting rows", start_kernel, grid(parts(sizes.rows, kCollectThreads)), kCollectThreads,
         stream, r.rows, to_int(sizes.rows));
  launch("collecting tokens", collect_kernel, grid(1), kCollectThreads, stream, r.rows, r.pass);

  const GraphKey key{shape.scenes,     shape.rows_a_scene, shape.prompt, shape.frames,
                     shape.action_dim, shape.frame_tokens, shape.width,  sources};
  const Graph* graph = checked() ? nullptr : &graph_of(key, r, sizes);
  const int64_t most = shape.frames * shape.frame_tokens;
  Stats stats;
  try {
    Event marks[2];
    for (int64_t pass = 0; pass < most; ++pass) {
      if (pass % kAhead == 0) {
        if (shape.width > 1) {  // guesses decide how many passes there are
          Event& mark = marks[pass / kAhead % 2];
          if (pass >= 2 * kAhead) mark.wait();  // what was queued long ago, not what runs now
          mark.record(stream);
        }
        poll(progress[0]);
        if (progress[1] == 0) break;  // guesses saved the rest
      }
      if (graph != nullptr) {
        graph->launch(stream);
      } else {
        queue_pass(r, sizes, stream);
      }
    }
    launch("finishing rows", finish_kernel, grid(sizes.rows), kCollectThreads, stream, r.rows,
           to_int(sizes.rows));
    const int64_t count = sizes.rows * shape.frames * shape.frame_tokens;
    require(cudaMemcpyAsync(tokens, r.rows.tokens, static_cast<size_t>(count) * sizeof(int32_t),
                            cudaMemcpyDeviceToDevice, stream),
            "copying tokens");
    std::vector<RowState> states(static_cast<size_t>(sizes.rows));
    copy_out(states.data(), r.rows.states, sizes.rows, stream);
    require(cudaStreamSynchronize(stream), "a rollout's kernels");
    for (const RowState& state : states) {
      stats += state;
      stats.passes = std::max<int64_t>(stats.passes, state.row_passes);
    }
  } catch (...) {
    cudaStreamSynchronize(stream);  // nothing may use the memory any more
    throw;
  }
  poll(request.frames);
  return stats;
}

template <class T, class C, int kDim>
double TypedEngine<T, C, kDim>::pass_seconds(int64_t tokens, cudaStream_t stream) {
  const PassSizes sizes{1, 1, tokens, tokens, 0, parts(tokens, kPiece), tokens};
  const int64_t capacity = up(tokens, kPositions);
  const auto layout = [&](const void* base, int64_t* bytes) {
    Carver carver(base);
    Pass pass = carve_pass(carver, sizes);
    pass.own_capacity = pass.own_room = to_int(capacity);
    const Work work = carve_work(carver, sizes);
    C* cache = carver.take<C>(cache_elements(capacity));
    *bytes = carver.used();
    return std::tuple(pass, work, cache);
  };
  int64_t bytes = 0;
  layout(nullptr, &bytes);
  hold(bytes, stream);
  require(cudaMemsetAsync(arena.as<void>(), 0, static_cast<size_t>(arena.bytes()), stream),
          "clearing memory");
  const auto [pass, work, cache] = layout(arena.as<void>(), &bytes);
  const std::vector<int32_t> counts = {to_int(tokens), to_int(tokens)};
  const std::vector<int32_t> first_token = {0, to_int(tokens)};
  std::vector<Token> list;
  std::vector<Logit> logits;
  for (int i = 0; i < to_int(tokens); ++i) {
    list.push_back({0, i, i, 0});
    logits.push_back({i, 0, 0});
  }
  void* own = cache;
  copy_in(pass.counts, counts.data(), 2, stream);
  copy_in(pass.tokens, list.data(), tokens, stream);
  copy_in(pass.logits, logits.data(), tokens, stream);
  copy_in(pass.first_token, first_token.data(), 2, stream);
  copy_in(pass.own, &own, 1, stream);
  const Graph graph = Graph::capture(
      [&, p = pass, w = work](cudaStream_t side) { run(p, w, sizes, true, nullptr, side); });
  double best = 0;
  for (int64_t i = 0; i <= kTimedPasses; ++i) {
    require(cudaStreamSynchronize(stream), "a pass");
    const auto start = std::chrono::steady_clock::now();
    graph.launch(stream);
    require(cudaStreamSynchronize(stream), "a pass");
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i == 1 || (i > 1 && seconds < best)) best = seconds;  // the first warms up
  }
  return best;
}

template <class T, class C>
std::unique_ptr<Imaginer::Engine> engine_of(const ModelConfig& c, const Tensors& tensors,
                                            int device, cudaStream_t stream) {
  if (c.head_dim <= 16) return std::make_unique<TypedEngine<T, C, 16>>(c, tensors, device, stream);
  if (c.head_dim <= 32) return std::make_unique<TypedEngine<T, C, 32>>(c, tensors, device, stream);
  if (c.head_dim <= 64) return std::make_unique<TypedEngine<T, C, 64>>(c, tensors, device, stream);
  if (c.head_dim <= 128) {
    return std::make_unique<TypedEngine<T, C, 128>>(c, tensors, device, stream);
  }
  throw ShapeError("Imaginer: head_dim = " + std::to_string(c.head_dim) +
                   "; on a GPU at most 128 is allowed");
}

template <class T>
std::unique_ptr<Imaginer::Engine> engine_of(const ModelConfig& c, const Tensors& tensors,
                                            int device, cudaStream_t stream) {
  return c.cache == CacheStorage::kFloat8 ? engine_of<T, Float8>(c, tensors, device, stream)
                                          : engine_of<T, T>(c, tensors, device, stream);
}

}  // namespace

Imaginer::Imaginer(const ModelConfig& config, const Tensors& tensors, int device,
                   uintptr_t stream) {
  const DeviceGuard guard(device);
  engine_ = config.storage == Storage::kFloat32
                ? engine_of<float>(config, tensors, device, stream_of(stream))
                : engine_of<Bf16>(config, tensors, device, stream_of(stream));
}

Imaginer::~Imaginer() = default;
const ModelConfig& Imaginer::config() const { return engine_->config; }
int Imaginer::device() const { return engine_->device; }
int64_t Imaginer::weight_bytes() const { return engine_->weight_bytes; }
bool Imaginer::made(const Prompt& prompt) const { return engine_->made(prompt); }
double Imaginer::capture_seconds() const { return engine_->capture_seconds; }
Bytes Imaginer::plan(const Shape& shape) const { return engine_->plan(shape); }

std::vector<std::shared_ptr<Prompt>> Imaginer::prefill(const int32_t* ids, int64_t scenes,
                                                       int64_t length, uintptr_t stream,
                                                       const Poll& poll) {
  const std::lock_guard lock(engine_->busy);
  const DeviceGuard guard(engine_->device);
  const std::string call = "a prefill of " + std::to_string(scenes) + " prompts of " +
                           std::to_string(length) + " tokens";
  return naming(call,
                [&] { return engine_->prefill(ids, scenes, length, stream_of(stream), poll); });
}

Stats Imaginer::imagine(const Request& request, const Prompts& prompts, uintptr_t stream,
                        const Poll& poll, int32_t* tokens) {
  if (request.rows() == 0) return {};
  const std::lock_guard lock(engine_->busy);
  const DeviceGuard guard(engine_->device);
  return naming(words(request, prompts), [&] {
    return engine_->imagine(request, prompts, stream_of(stream), poll, tokens);
  });
}

double Imaginer::pass_seconds(int64_t tokens, uintptr_t stream) {
  const std::lock_guard lock(engine_->busy);
  const DeviceGuard guard(engine_->device);
  return naming("timing a pass of " + std::to_string(tokens) + " tokens",
                [&] { return engine_->pass_seconds(tokens, stream_of(stream)); });
}

int64_t Imaginer::held_bytes() {
  const std::lock_guard lock(engine_->busy);
  return engine_->arena.bytes();
}

void Imaginer::release() {
  const std::lock_guard lock(engine_->busy);
  const DeviceGuard guard(engine_->device);
  engine_->graphs.clear();
  engine_->arena = Memory();
}

}  // namespace vlarft::imagine::cuda
