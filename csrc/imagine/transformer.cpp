#include "imagine/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/errors.h"
#include "core/float8.h"

namespace vlarft::imagine {
namespace {

// Queries that one attention task takes: a group against its prompt at once, a prefill in parts.
constexpr int64_t kQueryBlock = 112;
constexpr int64_t kPairsAtOnce = 4;  // gate and up panels between two SwiGLU steps
// Below this many elements a phase is cheaper on one thread than a barrier.
constexpr int64_t kSerialElements = 24 * 1024;

int64_t element_bytes(Storage storage) { return storage == Storage::kFloat32 ? 4 : 2; }

int64_t padded_depth(int64_t depth, Storage storage) {
  return round_up(depth, storage == Storage::kFloat32 ? kPanel : kBf16Depth);
}

// Units of packed rows for one row of `depth` elements, in whole tiles.
int64_t row_units(int64_t depth, const Gemm& gemm) {
  const int64_t units = gemm.pairs ? (depth + 1) / 2 : depth;
  return (units + kTile - 1) / kTile * kTileStride;
}

void put(void* base, int64_t index, float value, Storage storage) {
  if (storage == Storage::kFloat32) {
    static_cast<float*>(base)[index] = value;
  } else {
    static_cast<uint16_t*>(base)[index] = to_bf16(value);
  }
}

// Element (k, column) of a panel whose depth starts at `base`.
int64_t panel_index(int64_t k, int64_t column, Storage storage) {
  return storage == Storage::kFloat32 ? k * kPanel + column
                                      : k / 2 * (2 * kPanel) + 2 * column + k % 2;
}

int64_t tasks_of(int64_t units, int64_t size) { return (units + size - 1) / size; }

// Rows of a token-wise phase that one task takes: all of them when the work is small.
int64_t rows_a_task(int64_t m, int64_t width) {
  return m * width <= kSerialElements ? m : std::max<int64_t>(1, kSerialElements / width);
}

template <class Work>
void for_rows(ThreadPool& pool, int64_t m, int64_t width, const Work& work) {
  const int64_t size = rows_a_task(m, width);
  pool.run(tasks_of(m, size), [&](int64_t task, int thread) {
    work(task * size, std::min(m, (task + 1) * size), thread);
  });
}

}  // namespace

// --- cache ----------------------------------------------------------------------------------

Cache::Cache(const ModelConfig& config, int64_t capacity)
    : kv_heads_(config.kv_heads),
      dim_(config.head_dim),
      key_dim_(round_up(config.head_dim, 2)),
      value_dim_(round_up(config.head_dim, kPanel)),
      capacity_(round_up(capacity, 2 * kPanel)),
      element_(element_bytes(config.storage)),
      key_elements_(capacity_ * key_dim_),
      value_elements_(capacity_ * value_dim_),
      storage_(config.storage),
      memory_(bytes(config, capacity)) {}

int64_t Cache::bytes(const ModelConfig& config, int64_t capacity) {
  const int64_t dims = round_up(config.head_dim, 2) + round_up(config.head_dim, kPanel);
  return config.layers * config.kv_heads * round_up(capacity, 2 * kPanel) * dims *
         element_bytes(config.storage);
}

void Cache::write(int64_t layer, int64_t head, int64_t position, const float* key,
                  const float* value) {
  std::byte* base = block(layer, head);
  std::byte* key_panel = base + position / kPanel * kPanel * key_dim_ * element_;
  const int64_t tile = position / kTile;
  std::byte* value_tile = base + (key_elements_ + tile * kTile * value_dim_) * element_;
  const int64_t stride = value_panel_stride(tile);
  if (storage_ == Storage::kFloat32) {
    auto* const keys = reinterpret_cast<float*>(key_panel) + position % kPanel;
    auto* const values = reinterpret_cast<float*>(value_tile) + position % kTile * kPanel;
    for (int64_t d = 0; d < dim_; ++d) keys[d * kPanel] = key[d];
    for (int64_t d = 0; d < dim_; d += kPanel) {
      std::copy_n(value + d, std::min(kPanel, dim_ - d), values + d / kPanel * stride);
    }
    return;
  }
  // Pairs of neighbouring k lie together: k is the dimension of keys and the position of values.
  auto* const keys = reinterpret_cast<uint32_t*>(key_panel) + position % kPanel;
  auto* const values =
      reinterpret_cast<uint16_t*>(value_tile) + position % kTile / 2 * (2 * kPanel) + position % 2;
  for (int64_t d = 0; d < dim_; d += 2) {
    const uint32_t second = d + 1 < dim_ ? to_bf16(key[d + 1]) : 0;
    keys[d / 2 * kPanel] = to_bf16(key[d]) | second << 16;
  }
  for (int64_t d = 0; d < dim_; d += kPanel) {
    uint16_t* const to = values + d / kPanel * stride;
    const int64_t here = std::min(kPanel, dim_ - d);
    for (int64_t i = 0; i < here; ++i) to[2 * i] = to_bf16(value[d + i]);
  }
}

// --- weights --------------------------------------------------------------------------------

struct Transformer::Matrix {
  Buffer data;
  int64_t panels = 0;
  int64_t depth = 0;  // padded
  int64_t panel_stride() const { return depth * kPanel; }
  int64_t panel_bytes(Storage storage) const { return panel_stride() * element_bytes(storage); }
};

struct Transformer::Layer {
  Matrix qkv, out, gate_up, down;
  const float* input_norm;
  const float* post_norm;
};

struct Transformer::Token {
  int64_t row;       // index into the rows of the pass
  int64_t place;     // position in the row's own cache
  int64_t position;  // position in the sequence
};

// Rows are output columns of the matrix; null rows are padding.
Transformer::Matrix Transformer::pack(const std::vector<const float*>& rows, int64_t depth,
                                      float scale, int64_t scaled_rows) {
  Matrix matrix;
  const Storage storage = config_.storage;
  matrix.depth = padded_depth(depth, storage);
  matrix.panels = tasks_of(static_cast<int64_t>(rows.size()), kPanel);
  matrix.data = Buffer(matrix.panels * matrix.panel_bytes(storage));
  weight_bytes_ += matrix.data.bytes();
  for (size_t n = 0; n < rows.size(); ++n) {
    if (rows[n] == nullptr) continue;
    const auto column = static_cast<int64_t>(n);
    const float factor = column < scaled_rows ? scale : 1.0F;
    auto* panel = matrix.data.as<std::byte>() + column / kPanel * matrix.panel_bytes(storage);
    for (int64_t k = 0; k < depth; ++k) {
      put(panel, panel_index(k, column % kPanel, storage), rows[n][k] * factor, storage);
    }
  }
  return matrix;
}

Transformer::Transformer(const ModelConfig& config, const Tensors& tensors, const Kernels& kernels)
    : config_(config),
      kernels_(kernels),
      gemm_(config.storage == Storage::kFloat32 ? kernels.f32 : kernels.bf16),
      gemm_kv_(config.storage == Storage::kFloat32 ? kernels.f32 : kernels.bf16_kv),
      gemm_prompt_(config.storage != Storage::kFloat32 && config.head_dim % kBf16Depth == 0
                       ? kernels.bf16
                       : gemm_kv_),
      scales_(cache_scales(config, tensors)) {
  const auto tensor = [&](const std::string& name) { return tensor_named(tensors, name); };
  const auto rows_of = [](const float* data, int64_t rows, int64_t width) {
    std::vector<const float*> out;
    for (int64_t r = 0; r < rows; ++r) out.push_back(data + r * width);
    return out;
  };
  const Storage storage = config.storage;
  const int64_t hidden = config.hidden, wide = config.heads * config.head_dim;
  const int64_t narrow = config.kv_heads * config.head_dim;
  norms_ = Buffer((2 * config.layers + 1) * hidden * static_cast<int64_t>(sizeof(float)));
  auto* norm = norms_.as<float>();
  const auto place_norm = [&](const std::string& name) {
    const float* from = tensor(name);
    for (int64_t i = 0; i < hidden; ++i) {
      norm[i] = storage == Storage::kFloat32 ? from[i] : from_bf16(to_bf16(from[i]));
    }
    return std::exchange(norm, norm + hidden);
  };
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    Layer layer;
    layer.input_norm = place_norm(at + "input_layernorm.weight");
    layer.post_norm = place_norm(at + "post_attention_layernorm.weight");
    auto qkv = rows_of(tensor(at + "self_attn.q_proj.weight"), wide, hidden);
    for (const char* name : {"k_proj", "v_proj"}) {
      const auto rows = rows_of(tensor(at + "self_attn." + name + ".weight"), narrow, hidden);
      qkv.insert(qkv.end(), rows.begin(), rows.end());
    }
    // Queries carry the scale of attention.
    const float scale = static_cast<float>(std::pow(static_cast<double>(config.head_dim), -0.5));
    layer.qkv = pack(qkv, hidden, scale, wide);
    layer.out = pack(rows_of(tensor(at + "self_attn.o_proj.weight"), hidden, wide), wide);
    const auto gate = rows_of(tensor(at + "mlp.gate_proj.weight"), config.ffn, hidden);
    const auto up = rows_of(tensor(at + "mlp.up_proj.weight"), config.ffn, hidden);
    std::vector<const float*> turns;
    for (size_t first = 0; first < gate.size(); first += kPanel) {
      for (const auto* part : {&gate, &up}) {
        for (size_t c = first; c < first + kPanel; ++c) {
          turns.push_back(c < part->size() ? (*part)[c] : nullptr);
        }
      }
    }
    layer.gate_up = pack(turns, hidden);
    layer.down = pack(rows_of(tensor(at + "mlp.down_proj.weight"), hidden, config.ffn), config.ffn);
    layers_.push_back(std::move(layer));
  }
  place_norm("model.norm.weight");
  head_ = std::make_unique<Matrix>(
      pack(rows_of(tensor("lm_head.weight"), config.frame_codes, hidden), hidden));

