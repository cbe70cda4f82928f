// One rollout: every frame of every member, pass by pass.
//
// A row knows its actions in advance, so it never waits for another: each pass takes from every row
// what it has to append (one token, or a frame's last token and the next action) and, when W > 1,
// up to W - 1 guesses. A guess is checked by equality with the token that is sampled in its place;
// the tokens therefore do not depend on the guesses, only the number of passes does.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "imagine/sampler.h"
#include "imagine/transformer.h"

namespace vlarft::imagine {

// Where a guess comes from.
enum Source : int {
  kJacobi,  // this row's own sample at this place in the previous pass
  kLogits,  // the previous frame's logits at this position, with the noise of this place
};
inline constexpr int kSources = 2;
inline constexpr const char* kSourceNames[kSources] = {"jacobi", "logits"};

struct Prompt {
  Cache cache;
  int64_t length;
};

struct Request {
  std::vector<std::shared_ptr<const Prompt>> prompts;                      // [P]
  const int32_t* actions = nullptr;                                        // ids [P,M,T,A]
  const uint32_t* keys = nullptr;                                          // scene keys [P]
  const uint32_t* members = nullptr;                                       // member words [M]
  int64_t rows_a_scene = 0, frames = 0, action_dim = 0, frame_tokens = 0;  // M, T, A, K
  Sampling sampling;
  int64_t width = 1;            // W, positions sampled a pass and row at most
  std::vector<Source> guesses;  // the first that knows a place guesses it

  bool keeps_logits() const;
};

struct Stats {
  int64_t passes = 0;                                    // of all rows together
  int64_t computed = 0;                                  // tokens that passes computed
  int64_t needed = 0;                                    // of those, tokens that stayed
  int64_t row_passes = 0;                                // row and pass, summed
  int64_t accepted = 0;                                  // tokens sampled and kept
  int64_t guessed[kSources] = {}, right[kSources] = {};  // behind a right past only

  Stats& operator+=(const Stats& other);
};

// What a rollout of one shape needs, kept from one call to the next.
struct Buffers {
  std::shared_ptr<Workspace> work;
  std::deque<Cache> suffixes;     // one a row
  std::vector<Sampler> samplers;  // one a thread
  Buffer logits;                  // of every row's last frame [rows,K,codes], for Source::kLogits
};

// Called between passes with the number of frames that every row has finished; may throw to stop.
using Poll = std::function<void(int64_t frames)>;

class Driver {
 public:
  Driver(const Transformer& transformer, const Request& request, Buffers& buffers, ThreadPool& team,
         int32_t* tokens /*[P,M,T,K]*/);

  // Fills the tokens; -1 everywhere in a row whose logits were not finite.
  Stats run(const Poll& poll);

 private:
  // One row: what it has sampled, what it must append next, what it guesses.
  struct Member {
    int64_t scene, index;             // index among all rows
    int64_t length = 0;               // tokens in the cache that are final
    int64_t frame = 0, position = 0;  // of the next token to sample
    std::vector<int32_t> input;       // pending tokens, then guesses
    int64_t pending = 0;
    std::vector<Source> source;     // of each guess
    std::vector<int32_t> drawn;     // samples of this pass, one a logit row
    std::vector<char> finite;       // whether the logits of each sample were
    std::vector<int32_t> leftover;  // of the previous pass: samples beyond the first wrong guess
    int64_t first_logit = 0;        // row of this pass's logits
    bool broken = false;            // logits that decided a kept token were not finite
    int64_t guesses() const { return static_cast<int64_t>(source.size()); }
  };

  void guess(Member& m, Sampler& sampler) const;
  bool guess_from(Source source, const Member& m, int64_t ahead, Sampler& sampler,
                  int32_t* token) const;
  void draw(Member& m, const float* logits, Sampler& sampler);
  void settle(Member& m);

  NoiseAddress address(const Member& m, int64_t frame, int64_t position) const;
  const int32_t* action(const Member& m, int64_t frame) const;
  int32_t& token(int64_t index, int64_t frame, int64_t position) const;
  float* past_logits(const Member& m, int64_t position) const;

  const Transformer& transformer_;
  const Request& request_;
  Buffers& buffers_;
  ThreadPool& team_;
  int32_t* tokens_;
  std::vector<Member> group_;
  Stats stats_;
};

}  // namespace vlarft::imagine
