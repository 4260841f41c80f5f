// What a decoder computes with: the numbers of its architecture and views of its weights.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "base/pages.h"
#include "kernels/kernels.h"
#include "ops/product.h"

namespace pliant {

struct Rotation {
  std::vector<float> frequencies;  // [head_dim / 2], radians per token
  float amplitude = 1.0f;
};

// The numbers of ModelSpec that a forward pass needs, and how it is run.
struct DecoderConfig {
  int vocab_size = 0;
  int hidden_size = 0;
  int heads_per_group = 0;
  int head_dim = 0;
  int max_context = 0;
  float norm_epsilon = 1e-6f;
  float norm_offset = 0.0f;
  Activation activation = Activation::kSilu;
  float embedding_scale = 1.0f;
  float attention_scale = 1.0f;
  float attention_softcap = 0.0f;
  float logit_softcap = 0.0f;
  std::vector<Rotation> rotations;
  ActivationMode mode = ActivationMode::kInt8;
  CacheType cache_type = CacheType::kFloat16;
  // Bits of keys and values that are older than cache_window entries: 2, 3 or 4 with an fp16
  // cache; 0 keeps all of them as `cache_type`. The window is a multiple of kCacheUnit.
  int cache_bits = 0;
  int cache_window = 0;
  int threads = 1;
  bool check_finite = false;
  int head_screen = 0;  // planes of the head that rule out most tokens in choose(); 0: none do
  Preload preload = Preload::kAhead;

  int group_size() const { return heads_per_group * head_dim; }
  // Tokens whose query heads share each load of a key: enough for some 32 rows, more than which
  // saves little and takes room in the first cache.
  int tile_tokens() const { return std::max(1, 32 / heads_per_group); }
  int tile_rows() const { return tile_tokens() * heads_per_group; }
};

// A plane matrix, its bias, which is empty where the architecture has none, and what an adapter
// adds to it (rank 0: nothing).
struct Linear {
  CodedMatrix matrix;
  std::vector<float> bias;
  LowRank low_rank;

  const float* bias_data() const { return bias.empty() ? nullptr : bias.data(); }
  // The product with this matrix into rows of `stride` floats.
  Product product(float* output, size_t stride) const {
    return {&matrix, bias_data(), output, stride, low_rank.rank > 0 ? &low_rank : nullptr};
  }
};

// One kept block: attention, MLP or both; the other half has 0 groups or neurons and no weights.
// The norms that an architecture lacks are empty.
struct BlockWeights {
  int block = 0;      // its index in the dense model, for messages
  int groups = 0;     // KV groups kept; 0: no attention
  int neurons = 0;    // neurons kept; 0: no MLP
  int rotation = -1;  // index into DecoderConfig::rotations; -1 rotates nothing
  int window = 0;     // tokens visible, the token itself included; 0 shows all
  Linear q, k, v, o, gate, up, down;
  std::vector<float> attention_norm, attention_post_norm, q_norm, k_norm, mlp_norm, mlp_post_norm;

  // Those of both halves; of a half that is not kept they are empty matrices.
  std::array<const Linear*, 7> linears() const { return {&q, &k, &v, &o, &gate, &up, &down}; }
  std::array<const std::vector<float>*, 6> norms() const {
    return {&attention_norm, &attention_post_norm, &q_norm, &k_norm, &mlp_norm, &mlp_post_norm};
  }
};

struct DecoderWeights {
  CodedMatrix embedding;
  CodedMatrix head;
  std::vector<float> final_norm;
  std::vector<BlockWeights> blocks;

  // Bytes of planes and scales that a forward pass reads, an embedding counted once if tied.
  size_t mapped_bytes() const;
  // The bytes that mapped_bytes() counts, where they lie.
  std::vector<ByteRange> ranges() const;
  // Weights multiplied for one token, the head left out.
  size_t num_block_weights() const;
  // The largest sum of padded ranks of adapters that share an input; 0 where there is none.
  int most_ranks() const;
  // Bytes of the factors of all adapters.
  size_t adapter_bytes() const;
};

// Throws UsageError unless every size agrees with the configuration.
void check_weights(const DecoderConfig& config, const DecoderWeights& weights);

}  // namespace pliant