  const int64_t embedded = config.vocabulary * hidden;
  embedding_ = Buffer(embedded * element_bytes(storage));
  const float* embedding = tensor("model.embed_tokens.weight");
  for (int64_t i = 0; i < embedded; ++i) {
    put(embedding_.as<void>(), i, embedding[i], storage);
  }
  const int64_t angles = config.positions * (config.head_dim / 2);
  cos_ = Buffer(angles * static_cast<int64_t>(sizeof(float)));
  sin_ = Buffer(angles * static_cast<int64_t>(sizeof(float)));
  std::memcpy(cos_.as<void>(), tensor("rotary.cos"), static_cast<size_t>(cos_.bytes()));
  std::memcpy(sin_.as<void>(), tensor("rotary.sin"), static_cast<size_t>(sin_.bytes()));
  weight_bytes_ += embedding_.bytes() + norms_.bytes() + cos_.bytes() + sin_.bytes();
}

Transformer::~Transformer() = default;

int64_t Transformer::logit_stride() const { return head_->panels * kPanel; }

// --- workspace ------------------------------------------------------------------------------

class Workspace {
 public:
  int64_t tokens, logit_rows;
  int64_t x_stride, qkv_stride;
  // Packed rows have their own buffers and a tile stride that no pass changes, so that the padding
  // of their depth stays zero.
  int64_t hidden_units, attended_units, ffn_units;
  int64_t query_units;
  Buffer x, qkv, packed_hidden, packed_attended, packed_ffn, logits;
  struct Scratch {
    Buffer queries, scores, shares, out, maxima, sums, line, gate_up, gated;
  };
  std::vector<Scratch> scratch;
  int64_t bytes = 0;

