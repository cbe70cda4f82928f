#include <algorithm>
#include <chrono>
#include <cmath>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/environment.h"
#include "core/errors.h"
#include "imagine/cuda/finish.h"
#include "imagine/cuda/imaginer.h"
#include "imagine/cuda/layout.h"
#include "imagine/cuda/rows.h"
#include "imagine/cuda/transformer.h"

namespace vlarft::imagine::cuda {

namespace {

constexpr int64_t kGraphs = 4;                 // shapes whose graphs are kept
constexpr int64_t kTurn = 16;                  // passes of a turn of the loop at most
constexpr std::chrono::milliseconds kLook(1);  // between two looks at the progress
constexpr int64_t kTimedPasses = 3;

std::string words(const Request& request, const Prompts& prompts) {
  return "a rollout of " + std::to_string(request.scenes) + " x " +
         std::to_string(request.rows_a_scene) + " rows, prompt " +
         std::to_string(prompts.front()->length) + ", " + std::to_string(request.frames) +
         " frames, W " + std::to_string(request.width);
}
constexpr const char* kKernels = "a rollout's kernels";

// Until `end`, tells frames as they are finished. Nothing on the device waits for it.
void watch(const Event& end, const volatile int32_t* progress, const Poll& poll) {
  auto told = std::chrono::steady_clock::now();
  while (!end.done(kKernels)) {
    const auto now = std::chrono::steady_clock::now();
    if (now - told >= kLook) {
      poll(progress[0]);
      told = now;
    }
    std::this_thread::yield();
  }
}

cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

// Whether the host launches each pass and waits for it: so profilers see passes whether or not they
// look into loops, and what the loop saves can be measured.
bool pass_by_pass() { return switched_on("VLARFT_CUDA_PASSES"); }

// Passes of a turn. With W = 1 their number is known, and a turn divides it; else the loop looks
// after each whether it was the last, as those behind it would run without rows.
int64_t passes_a_turn(const Shape& shape) {
  if (shape.width > 1) return 1;
  const int64_t all = shape.frames * shape.frame_tokens;
  int64_t turn = std::min(kTurn, all);
  while (all % turn != 0) --turn;
  return turn;
}

}  // namespace

struct GraphKey {
  int64_t scenes, rows_a_scene, prompt, frames, action_dim, frame_tokens, width;
  std::vector<Source> sources;
  int64_t turn;  // passes of a turn of the loop; 0: one pass, no loop
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
      : model_(c, tensors, stream) {
    config = c;
    device = on;
    weight_bytes = model_.weight_bytes();
    made_for_[0] = c.layers;
    made_for_[1] = c.kv_heads;
    made_for_[2] = kDim;
    made_for_[3] = sizeof(C);
  }

  std::vector<std::shared_ptr<Prompt>> prefill(const int32_t* ids, int64_t scenes, int64_t length,
                                               cudaStream_t stream, const Poll& poll) override;
  Stats imagine(const Request& request, const Prompts& prompts, cudaStream_t stream,
                const Poll& poll, int32_t* tokens) override;
  double pass_seconds(int64_t tokens, cudaStream_t stream) override;
  Bytes plan(const Shape& shape) const override { return memory_.plan(shape, weight_bytes); }
  bool made(const Prompt& prompt) const override {
    return std::equal(prompt.layout, prompt.layout + 4, made_for_);
  }

 private:
  void hold(int64_t bytes, cudaStream_t stream);
  void clear(cudaStream_t stream);
  void queue_pass(const Rollout& r, const PassSizes& sizes, cudaStream_t stream);
  const Graph& graph_of(const GraphKey& key, const Rollout& r, const PassSizes& sizes);

