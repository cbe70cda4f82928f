#include "imagine/imaginer.h"

#include <algorithm>
#include <chrono>

namespace vlarft::imagine {
namespace {

constexpr int64_t kPrefillTokens = 448;  // of one prefill pass: 4 attention blocks
constexpr int kTimedPasses = 3;

int64_t past_logit_bytes(const Shape& shape, int64_t codes) {
  return shape.keeps_logits
             ? shape.rows() * shape.frame_tokens * codes * static_cast<int64_t>(sizeof(float))
             : 0;
}

}  // namespace

Imaginer::Imaginer(const ModelConfig& config, const Tensors& tensors, const Kernels& kernels,
                   int64_t cache)
    : transformer_(config, tensors, kernels), cache_(cache) {}

int64_t Imaginer::scenes_at_once(const Shape& shape) const {
  const ModelConfig& config = transformer_.config();
  const int64_t free = cache_ - transformer_.weight_bytes();
  if (free < 0) return shape.scenes;  // weights come from memory: once for all scenes
  const int64_t scene = Cache::bytes(config, shape.prompt) +
                        shape.rows_a_scene * Cache::bytes(config, shape.suffix());
  return std::clamp<int64_t>(free / scene, 1, shape.scenes);
}

Shape Imaginer::part_of(Shape shape) const {
  shape.scenes = scenes_at_once(shape);
  return shape;
}

ThreadPool& Imaginer::pool(int threads) {
  if (pool_ == nullptr || pool_->size() != threads) {
    pool_.reset();
    pool_ = std::make_unique<ThreadPool>(threads);
  }
  return *pool_;
}

// One workspace serves the prefill and the passes after it.
Imaginer::WorkShape Imaginer::work_shape(const Shape& shape) const {
  const int64_t prefill = std::min(shape.scenes * shape.prompt, kPrefillTokens);
  const int64_t tokens = shape.rows() * (shape.action_dim + shape.width);
  return {std::max(prefill, tokens), shape.rows() * shape.width, shape.threads};
}

void Imaginer::prepare(const Shape& shape) {
  const ModelConfig& config = transformer_.config();
  const WorkShape work = work_shape(shape);
  const int64_t suffix = Cache::bytes(config, shape.suffix());
  const int64_t logits = past_logit_bytes(shape, config.frame_codes);
  const bool same_rows = static_cast<int64_t>(buffers_.suffixes.size()) == shape.rows() &&
                         (shape.rows() == 0 || buffers_.suffixes.front().bytes() == suffix);
  // What does not fit is freed before anything is taken.
  if (work_ != work) buffers_.work.reset();
  if (!same_rows) buffers_.suffixes.clear();
  if (buffers_.logits.bytes() != logits) buffers_.logits = Buffer();
  if (buffers_.work == nullptr) {
    work_ = work;
    buffers_.work = transformer_.workspace(work.tokens, work.logit_rows, work.threads);
  }
  while (static_cast<int64_t>(buffers_.suffixes.size()) < shape.rows()) {
    buffers_.suffixes.emplace_back(config, shape.suffix());
  }
  if (buffers_.logits.bytes() != logits) buffers_.logits = Buffer(logits);
  while (static_cast<int>(buffers_.samplers.size()) < shape.threads) {
    buffers_.samplers.emplace_back(transformer_.kernels(), config.frame_codes);
  }
}

std::vector<std::shared_ptr<Prompt>> Imaginer::prefill(const int32_t* ids, int64_t scenes,
                                                       int64_t length, int threads,
                                                       const Poll& poll) {
  const std::lock_guard lock(busy_);
  const ModelConfig& config = transformer_.config();
  std::vector<std::shared_ptr<Prompt>> prompts;
  for (int64_t p = 0; p < scenes; ++p) {
    prompts.push_back(std::make_shared<Prompt>(Prompt{Cache(config, length), length}));
  }
  const int64_t total = scenes * length;
  const int64_t at_once = std::min(total, kPrefillTokens);
  if (buffers_.work == nullptr || work_.tokens < at_once || work_.threads != threads) {
    buffers_.work.reset();
    work_ = {at_once, 0, threads};
    buffers_.work = transformer_.workspace(at_once, 0, threads);
  }
  for (int64_t done = 0; done < total;) {
    poll(0);
    std::vector<Row> rows;
    const int64_t end = std::min(total, done + kPrefillTokens);
    while (done < end) {
      const int64_t scene = done / length, at = done % length;
      const int64_t count = std::min(length - at, end - done);
      Row row;
      row.own = &prompts[static_cast<size_t>(scene)]->cache;
      row.length = at;
      row.tokens = ids + done;
      row.count = row.logits_from = count;
      rows.push_back(row);
      done += count;
    }
    transformer_.extend(rows, *buffers_.work, pool(threads));
  }
  return prompts;
}

Stats Imaginer::imagine(const Request& request, const Prompts& prompts, int threads,
                        const Poll& poll, int32_t* tokens) {
  const std::lock_guard lock(busy_);
  if (request.rows() == 0) return {};
  const Shape shape = part_of({request.scenes, request.rows_a_scene, prompts.front()->length,
                               request.frames, request.action_dim, request.frame_tokens,
                               request.width, request.uses(kLogits), threads});
  const int64_t rows_actions = request.rows_a_scene * request.frames * request.action_dim;
  const int64_t rows_tokens = request.rows_a_scene * request.frames * request.frame_tokens;
  Stats total;
  for (int64_t first = 0; first < request.scenes; first += shape.scenes) {
    const int64_t end = std::min(request.scenes, first + shape.scenes);
    Request part = request;
    part.scenes = end - first;
    part.actions += first * rows_actions;
    part.keys += first;
    const Prompts own(prompts.begin() + first, prompts.begin() + end);
    prepare(shape);
    Driver driver(transformer_, part, own, buffers_, pool(threads), tokens + first * rows_tokens);
    total += driver.run([&](int64_t frames) {
      poll((first * request.frames + (end - first) * frames) / request.scenes);
    });
  }
  return total;
}

void Imaginer::score(const Prompts& prompts, const int32_t* ids, int64_t rows_a_scene,
                     int64_t length, int64_t chunk, int threads, const Poll& poll, float* logits) {
  const std::lock_guard lock(busy_);
  const ModelConfig& config = transformer_.config();
  const int64_t count = static_cast<int64_t>(prompts.size()) * rows_a_scene;
  std::deque<Cache> caches;
  for (int64_t r = 0; r < count; ++r) caches.emplace_back(config, length);
  const auto work = transformer_.workspace(count * chunk, count * chunk, threads);
  for (int64_t first = 0; first < length; first += chunk) {
    poll(0);
    const int64_t part = std::min(chunk, length - first);
    std::vector<Row> rows;
    for (int64_t r = 0; r < count; ++r) {
      const Prompt& prompt = *prompts[static_cast<size_t>(r / rows_a_scene)];
      Row row{&prompt.cache,
              prompt.length,
              &caches[static_cast<size_t>(r)],
              first,
              ids + r * length + first,
              part,
              0};
      rows.push_back(row);
    }
    const float* from = transformer_.extend(rows, *work, pool(threads));
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < part; ++i) {
        std::copy_n(from + (r * part + i) * transformer_.logit_stride(), config.frame_codes,
                    logits + (r * length + first + i) * config.frame_codes);
      }
    }
  }
}

