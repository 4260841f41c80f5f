// Attention over a long context in parts that can be computed apart and put together.
//
// The context is cut at multiples of kContextChunk entries, whatever the number of threads, and
// parts are put together from the first to the last. So results do not depend on who computed
// what (Flash-Decoding, Dao et al. 2023, with a fixed split).
#pragma once

#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"

namespace pliant {

// Long enough that putting parts together is under a percent of the work on them.
constexpr int kContextChunk = 256;

// `whole` with the entries of `part` too: both are results of `attend`, of one query head.
void merge_attention(AttentionRow& whole, const AttentionRow& part, int head_dim);

// What `row` gathered divided by its sum of weights: the softmax average of the values.
void finish_attention(const AttentionRow& row, int head_dim, float* output);

// Room for query heads and what they gather, side by side: in the rows of a step they lie far
// apart, at distances that fall on few sets of a cache.
struct AttentionParts {
  std::vector<AttentionRow> rows;
  AlignedBuffer<float> outputs;  // [rows][head_dim]

  void reserve(size_t num_rows, int head_dim) {
    if (rows.size() < num_rows) rows.resize(num_rows);
    outputs.reserve(num_rows * head_dim);
  }
  size_t size_bytes() const { return rows.size() * sizeof(AttentionRow) + outputs.size_bytes(); }
};

// `call` over all of its entries, chunk by chunk, and finished. `parts` has room for three times
// the rows of the call.
void attend_in_chunks(const Kernels& kernels, AttentionCall call, AttentionParts& parts);

}  // namespace pliant
