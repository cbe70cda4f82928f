// What a row of a rollout does between two passes: one text for the host and the GPU.
//
// A pass appends the row's pending tokens (one, or a frame's last token and the next action) and
// its guesses, and samples one token behind the last pending token and behind each guess. A guess
// is right when it equals the token sampled in its place. What stands after the last right guess,
// and one more, is kept: it is what would have been sampled one by one.
#pragma once

#include <cstdint>

#include "core/philox.h"

namespace vlarft::imagine {

// Where a guess comes from.
enum Source : int {
  kJacobi,  // this row's own sample at this place in the previous pass
  kLogits,  // the previous frame's logits at this position, with the noise of this place
};
inline constexpr int kSources = 2;
inline constexpr const char* kSourceNames[kSources] = {"jacobi", "logits"};

struct Rules {
  int32_t frames, frame_tokens, action_dim, width;  // T, K, A, W
};

struct RowState {
  int32_t frame = 0, position = 0;   // of the next token to sample
  int32_t length = 0;                // tokens in the cache that are final
  int32_t pending = 0, guesses = 0;  // of the pass
  int32_t leftovers = 0;             // samples of the last pass beyond the first wrong guess
  int32_t broken = 0;                // logits that decided a kept token were not finite
  int32_t row_passes = 0, computed = 0, needed = 0, accepted = 0;  // see Stats
  int32_t guessed[kSources] = {}, right[kSources] = {};            // behind a right past only
};

// A row and its arrays, in whose place `tokens` and `actions` begin.
struct RowView {
  RowState* state;
  int32_t* input;          // [A + W] pending tokens, then guesses
  int32_t* source;         // [W] of each guess
  int32_t* drawn;          // [W] samples of this pass
  int32_t* finite;         // [W] whether the logits of each sample were
  int32_t* leftover;       // [W]
  int32_t* tokens;         // [T,K]
  const int32_t* actions;  // [T,A]
};

VLARFT_HOST_DEVICE inline void start(const Rules& rules, const RowView& row) {
  *row.state = RowState{};
  for (int32_t i = 0; i < rules.action_dim; ++i) row.input[i] = row.actions[i];
  row.state->pending = rules.action_dim;
}

// Adds guesses while some source knows the next place. `from_logits(ahead, &token)` is asked where
// `uses[kLogits]` is set, and says whether it knows.
template <class FromLogits>
VLARFT_HOST_DEVICE void guess(const Rules& rules, const RowView& row, const Source* sources,
                              int count, const FromLogits& from_logits) {
  RowState& s = *row.state;
  s.guesses = 0;
  int32_t most = rules.frame_tokens - s.position - 1;
  if (most > rules.width - 1) most = rules.width - 1;
  for (int32_t ahead = 0; ahead < most; ++ahead) {
    bool known = false;
    for (int i = 0; i < count && !known; ++i) {
      int32_t* token = row.input + s.pending + ahead;
      if (sources[i] == kJacobi) {
        known = ahead < s.leftovers;
        if (known) *token = row.leftover[ahead];
      } else {
        known = s.frame > 0 && from_logits(ahead, token);
      }
      if (known) row.source[ahead] = sources[i];
    }
    if (!known) return;
    s.guesses = ahead + 1;
  }
}

// How many guesses of the pass were right, in a row from the first.
VLARFT_HOST_DEVICE inline int32_t right_guesses(const RowView& row) {
  const RowState& s = *row.state;
  int32_t right = 0;
  while (right < s.guesses && row.input[s.pending + right] == row.drawn[right]) ++right;
  return right;
}

// Keeps what the pass decided and prepares the next one's pending tokens.
VLARFT_HOST_DEVICE inline void settle(const Rules& rules, const RowView& row) {
  RowState& s = *row.state;
  const int32_t right = right_guesses(row);
  // Guesses behind the first wrong one were made on a wrong past: they do not count.
  for (int32_t j = 0; j <= right && j < s.guesses; ++j) {
    ++s.guessed[row.source[j]];
    if (j < right) ++s.right[row.source[j]];
  }
  for (int32_t j = 0; j <= right; ++j) {
    row.tokens[s.frame * rules.frame_tokens + s.position + j] = row.drawn[j];
    if (row.finite[j] == 0) s.broken = 1;
  }
  s.computed += s.pending + s.guesses;
  s.needed += s.pending + right;
  s.accepted += right + 1;
  ++s.row_passes;
  s.leftovers = s.guesses - right;
  for (int32_t j = 0; j < s.leftovers; ++j) row.leftover[j] = row.drawn[right + 1 + j];
  s.length += s.pending + right;
  s.position += right + 1;
  row.input[0] = row.drawn[right];
  s.pending = 1;
  s.guesses = 0;
  if (s.position == rules.frame_tokens) {
    ++s.frame;
    s.position = 0;
    if (s.frame < rules.frames) {
      for (int32_t i = 0; i < rules.action_dim; ++i) {
        row.input[1 + i] = row.actions[s.frame * rules.action_dim + i];
      }
      s.pending += rules.action_dim;
    }
  }
}

}  // namespace vlarft::imagine
