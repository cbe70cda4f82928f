// The CUDA sources of csrc/imagine/cuda, run on the CPU thread by thread: same tokens as the CPU's
// own kernels, whatever the batch, W and the order of threads; nothing read or written outside.
#define VLARFT_EMULATE
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "core/tests/check.h"
#include "imagine/cuda/imaginer.cu"
#include "imagine/imaginer.h"
#include "imagine/tests/random_model.h"

using namespace vlarft;
using namespace vlarft::imagine;
namespace gpu = vlarft::imagine::cuda;

namespace {

struct Case {
  int64_t scenes, rows, prompt, frames, actions, frame_tokens;
  int64_t width = 1;
  std::vector<Source> guesses = {};
  Sampling sampling = {.seed = 7, .temperature = 1, .top_k = 0, .top_p = 0.9};
};

struct Result {
  std::vector<int32_t> tokens;
  Stats stats;
};

void nothing(int64_t) {}

// Runs `prefill` and `imagine` of an imaginer of any device on the same input.
template <class Prefill, class Imagine>
Result run(const Case& c, int32_t vocabulary, int32_t codes, const Prefill& prefill,
           const Imagine& imagine) {
  const auto prompt_ids = ids(c.scenes * c.prompt, vocabulary, 1);
  const auto actions = ids(c.scenes * c.rows * c.frames * c.actions, vocabulary, 2);
  const std::vector<uint32_t> keys = {3, 1, 4};
  std::vector<uint32_t> members(static_cast<size_t>(c.rows), 0xFFFFFFFFU);
  members.back() = 5;  // one with noise of its own
  Request request;
  request.scenes = c.scenes;
  request.rows_a_scene = c.rows;
  request.frames = c.frames;
  request.action_dim = c.actions;
  request.frame_tokens = c.frame_tokens;
  request.actions = actions.data();
  request.keys = keys.data();
  request.members = members.data();
  request.sampling = c.sampling;
  request.width = c.width;
  request.guesses = c.guesses;
  const auto count = static_cast<size_t>(c.scenes * c.rows * c.frames * c.frame_tokens);
  std::vector<int32_t> guarded(count + 2, -77);
  const auto prompts = prefill(prompt_ids.data(), c.scenes, c.prompt);
  Result out;
  out.stats = imagine(request, prompts, guarded.data() + 1);
  CHECK(guarded.front() == -77 && guarded.back() == -77);
  out.tokens.assign(guarded.begin() + 1, guarded.end() - 1);
  for (const int32_t token : out.tokens) CHECK(token >= -1 && token < codes);
  return out;
}

Result on_cpu(const Model& model, const Case& c) {
  Imaginer imaginer(model.config, model.tensors, kernels("portable"));
  return run(
      c, static_cast<int32_t>(model.config.vocabulary),
      static_cast<int32_t>(model.config.frame_codes),
      [&](const int32_t* prompt_ids, int64_t scenes, int64_t length) {
        return imaginer.prefill(prompt_ids, scenes, length, 1, nothing);
      },
      [&](const Request& request, const auto& prompts, int32_t* tokens) {
        return imaginer.imagine(request, {prompts.begin(), prompts.end()}, 1, nothing, tokens);
      });
}

Result on_gpu(gpu::Imaginer& imaginer, const Case& c) {
  return run(
      c, static_cast<int32_t>(imaginer.config().vocabulary),
      static_cast<int32_t>(imaginer.config().frame_codes),
      [&](const int32_t* prompt_ids, int64_t scenes, int64_t length) {
        return imaginer.prefill(prompt_ids, scenes, length, 0, nothing);
      },
      [&](const Request& request, const auto& prompts, int32_t* tokens) {
        return imaginer.imagine(request, {prompts.begin(), prompts.end()}, 0, nothing, tokens);
      });
}

bool same(const Stats& a, const Stats& b) {
  return a.passes == b.passes && a.computed == b.computed && a.needed == b.needed &&
         a.accepted == b.accepted && std::equal(a.guessed, a.guessed + kSources, b.guessed) &&
         std::equal(a.right, a.right + kSources, b.right);
}

ModelConfig config_of(Storage storage, int64_t head_dim, int64_t positions,
                      CacheStorage cache = CacheStorage::kAsWeights) {
  ModelConfig c = small_config(storage);
  c.head_dim = head_dim;
  c.positions = positions;
  c.cache = cache;
  return c;
}

void check_against_cpu(CacheStorage cache) {
  for (const int64_t head_dim : {6, 20}) {
    const Model model = random_model(config_of(Storage::kFloat32, head_dim, 64, cache));
    gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
    Case c{3, 4, 19, 2, 3, 5};
    const Result expected = on_cpu(model, c), found = on_gpu(imaginer, c);
    CHECK(found.tokens == expected.tokens && same(found.stats, expected.stats));
    for (const Sampling sampling :
         {Sampling{.temperature = 0}, Sampling{.seed = 1, .temperature = 1.3F},
          Sampling{.seed = 2, .temperature = 0.7F, .top_k = 4},
          Sampling{.seed = 3, .temperature = 2, .top_k = 9, .top_p = 0.6}}) {
      c.sampling = sampling;
      CHECK(on_gpu(imaginer, c).tokens == on_cpu(model, c).tokens);
    }
    for (const int64_t width : {2, 4}) {
      for (const auto& guesses : {std::vector<Source>{kLogits}, {kJacobi, kLogits}}) {
        Case w{2, 3, 19, 2, 3, 5, width, guesses};
        const Result cpu = on_cpu(model, w), gpu = on_gpu(imaginer, w);
        CHECK(gpu.tokens == cpu.tokens && same(gpu.stats, cpu.stats));
      }
    }
  }
}

// Prompts and suffixes of more than one piece.
void check_long(CacheStorage cache) {
  ModelConfig config = config_of(Storage::kFloat32, 6, 400, cache);
  config.layers = 1;
  const Model model = random_model(config);
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  const Case c{1, 2, 150, 3, 3, 45};
  CHECK(on_gpu(imaginer, c).tokens == on_cpu(model, c).tokens);
}

void check_invariance(Storage storage, CacheStorage cache) {
  const Model model = random_model(config_of(storage, 6, 64, cache));
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  const Case one{1, 4, 19, 2, 3, 5};
  const Result alone = on_gpu(imaginer, one);
  Case c{3, 4, 19, 2, 3, 5};
  const Result together = on_gpu(imaginer, c);
  CHECK(std::equal(alone.tokens.begin(), alone.tokens.end(), together.tokens.begin()));
  c.width = 3, c.guesses = {kJacobi, kLogits};
  CHECK(on_gpu(imaginer, c).tokens == together.tokens);
  // So many rows that products take the other kernel.
  const Case many{3, 24, 19, 1, 3, 3}, few{1, 24, 19, 1, 3, 3};
  const Result wide = on_gpu(imaginer, many), narrow = on_gpu(imaginer, few);
  CHECK(std::equal(narrow.tokens.begin(), narrow.tokens.end(), wide.tokens.begin()));
  emulate::run_backwards(true);
  CHECK(on_gpu(imaginer, one).tokens == alone.tokens);
  CHECK(on_gpu(imaginer, many).tokens == wide.tokens);
  emulate::run_backwards(false);
}

// Tokens drawn behind the head's product, by its last block, are those of a kernel of their own;
// and a pass has as many kernels as csrc/imagine/cuda/finish.h says.
template <class T>
void check_fused_sampling(Storage storage) {
  const Model model = random_model(config_of(storage, 6, 64));
  gpu::TypedEngine<T, T, 16> engine(model.config, model.tensors, 0, nullptr);
  int64_t kernels = 0;
  const auto drawn = [&](const Case& c, int64_t fused_rows) {
    engine.fused_rows = fused_rows;
    engine.graphs.clear();
    return run(
        c, static_cast<int32_t>(model.config.vocabulary),
        static_cast<int32_t>(model.config.frame_codes),
        [&](const int32_t* prompt_ids, int64_t scenes, int64_t length) {
          return engine.prefill(prompt_ids, scenes, length, nullptr, nothing);
        },
        [&](const Request& request, const auto& prompts, int32_t* tokens) {
          const int64_t before = emulate::kernels_run();
          const Stats stats =
              engine.imagine(request, {prompts.begin(), prompts.end()}, nullptr, nothing, tokens);
          kernels = emulate::kernels_run() - before;
          return stats;
        });
  };
  const int64_t layers = model.config.layers, beside = 3;  // start, collect, finish
  for (const bool backwards : {false, true}) {
    emulate::run_backwards(backwards);
    for (const Sampling sampling :
         {Sampling{.temperature = 0}, Sampling{.seed = 3, .temperature = 2, .top_k = 9},
          Sampling{.seed = 7, .temperature = 1, .top_p = 0.9}}) {
      for (const int64_t rows : {1, 3}) {
        Case c{1, rows, 19, 2, 3, 5};
        c.sampling = sampling;
        const Result apart = drawn(c, 0);
        CHECK(kernels == 10 * (5 * layers + 3) + beside);
        const Result fused = drawn(c, 32);
        CHECK(kernels == 10 * (5 * layers + 2) + beside);
        CHECK(fused.tokens == apart.tokens && same(fused.stats, apart.stats));
        drawn(c, gpu::kFusedRows);
        CHECK(kernels == 10 * (5 * layers + (rows == 1 ? 2 : 3)) + beside);
      }
    }
    // Passes of many counts, and some of none when all rows are done.
    for (const auto& guesses : {std::vector<Source>{kLogits}, {kJacobi, kLogits}}) {
      const Case c{2, 3, 19, 2, 3, 5, 4, guesses};
      const Result apart = drawn(c, 0), fused = drawn(c, 32);
      CHECK(fused.tokens == apart.tokens && same(fused.stats, apart.stats));
    }
  }
  emulate::run_backwards(false);
}

// The host has no part in a rollout: it launches one graph and waits once, for the tokens, whatever
// the number of passes. The device stops behind the pass that finishes the last row.
void check_loop() {
  ModelConfig config = config_of(Storage::kFloat32, 6, 400);
  config.layers = 1;
  const Model model = random_model(config);
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  const auto check = [&](const Case& c) {
    const auto imagine = [&](const Poll& poll) {
      return run(
          c, static_cast<int32_t>(model.config.vocabulary),
          static_cast<int32_t>(model.config.frame_codes),
          [&](const int32_t* prompt_ids, int64_t scenes, int64_t length) {
            return imaginer.prefill(prompt_ids, scenes, length, 0, nothing);
          },
          [&](const Request& request, const auto& prompts, int32_t* tokens) {
            const int64_t waits = emulate::waits(), kernels = emulate::kernels_run(),
                          graphs = emulate::graphs_launched();
            const Stats stats =
                imaginer.imagine(request, {prompts.begin(), prompts.end()}, 0, poll, tokens);
            CHECK(emulate::waits() - waits == 1);
            CHECK(emulate::graphs_launched() - graphs == 1);
            const int64_t a_pass = 5 * model.config.layers + 3, beside = 3;
            CHECK(emulate::kernels_run() - kernels == stats.passes * a_pass + beside);
            CHECK(stats.passes > 32 && (c.width > 1) == (stats.passes < c.frames * c.frame_tokens));
            return stats;
          });
    };
    const Result whole = imagine(nothing);
    // A caller who stops it gets its memory back when the rollout is over, and may go on.
    CHECK(message_of<std::runtime_error>(
              [&] { imagine([](int64_t) { throw std::runtime_error("stop"); }); }) == "stop");
    CHECK(imagine(nothing).tokens == whole.tokens);
    setenv("VLARFT_CUDA_PASSES", "1", 1);  // the host launches each pass, and waits for it
    const int64_t graphs = emulate::graphs_launched();
    const Result by_pass = on_gpu(imaginer, c);
    CHECK(emulate::graphs_launched() - graphs == by_pass.stats.passes);
    CHECK(by_pass.tokens == whole.tokens && same(by_pass.stats, whole.stats));
    unsetenv("VLARFT_CUDA_PASSES");
  };
  check({1, 2, 19, 2, 3, 40});
  check({1, 2, 19, 2, 3, 40, 2, {kLogits}});
  check({1, 2, 19, 2, 3, 41, 4, {kJacobi, kLogits}});
  check({1, 2, 19, 1, 3, 37});  // no turn of more than one pass divides it
}

// bfloat16 rounds otherwise on the CPU, so near ties fall otherwise; most tokens are the same.
void check_bfloat16(CacheStorage cache) {
  const Model model = random_model(config_of(Storage::kBfloat16, 6, 64, cache));
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  const Case c{3, 8, 19, 1, 3, 1};
  const Result cpu = on_cpu(model, c), gpu = on_gpu(imaginer, c);
  int equal = 0;
  for (size_t i = 0; i < cpu.tokens.size(); ++i) equal += cpu.tokens[i] == gpu.tokens[i] ? 1 : 0;
  CHECK(equal >= 22);  // of 24
}

void check_broken_and_stopped() {
  Model model = random_model(small_config(Storage::kFloat32));
  const Case c{1, 2, 19, 2, 3, 5};
  {
    gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
    const Result before = on_gpu(imaginer, c);
    const int64_t held = imaginer.held_bytes();
    const Bytes bytes = imaginer.plan({1, 2, 19, 2, 3, 5});
    CHECK(held == bytes.suffix + bytes.work);
    CHECK(imaginer.capture_seconds() > 0);
    // A caller may stop between passes, and go on later.
    int calls = 0;
    message_of<std::runtime_error>([&] {
      const auto prompt_ids = ids(19, 40, 1);
      imaginer.prefill(prompt_ids.data(), 1, 19, 0, [&](int64_t) {
        if (calls++ == 0) throw std::runtime_error("stop");
      });
    });
    CHECK(on_gpu(imaginer, c).tokens == before.tokens);
    CHECK(imaginer.pass_seconds(3, 0) > 0);
    imaginer.release();
    CHECK(imaginer.held_bytes() == 0);
    for (const int64_t rows : {1, 2, 3, 4, 5, 2}) on_gpu(imaginer, {1, rows, 19, 1, 3, 2});
    CHECK(on_gpu(imaginer, c).tokens == before.tokens);
  }
  // An embedding that is not finite: the rows that meet it fail, all of them here.
  model.values["model.norm.weight"][0] = std::numeric_limits<float>::quiet_NaN();
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  for (const int32_t token : on_gpu(imaginer, c).tokens) CHECK(token == -1);
}

// Every entry has a place of its own, and a lane finds in its words what its fragments want.
template <int kDim>
void check_float8_places() {
  constexpr int kCapacity = 2 * gpu::kPositions;
  std::vector<int> taken(2 * kCapacity * kDim);
  for (int position = 0; position < kCapacity; ++position) {
    for (int d = 0; d < kDim; ++d) {
      const auto key = static_cast<size_t>(gpu::key_index<Float8>(position, d, kDim));
      const auto value =
          static_cast<size_t>(gpu::value_index<Float8>(position, d, kCapacity, kDim));
      CHECK(key < kCapacity * kDim && value >= kCapacity * kDim && value < taken.size());
      CHECK(taken[key]++ == 0 && taken[value]++ == 0);
      if (d % 2 != 0) continue;
      CHECK(gpu::key_index<Float8>(position, d + 1, kDim) ==
            static_cast<int>(key) + gpu::kKeyStep<Float8>);
      CHECK(gpu::value_index<Float8>(position, d + 1, kCapacity, kDim) ==
            static_cast<int>(value) + gpu::kValueStep<Float8>);
    }
  }
}

void check_widening() {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const float value = from_float8({static_cast<uint8_t>(bits)});
    const bool nan = std::isnan(value);
    for (int byte = 0; byte < 4; ++byte) {
      CHECK((gpu::float8_nan(bits << 8 * byte | 0x7EU << (8 * (3 - byte))) != 0) == nan);
    }
    const uint32_t word = bits << 8 | (bits ^ 1U) << 24 | 0x00FF00FFU;
    if (nan) continue;
    CHECK(gpu::low_of(gpu::widen<gpu::Bf16>(word)) == value);
    CHECK(gpu::widen<float>(word).low == value);
    const float other = from_float8({static_cast<uint8_t>(bits ^ 1U)});
    if (std::isnan(other)) continue;
    CHECK(gpu::high_of(gpu::widen<gpu::Bf16>(word)) == other);
    CHECK(gpu::widen<float>(word).high == other);
  }
}