  int64_t packed_rows() const { return std::max(tokens, logit_rows); }
  int64_t tile() const { return packed_rows() * kTileStride; }

  Buffer take(int64_t floats, bool real) {
    bytes += floats * 4;
    return real ? Buffer(floats * 4) : Buffer();
  }

  Workspace(const ModelConfig& c, const Gemm& gemm, const Gemm& gemm_kv, int64_t logit_stride,
            int64_t tokens_at_once, int64_t rows, int threads, bool real)
      : tokens(tokens_at_once), logit_rows(rows) {
    const int64_t wide = (c.heads + 2 * c.kv_heads) * c.head_dim;
    const int64_t groups = c.heads / c.kv_heads;
    const int64_t queries = std::max(kQueryBlock, groups);
    x_stride = round_up(c.hidden, kPanel);
    qkv_stride = round_up(wide, kPanel);
    hidden_units = row_units(padded_depth(c.hidden, c.storage), gemm);
    attended_units = row_units(padded_depth(c.heads * c.head_dim, c.storage), gemm);
    ffn_units = row_units(padded_depth(c.ffn, c.storage), gemm);
    query_units = row_units(round_up(c.head_dim, 2), gemm_kv);
    x = take(tokens * x_stride, real);
    qkv = take(tokens * qkv_stride, real);
    packed_hidden = take(packed_rows() * hidden_units, real);
    packed_attended = take(packed_rows() * attended_units, real);
    packed_ffn = take(packed_rows() * ffn_units, real);
    logits = take(logit_rows * logit_stride, real);
    for (int i = 0; i < threads; ++i) {
      Scratch s;
      s.queries = take(queries * query_units, real);
      s.scores = take(queries * kTileStride, real);
      s.shares = take(queries * kTileStride, real);
      s.out = take(queries * round_up(c.head_dim, kPanel), real);
      s.maxima = take(queries, real);
      s.sums = take(queries, real);
      s.line = take(round_up(c.hidden, kPanel), real);
      s.gate_up = take(tokens * 2 * kPairsAtOnce * kPanel, real);
      s.gated = take(tokens * kPairsAtOnce * kPanel, real);
      if (real) scratch.push_back(std::move(s));
    }
  }
};

