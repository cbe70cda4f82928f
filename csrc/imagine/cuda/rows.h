// What is done between passes, on the GPU: settle the rows, guess, list the next pass's tokens.
#pragma once

#include "core/cuda/fragment.h"
#include "imagine/cuda/pass.h"
#include "imagine/cuda/sampler.h"

namespace vlarft::imagine::cuda {

inline constexpr int kCollectThreads = 256;
inline constexpr int kEmbedThreads = 128;

// All rows of a rollout and their arrays, in order.
struct Rows {
  Rules rules;
  RowState* states;           // [rows]
  int32_t *input, *source;    // [rows][A + W], [rows][W]
  int32_t *leftover, *known;  // [rows][W], [rows][K]: kLogits' guesses for the current frame
  Draws draws;
  int32_t* tokens;         // [rows][T][K]
  const int32_t* actions;  // [rows][T][A]
  int32_t* waiting;        // [1] whether a pass was sampled and is not settled yet
  int32_t* progress;       // frames that all rows have finished, rows that have not finished all
  Condition again;         // of the loop that passes are in
  bool loops;              // whether they are in one
  Source sources[kSources];
  int32_t source_count;

  __device__ RowView view(int64_t row) const {
    const int64_t w = rules.width;
    return {states + row,
            input + row * (rules.action_dim + w),
            source + row * w,
            draws.drawn + row * w,
            draws.finite + row * w,
            leftover + row * w,
            tokens + row * rules.frames * rules.frame_tokens,
            actions + row * rules.frames * rules.action_dim};
  }
};

// Sum of all threads' values before this one's; `total`: of all.
__device__ inline int scan(int (&memory)[kCollectThreads], int value, int* total) {
  memory[thread()] = value;
  block_barrier();
  for (int step = 1; step < kCollectThreads; step *= 2) {
    const int before = thread() >= step ? memory[thread() - step] : 0;
    block_barrier();
    memory[thread()] += before;
    block_barrier();
  }
  *total = memory[kCollectThreads - 1];
  const int mine = memory[thread()] - value;
  block_barrier();
  return mine;
}

// Of one block. Prompt lengths differ by scene; a token's position counts from the prompt's start.
__device__ inline void collect(const Rows& r, const Pass& pass) {
  __shared__ int memory[kCollectThreads];
  __shared__ int finished, unfinished;
  if (thread() == 0) {
    finished = r.rules.frames;
    unfinished = 0;
  }
  block_barrier();
  const bool waiting = *r.waiting != 0;
  int tokens_before = 0, logits_before = 0;
  for (int first = 0; first < pass.rows; first += kCollectThreads) {
    const int row = first + thread();
    int tokens = 0, logits = 0;
    if (row < pass.rows) {
      const RowView view = r.view(row);
      RowState& state = *view.state;
      if (waiting && state.frame < r.rules.frames) {
        if (r.draws.coupled != nullptr) {
          const int32_t right = right_guesses(view);
          for (int32_t j = 0; j <= right; ++j) {
            r.known[int64_t{row} * r.rules.frame_tokens + state.position + j] =
                r.draws.coupled[int64_t{row} * r.rules.width + j];
          }
        }
        settle(r.rules, view);
      }
      if (state.frame < r.rules.frames) {
        guess(r.rules, view, r.sources, r.source_count, [&](int32_t ahead, int32_t* token) {
          *token = r.known[int64_t{row} * r.rules.frame_tokens + state.position + ahead];
          return true;
        });
        tokens = state.pending + state.guesses;
        logits = state.guesses + 1;
        add_atomic(&unfinished, 1);
      }
      min_atomic(&finished, state.frame);
    }
    int token_total = 0, logit_total = 0;
    const int first_token = tokens_before + scan(memory, tokens, &token_total);
    const int first_logit = logits_before + scan(memory, logits, &logit_total);
    if (row < pass.rows) {
      const RowView view = r.view(row);
      const int prefix = pass.prefix_length[row / pass.rows_a_scene];
      pass.first_token[row] = first_token;
      for (int i = 0; i < tokens; ++i) {
        const int place = view.state->length + i;
        pass.tokens[first_token + i] = {row, place, prefix + place, view.input[i]};
      }
      for (int i = 0; i < logits; ++i) {
        pass.logits[first_logit + i] = {first_token + view.state->pending - 1 + i, row, i};
      }
    }
    tokens_before += token_total;
    logits_before += logit_total;
  }
  if (thread() != 0) return;
  pass.first_token[pass.rows] = tokens_before;
  pass.counts[0] = tokens_before;
  pass.counts[1] = logits_before;
  *r.waiting = logits_before > 0 ? 1 : 0;
  r.progress[0] = finished;
  r.progress[1] = unfinished;
  if (r.loops) set_condition(r.again, logits_before > 0);
  system_fence();
}

// Before a rollout's first pass; behind each pass its last block collects (finish.h).
static __global__ void __launch_bounds__(kCollectThreads, 1) collect_kernel(Rows r, Pass pass) {
  collect(r, pass);
}

// A rollout's first state.
static __global__ void __launch_bounds__(kCollectThreads) start_kernel(Rows r, int rows) {
  const int row = block_x() * kCollectThreads + thread();
  if (row == 0) *r.waiting = 0;
  if (row < rows) start(r.rules, r.view(row));
}

// Rows whose logits were not finite: -1 everywhere.
static __global__ void __launch_bounds__(kCollectThreads) finish_kernel(Rows r, int rows) {
  const int row = block_x();
  if (row >= rows || r.states[row].broken == 0) return;
  const int count = r.rules.frames * r.rules.frame_tokens;
  for (int i = thread(); i < count; i += kCollectThreads) {
    r.tokens[int64_t{row} * count + i] = -1;
  }
}

// x[i] = embedding[id of token i], float32
template <class T>
__global__ void __launch_bounds__(kEmbedThreads)
    embed_kernel(Pass pass, const T* embedding, float* x, int hidden, int stride) {
  if (block_x() >= pass.counts[0]) return;
  const T* from = embedding + int64_t{pass.tokens[block_x()].id} * hidden;
  float* to = x + int64_t{block_x()} * stride;
  for (int i = thread(); i < hidden; i += kEmbedThreads) to[i] = number(from[i]);
}

}  // namespace vlarft::imagine::cuda