// Half of bfloat16's bytes, tokens of its own, and only its own prompts.
void check_float8_memory() {
  const Shape shape{1, 2, 19, 2, 3, 5};
  const Model model = random_model(config_of(Storage::kBfloat16, 6, 64));
  ModelConfig narrow = model.config;
  narrow.cache = CacheStorage::kFloat8;
  gpu::Imaginer wide(model.config, model.tensors, 0, 0), imaginer(narrow, model.tensors, 0, 0);
  const Bytes two = wide.plan(shape), one = imaginer.plan(shape);
  CHECK(2 * one.prompt == two.prompt && 2 * one.suffix == two.suffix);
  const auto prompt_ids = ids(19, 40, 1);
  const auto prompts = imaginer.prefill(prompt_ids.data(), 1, 19, 0, nothing);
  CHECK(prompts.front()->bytes == one.prompt);
  CHECK(imaginer.made(*prompts.front()) && !wide.made(*prompts.front()));
  const Case c{3, 8, 19, 2, 3, 5};
  CHECK(on_gpu(imaginer, c).tokens != on_gpu(wide, c).tokens);
  const Bytes taken = imaginer.plan({3, 8, 19, 2, 3, 5});
  CHECK(imaginer.held_bytes() == taken.suffix + taken.work);
}