double Imaginer::pass_seconds(int64_t tokens, int threads) {
  const std::lock_guard lock(busy_);
  Cache cache(transformer_.config(), tokens);
  const auto work = transformer_.workspace(tokens, tokens, threads);
  const std::vector<int32_t> ids(static_cast<size_t>(tokens));
  const std::vector<Row> rows = {{nullptr, 0, &cache, 0, ids.data(), tokens, 0}};
  double best = 0;
  for (int i = 0; i < kTimedPasses; ++i) {
    const auto start = std::chrono::steady_clock::now();
    transformer_.extend(rows, *work, pool(threads));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    if (i == 0 || taken.count() < best) best = taken.count();
  }
  return best;
}

Bytes Imaginer::plan(const Shape& shape) const {
  const ModelConfig& config = transformer_.config();
  const int64_t row = Cache::bytes(config, shape.suffix());
  // Rows that pass together, rounded up, so that a larger request never takes less.
  Shape part = shape;
  const int64_t free = cache_ - transformer_.weight_bytes();
  if (free >= 0) {
    part.rows_a_scene = std::min(shape.rows(), std::max(shape.rows_a_scene, free / row));
    part.scenes = 1;
  }
  WorkShape work = work_shape(part);
  work.tokens = std::max(work.tokens, std::min(shape.scenes * shape.prompt, kPrefillTokens));
  return {transformer_.weight_bytes(), shape.scenes * Cache::bytes(config, shape.prompt),
          part.rows() * row,
          transformer_.workspace_bytes(work.tokens, work.logit_rows, work.threads) +
              shape.threads * Sampler::bytes(config.frame_codes) +
              past_logit_bytes(part, config.frame_codes)};
}

int64_t Imaginer::held_bytes() {
  const std::lock_guard lock(busy_);
  int64_t bytes = buffers_.logits.bytes() + static_cast<int64_t>(buffers_.samplers.size()) *
                                                Sampler::bytes(transformer_.config().frame_codes);
  if (buffers_.work != nullptr) {
    bytes += transformer_.workspace_bytes(work_.tokens, work_.logit_rows, work_.threads);
  }
  for (const Cache& cache : buffers_.suffixes) bytes += cache.bytes();
  return bytes;
}

void Imaginer::release() {
  const std::lock_guard lock(busy_);
  buffers_ = Buffers();
  work_ = {};
  pool_.reset();
}

}  // namespace vlarft::imagine