struct Transformer::Pass {
  const std::vector<Row>& rows;
  Workspace& work;
  ThreadPool& pool;
  std::vector<Token> tokens;
  struct Block {
    int64_t first, end;  // tokens
  };
  std::vector<Block> blocks;  // of one prefix each

  int64_t m() const { return static_cast<int64_t>(tokens.size()); }
};

std::shared_ptr<Workspace> Transformer::workspace(int64_t tokens, int64_t logit_rows,
                                                  int threads) const {
  return std::make_shared<Workspace>(config_, gemm_, gemm_kv_, logit_stride(), tokens, logit_rows,
                                     threads, true);
}

int64_t Transformer::workspace_bytes(int64_t tokens, int64_t logit_rows, int threads) const {
  return Workspace(config_, gemm_, gemm_kv_, logit_stride(), tokens, logit_rows, threads, false)
      .bytes;
}

// --- one pass -------------------------------------------------------------------------------

void Transformer::multiply(const Matrix& matrix, const void* packed, int64_t tile_stride, int64_t m,
                           float* out, int64_t stride, bool add, ThreadPool& pool) const {
  const int64_t size = std::clamp<int64_t>(matrix.panels / (4 * pool.size()), 1, 8);
  pool.run(tasks_of(matrix.panels, size), [&](int64_t task, int) {
    const int64_t first = task * size;
    gemm_.multiply(matrix.data.as<std::byte>() + first * matrix.panel_bytes(config_.storage),
                   matrix.panel_stride(), matrix.depth, packed, tile_stride, m,
                   std::min(size, matrix.panels - first), out + first * kPanel, stride, add);
  });
}

void Transformer::norm_and_pack(const float* x, const float* weight, int64_t m, void* packed,
                                int64_t tile_stride, Workspace& work, ThreadPool& pool) const {
  for_rows(pool, m, config_.hidden, [&](int64_t first, int64_t end, int thread) {
    auto* line = work.scratch[static_cast<size_t>(thread)].line.as<float>();
    for (int64_t r = first; r < end; ++r) {
      kernels_.rms_norm(x + r * work.x_stride, weight, config_.hidden, config_.eps, line);
      gemm_.pack(line, 0, 1, 0, config_.hidden, static_cast<float*>(packed) + r * kTileStride,
                 tile_stride);
    }
  });
}