// float8 knows no infinity, and NaN in a key or value must reach the tokens all the same.
void check_float8_broken() {
  Model model = random_model(config_of(Storage::kFloat32, 6, 64, CacheStorage::kFloat8));
  const Case c{1, 3, 19, 1, 3, 2};
  for (const char* name : {"k_proj", "v_proj"}) {
    auto& weights = model.values[std::string("model.layers.1.self_attn.") + name + ".weight"];
    for (const size_t entry : {size_t{0}, weights.size() - 1}) {
      const float before = std::exchange(weights[entry], std::numeric_limits<float>::infinity());
      gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
      for (const int32_t token : on_gpu(imaginer, c).tokens) CHECK(token == -1);
      weights[entry] = before;
    }
  }
}

// No input reaches the largest float8, and none of the range is wasted on a larger scale.
void check_float8_scales() {
  const Model model = random_model(config_of(Storage::kFloat32, 6, 64, CacheStorage::kFloat8));
  const ModelConfig& c = model.config;
  const CacheScales scales = cache_scales(c, model.tensors);
  const auto& norm = model.values.at("model.layers.0.input_layernorm.weight");
  const auto& weights = model.values.at("model.layers.0.self_attn.v_proj.weight");
  for (int64_t head = 0; head < c.kv_heads; ++head) {
    double largest = 0;
    for (int64_t d = head * c.head_dim; d < (head + 1) * c.head_dim; ++d) {
      // The worst input of an entry is its own row.
      double squares = 0;
      for (int64_t i = 0; i < c.hidden; ++i) {
        const auto at = static_cast<size_t>(i);
        squares += std::pow(
            static_cast<double>(weights[static_cast<size_t>(d * c.hidden + i)] * norm[at]), 2);
      }
      largest = std::max(largest, std::sqrt(static_cast<double>(c.hidden) * squares));
    }
    const double stored = largest / static_cast<double>(scales.values[static_cast<size_t>(head)]);
    CHECK(stored <= 448 && stored > 448 / 2.2);
  }
}

