#include "imagine/driver.h"

#include <algorithm>
#include <bit>

namespace vlarft::imagine {
namespace {

bool all_finite(const float* x, int64_t n) {
  uint32_t worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    worst = std::max(worst, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFU);
  }
  return worst < 0x7F800000U;
}

}  // namespace

Stats& Stats::operator+=(const Stats& other) {
  passes += other.passes;
  computed += other.computed;
  needed += other.needed;
  row_passes += other.row_passes;
  accepted += other.accepted;
  for (int source = 0; source < kSources; ++source) {
    guessed[source] += other.guessed[source];
    right[source] += other.right[source];
  }
  return *this;
}

bool Request::keeps_logits() const {
  return width > 1 && std::find(guesses.begin(), guesses.end(), kLogits) != guesses.end();
}

Driver::Driver(const Transformer& transformer, const Request& request, Buffers& buffers,
               ThreadPool& team, int32_t* tokens)
    : transformer_(transformer),
      request_(request),
      buffers_(buffers),
      team_(team),
      tokens_(tokens),
      group_(request.prompts.size() * static_cast<size_t>(request.rows_a_scene)) {
  for (size_t r = 0; r < group_.size(); ++r) {
    Member& m = group_[r];
    m.index = static_cast<int64_t>(r);
    m.scene = m.index / request.rows_a_scene;
    m.input.assign(action(m, 0), action(m, 0) + request.action_dim);
    m.pending = request.action_dim;
  }
}

const int32_t* Driver::action(const Member& m, int64_t frame) const {
  return request_.actions + (m.index * request_.frames + frame) * request_.action_dim;
}

int32_t& Driver::token(int64_t index, int64_t frame, int64_t position) const {
  return tokens_[(index * request_.frames + frame) * request_.frame_tokens + position];
}

float* Driver::past_logits(const Member& m, int64_t position) const {
  return buffers_.logits.as<float>() +
         (m.index * request_.frame_tokens + position) * transformer_.config().frame_codes;
}

NoiseAddress Driver::address(const Member& m, int64_t frame, int64_t position) const {
  return {static_cast<uint32_t>(frame * request_.frame_tokens + position),
          request_.members[m.index % request_.rows_a_scene], request_.keys[m.scene]};
}

bool Driver::guess_from(Source source, const Member& m, int64_t ahead, Sampler& sampler,
                        int32_t* guessed) const {
  const int64_t position = m.position + ahead;
  switch (source) {
    case kJacobi:
      if (ahead >= static_cast<int64_t>(m.leftover.size())) return false;
      *guessed = m.leftover[static_cast<size_t>(ahead)];
      return true;
    case kLogits:
      if (m.frame == 0) return false;
      *guessed = sampler.sample(past_logits(m, position), request_.sampling,
                                address(m, m.frame, position));
      return true;
  }
  return false;
}

void Driver::guess(Member& m, Sampler& sampler) const {
  m.source.clear();
  const int64_t most = std::min(request_.width - 1, request_.frame_tokens - m.position - 1);
  for (int64_t ahead = 0; ahead < most; ++ahead) {
    int32_t guessed = 0;
    const auto source =
        std::find_if(request_.guesses.begin(), request_.guesses.end(),
                     [&](Source from) { return guess_from(from, m, ahead, sampler, &guessed); });
    if (source == request_.guesses.end()) return;
    m.source.push_back(*source);
    m.input.push_back(guessed);
  }
}

void Driver::draw(Member& m, const float* logits, Sampler& sampler) {
  m.drawn.clear();
  m.finite.clear();
  for (int64_t j = 0; j <= m.guesses(); ++j) {
    const float* line = logits + (m.first_logit + j) * transformer_.logit_stride();
    m.finite.push_back(all_finite(line, transformer_.config().frame_codes));
    m.drawn.push_back(sampler.sample(line, request_.sampling, address(m, m.frame, m.position + j)));
  }
  if (!request_.keeps_logits()) return;
  // Up to the first wrong guess these are the logits of kept tokens.
  for (int64_t j = 0; j <= m.guesses(); ++j) {
    const float* line = logits + (m.first_logit + j) * transformer_.logit_stride();
    std::copy_n(line, transformer_.config().frame_codes, past_logits(m, m.position + j));
    if (j < m.guesses() &&
        m.input[static_cast<size_t>(m.pending + j)] != m.drawn[static_cast<size_t>(j)]) {
      break;
    }
  }
}