  const Transformer<T, C, kDim> model_;
  const Layout<T, C, kDim>& memory_ = model_.layout;
  int64_t made_for_[4] = {};
  Mapped progress_{3 * sizeof(int32_t)};
};

// At least so much in one piece; graphs hold its addresses.
template <class T, class C, int kDim>
void TypedEngine<T, C, kDim>::hold(int64_t bytes, cudaStream_t stream) {
  if (arena.bytes() >= bytes) return;
  graphs.clear();
  arena = Memory();  // before the larger one is taken
  arena = Memory(bytes, stream);
}

template <class T, class C, int kDim>
void TypedEngine<T, C, kDim>::clear(cudaStream_t stream) {
  require(cudaMemsetAsync(arena.as<void>(), 0, static_cast<size_t>(arena.bytes()), stream),
          "clearing memory");
}

// --- prefill --------------------------------------------------------------------------------

template <class T, class C, int kDim>
std::vector<std::shared_ptr<Prompt>> TypedEngine<T, C, kDim>::prefill(
    const int32_t* ids, int64_t scenes, int64_t length, cudaStream_t stream, const Poll& poll) {
  const int64_t capacity = up(length, kPositions);
  std::vector<std::shared_ptr<Prompt>> prompts;
  for (int64_t p = 0; p < scenes; ++p) {
    auto prompt = std::make_shared<Prompt>();
    const auto bytes = memory_.cache_elements(capacity) * static_cast<int64_t>(sizeof(C));
    const auto memory = std::make_shared<Memory>(bytes, stream);
    prompt->cache = {memory, memory->template as<void>()};
    prompt->length = length;
    prompt->bytes = bytes;
    std::copy_n(made_for_, 4, prompt->layout);
    prompts.push_back(std::move(prompt));
  }
  hold(memory_.prefill_bytes(scenes, length), stream);
  for (int64_t first = 0; first < scenes; first += kPrefillScenes) {
    const int64_t together = std::min(kPrefillScenes, scenes - first);
    for (int64_t done = 0; done < length; done += kPrefillTokens) {
      poll(0);
      const int64_t part = std::min(kPrefillTokens, length - done);
      const PassSizes sizes{together, together,       together * part, 0, parts(done, kPiece),
                            1,        together * part};
      clear(stream);
      Carver carver(arena.as<void>());
      Pass pass = memory_.carve_pass(carver, sizes);
      const Work work = memory_.carve_work(carver, sizes);
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
      model_.run(pass, work, sizes, false, nullptr, fused_rows, stream);
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
  s.stride = to_int(memory_.logit_stride());
  s.ids = to_int(config.frame_codes);
  s.width = r.rows.rules.width;
  s.frame_tokens = r.rows.rules.frame_tokens;
  model_.run(r.pass, r.work, sizes, true, &finish, fused_rows, stream);
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
  Graph graph = key.turn == 0 ? Graph::capture([&](cudaStream_t own) { queue_pass(r, sizes, own); })
                              : Graph::capture_loop([&](cudaStream_t own, Condition again) {
                                  Rollout looping = r;
                                  looping.rows.again = again;
                                  looping.rows.loops = true;
                                  for (int64_t i = 0; i < key.turn; ++i)
                                    queue_pass(looping, sizes, own);
                                });
  graphs.push_front({key, std::move(graph)});
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
  const PassSizes sizes = memory_.rollout_sizes(shape);
  hold(memory_.rollout_bytes(shape), stream);
  clear(stream);
  Carver carver(arena.as<void>());
  Rollout r = memory_.carve_rollout(carver, shape, request.uses(kLogits));
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
    own.push_back(reinterpret_cast<C*>(r.suffixes) +
                  row * memory_.cache_elements(memory_.suffix_capacity(shape)));
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

  const GraphKey key{shape.scenes,
                     shape.rows_a_scene,
                     shape.prompt,
                     shape.frames,
                     shape.action_dim,
                     shape.frame_tokens,
                     shape.width,
                     sources,
                     pass_by_pass() ? 0 : passes_a_turn(shape)};
  Stats stats;
  try {
    if (checked()) {  // kernel by kernel, each waited for
      while (progress[1] != 0) {
        poll(progress[0]);
        queue_pass(r, sizes, stream);
      }
    } else if (key.turn == 0) {
      const Graph& pass = graph_of(key, r, sizes);
      while (progress[1] != 0) {
        poll(progress[0]);
        pass.launch(stream);
        require(cudaStreamSynchronize(stream), kKernels);
      }
    } else {
      graph_of(key, r, sizes).launch(stream);
    }
    launch("finishing rows", finish_kernel, grid(sizes.rows), kCollectThreads, stream, r.rows,
           to_int(sizes.rows));
    const int64_t count = sizes.rows * shape.frames * shape.frame_tokens;
    require(cudaMemcpyAsync(tokens, r.rows.tokens, static_cast<size_t>(count) * sizeof(int32_t),
                            cudaMemcpyDeviceToDevice, stream),
            "copying tokens");
    Event end;
    end.record(stream);
    watch(end, progress, poll);
    std::vector<RowState> states(static_cast<size_t>(sizes.rows));
    copy_out(states.data(), r.rows.states, sizes.rows, stream);
    require(cudaStreamSynchronize(stream), kKernels);
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
    Pass pass = memory_.carve_pass(carver, sizes);
    pass.own_capacity = pass.own_room = to_int(capacity);
    const Work work = memory_.carve_work(carver, sizes);
    C* cache = carver.take<C>(memory_.cache_elements(capacity));
    *bytes = carver.used();
    return std::tuple(pass, work, cache);
  };
  int64_t bytes = 0;
  layout(nullptr, &bytes);
  hold(bytes, stream);
  clear(stream);
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
  const Graph graph = Graph::capture([&, p = pass, w = work](cudaStream_t side) {
    model_.run(p, w, sizes, true, nullptr, fused_rows, side);
  });
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