// The graphs of the four shapes used last are kept, with the addresses that they were captured
// with.
void check_graphs_are_kept() {
  const Model model = random_model(small_config(Storage::kFloat32));
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  const auto captures = [&](int64_t rows) {
    const double before = imaginer.capture_seconds();
    on_gpu(imaginer, {1, rows, 19, 1, 3, 2});
    return imaginer.capture_seconds() > before;
  };
  for (const int64_t rows : {5, 4, 3, 2}) CHECK(captures(rows));  // none needs more memory
  for (const int64_t rows : {5, 4, 3, 2, 5}) CHECK(!captures(rows));
  CHECK(captures(1));  // in place of 4, which waited longest
  for (const int64_t rows : {5, 3, 2, 1}) CHECK(!captures(rows));
  CHECK(captures(4));
  CHECK(captures(9));  // more memory: other addresses, so every graph is captured again
  CHECK(captures(4));
}

// What a GPU computes in float32, against the emulation's shorter way.
void check_shuffles() {
  float products[2][gpu::kWarp][4] = {};
  emulate::run(dim3{}, gpu::kWarp, [&] {
    gpu::FragmentA<float> a;
    gpu::FragmentB<float> b;
    const auto value = [](int i) { return std::sin(static_cast<float>(8 * gpu::lane() + i)); };
    for (int i = 0; i < 4; ++i) a.at[i] = {value(i), 2 * value(i + 9)};
    for (int i = 0; i < 2; ++i) b.at[i] = {3 * value(i + 20), value(i + 30)};
    gpu::FragmentC short_way = {{1, 2, 3, 4}}, shuffles = short_way;
    gpu::multiply_add(short_way, a, b);
    gpu::multiply_add_by_shuffles(shuffles, a, b);
    for (int i = 0; i < 4; ++i) {
      products[0][gpu::lane()][i] = short_way.at[i];
      products[1][gpu::lane()][i] = shuffles.at[i];
    }
  });
  for (int lane = 0; lane < gpu::kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) CHECK(products[0][lane][i] == products[1][lane][i]);
  }
}

