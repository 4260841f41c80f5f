#include "engine/weights.h"

#include <algorithm>

#include "engine/errors.h"
#include "kernels/cache_codes.h"

namespace pliant {
namespace {

// Adds what a product reads of `tiles` runs that begin `stride` bytes apart.
void add_runs(const void* first, size_t tiles, size_t stride, size_t used,
              std::vector<ByteRange>& ranges) {
  const std::byte* begin = static_cast<const std::byte*>(first);
  if (used == stride) {
    ranges.push_back({begin, tiles * stride});
  } else {
    for (size_t tile = 0; tile < tiles; ++tile) ranges.push_back({begin + tile * stride, used});
  }
}

void add_ranges(const PlaneMatrix& matrix, int planes, std::vector<ByteRange>& ranges) {
  const size_t tiles = size_t(matrix.tiles());
  for (int plane = 0; plane < planes; ++plane)
    add_runs(matrix.planes[size_t(plane)], tiles, matrix.tile_stride_bytes(),
             size_t(matrix.chunks()) * kChunkBytes, ranges);
  add_runs(matrix.scales, tiles, matrix.tile_stride_scales() * sizeof(uint16_t),
           size_t(matrix.groups()) * kTileRows * sizeof(uint16_t), ranges);
}

std::string shape_text(int rows, int columns) {
  return std::to_string(rows) + " x " + std::to_string(columns);
}

void check_matrix(const std::string& name, const CodedMatrix& matrix, int rows, int columns) {
  if (matrix.form == PlaneForm::kSigns && matrix.num_planes > kSignPlanes)
    throw UsageError(name + " has " + std::to_string(matrix.num_planes) +
                     " planes of signs; give 1 to 4.");
  if (matrix.num_planes < 1 || matrix.num_planes > kMaxPlanes)
    throw UsageError(name + " has " + std::to_string(matrix.num_planes) + " planes; give 1 to 8.");
  if (matrix.rows != rows || matrix.columns != columns)
    throw UsageError(name + " is " + shape_text(matrix.rows, matrix.columns) +
                     "; this architecture needs " + shape_text(rows, columns) + ".");
}

void check_vector(const std::string& name, const std::vector<float>& vector, size_t size,
                  bool optional) {
  if (vector.size() == size || (optional && vector.empty())) return;
  throw UsageError(name + " has " + std::to_string(vector.size()) + " entries; it needs " +
                   std::to_string(size) + ".");
}

void check_linear(const std::string& name, const Linear& linear, int rows, int columns) {
  check_matrix(name, linear.matrix, rows, columns);
  check_vector(name + ".bias", linear.bias, rows, true);
  const LowRank& update = linear.low_rank;
  if (update.rank != 0 && (update.rows != rows || update.columns != columns))
    throw UsageError("The adapter of " + name + " is for " +
                     shape_text(update.rows, update.columns) + "; the matrix is " +
                     shape_text(rows, columns) + ".");
}

void check_attention(const DecoderConfig& config, const BlockWeights& block,
                     const std::string& name) {
  const int hidden = config.hidden_size;
  const int query_rows = block.groups * config.group_size();
  const int key_rows = block.groups * config.head_dim;
  check_linear(name + "q", block.q, query_rows, hidden);
  check_linear(name + "k", block.k, key_rows, hidden);
  check_linear(name + "v", block.v, key_rows, hidden);
  check_linear(name + "o", block.o, hidden, query_rows);
  check_vector(name + "attention_norm", block.attention_norm, hidden, false);
  check_vector(name + "attention_post_norm", block.attention_post_norm, hidden, true);
  check_vector(name + "q_norm", block.q_norm, config.head_dim, true);
  check_vector(name + "k_norm", block.k_norm, config.head_dim, true);
}

void check_mlp(const DecoderConfig& config, const BlockWeights& block, const std::string& name) {
  const int hidden = config.hidden_size;
  check_linear(name + "gate", block.gate, block.neurons, hidden);
  check_linear(name + "up", block.up, block.neurons, hidden);
  check_linear(name + "down", block.down, hidden, block.neurons);
  check_vector(name + "mlp_norm", block.mlp_norm, hidden, false);
  check_vector(name + "mlp_post_norm", block.mlp_post_norm, hidden, true);
}

void check_block(const DecoderConfig& config, const BlockWeights& block) {
  const std::string name = "blocks." + std::to_string(block.block) + ".";
  if (block.groups < 0 || block.neurons < 0 || block.groups + block.neurons == 0)
    throw UsageError(name + " keeps neither a group nor a neuron; drop the block instead.");
  if (block.rotation < -1 || block.rotation >= int(config.rotations.size()) || block.window < 0)
    throw UsageError(name + " names a rotation or window that is not there.");
  if (block.groups > 0) check_attention(config, block, name);
  if (block.neurons > 0) check_mlp(config, block, name);
}

}  // namespace

std::vector<ByteRange> DecoderWeights::ranges() const {
  std::vector<ByteRange> ranges;
  if (embedding.planes[0] == head.planes[0]) {
    PlaneMatrix more = embedding.num_planes > head.num_planes ? embedding : head;
    add_ranges(more, more.num_planes, ranges);
  } else {
    add_ranges(embedding, embedding.num_planes, ranges);
    add_ranges(head, head.num_planes, ranges);
  }
  for (const BlockWeights& block : blocks)
    for (const Linear* linear : block.linears())
      if (linear->matrix.rows > 0) add_ranges(linear->matrix, linear->matrix.num_planes, ranges);
  return ranges;
}

size_t DecoderWeights::mapped_bytes() const {
  size_t bytes = 0;
  for (const ByteRange& range : ranges()) bytes += range.size;
  return bytes;
}

size_t DecoderWeights::num_block_weights() const {
  size_t count = 0;
  for (const BlockWeights& block : blocks)
    for (const Linear* linear : block.linears())
      count += size_t(linear->matrix.rows) * linear->matrix.columns;
  return count;
}

int DecoderWeights::most_ranks() const {
  int most = 0;
  const auto ranks = [](const Linear& linear) { return linear.low_rank.padded_rank(); };
  for (const BlockWeights& block : blocks)
    most = std::max({most, ranks(block.q) + ranks(block.k) + ranks(block.v), ranks(block.o),
                     ranks(block.gate) + ranks(block.up), ranks(block.down)});
  return most;
}

size_t DecoderWeights::adapter_bytes() const {
  size_t bytes = 0;
  for (const BlockWeights& block : blocks)
    for (const Linear* linear : block.linears()) {
      const LowRank& update = linear->low_rank;
      if (update.rank == 0) continue;
      const size_t padded = size_t(update.padded_rank()), rows = size_t(update.tiles()) * kTileRows;
      bytes += padded * (size_t(update.stride()) + sizeof(float) * size_t(update.groups())) +
               rows * (size_t(update.rank) + sizeof(uint16_t));
    }
  return bytes;
}

void check_weights(const DecoderConfig& config, const DecoderWeights& weights) {
  if (config.vocab_size < 1 || config.hidden_size < 1 || config.heads_per_group < 1 ||
      config.head_dim < 2 || config.head_dim % 2 != 0 || config.max_context < 1)
    throw UsageError("Every size of a decoder is at least 1, and head_dim is even.");
  if (weights.blocks.empty()) throw UsageError("A decoder needs at least one block.");
  for (const Rotation& rotation : config.rotations)
    check_vector("rope frequencies", rotation.frequencies, config.head_dim / 2, false);
  check_matrix("embedding", weights.embedding, config.vocab_size, config.hidden_size);
  check_matrix("head", weights.head, config.vocab_size, config.hidden_size);
  check_vector("final_norm", weights.final_norm, config.hidden_size, false);
  for (const BlockWeights& block : weights.blocks) check_block(config, block);
  if (config.cache_bits != 0 &&
      (config.cache_bits < 2 || config.cache_bits > 4 || config.cache_type != CacheType::kFloat16 ||
       config.cache_window < 0 || config.cache_window % kCacheUnit != 0))
    throw UsageError("A cache of " + std::to_string(config.cache_bits) + " bits and a window of " +
                     std::to_string(config.cache_window) +
                     " tokens was asked for; use 2, 3 or 4 bits over float16 and a multiple of " +
                     std::to_string(kCacheUnit) + ".");
  if (config.head_screen < 0 || config.head_screen > kMaxPlanes)
    throw UsageError("A head is screened with 0 to 8 planes; " +
                     std::to_string(config.head_screen) + " were asked for.");
  if (config.head_screen > 0 && weights.head.form != PlaneForm::kUniform)
    throw UsageError(
        "The head can be screened where its planes are weighed by halves; this one has planes of "
        "signs, leave head_screen at 0.");
  if (config.head_screen > 0 &&
      (config.mode != ActivationMode::kInt8 || config.logit_softcap > 0.0f))
    throw UsageError(
        "Screening the head is exact for int8 activations and logits without a soft cap only; "
        "leave head_screen at 0 here.");
}

}  // namespace pliant
