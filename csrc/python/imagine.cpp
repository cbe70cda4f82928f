// Bindings of csrc/imagine: argument checks and conversion.
#include "python/imagine.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/errors.h"
#include "imagine/imaginer.h"
#if VLARFT_WITH_CUDA
#include "core/cuda/ranges.h"
#include "imagine/cuda/imaginer.h"
#endif
#include "python/dlpack_capsule.h"

namespace py = pybind11;

namespace vlarft::python {
namespace {

using imagine::Imaginer;
using imagine::ModelConfig;
using imagine::Prompt;

constexpr Device kCpu{DeviceKind::kCpu, 0};

// Between passes: Ctrl-C becomes an exception, the GIL is held only for the question.
void poll_signals(int64_t) {
  const py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

int checked_threads(int threads) {
  if (threads < 1) {
    throw Error("Imaginer: threads = " + std::to_string(threads) + "; give at least 1");
  }
  return threads;
}

int64_t positive(const py::dict& values, const char* name) {
  if (!values.contains(name)) throw Error(std::string("Imaginer: config lacks ") + name);
  const auto value = values[name].cast<int64_t>();
  if (value < 1) {
    throw ShapeError("Imaginer: " + std::string(name) + " = " + std::to_string(value) +
                     "; give at least 1");
  }
  return value;
}

ModelConfig read_config(const py::dict& values, const std::string& dtype,
                        const std::string& cache_dtype) {
  ModelConfig c;
  c.layers = positive(values, "layers");
  c.hidden = positive(values, "hidden");
  c.heads = positive(values, "heads");
  c.kv_heads = positive(values, "kv_heads");
  c.head_dim = positive(values, "head_dim");
  c.ffn = positive(values, "ffn");
  c.vocabulary = positive(values, "vocabulary");
  c.frame_codes = positive(values, "frame_codes");
  c.positions = positive(values, "positions");
  c.eps = values["eps"].cast<float>();
  if (c.heads % c.kv_heads != 0 || c.head_dim % 2 != 0 || c.frame_codes > c.vocabulary) {
    throw ShapeError(
        "Imaginer: heads must be a multiple of kv_heads, head_dim even, frame_codes within the "
        "vocabulary");
  }
  if (dtype == "bfloat16") {
    c.storage = imagine::Storage::kBfloat16;
  } else if (dtype != "float32") {
    throw DtypeError("Imaginer: dtype '" + dtype + "'; allowed: float32, bfloat16");
  }
  if (cache_dtype == "float8_e4m3fn") {
    c.cache = imagine::CacheStorage::kFloat8;
  } else if (!cache_dtype.empty()) {
    throw DtypeError("Imaginer: cache_dtype '" + cache_dtype +
                     "'; allowed: float8_e4m3fn, or empty for that of the weights");
  }
  return c;
}

// float32 tensors in host memory, borrowed from Python while it lives.
struct Weights {
  imagine::Tensors pointers;
  std::vector<std::unique_ptr<ImportedTensor>> owners;
};

Weights read_weights(const ModelConfig& c, const py::dict& tensors) {
  const int64_t wide = c.heads * c.head_dim, narrow = c.kv_heads * c.head_dim;
  Weights out;
  const auto place = [&](const std::string& name, std::initializer_list<int64_t> sizes,
                         const char* letters) {
    if (!tensors.contains(name.c_str())) throw Error("Imaginer: the weights lack " + name);
    const std::string what = "Imaginer(): " + name;
    out.owners.push_back(std::make_unique<ImportedTensor>(tensors[name.c_str()], what));
    const TensorView& view = out.owners.back()->view();
    view.check(what, letters, Dtype::kFloat32, sizes).check_device(what, kCpu);
    out.pointers[name] = view.data<const float>();
  };
  place("model.embed_tokens.weight", {c.vocabulary, c.hidden}, "vocabulary,hidden");
  place("lm_head.weight", {c.vocabulary, c.hidden}, "vocabulary,hidden");
  place("model.norm.weight", {c.hidden}, "hidden");
  place("rotary.cos", {c.positions, c.head_dim / 2}, "positions,head_dim/2");
  place("rotary.sin", {c.positions, c.head_dim / 2}, "positions,head_dim/2");
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    place(at + "input_layernorm.weight", {c.hidden}, "hidden");
    place(at + "post_attention_layernorm.weight", {c.hidden}, "hidden");
    place(at + "self_attn.q_proj.weight", {wide, c.hidden}, "heads*head_dim,hidden");
    place(at + "self_attn.k_proj.weight", {narrow, c.hidden}, "kv_heads*head_dim,hidden");
    place(at + "self_attn.v_proj.weight", {narrow, c.hidden}, "kv_heads*head_dim,hidden");
    place(at + "self_attn.o_proj.weight", {c.hidden, wide}, "hidden,heads*head_dim");
    place(at + "mlp.gate_proj.weight", {c.ffn, c.hidden}, "ffn,hidden");
    place(at + "mlp.up_proj.weight", {c.ffn, c.hidden}, "ffn,hidden");
    place(at + "mlp.down_proj.weight", {c.hidden, c.ffn}, "hidden,ffn");
  }
  return out;
}

std::unique_ptr<Imaginer> make(const py::dict& config, const py::dict& tensors,
                               const std::string& dtype, const std::string& cache_dtype,
                               const std::string& kernels) {
  const ModelConfig c = read_config(config, dtype, cache_dtype);
  const Weights weights = read_weights(c, tensors);
  const imagine::Kernels& chosen = kernels.empty() ? imagine::kernels() : imagine::kernels(kernels);
  const py::gil_scoped_release unlocked;
  return std::make_unique<Imaginer>(c, weights.pointers, chosen);
}

const int32_t* checked_ids(const TensorView& view, int64_t vocabulary, const std::string& what) {
  const auto* ids = view.data<const int32_t>();
  for (int64_t i = 0; i < view.elements(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary) {
      throw ShapeError(what + " must lie in [0, " + std::to_string(vocabulary) + "), got " +
                       std::to_string(ids[i]));
    }
  }
  return ids;
}

void check_length(int64_t length, const ModelConfig& config) {
  if (length > config.positions) {
    throw ShapeError("Imaginer: a sequence of " + std::to_string(length) + " tokens exceeds the " +
                     std::to_string(config.positions) + " positions it was made for");
  }
}

std::vector<std::shared_ptr<Prompt>> prefill(Imaginer& self, const py::object& ids, int threads) {
  const ImportedTensor imported(ids, "prefill(): ids");
  const TensorView& view = imported.view();
  view.check("prefill(): ids", "P,S", Dtype::kInt32, {kAny, kAny})
      .check_device("prefill(): ids", kCpu);
  const ModelConfig& config = self.transformer().config();
  const auto* from = checked_ids(view, config.vocabulary, "prefill(): ids");
  check_length(view.size(1), config);
  checked_threads(threads);
  const py::gil_scoped_release unlocked;
  return self.prefill(from, view.size(0), view.size(1), threads, poll_signals);
}

imagine::Prompts checked_prompts(const std::vector<std::shared_ptr<Prompt>>& prompts,
                                 const Imaginer& self, int64_t suffix) {
  const ModelConfig& config = self.transformer().config();
  for (const auto& prompt : prompts) {
    if (prompt->cache.bytes() != imagine::Cache::bytes(config, prompt->length)) {
      throw Error("Imaginer: a prompt was prefilled by another model; prefill it again");
    }
    if (prompt->length != prompts.front()->length) {
      throw ShapeError("Imaginer: prompts of " + std::to_string(prompts.front()->length) + " and " +
                       std::to_string(prompt->length) + " tokens; give one length");
    }
    check_length(prompt->length + suffix, config);
  }
  return {prompts.begin(), prompts.end()};
}

imagine::Source source_named(const std::string& name) {
  std::string allowed;
  for (int source = 0; source < imagine::kSources; ++source) {
    if (name == imagine::kSourceNames[source]) return static_cast<imagine::Source>(source);
    allowed += (source == 0 ? "" : ", ") + std::string(imagine::kSourceNames[source]);
  }
  throw Error("imagine(): guess source '" + name + "'; allowed: " + allowed);
}

// The arguments of imagine(), checked; `borrowed` keeps the arrays.
struct Asked {
  imagine::Request request;
  std::vector<std::unique_ptr<ImportedTensor>> borrowed;
  int64_t suffix() const {
    return request.frames * (request.action_dim + request.frame_tokens) - 1;
  }
};

Asked read_request(const ModelConfig& config, int64_t scenes, const py::object& actions,
                   const py::object& keys, const py::object& members, int64_t frame_tokens,
                   const imagine::Sampling& sampling, int64_t width,
                   const std::vector<std::string>& guesses) {
  Asked out;
  const auto borrow = [&](const py::object& object, const char* what) -> const TensorView& {
    out.borrowed.push_back(std::make_unique<ImportedTensor>(object, what));
    return out.borrowed.back()->view();
  };
  const TensorView& a = borrow(actions, "imagine(): actions");
  const TensorView& k = borrow(keys, "imagine(): keys");
  const TensorView& m = borrow(members, "imagine(): members");
  a.check("imagine(): actions", std::to_string(scenes) + ",M,T,A", Dtype::kInt32,
          {scenes, kAny, kAny, kAny})
      .check_device("imagine(): actions", kCpu);
  k.check("imagine(): keys", std::to_string(scenes), Dtype::kUint32, {scenes})
      .check_device("imagine(): keys", kCpu);
  imagine::Request& request = out.request;
  request.scenes = scenes;
  request.rows_a_scene = a.size(1);
  m.check("imagine(): members", "M", Dtype::kUint32, {request.rows_a_scene})
      .check_device("imagine(): members", kCpu);
  request.frames = a.size(2);
  request.action_dim = a.size(3);
  request.frame_tokens = frame_tokens;
  if (frame_tokens < 1 || request.frames < 1 || request.action_dim < 1) {
    throw ShapeError("imagine(): frames, action entries and tokens a frame must be at least 1");
  }
  request.actions = checked_ids(a, config.vocabulary, "imagine(): actions");
  request.keys = k.data<const uint32_t>();
  request.members = m.data<const uint32_t>();
  if (!(sampling.temperature >= 0) || !(sampling.top_p > 0 && sampling.top_p <= 1) ||
      sampling.top_k < 0 || width < 1) {
    throw Error(
        "imagine(): temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: all) and width >= 1 are "
        "allowed");
  }
  request.sampling = sampling;
  request.width = width;
  for (const std::string& name : guesses) request.guesses.push_back(source_named(name));
  return out;
}

// Between passes: signals, and the frames that were finished since.
imagine::Poll polling(const std::function<void(int64_t)>& progress) {
  return [&progress, told = int64_t{0}](int64_t frames) mutable {
    poll_signals(frames);
    if (!progress || told >= frames) return;
    const py::gil_scoped_acquire locked;
    while (told < frames) progress(++told);
  };
}

py::dict stats_of(const imagine::Stats& stats, const std::string& kernels, int64_t width) {
  py::dict told;
  told["kernels"] = kernels;
  told["width"] = width;
  told["passes"] = stats.passes;
  told["row_passes"] = stats.row_passes;
  told["tokens"] = stats.accepted;
  told["computed_tokens"] = stats.computed;
  told["wasted_tokens"] = stats.computed - stats.needed;
  py::dict by_source;
  for (int source = 0; source < imagine::kSources; ++source) {
    if (stats.guessed[source] == 0) continue;
    by_source[imagine::kSourceNames[source]] =
        py::make_tuple(stats.right[source], stats.guessed[source]);
  }
  told["guesses"] = by_source;
  return told;
}

py::tuple imagine_tokens(Imaginer& self, const std::vector<std::shared_ptr<Prompt>>& prompts,
                         const py::object& actions, const py::object& keys,
                         const py::object& members, int64_t frame_tokens, uint64_t seed,
                         float temperature, int64_t top_k, double top_p, int64_t width,
                         const std::vector<std::string>& guesses, int threads,
                         const std::function<void(int64_t)>& progress) {
  const auto scenes = static_cast<int64_t>(prompts.size());
  const Asked asked = read_request(self.transformer().config(), scenes, actions, keys, members,
                                   frame_tokens, {seed, temperature, top_k, top_p}, width, guesses);
  const auto shared = checked_prompts(prompts, self, asked.suffix());
  checked_threads(threads);
  py::array_t<int32_t> tokens(
      {scenes, asked.request.rows_a_scene, asked.request.frames, frame_tokens});
  auto* out = tokens.mutable_data();
  imagine::Stats stats;
  {
    const py::gil_scoped_release unlocked;
    stats = self.imagine(asked.request, shared, threads, polling(progress), out);
  }
  return py::make_tuple(tokens, stats_of(stats, self.transformer().kernels().name, width));
}

py::array_t<float> score(Imaginer& self, const std::vector<std::shared_ptr<Prompt>>& prompts,
                         const py::object& ids, int64_t chunk, int threads) {
  const ImportedTensor imported(ids, "score(): ids");
  const TensorView& view = imported.view();
  const auto scenes = static_cast<int64_t>(prompts.size());
  view.check("score(): ids", std::to_string(scenes) + ",M,L", Dtype::kInt32, {scenes, kAny, kAny})
      .check_device("score(): ids", kCpu);
  const ModelConfig& config = self.transformer().config();
  const auto* from = checked_ids(view, config.vocabulary, "score(): ids");
  const auto shared = checked_prompts(prompts, self, view.size(2));
  if (chunk < 1) throw ShapeError("score(): chunk must be at least 1");
  checked_threads(threads);
  py::array_t<float> logits({scenes, view.size(1), view.size(2), config.frame_codes});
  auto* out = logits.mutable_data();
  const py::gil_scoped_release unlocked;
  self.score(shared, from, view.size(1), view.size(2), chunk, threads, poll_signals, out);
  return logits;
}

py::dict bytes_of(const imagine::Bytes& bytes) {
  py::dict told;
  told["weights"] = bytes.weights;
  told["prompt keys and values"] = bytes.prompt;
  told["suffix keys and values"] = bytes.suffix;
  told["work"] = bytes.work;
  return told;
}

py::dict plan(const Imaginer& self, int64_t scenes, int64_t rows, int64_t prompt, int64_t frames,
              int64_t action_dim, int64_t frame_tokens, int64_t width, bool keeps_logits,
              int threads) {
  return bytes_of(self.plan({scenes, rows, prompt, frames, action_dim, frame_tokens, width,
                             keeps_logits, checked_threads(threads)}));
}

int64_t scenes_at_once(const Imaginer& self, int64_t scenes, int64_t rows, int64_t prompt,
                       int64_t frames, int64_t action_dim, int64_t frame_tokens) {
  return self.scenes_at_once({scenes, rows, prompt, frames, action_dim, frame_tokens});
}

double pass_seconds(Imaginer& self, int64_t tokens, int threads) {
  check_length(tokens, self.transformer().config());
  if (tokens < 1) throw ShapeError("pass_seconds(): tokens must be at least 1");
  checked_threads(threads);
  const py::gil_scoped_release unlocked;
  return self.pass_seconds(tokens, threads);
}

#if VLARFT_WITH_CUDA

using CudaImaginer = imagine::cuda::Imaginer;
using CudaPrompt = imagine::cuda::Prompt;

std::unique_ptr<CudaImaginer> make_cuda(const py::dict& config, const py::dict& tensors,
                                        const std::string& dtype, const std::string& cache_dtype,
                                        int device, uintptr_t stream) {
  const ModelConfig c = read_config(config, dtype, cache_dtype);
  const Weights weights = read_weights(c, tensors);
  const py::gil_scoped_release unlocked;
  return std::make_unique<CudaImaginer>(c, weights.pointers, device, stream);
}

std::vector<std::shared_ptr<CudaPrompt>> prefill_cuda(CudaImaginer& self, const py::object& ids,
                                                      uintptr_t stream) {
  const ImportedTensor imported(ids, "prefill(): ids");
  const TensorView& view = imported.view();
  view.check("prefill(): ids", "P,S", Dtype::kInt32, {kAny, kAny})
      .check_device("prefill(): ids", kCpu);
  const auto* from = checked_ids(view, self.config().vocabulary, "prefill(): ids");
  check_length(view.size(1), self.config());
  const py::gil_scoped_release unlocked;
  return self.prefill(from, view.size(0), view.size(1), stream, poll_signals);
}

imagine::cuda::Prompts checked_prompts(const std::vector<std::shared_ptr<CudaPrompt>>& prompts,
                                       const CudaImaginer& self, int64_t suffix) {
  for (const auto& prompt : prompts) {
    if (!self.made(*prompt)) {
      throw Error("Imaginer: a prompt was prefilled by another model; prefill it again");
    }
    const int64_t first = prompts.front()->length, length = prompt->length;
    if (length != first) {
      throw ShapeError("Imaginer: prompts of " + std::to_string(first) + " and " +
                       std::to_string(length) + " tokens; give one length");
    }
    check_length(length + suffix, self.config());
  }
  return {prompts.begin(), prompts.end()};
}

py::dict imagine_cuda(CudaImaginer& self, const std::vector<std::shared_ptr<CudaPrompt>>& prompts,
                      const py::object& actions, const py::object& keys, const py::object& members,
                      const py::object& tokens, int64_t frame_tokens, uint64_t seed,
                      float temperature, int64_t top_k, double top_p, int64_t width,
                      const std::vector<std::string>& guesses, uintptr_t stream,
                      const std::function<void(int64_t)>& progress) {
  const auto scenes = static_cast<int64_t>(prompts.size());
  const Asked asked = read_request(self.config(), scenes, actions, keys, members, frame_tokens,
                                   {seed, temperature, top_k, top_p}, width, guesses);
  const auto shared = checked_prompts(prompts, self, asked.suffix());
  const ImportedTensor out(tokens, "imagine(): tokens");
  out.view()
      .check("imagine(): tokens", "P,M,T,K", Dtype::kInt32,
             {scenes, asked.request.rows_a_scene, asked.request.frames, frame_tokens})
      .check_device("imagine(): tokens", {DeviceKind::kCuda, self.device()});
  auto* to = out.view().data<int32_t>();
  imagine::Stats stats;
  {
    const py::gil_scoped_release unlocked;
    stats = self.imagine(asked.request, shared, stream, polling(progress), to);
  }
  return stats_of(stats, "cuda", width);
}

py::dict plan_cuda(const CudaImaginer& self, int64_t scenes, int64_t rows, int64_t prompt,
                   int64_t frames, int64_t action_dim, int64_t frame_tokens, int64_t width) {
  return bytes_of(self.plan({scenes, rows, prompt, frames, action_dim, frame_tokens, width}));
}

double pass_seconds_cuda(CudaImaginer& self, int64_t tokens, uintptr_t stream) {
  check_length(tokens, self.config());
  if (tokens < 1) throw ShapeError("pass_seconds(): tokens must be at least 1");
  const py::gil_scoped_release unlocked;
  return self.pass_seconds(tokens, stream);
}

void bind_cuda(py::module_& m) {
  using py::literals::operator""_a;
  m.def("range_push", &cuda::push_range, "name"_a,
        "Open an NVTX range; off without VLARFT_NVTX=1.");
  m.def("range_pop", &cuda::pop_range, "Close the range that was opened last.");
  py::class_<CudaPrompt, std::shared_ptr<CudaPrompt>>(
      m, "CudaPrompt", "Keys and values of a scene's prompt on a GPU.")
      .def_readonly("length", &CudaPrompt::length)
      .def_readonly("bytes", &CudaPrompt::bytes);
  py::class_<CudaImaginer>(m, "CudaImaginer", "Token generation of a world model on a GPU.")
      .def(py::init(&make_cuda), "config"_a, "tensors"_a, py::kw_only(), "dtype"_a = "float32",
           "cache_dtype"_a = "", "device"_a, "stream"_a)
      .def_property_readonly("kernels", [](const CudaImaginer&) { return "cuda"; })
      .def_property_readonly("weight_bytes", &CudaImaginer::weight_bytes)
      .def_property_readonly("capture_seconds", &CudaImaginer::capture_seconds)
      .def("prefill", &prefill_cuda, "ids"_a, py::kw_only(), "stream"_a)
      .def("imagine", &imagine_cuda, "prompts"_a, "actions"_a, "keys"_a, "members"_a, "tokens"_a,
           py::kw_only(), "frame_tokens"_a, "seed"_a, "temperature"_a, "top_k"_a, "top_p"_a,
           "width"_a, "guesses"_a, "stream"_a, "progress"_a = nullptr)
      .def("plan", &plan_cuda, py::kw_only(), "scenes"_a, "rows"_a, "prompt"_a, "frames"_a,
           "action_dim"_a, "frame_tokens"_a, "width"_a)
      .def("pass_seconds", &pass_seconds_cuda, "tokens"_a, py::kw_only(), "stream"_a)
      .def_property_readonly("held_bytes",
                             [](CudaImaginer& i) {
                               const py::gil_scoped_release unlocked;
                               return i.held_bytes();
                             })
      .def("release", &CudaImaginer::release, py::call_guard<py::gil_scoped_release>());
}

#endif

}  // namespace

void bind_imagine(py::module_& m) {
  using py::literals::operator""_a;
  m.def("built_kernels", &imagine::built_kernels, "CPU kernels of this build, best first.");
  m.def("runnable_kernels", &imagine::runnable_kernels,
        "CPU kernels that this machine runs, best first.");
  py::class_<Prompt, std::shared_ptr<Prompt>>(m, "Prompt", "Keys and values of a scene's prompt.")
      .def_readonly("length", &Prompt::length)
      .def_property_readonly("bytes", [](const Prompt& p) { return p.cache.bytes(); });
  py::class_<Imaginer>(m, "Imaginer", "Token generation of a world model on the CPU.")
      .def(py::init(&make), "config"_a, "tensors"_a, py::kw_only(), "dtype"_a = "float32",
           "cache_dtype"_a = "", "kernels"_a = "")
      .def_property_readonly("kernels",
                             [](const Imaginer& i) { return i.transformer().kernels().name; })
      .def_property_readonly("weight_bytes",
                             [](const Imaginer& i) { return i.transformer().weight_bytes(); })
      .def("prefill", &prefill, "ids"_a, py::kw_only(), "threads"_a)
      .def("imagine", &imagine_tokens, "prompts"_a, "actions"_a, "keys"_a, "members"_a,
           py::kw_only(), "frame_tokens"_a, "seed"_a, "temperature"_a, "top_k"_a, "top_p"_a,
           "width"_a, "guesses"_a, "threads"_a, "progress"_a = nullptr)
      .def("score", &score, "prompts"_a, "ids"_a, py::kw_only(), "chunk"_a, "threads"_a)
      .def("plan", &plan, py::kw_only(), "scenes"_a, "rows"_a, "prompt"_a, "frames"_a,
           "action_dim"_a, "frame_tokens"_a, "width"_a, "keeps_logits"_a, "threads"_a)
      .def("scenes_at_once", &scenes_at_once, py::kw_only(), "scenes"_a, "rows"_a, "prompt"_a,
           "frames"_a, "action_dim"_a, "frame_tokens"_a)
      .def("pass_seconds", &pass_seconds, "tokens"_a, py::kw_only(), "threads"_a)
      .def_property_readonly("held_bytes",
                             [](Imaginer& i) {
                               const py::gil_scoped_release unlocked;
                               return i.held_bytes();
                             })
      .def("release", &Imaginer::release, py::call_guard<py::gil_scoped_release>());
#if VLARFT_WITH_CUDA
  bind_cuda(m);
#endif
}

}  // namespace vlarft::python