void check_refusals() {
  const Model model = random_model(small_config(Storage::kFloat32));
  ModelConfig config = model.config;
  config.head_dim = 130;
  const std::string message =
      message_of<ShapeError>([&] { gpu::Imaginer imaginer(config, model.tensors, 0, 0); });
  CHECK(message == "Imaginer: head_dim = 130; on a GPU at most 128 is allowed");
  Tensors fewer = model.tensors;
  fewer.erase("lm_head.weight");
  CHECK(message_of<Error>([&] { gpu::Imaginer imaginer(model.config, fewer, 0, 0); }) ==
        "Imaginer: the weights lack lm_head.weight");
}

void check_errors() {
  const auto say = [](cudaError_t status) {
    return message_of<BackendError>([&] { vlarft::cuda::require(status, "taking 8 bytes"); });
  };
  CHECK(say(cudaErrorMemoryAllocation) ==
        "CUDA: taking 8 bytes: out of memory; ask for fewer scenes or rollouts, or call release() "
        "on engines that wait");
  CHECK(say(cudaErrorNoKernelImageForDevice).find("CMAKE_CUDA_ARCHITECTURES") != std::string::npos);
  CHECK(say(cudaErrorIllegalAddress) ==
        "CUDA: taking 8 bytes: an illegal memory access was encountered; this process cannot use "
        "the GPU any more: run again with VLARFT_CUDA_CHECKED=1, which names the kernel, or under "
        "compute-sanitizer, and report it");
}

