#include "imagine/imaginer.h"

#include <algorithm>
#include <bit>
#include <deque>

namespace vlarft::imagine {
namespace {

constexpr int64_t kPrefillTokens = 448;  // of one prefill pass: 4 attention blocks

int64_t suffix_positions(int64_t frames, int64_t action_dim, int64_t frame_tokens) {
  return frames * (action_dim + frame_tokens);
}

// One member: what it has sampled, what it must append next, what it guesses.
struct Member {
  int64_t scene, index;  // index among all rows
  std::unique_ptr<Cache> cache;
  int64_t length = 0;               // tokens in the cache that are final
  int64_t frame = 0, position = 0;  // of the next token to sample
  std::vector<int32_t> input;       // pending tokens, then guesses
  int64_t pending = 0;
  std::vector<int> source;        // of each guess
  std::vector<int32_t> drawn;     // samples of this pass, one a logit row
  std::vector<char> finite;       // whether the logits of each sample were
  std::vector<int32_t> leftover;  // of the previous pass: samples beyond the first wrong guess
  bool broken = false;            // logits that decided a kept token were not finite
  int64_t guesses() const { return static_cast<int64_t>(source.size()); }
};

enum Source { kFront, kJacobi, kPrevious };

bool all_finite(const float* x, int64_t n) {
  uint32_t worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    worst = std::max(worst, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFU);
  }
  return worst < 0x7F800000U;
}

}  // namespace

Imaginer::Imaginer(const ModelConfig& config, const Tensors& tensors, const Kernels& kernels)
    : transformer_(config, tensors, kernels) {}

ThreadPool& Imaginer::pool(int threads) {
  if (pool_ == nullptr || pool_->size() != threads) {
    pool_.reset();
    pool_ = std::make_unique<ThreadPool>(threads);
  }
  return *pool_;
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
  const auto work = transformer_.workspace(std::min(total, kPrefillTokens), 0, threads);
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
    transformer_.extend(rows, *work, pool(threads));
  }
  return prompts;
}

