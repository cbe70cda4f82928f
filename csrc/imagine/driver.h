// One rollout: every frame of every member, pass by pass.
//
// A row knows its actions in advance, so it never waits for another: each pass takes from every row
// what it has to append (one token, or a frame's last token and the next action) and, when W > 1,
// up to W - 1 guesses. A guess is checked by equality with the token that is sampled in its place;
// the tokens therefore do not depend on the guesses, only the number of passes does.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "imagine/request.h"
#include "imagine/sampler.h"
#include "imagine/transformer.h"

namespace vlarft::imagine {

struct Prompt {
  Cache cache;
  int64_t length;
};

using Prompts = std::vector<std::shared_ptr<const Prompt>>;

// What a rollout of one shape needs, kept from one call to the next.
struct Buffers {
  std::shared_ptr<Workspace> work;
  std::deque<Cache> suffixes;     // one a row
  std::vector<Sampler> samplers;  // one a thread
  Buffer logits;                  // of every row's last frame [rows,K,codes], for Source::kLogits
};

class Driver {
 public:
  Driver(const Transformer& transformer, const Request& request, const Prompts& prompts /*[P]*/,
         Buffers& buffers, ThreadPool& team, int32_t* tokens /*[P,M,T,K]*/);

  // Fills the tokens; -1 everywhere in a row whose logits were not finite.
  Stats run(const Poll& poll);

 private:
  struct Member {
    int64_t scene, index;  // index among all rows
    RowState state;
    std::vector<int32_t> input, source, drawn, finite, leftover;  // see RowView
    int64_t first_logit = 0;                                      // row of this pass's logits
  };

  RowView view(Member& m) const;
  void guess(Member& m, Sampler& sampler) const;
  void draw(Member& m, const float* logits, Sampler& sampler);

  NoiseAddress address(const Member& m, int64_t position) const;
  float* past_logits(const Member& m, int64_t position) const;

  const Transformer& transformer_;
  const Request& request_;
  const Prompts& prompts_;
  Rules rules_;
  Buffers& buffers_;
  ThreadPool& team_;
  int32_t* tokens_;
  std::vector<Member> group_;
  Stats stats_;
};

}  // namespace vlarft::imagine
