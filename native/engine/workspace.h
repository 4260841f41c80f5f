// The scratch memory of a decoder: made for the largest step seen, never allocated within one.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "base/buffer.h"
#include "engine/weights.h"
#include "ops/attention.h"
#include "ops/product.h"
#include "ops/reduction.h"

namespace pliant {

// Rows of float activations, each starting on a cache line.
class FloatRows {
 public:
  void reserve(int tokens, int columns) {
    stride_ = size_t(ceil_div(columns, 16)) * 16;
    values_.reserve(stride_ * tokens);
  }
  float* row(int token) { return values_.data() + stride_ * token; }
  size_t stride() const { return stride_; }
  size_t size_bytes() const { return values_.size_bytes(); }

 private:
  AlignedBuffer<float> values_;
  size_t stride_ = 0;
};

// The residual stream and what is made of it row by row. For few tokens each worker keeps a lane
// of its own and computes all rows in it, which is cheaper than a barrier; for many tokens all
// share one lane and split its rows.
struct Lane {
  FloatRows hidden;         // [tokens][hidden]
  FloatRows normed;         // [tokens][hidden]
  QuantizedRows quantized;  // of `normed`, or of the attention output
};

// The query heads of a tile of tokens that share keys, and parts of their results.
struct TileRows {
  std::vector<AttentionRow> rows;
  AttentionParts parts;
  AlignedBuffer<float> decoded;  // a block of a coded cache
};

// Results of chunks of the context that different workers compute; the worker that ends the last
// chunk of a tile puts them together.
struct ContextParts {
  AttentionParts parts;                       // [tile and group][chunk][row of the tile]
  std::vector<std::atomic<int>> chunks_done;  // [tile and group], 0 between phases
};

// The highest score seen and the lowest token that has it.
struct BestToken {
  int token = -1;
  float score = 0.0f;
  bool broken = false;  // a score was NaN or infinite

  // values[row] for the rows [begin, end), all of them above those seen before.
  void look(const float* values, int begin, int end);
};

// What choosing the likeliest token needs instead of logits.
struct HeadScores {
  FloatRows values;                 // [tokens][vocabulary], exact or of the first planes
  FloatRows bounds;                 // [tokens][vocabulary], how far those may be off
  AlignedBuffer<float> magnitudes;  // [workers][groups]
  std::vector<float> lowest;        // [workers][tokens], what the best score is at least
  std::vector<float> limits;        // [workers][tokens], the same over all workers
  std::vector<BestToken> found;     // [workers][tokens]
  std::vector<int> rescored;        // [workers], tiles

  void reserve(int tokens, int vocab_size, int groups, int workers);
  size_t size_bytes() const;
};

struct Workspace {
  std::vector<Lane> lanes;
  FloatRows query;     // [tokens][groups * group_size], rotated in place
  FloatRows key;       // [tokens][groups * head_dim]
  FloatRows value;     // [tokens][groups * head_dim]
  FloatRows attended;  // [tokens][groups * group_size]
  FloatRows gate;      // [tokens][neurons], the gated product after it
  FloatRows up;        // [tokens][neurons]
  FloatRows output;    // [tokens][hidden], of `o` and of `down`
  QuantizedRows neurons;
  Reduction reduction;
  std::vector<AlignedBuffer<std::byte>> scratch;  // of the product kernels, one per worker
  std::vector<TileRows> attention;                // one per worker
  ContextParts context;
  HeadScores scores;

  // Makes room for a step of `tokens` tokens in `num_lanes` lanes.
  void reserve(const Kernels& kernels, const DecoderConfig& config, const DecoderWeights& weights,
               int tokens, int num_lanes, int workers);
  // Makes room for attention split over the context: `tasks` of tile, group and chunk.
  void reserve_context(size_t tiles, size_t tasks, int tile_rows, int head_dim);
  size_t size_bytes() const;

 private:
  int tokens_ = 0;
};

}  // namespace pliant
