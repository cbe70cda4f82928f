// What a rollout is asked for and what it tells, on any device.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "imagine/model.h"
#include "imagine/row.h"

namespace vlarft::imagine {

struct Request {
  int64_t scenes = 0, rows_a_scene = 0;                  // P, M
  int64_t frames = 0, action_dim = 0, frame_tokens = 0;  // T, A, K
  const int32_t* actions = nullptr;                      // ids [P,M,T,A]
  const uint32_t* keys = nullptr;                        // scene keys [P]
  const uint32_t* members = nullptr;                     // member words [M]
  Sampling sampling;
  int64_t width = 1;            // W, positions sampled a pass and row at most
  std::vector<Source> guesses;  // the first that knows a place guesses it

  int64_t rows() const { return scenes * rows_a_scene; }
  bool uses(Source source) const;  // W > 1 and among the guesses
  Rules rules() const;
};

// Sizes of a rollout, from which its memory follows.
struct Shape {
  int64_t scenes, rows_a_scene, prompt;      // P, M, S
  int64_t frames, action_dim, frame_tokens;  // T, A, K
  int64_t width = 1;                         // W
  bool keeps_logits = false;
  int threads = 1;

  int64_t rows() const { return scenes * rows_a_scene; }
  int64_t suffix() const { return frames * (action_dim + frame_tokens); }
};

struct Bytes {
  int64_t weights, prompt, suffix, work;
};

struct Stats {
  int64_t passes = 0;                                    // of all rows together
  int64_t computed = 0;                                  // tokens that passes computed
  int64_t needed = 0;                                    // of those, tokens that stayed
  int64_t row_passes = 0;                                // row and pass, summed
  int64_t accepted = 0;                                  // tokens sampled and kept
  int64_t guessed[kSources] = {}, right[kSources] = {};  // behind a right past only

  Stats& operator+=(const Stats& other);
  Stats& operator+=(const RowState& row);
};

// Called between passes with the number of frames that every row has finished; may throw to stop.
using Poll = std::function<void(int64_t frames)>;

}  // namespace vlarft::imagine