// What a GPU reads back from its float8 cache, of one token. Here it is stored as the weights are:
// the same error, and no memory saved.
void Transformer::round_to_float8(int64_t layer, float* keys, float* values) const {
  for (int64_t head = 0; head < config_.kv_heads; ++head) {
    const auto at = static_cast<size_t>(layer * config_.kv_heads + head);
    const auto round = [&](float* entries, float scale) {
      for (int64_t d = 0; d < config_.head_dim; ++d) {
        entries[d] = from_float8(to_float8(entries[d] / scale)) * scale;
      }
    };
    round(keys + head * config_.head_dim, scales_.keys[at]);
    round(values + head * config_.head_dim, scales_.values[at]);
  }
}

void Transformer::rotate_and_store(int64_t layer, Pass& pass) const {
  const int64_t half = config_.head_dim / 2;
  for_rows(pass.pool, pass.m(), pass.work.qkv_stride, [&](int64_t first, int64_t end, int) {
    for (int64_t t = first; t < end; ++t) {
      const Token& token = pass.tokens[static_cast<size_t>(t)];
      float* line = pass.work.qkv.as<float>() + t * pass.work.qkv_stride;
      const float* cos = cos_.as<float>() + token.position * half;
      const float* sin = sin_.as<float>() + token.position * half;
      for (int64_t head = 0; head < config_.heads + config_.kv_heads; ++head) {
        float* low = line + head * config_.head_dim;
        float* high = low + half;
        for (int64_t d = 0; d < half; ++d) {
          const float a = low[d], b = high[d];
          low[d] = a * cos[d] - b * sin[d];
          high[d] = b * cos[d] + a * sin[d];
        }
      }
      float* keys = line + config_.heads * config_.head_dim;
      float* values = keys + config_.kv_heads * config_.head_dim;
      if (config_.cache == CacheStorage::kFloat8) round_to_float8(layer, keys, values);
      Cache& own = *pass.rows[static_cast<size_t>(token.row)].own;
      for (int64_t head = 0; head < config_.kv_heads; ++head) {
        own.write(layer, head, token.place, keys + head * config_.head_dim,
                  values + head * config_.head_dim);
      }
    }
  });
}