Stats Imaginer::imagine(const Request& request, int threads, const Poll& poll, int32_t* tokens) {
  const std::lock_guard lock(busy_);
  const ModelConfig& config = transformer_.config();
  const int64_t scenes = static_cast<int64_t>(request.prompts.size());
  const int64_t members = request.rows_a_scene, count = scenes * members;
  const int64_t frames = request.frames, frame_tokens = request.frame_tokens;
  const int64_t action_dim = request.action_dim, width = request.width;
  Stats stats;
  if (count == 0) return stats;

  std::vector<Member> group(static_cast<size_t>(count));
  for (int64_t r = 0; r < count; ++r) {
    Member& member = group[static_cast<size_t>(r)];
    member.scene = r / members;
    member.index = r;
    member.cache =
        std::make_unique<Cache>(config, suffix_positions(frames, action_dim, frame_tokens));
  }
  const auto action = [&](const Member& m, int64_t frame) {
    return request.actions + (m.index * frames + frame) * action_dim;
  };
  const auto drawn_at = [&](int64_t index, int64_t frame, int64_t position) -> int32_t& {
    return tokens[(index * frames + frame) * frame_tokens + position];
  };
  const auto work = transformer_.workspace(count * (action_dim + width), count * width, threads);
  ThreadPool& team = pool(threads);
  std::vector<Sampler> samplers;
  for (int i = 0; i < threads; ++i) {
    samplers.emplace_back(transformer_.kernels(), config.frame_codes);
  }
  for (Member& m : group) {
    m.input.assign(action(m, 0), action(m, 0) + action_dim);
    m.pending = action_dim;
  }

  const auto guess = [&](Member& m) {
    m.source.clear();
    const int64_t most = std::min(width - 1, frame_tokens - m.position - 1);
    for (int64_t i = 0; i < most; ++i) {
      const int64_t position = m.position + i;
      int from = -1;
      int32_t token = 0;
      if (request.guesses.front) {
        const Member* first = nullptr;
        for (int64_t other = m.scene * members; other < (m.scene + 1) * members; ++other) {
          const Member& o = group[static_cast<size_t>(other)];
          const bool past = o.frame > m.frame || (o.frame == m.frame && o.position > position);
          if (past && (first == nullptr || o.frame > first->frame ||
                       (o.frame == first->frame && o.position > first->position))) {
            first = &o;
          }
        }
        if (first != nullptr) {
          from = kFront;
          token = drawn_at(first->index, m.frame, position);
        }
      }
      if (from < 0 && request.guesses.jacobi && i < static_cast<int64_t>(m.leftover.size())) {
        from = kJacobi;
        token = m.leftover[static_cast<size_t>(i)];
      }
      if (from < 0 && request.guesses.previous && m.frame > 0) {
        from = kPrevious;
        token = drawn_at(m.index, m.frame - 1, position);
      }
      if (from < 0) break;
      m.source.push_back(from);
      m.input.push_back(token);
    }
  };

  std::vector<Member*> active;
  for (Member& m : group) active.push_back(&m);
  std::vector<Row> rows;
  std::vector<int64_t> first_logit;
  while (!active.empty()) {
    int64_t finished = frames;
    for (const Member* m : active) finished = std::min(finished, m->frame);
    poll(finished);
    rows.clear();
    first_logit.clear();
    int64_t logit_rows = 0;
    for (Member* m : active) {
      if (width > 1) guess(*m);
      const Prompt& prompt = *request.prompts[static_cast<size_t>(m->scene)];
      Row row;
      row.prefix = &prompt.cache;
      row.prefix_length = prompt.length;
      row.own = m->cache.get();
      row.length = m->length;
      row.tokens = m->input.data();
      row.count = static_cast<int64_t>(m->input.size());
      row.logits_from = m->pending - 1;
      rows.push_back(row);
      first_logit.push_back(logit_rows);
      logit_rows += m->guesses() + 1;
      stats.computed += row.count;
    }
    const float* logits = transformer_.extend(rows, *work, team);
    team.run(static_cast<int64_t>(active.size()), [&](int64_t i, int thread) {
      Member& m = *active[static_cast<size_t>(i)];
      m.drawn.clear();
      m.finite.clear();
      for (int64_t j = 0; j <= m.guesses(); ++j) {
        const NoiseAddress address{static_cast<uint32_t>(m.frame * frame_tokens + m.position + j),
                                   request.members[m.index % members], request.keys[m.scene]};
        const float* line =
            logits + (first_logit[static_cast<size_t>(i)] + j) * transformer_.logit_stride();
        m.finite.push_back(all_finite(line, config.frame_codes));
        m.drawn.push_back(
            samplers[static_cast<size_t>(thread)].sample(line, request.sampling, address));
      }
    });
    ++stats.passes;
    for (Member* m : active) {
      int64_t right = 0;
      while (right < m->guesses() && m->input[static_cast<size_t>(m->pending + right)] ==
                                         m->drawn[static_cast<size_t>(right)]) {
        ++right;
      }
      for (int64_t j = 0; j < m->guesses(); ++j) {
        // Guesses behind the first wrong one were made on a wrong past: they do not count.
        if (j > right) break;
        const int source = m->source[static_cast<size_t>(j)];
        ++stats.guessed[source];
        stats.right[source] += j < right ? 1 : 0;
      }
      for (int64_t j = 0; j <= right; ++j) {
        drawn_at(m->index, m->frame, m->position + j) = m->drawn[static_cast<size_t>(j)];
        m->broken |= m->finite[static_cast<size_t>(j)] == 0;
      }
      m->leftover.assign(m->drawn.begin() + right + 1, m->drawn.end());
      m->length += m->pending + right;
      stats.needed += m->pending + right;
      stats.accepted += right + 1;
      ++stats.row_passes;
      m->position += right + 1;
      m->input.assign(1, m->drawn[static_cast<size_t>(right)]);
      if (m->position == frame_tokens) {
        ++m->frame;
        m->position = 0;
        if (m->frame < frames) {
          const int32_t* next = action(*m, m->frame);
          m->input.insert(m->input.end(), next, next + action_dim);
        }
      }
      m->pending = static_cast<int64_t>(m->input.size());
    }
    std::erase_if(active, [&](const Member* m) { return m->frame == frames; });
  }
  poll(frames);
  for (const Member& m : group) {
    if (m.broken) std::fill_n(&drawn_at(m.index, 0, 0), frames * frame_tokens, -1);
  }
  return stats;
}

void Imaginer::score(const std::vector<std::shared_ptr<const Prompt>>& prompts, const int32_t* ids,
                     int64_t rows_a_scene, int64_t length, int64_t chunk, int threads,
                     const Poll& poll, float* logits) {
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

Bytes Imaginer::plan(int64_t scenes, int64_t rows_a_scene, int64_t prompt, int64_t frames,
                     int64_t action_dim, int64_t frame_tokens, int64_t width, int threads) const {
  const ModelConfig& config = transformer_.config();
  const int64_t rows = scenes * rows_a_scene;
  const int64_t prefill =
      transformer_.workspace_bytes(std::min(scenes * prompt, kPrefillTokens), 0, threads);
  const int64_t decode =
      transformer_.workspace_bytes(rows * (action_dim + width), rows * width, threads) +
      threads * Sampler::bytes(config.frame_codes);
  return {transformer_.weight_bytes(), scenes * Cache::bytes(config, prompt),
          rows * Cache::bytes(config, suffix_positions(frames, action_dim, frame_tokens)),
          std::max(prefill, decode)};
}

}  // namespace vlarft::imagine
