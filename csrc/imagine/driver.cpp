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

Driver::Driver(const Transformer& transformer, const Request& request, const Prompts& prompts,
               Buffers& buffers, ThreadPool& team, int32_t* tokens)
    : transformer_(transformer),
      request_(request),
      prompts_(prompts),
      rules_(request.rules()),
      buffers_(buffers),
      team_(team),
      tokens_(tokens),
      group_(static_cast<size_t>(request.rows())) {
  const auto width = static_cast<size_t>(request.width);
  for (size_t r = 0; r < group_.size(); ++r) {
    Member& m = group_[r];
    m.index = static_cast<int64_t>(r);
    m.scene = m.index / request.rows_a_scene;
    m.input.resize(static_cast<size_t>(request.action_dim) + width);
    for (auto* places : {&m.source, &m.drawn, &m.finite, &m.leftover}) places->resize(width);
    start(rules_, view(m));
  }
}

RowView Driver::view(Member& m) const {
  return {&m.state,
          m.input.data(),
          m.source.data(),
          m.drawn.data(),
          m.finite.data(),
          m.leftover.data(),
          tokens_ + m.index * request_.frames * request_.frame_tokens,
          request_.actions + m.index * request_.frames * request_.action_dim};
}

float* Driver::past_logits(const Member& m, int64_t position) const {
  return buffers_.logits.as<float>() +
         (m.index * request_.frame_tokens + position) * transformer_.config().frame_codes;
}

NoiseAddress Driver::address(const Member& m, int64_t position) const {
  return {static_cast<uint32_t>(m.state.frame * request_.frame_tokens + position),
          request_.members[m.index % request_.rows_a_scene], request_.keys[m.scene]};
}

void Driver::guess(Member& m, Sampler& sampler) const {
  imagine::guess(rules_, view(m), request_.guesses.data(),
                 static_cast<int>(request_.guesses.size()), [&](int32_t ahead, int32_t* token) {
                   const int64_t position = m.state.position + ahead;
                   *token = sampler.sample(past_logits(m, position), request_.sampling,
                                           address(m, position));
                   return true;
                 });
}

void Driver::draw(Member& m, const float* logits, Sampler& sampler) {
  const float* first = logits + m.first_logit * transformer_.logit_stride();
  for (int32_t j = 0; j <= m.state.guesses; ++j) {
    const float* line = first + j * transformer_.logit_stride();
    m.finite[static_cast<size_t>(j)] = all_finite(line, transformer_.config().frame_codes) ? 1 : 0;
    m.drawn[static_cast<size_t>(j)] =
        sampler.sample(line, request_.sampling, address(m, m.state.position + j));
  }
  if (!request_.uses(kLogits)) return;
  // Up to the first wrong guess these are the logits of kept tokens.
  const int32_t right = right_guesses(view(m));
  for (int32_t j = 0; j <= right; ++j) {
    std::copy_n(first + j * transformer_.logit_stride(), transformer_.config().frame_codes,
                past_logits(m, m.state.position + j));
  }
}

Stats Driver::run(const Poll& poll) {
  std::vector<Member*> active;
  for (Member& m : group_) active.push_back(&m);
  std::vector<Row> rows;
  while (!active.empty()) {
    int64_t finished = request_.frames;
    for (const Member* m : active) finished = std::min<int64_t>(finished, m->state.frame);
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
      const Prompt& prompt = *prompts_[static_cast<size_t>(m->scene)];
      rows.push_back({&prompt.cache, prompt.length,
                      &buffers_.suffixes[static_cast<size_t>(m->index)], m->state.length,
                      m->input.data(), m->state.pending + m->state.guesses, m->state.pending - 1});
      m->first_logit = logit_rows;
      logit_rows += m->state.guesses + 1;
    }
    const float* logits = transformer_.extend(rows, *buffers_.work, team_);
    team_.run(count, [&](int64_t i, int thread) {
      draw(*active[static_cast<size_t>(i)], logits, buffers_.samplers[static_cast<size_t>(thread)]);
    });
    ++stats_.passes;
    for (Member* m : active) settle(rules_, view(*m));
    std::erase_if(active, [&](const Member* m) { return m->state.frame == request_.frames; });
  }
  poll(request_.frames);
  bool broken = false;
  for (const Member& m : group_) {
    stats_ += m.state;
    if (m.state.broken == 0) continue;
    std::fill_n(tokens_ + m.index * request_.frames * request_.frame_tokens,
                request_.frames * request_.frame_tokens, -1);
    broken = true;
  }
  // Places beyond a row's length are multiplied by zero, which needs them to be finite.
  if (broken) buffers_.suffixes.clear();
  return stats_;
}

}  // namespace vlarft::imagine
