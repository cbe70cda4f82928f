// Tokens do not depend on batch mates, threads, W or guess sources; two engines run at once.
#include "imagine/imaginer.h"

#include <cmath>
#include <thread>
#include <vector>

#include "core/tests/check.h"
#include "imagine/tests/random_model.h"

using namespace vlarft;
using namespace vlarft::imagine;

namespace {

constexpr int64_t kFrames = 2, kActions = 3, kFrameTokens = 5, kPrompt = 19;

void nothing(int64_t) {}

std::vector<int32_t> tokens_of(Imaginer& imaginer, int64_t scenes, int64_t rows, int threads,
                               int64_t width, std::vector<Source> guesses) {
  const auto prompt_ids = ids(scenes * kPrompt, 40, 1);
  const auto prompts = imaginer.prefill(prompt_ids.data(), scenes, kPrompt, threads, nothing);
  Request request;
  request.scenes = scenes;
  const auto actions = ids(scenes * rows * kFrames * kActions, 40, 2);
  const std::vector<uint32_t> keys = {3, 1, 4}, members(static_cast<size_t>(rows), 0xFFFFFFFFU);
  request.actions = actions.data();
  request.keys = keys.data();
  request.members = members.data();
  request.rows_a_scene = rows;
  request.frames = kFrames;
  request.action_dim = kActions;
  request.frame_tokens = kFrameTokens;
  request.sampling.top_p = 0.9;
  request.width = width;
  request.guesses = std::move(guesses);
  const auto count = static_cast<size_t>(scenes * rows * kFrames * kFrameTokens);
  std::vector<int32_t> guarded(count + 2, -77);
  imaginer.imagine(request, {prompts.begin(), prompts.end()}, threads, nothing, guarded.data() + 1);
  CHECK(guarded.front() == -77 && guarded.back() == -77);
  const std::vector<int32_t> out(guarded.begin() + 1, guarded.end() - 1);
  for (const int32_t token : out) CHECK(token >= 0 && token < 23);
  return out;
}

// What is kept is what was planned, another shape replaces it, and release() leaves nothing.
void check_buffers(Imaginer& imaginer, const std::vector<int32_t>& expected) {
  for (const int64_t width : {int64_t{1}, int64_t{3}}) {
    const bool keeps = width > 1;
    tokens_of(imaginer, 1, 4, 2, width, {kLogits});
    const Bytes bytes =
        imaginer.plan({1, 4, kPrompt, kFrames, kActions, kFrameTokens, width, keeps, 2});
    // Samplers of more threads than planned may have been kept.
    const int64_t sampler = Sampler::bytes(imaginer.transformer().config().frame_codes);
    const int64_t more = imaginer.held_bytes() - bytes.suffix - bytes.work;
    CHECK(more >= 0 && more <= sampler);
  }
  imaginer.release();
  CHECK(imaginer.held_bytes() == 0);
  CHECK(tokens_of(imaginer, 1, 4, 2, 1, {}) == expected);
  CHECK(imaginer.pass_seconds(3, 2) > 0);
}

void check_score_guards(Imaginer& imaginer) {
  constexpr int64_t kLength = 7, kCodes = 23;
  const auto prompt_ids = ids(kPrompt, 40, 1), suffix = ids(2 * kLength, 40, 2);
  const auto prompts = imaginer.prefill(prompt_ids.data(), 1, kPrompt, 2, nothing);
  std::vector<float> guarded(2 * kLength * kCodes + 2, -77.0F);
  imaginer.score({prompts.begin(), prompts.end()}, suffix.data(), 2, kLength, 3, 2, nothing,
                 guarded.data() + 1);
  CHECK(guarded.front() == -77.0F && guarded.back() == -77.0F);
  for (size_t i = 1; i + 1 < guarded.size(); ++i) CHECK(std::isfinite(guarded[i]));
}

}  // namespace

int main() {
  for (const Storage storage : {Storage::kFloat32, Storage::kBfloat16}) {
    const Model model = random_model(small_config(storage));
    for (const std::string& name : runnable_kernels()) {
      Imaginer imaginer(model.config, model.tensors, kernels(name));
      const auto expected = tokens_of(imaginer, 3, 4, 1, 1, {});
      for (const int threads : {1, 3}) {
        for (const int64_t width : {int64_t{1}, int64_t{2}, int64_t{4}}) {
          CHECK(tokens_of(imaginer, 3, 4, threads, width, {kJacobi, kLogits}) == expected);
          CHECK(tokens_of(imaginer, 3, 4, threads, width, {kLogits}) == expected);
        }
      }
      // The first scene alone: its rows are the first of the batch.
      const auto alone = tokens_of(imaginer, 1, 4, 2, 1, {});
      CHECK(std::equal(alone.begin(), alone.end(), expected.begin()));
      // Scenes in parts that fit in a cache; the last part is smaller.
      const Shape shape{3, 4, kPrompt, kFrames, kActions, kFrameTokens};
      const int64_t one = imaginer.plan({1, 4, kPrompt, kFrames, kActions, kFrameTokens}).prompt +
                          4 * Cache::bytes(model.config, shape.suffix());
      for (const int64_t together : {1, 2, 3}) {
        const int64_t cache = imaginer.transformer().weight_bytes() + together * one;
        Imaginer parts(model.config, model.tensors, kernels(name), cache);
        CHECK(parts.scenes_at_once(shape) == together);
        CHECK(tokens_of(parts, 3, 4, 2, 2, {kJacobi, kLogits}) == expected);
        const int64_t taken = together * 4 * Cache::bytes(model.config, shape.suffix());
        CHECK(parts.plan(shape).suffix >= taken && parts.plan(shape).suffix <= together * one);
      }
      CHECK(Imaginer(model.config, model.tensors, kernels(name), 0).scenes_at_once(shape) == 3);
      // Two engines, two threads.
      Imaginer other(model.config, model.tensors, kernels(name));
      std::vector<int32_t> there;
      std::thread thread([&] { there = tokens_of(other, 3, 4, 2, 2, {kJacobi, kLogits}); });
      CHECK(tokens_of(imaginer, 3, 4, 2, 1, {}) == expected);
      thread.join();
      CHECK(there == expected);
      // A caller may stop between passes, and go on later.
      int calls = 0;
      const auto prompt_ids = ids(kPrompt, 40, 1);
      message_of<std::runtime_error>([&] {
        imaginer.prefill(prompt_ids.data(), 1, kPrompt, 2, [&](int64_t) {
          if (calls++ == 0) throw std::runtime_error("stop");
        });
      });
      CHECK(tokens_of(imaginer, 1, 4, 2, 1, {}) == alone);
      check_buffers(imaginer, alone);
      check_score_guards(imaginer);
    }
  }
}