void Driver::settle(Member& m) {
  int64_t right = 0;
  while (right < m.guesses() &&
         m.input[static_cast<size_t>(m.pending + right)] == m.drawn[static_cast<size_t>(right)]) {
    ++right;
  }
  // Guesses behind the first wrong one were made on a wrong past: they do not count.
  for (int64_t j = 0; j < std::min(right + 1, m.guesses()); ++j) {
    const Source source = m.source[static_cast<size_t>(j)];
    ++stats_.guessed[source];
    stats_.right[source] += j < right ? 1 : 0;
  }
  for (int64_t j = 0; j <= right; ++j) {
    token(m.index, m.frame, m.position + j) = m.drawn[static_cast<size_t>(j)];
    m.broken |= m.finite[static_cast<size_t>(j)] == 0;
  }
  stats_.computed += static_cast<int64_t>(m.input.size());
  stats_.needed += m.pending + right;
  stats_.accepted += right + 1;
  ++stats_.row_passes;
  m.leftover.assign(m.drawn.begin() + right + 1, m.drawn.end());
  m.length += m.pending + right;
  m.position += right + 1;
  m.input.assign(1, m.drawn[static_cast<size_t>(right)]);
  if (m.position == request_.frame_tokens) {
    ++m.frame;
    m.position = 0;
    if (m.frame < request_.frames) {
      const int32_t* next = action(m, m.frame);
      m.input.insert(m.input.end(), next, next + request_.action_dim);
    }
  }
  m.pending = static_cast<int64_t>(m.input.size());
}

Stats Driver::run(const Poll& poll) {
  std::vector<Member*> active;
  for (Member& m : group_) active.push_back(&m);
  std::vector<Row> rows;
  while (!active.empty()) {
    int64_t finished = request_.frames;
    for (const Member* m : active) finished = std::min(finished, m->frame);
    poll(finished);
    const auto count = static_cast<int64_t>(active.size());
    if (request_.width > 1) {
      team_.run(count, [&](int64_t i, int thread) {
        guess(*active[static_cast<size_t>(i)], buffers_.samplers[static_cast<size_t>(thread)]);
      });
    }
    rows.clear();
    int64_t logit_rows = 0;
    for (Member* m : active) {
      const Prompt& prompt = *request_.prompts[static_cast<size_t>(m->scene)];
      rows.push_back({&prompt.cache, prompt.length,
                      &buffers_.suffixes[static_cast<size_t>(m->index)], m->length, m->input.data(),
                      static_cast<int64_t>(m->input.size()), m->pending - 1});
      m->first_logit = logit_rows;
      logit_rows += m->guesses() + 1;
    }
    const float* logits = transformer_.extend(rows, *buffers_.work, team_);
    team_.run(count, [&](int64_t i, int thread) {
      draw(*active[static_cast<size_t>(i)], logits, buffers_.samplers[static_cast<size_t>(thread)]);
    });
    ++stats_.passes;
    for (Member* m : active) settle(*m);
    std::erase_if(active, [&](const Member* m) { return m->frame == request_.frames; });
  }
  poll(request_.frames);
  bool broken = false;
  for (const Member& m : group_) {
    if (!m.broken) continue;
    std::fill_n(&token(m.index, 0, 0), request_.frames * request_.frame_tokens, -1);
    broken = true;
  }
  // Places beyond a row's length are multiplied by zero, which needs them to be finite.
  if (broken) buffers_.suffixes.clear();
  return stats_;
}

}  // namespace vlarft::imagine