void check_switches() {
  constexpr const char* kName = "VLARFT_CUDA_CHECKED";
  CHECK(!vlarft::cuda::checked());
  for (const char* value : {"", "0", "yes", "11"}) {
    setenv(kName, value, 1);
    CHECK(!switched_on(kName));
  }
  setenv(kName, "1", 1);
  CHECK(vlarft::cuda::checked());
  unsetenv(kName);
}

// A kernel that fails is told by whoever waits next: at the end of the rollout, or, when checked,
// at once and by its name.
void check_failing_kernels() {
  const Model model = random_model(small_config(Storage::kFloat32));
  const Case c{1, 2, 19, 2, 3, 5};
  const std::string call = " (in a rollout of 1 x 2 rows, prompt 19, 2 frames, W 1)";
  const std::string failed =
      ": an illegal memory access was encountered; this process cannot use "
      "the GPU any more: ";
  gpu::Imaginer imaginer(model.config, model.tensors, 0, 0);
  const auto message = [&] {
    return message_of<BackendError>([&] {
      run(
          c, static_cast<int32_t>(model.config.vocabulary),
          static_cast<int32_t>(model.config.frame_codes),
          [&](const int32_t* prompt_ids, int64_t scenes, int64_t length) {
            return imaginer.prefill(prompt_ids, scenes, length, 0, nothing);
          },
          [&](const Request& request, const auto& prompts, int32_t* tokens) {
            emulate::fail_kernel(4);  // start, collect, embedding, query and key and value
            return imaginer.imagine(request, {prompts.begin(), prompts.end()}, 0, nothing, tokens);
          });
    });
  };
  const Result expected = on_gpu(imaginer, c);
  CHECK(message() == "CUDA: a rollout's kernels" + failed +
                         "run again with VLARFT_CUDA_CHECKED=1, which names the kernel, or under "
                         "compute-sanitizer, and report it" +
                         call);
  emulate::fail_kernel(-1);
  const double captured = imaginer.capture_seconds();
  imaginer.release();
  setenv("VLARFT_CUDA_CHECKED", "1", 1);
  const std::string found = message();
  const std::string name = "CUDA: attention, grid ";
  CHECK(found.substr(0, name.size()) == name);
  CHECK(found.substr(found.find(" threads")) ==
        " threads" + failed + "report it, with what compute-sanitizer says" + call);
  CHECK(message_of<BackendError>([&] {
          imaginer.prefill(ids(19, 40, 1).data(), 1, 19, 0, nothing);
        }).find("(in a prefill of 1 prompts of 19 tokens)") != std::string::npos);
  emulate::fail_kernel(-1);
  CHECK(on_gpu(imaginer, c).tokens == expected.tokens);
  CHECK(imaginer.capture_seconds() == captured);  // launched kernel by kernel
  CHECK(imaginer.pass_seconds(3, 0) > 0);         // captures, and waits for nothing in between
  unsetenv("VLARFT_CUDA_CHECKED");
}

}  // namespace

