#include "engine/workspace.h"

#include <algorithm>
#include <limits>

namespace pliant {
namespace {

// Of every step up to `tokens`: kernels change their method with the number of tokens.
size_t kernel_scratch(const Kernels& kernels, const DecoderWeights& weights, int tokens) {
  size_t most = 0;
  for (int count = 1; count <= tokens; ++count) {
    most = std::max(most, kernels.planes_int8_scratch(weights.head, count));
    for (const BlockWeights& block : weights.blocks)
      for (const Linear* linear : block.linears())
        if (linear->matrix.rows > 0)
          most = std::max(most, kernels.planes_int8_scratch(linear->matrix, count));
  }
  return most;
}

}  // namespace

void Workspace::reserve(const Kernels& kernels, const DecoderConfig& config,
                        const DecoderWeights& weights, int tokens, int num_lanes, int workers) {
  int groups = 0;
  int most_neurons = 0;
  for (const BlockWeights& block : weights.blocks) {
    groups = std::max(groups, block.groups);
    most_neurons = std::max(most_neurons, block.neurons);
  }
  const int query_size = groups * config.group_size();
  const int key_size = groups * config.head_dim;
  // Lane 0 serves both ways of splitting rows, the others only steps of few tokens.
  lanes.resize(std::max(lanes.size(), size_t(num_lanes)));
  for (int lane = 0; lane < num_lanes; ++lane) {
    lanes[lane].hidden.reserve(tokens, config.hidden_size);
    lanes[lane].normed.reserve(tokens, config.hidden_size);
    lanes[lane].quantized.reserve(tokens, std::max(config.hidden_size, query_size));
  }
  reduction.reserve(tokens, weights.most_ranks(), workers, num_lanes > 1);
  if (tokens <= tokens_) return;
  tokens_ = 0;  // should memory run out below, the next step begins again
  query.reserve(tokens, query_size);
  key.reserve(tokens, key_size);
  value.reserve(tokens, key_size);
  attended.reserve(tokens, query_size);
  gate.reserve(tokens, most_neurons);
  up.reserve(tokens, most_neurons);
  output.reserve(tokens, config.hidden_size);
  neurons.reserve(tokens, most_neurons);
  scratch.resize(workers);
  const size_t scratch_bytes = kernel_scratch(kernels, weights, tokens);
  for (AlignedBuffer<std::byte>& buffer : scratch) buffer.reserve(scratch_bytes);
  attention.resize(workers);
  for (TileRows& tile : attention) {
    const size_t rows = config.tile_rows();
    tile.rows.resize(rows);
    tile.parts.reserve(3 * rows, config.head_dim);
    if (config.cache_bits > 0) tile.decoded.reserve(decoded_floats(config.head_dim));
  }
  tokens_ = tokens;
}

void Workspace::reserve_context(size_t tiles, size_t tasks, int tile_rows, int head_dim) {
  context.parts.reserve(tasks * tile_rows, head_dim);
  if (context.chunks_done.size() < tiles)
    context.chunks_done = std::vector<std::atomic<int>>(tiles);
}

namespace {

constexpr int kLookRows = 64;

// Whether one of kLookRows scores is above `score`, or NaN or infinite. In lanes that do not depend
// on each other, so that it takes a few instructions for eight of them.
bool is_of_interest(const float* values, float score) {
  constexpr int kLanes = 16;
  int found[kLanes] = {};
  for (int row = 0; row < kLookRows; row += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = values[row + lane];
      // Both comparisons are false for NaN.
      found[lane] |=
          int(!(value <= score)) | int(!(value < std::numeric_limits<float>::infinity()));
    }
  }
  int any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= found[lane];
  return any != 0;
}

}  // namespace

void BestToken::look(const float* values, int begin, int end) {
  for (int row = begin; row < end;) {
    const int last = std::min(row + kLookRows, end);
    if (token >= 0 && last - row == kLookRows && !is_of_interest(values + row, score)) {
      row = last;
      continue;
    }
    for (; row < last; ++row) {
      if (!(values[row] < std::numeric_limits<float>::infinity())) broken = true;
      if (token >= 0 && !(values[row] > score)) continue;
      token = row;
      score = values[row];
    }
  }
}

void HeadScores::reserve(int tokens, int vocab_size, int groups, int workers) {
  values.reserve(tokens, vocab_size);
  bounds.reserve(tokens, vocab_size);
  magnitudes.reserve(size_t(workers) * groups);
  const size_t entries = size_t(workers) * tokens;
  if (entries > found.size()) {
    lowest.resize(entries);
    limits.resize(entries);
    found.resize(entries);
  }
  if (rescored.size() < size_t(workers)) rescored.resize(workers);
}

size_t HeadScores::size_bytes() const {
  return values.size_bytes() + bounds.size_bytes() + magnitudes.size_bytes() +
         found.size() * (2 * sizeof(float) + sizeof(BestToken)) + rescored.size() * sizeof(int);
}

size_t Workspace::size_bytes() const {
  size_t bytes = 0;
  for (const Lane& lane : lanes)
    bytes += lane.hidden.size_bytes() + lane.normed.size_bytes() + lane.quantized.size_bytes();
  for (const FloatRows* rows : {&query, &key, &value, &attended, &gate, &up, &output})
    bytes += rows->size_bytes();
  for (const AlignedBuffer<std::byte>& buffer : scratch) bytes += buffer.size_bytes();
  for (const TileRows& tile : attention)
    bytes += tile.rows.size() * sizeof(AttentionRow) + tile.parts.size_bytes() +
             tile.decoded.size_bytes();
  bytes += context.parts.size_bytes() + context.chunks_done.size() * sizeof(std::atomic<int>);
  return bytes + neurons.size_bytes() + reduction.size_bytes() + scores.size_bytes();
}

}  // namespace pliant