// Tokens [first, end) of one prefix against one key/value head: the prefix for all of them
// together, then each row's own cache, tile by tile with a running softmax (one order for all).
void Transformer::attend_block(int64_t layer, int64_t head, int64_t first, int64_t end, int thread,
                               Pass& pass) const {
  Workspace& work = pass.work;
  Workspace::Scratch& s = work.scratch[static_cast<size_t>(thread)];
  const int64_t groups = config_.heads / config_.kv_heads, dim = config_.head_dim;
  const int64_t wide = round_up(dim, kPanel), value_panels = wide / kPanel;
  const int64_t count = (end - first) * groups;
  const int64_t query_tile = count * kTileStride;
  auto* queries = s.queries.as<float>();
  auto* scores = s.scores.as<float>();
  auto* out = s.out.as<float>();
  auto* maxima = s.maxima.as<float>();
  auto* sums = s.sums.as<float>();
  for (int64_t t = first; t < end; ++t) {
    const float* line = work.qkv.as<float>() + t * work.qkv_stride + head * groups * dim;
    gemm_kv_.pack(line, dim, groups, 0, dim, queries + (t - first) * groups * kTileStride,
                  query_tile);
  }
  std::memset(out, 0, static_cast<size_t>(count * wide) * sizeof(float));
  std::fill(maxima, maxima + count, -3.0e38F);
  std::fill(sums, sums + count, 0.0F);

  // Queries [q, q + n) against one tile; valid(i) positions of it may be seen by query i.
  const auto tile_step = [&](const Gemm& gemm, const Cache& cache, int64_t tile, int64_t q,
                             int64_t n, int64_t positions, const auto& valid) {
    const int64_t padded = round_up(positions, &gemm == &gemm_kv_ ? kPanel : kBf16Depth);
    const std::byte* keys =
        cache.keys(layer, head) + tile * kTile * cache.key_depth() * element_bytes(config_.storage);
    gemm.multiply(keys, cache.key_depth() * kPanel, cache.key_depth(), queries + q * kTileStride,
                  query_tile, n, padded / kPanel, scores + q * kTileStride, kTileStride, false);
    for (int64_t i = q; i < q + n; ++i) {
      const float factor =
          kernels_.softmax_tile(scores + i * kTileStride, valid(i), padded, maxima + i, sums + i);
      if (factor != 1.0F) kernels_.scale(out + i * wide, factor, wide);
    }
    const float* shares = scores + q * kTileStride;
    if (gemm.pairs) {
      auto* pairs = s.shares.as<float>() + q * kTileStride;
      gemm.pack(shares, kTileStride, n, 0, padded, pairs, 0);
      shares = pairs;
    }
    gemm.multiply(cache.values(layer, head, tile), cache.value_panel_stride(tile), padded, shares,
                  0, n, value_panels, out + q * wide, wide, true);
  };

  const Row& leader = pass.rows[static_cast<size_t>(pass.tokens[static_cast<size_t>(first)].row)];
  for (int64_t tile = 0; tile * kTile < leader.prefix_length; ++tile) {
    const int64_t positions = std::min(kTile, leader.prefix_length - tile * kTile);
    tile_step(gemm_prompt_, *leader.prefix, tile, 0, count, positions,
              [&](int64_t) { return positions; });
  }
  for (int64_t t = first; t < end;) {
    const int64_t row = pass.tokens[static_cast<size_t>(t)].row;
    int64_t stop = t;
    while (stop < end && pass.tokens[static_cast<size_t>(stop)].row == row) ++stop;
    const Cache& own = *pass.rows[static_cast<size_t>(row)].own;
    const int64_t length = pass.tokens[static_cast<size_t>(stop - 1)].place + 1;
    for (int64_t tile = 0; tile * kTile < length; ++tile) {
      const int64_t positions = std::min(kTile, length - tile * kTile);
      tile_step(gemm_kv_, own, tile, (t - first) * groups, (stop - t) * groups, positions,
                [&](int64_t i) {
                  const Token& token = pass.tokens[static_cast<size_t>(first + i / groups)];
                  return std::min(positions, token.place + 1 - tile * kTile);
                });
    }
    t = stop;
  }

  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = first + i / groups;
    float* line = out + i * wide;
    for (int64_t d = 0; d < dim; ++d) line[d] /= sums[i];
    gemm_.pack(line, 0, 1, (head * groups + i % groups) * dim, dim,
               work.packed_attended.as<float>() + t * kTileStride, work.tile());
  }
}

void Transformer::attend(int64_t layer, Pass& pass) const {
  const auto blocks = static_cast<int64_t>(pass.blocks.size());
  // Heads of a block are neighbours; later blocks of a prefill see more, so they start first.
  pass.pool.run(blocks * config_.kv_heads, [&](int64_t task, int thread) {
    const Pass::Block& block =
        pass.blocks[static_cast<size_t>(blocks - 1 - task / config_.kv_heads)];
    attend_block(layer, task % config_.kv_heads, block.first, block.end, thread, pass);
  });
}