int main(int count, char** arguments) {
  const std::string part = count == 2 ? arguments[1] : "";
  if (part == "small") {
    check_shuffles();
    check_graphs_are_kept();
    check_widening();
    check_float8_places<16>();
    check_float8_places<128>();
    check_float8_scales();
    check_float8_memory();
    check_float8_broken();
    check_loop();
    check_broken_and_stopped();
    check_refusals();
    check_errors();
    check_switches();
    check_failing_kernels();
  } else if (part == "tokens") {
    check_against_cpu(CacheStorage::kAsWeights);
    check_invariance(Storage::kBfloat16, CacheStorage::kAsWeights);
    check_invariance(Storage::kFloat32, CacheStorage::kAsWeights);
    check_bfloat16(CacheStorage::kAsWeights);
    check_long(CacheStorage::kAsWeights);
  } else if (part == "float8") {
    check_against_cpu(CacheStorage::kFloat8);
    check_invariance(Storage::kBfloat16, CacheStorage::kFloat8);
    check_bfloat16(CacheStorage::kFloat8);
  } else if (part == "sampling") {
    check_fused_sampling<float>(Storage::kFloat32);
    check_fused_sampling<gpu::Bf16>(Storage::kBfloat16);
  } else {
    std::fprintf(stderr, "usage: cuda_emulated_test small|tokens|float8|sampling\n");
    return 2;
  }
  CHECK(emulate::allocated_bytes() == 0);
}
