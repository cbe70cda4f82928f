// What a rollout is on the CPU: prompts prefilled once, then every frame of every member.
//
// A row knows its actions in advance, so it never waits for another: each pass takes from every row
// what it has to append (one token, or a frame's last token and the next action) and, when W > 1,
// up to W - 1 guesses. A guess is checked by equality with the token that is sampled in its place;
// the tokens therefore do not depend on the guesses, only the number of passes does.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "imagine/sampler.h"
#include "imagine/transformer.h"

namespace vlarft::imagine {

// Where guesses come from, tried in this order.
struct Guesses {
  bool front = false;     // a member of the group that is already past this place
  bool jacobi = false;    // this row's own sample at this place in the previous pass
  bool previous = false;  // the token at this position of the previous frame
};

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
  int64_t width = 1;  // W, positions sampled a pass and row at most
  Guesses guesses;
};

struct Stats {
  int64_t passes = 0;                      // of all rows together
  int64_t computed = 0;                    // tokens that passes computed
  int64_t needed = 0;                      // of those, tokens that stayed
  int64_t row_passes = 0;                  // row and pass, summed
  int64_t accepted = 0;                    // tokens sampled and kept
  int64_t guessed[3] = {}, right[3] = {};  // by source: front, jacobi, previous
};

struct Bytes {
  int64_t weights, prompt, suffix, work;
};

class Imaginer {
 public:
  Imaginer(const ModelConfig& config, const Tensors& tensors, const Kernels& kernels);

  const Transformer& transformer() const { return transformer_; }

  // Called between passes with the number of frames that every row has finished; may throw to stop.
  using Poll = std::function<void(int64_t frames)>;

  // Prompts [P,S] -> their keys and values.
  std::vector<std::shared_ptr<Prompt>> prefill(const int32_t* ids, int64_t scenes, int64_t length,
                                               int threads, const Poll& poll);

  // Tokens [P,M,T,K]; -1 everywhere in a row whose logits were not finite.
  Stats imagine(const Request& request, int threads, const Poll& poll, int32_t* tokens);

  // Logits [P,M,L,codes] of given suffixes [P,M,L], `chunk` tokens a pass: for measuring a model
  // and for checking that the result does not depend on the chunk.
  void score(const std::vector<std::shared_ptr<const Prompt>>& prompts, const int32_t* ids,
             int64_t rows_a_scene, int64_t length, int64_t chunk, int threads, const Poll& poll,
             float* logits);

  // What the calls above take, all at once.
  Bytes plan(int64_t scenes, int64_t rows_a_scene, int64_t prompt, int64_t frames,
             int64_t action_dim, int64_t frame_tokens, int64_t width, int threads) const;

 private:
  ThreadPool& pool(int threads);

  Transformer transformer_;
  std::mutex busy_;  // one call at a time; other engines are independent
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace vlarft::imagine