void Transformer::feed_forward(const Layer& layer, Pass& pass) const {
  Workspace& work = pass.work;
  const int64_t m = pass.m(), tile = work.tile();
  norm_and_pack(work.x.as<float>(), layer.post_norm, m, work.packed_hidden.as<void>(), tile, work,
                pass.pool);
  const int64_t pairs = layer.gate_up.panels / 2;
  const int64_t size = std::clamp<int64_t>(pairs / (4 * pass.pool.size()), 1, kPairsAtOnce);
  pass.pool.run(tasks_of(pairs, size), [&](int64_t task, int thread) {
    Workspace::Scratch& s = work.scratch[static_cast<size_t>(thread)];
    const int64_t first = task * size, count = std::min(size, pairs - first);
    const int64_t stride = 2 * count * kPanel;
    const int64_t columns = std::min(count * kPanel, config_.ffn - first * kPanel);
    auto* gate_up = s.gate_up.as<float>();
    auto* gated = s.gated.as<float>();
    gemm_.multiply(
        layer.gate_up.data.as<std::byte>() + 2 * first * layer.gate_up.panel_bytes(config_.storage),
        layer.gate_up.panel_stride(), layer.gate_up.depth, work.packed_hidden.as<void>(), tile, m,
        2 * count, gate_up, stride, false);
    kernels_.swiglu(gate_up, stride, m, count, gated, count * kPanel);
    gemm_.pack(gated, count * kPanel, m, first * kPanel, columns, work.packed_ffn.as<void>(), tile);
  });
  multiply(layer.down, work.packed_ffn.as<void>(), tile, m, work.x.as<float>(), work.x_stride, true,
           pass.pool);
}

const float* Transformer::extend(const std::vector<Row>& rows, Workspace& work,
                                 ThreadPool& pool) const {
  Pass pass{rows, work, pool, {}, {}};
  const int64_t groups = config_.heads / config_.kv_heads;
  const int64_t block = std::max<int64_t>(1, kQueryBlock / groups);
  std::vector<int64_t> sampled;
  std::vector<int32_t> ids;
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    for (int64_t i = 0; i < row.count; ++i) {
      const auto t = static_cast<int64_t>(pass.tokens.size());
      const bool joins = !pass.blocks.empty() &&
                         rows[static_cast<size_t>(pass.tokens.back().row)].prefix == row.prefix &&
                         (row.prefix != nullptr || i > 0) && t - pass.blocks.back().first < block;
      if (!joins) pass.blocks.push_back({t, t});
      pass.blocks.back().end = t + 1;
      pass.tokens.push_back(
          {static_cast<int64_t>(r), row.length + i, row.prefix_length + row.length + i});
      ids.push_back(row.tokens[i]);
      if (i >= row.logits_from) sampled.push_back(t);
    }
  }
  const int64_t m = pass.m(), tile = work.tile(), hidden = config_.hidden;
  auto* x = work.x.as<float>();
  for_rows(pool, m, hidden, [&](int64_t first, int64_t end, int) {
    for (int64_t t = first; t < end; ++t) {
      const int64_t at = ids[static_cast<size_t>(t)] * hidden;
      for (int64_t i = 0; i < hidden; ++i) {
        x[t * work.x_stride + i] = config_.storage == Storage::kFloat32
                                       ? embedding_.as<float>()[at + i]
                                       : from_bf16(embedding_.as<uint16_t>()[at + i]);
      }
    }
  });
  for (int64_t i = 0; i < config_.layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    norm_and_pack(x, layer.input_norm, m, work.packed_hidden.as<void>(), tile, work, pool);
    multiply(layer.qkv, work.packed_hidden.as<void>(), tile, m, work.qkv.as<float>(),
             work.qkv_stride, false, pool);
    rotate_and_store(i, pass);
    if (sampled.empty() && i + 1 == config_.layers) return nullptr;
    attend(i, pass);
    multiply(layer.out, work.packed_attended.as<void>(), tile, m, x, work.x_stride, true, pool);
    feed_forward(layer, pass);
  }
  const auto count = static_cast<int64_t>(sampled.size());
  // Sampled tokens move to the front; they are in ascending order, so none is overwritten early.
  for (int64_t i = 0; i < count; ++i) {
    std::memmove(x + i * work.x_stride, x + sampled[static_cast<size_t>(i)] * work.x_stride,
                 static_cast<size_t>(hidden) * sizeof(float));
  }
  norm_and_pack(x, norms_.as<float>() + 2 * config_.layers * hidden, count,
                work.packed_hidden.as<void>(), tile, work, pool);
  multiply(*head_, work.packed_hidden.as<void>(), tile, count, work.logits.as<float>(),
           logit_stride(), false, pool);
  return work.logits.as<float>();
}

}  // namespace vlarft::imagine
