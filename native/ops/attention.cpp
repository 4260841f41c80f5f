#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pliant {

void merge_attention(AttentionRow& whole, const AttentionRow& part, int head_dim) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const float maximum = std::max(whole.maximum, part.maximum);
  if (maximum == kMinusInfinity) {  // neither saw an entry; totals are 0 or NaN
    whole.total += part.total;
    return;
  }
  const float of_whole = std::exp(whole.maximum - maximum);
  const float of_part = std::exp(part.maximum - maximum);
  whole.maximum = maximum;
  whole.total = whole.total * of_whole + part.total * of_part;
  for (int i = 0; i < head_dim; ++i)
    whole.output[i] = whole.output[i] * of_whole + part.output[i] * of_part;
}

void finish_attention(const AttentionRow& row, int head_dim, float* output) {
  const float factor = 1.0f / row.total;
  for (int i = 0; i < head_dim; ++i) output[i] = row.output[i] * factor;
}

void attend_in_chunks(const Kernels& kernels, AttentionCall call, AttentionParts& parts) {
  const AttentionRow* const results = call.rows;
  const int begin = call.begin, end = call.end, size = call.head_dim;
  AttentionRow* const wholes = parts.rows.data();
  float* const queries = parts.outputs.data() + 2 * size_t(call.num_rows) * size;
  for (int row = 0; row < 2 * call.num_rows; ++row) {
    const int of_call = row % call.num_rows;
    wholes[row] = results[of_call];
    wholes[row].query = queries + of_call * size;
    wholes[row].output = parts.outputs.data() + row * size;
  }
  for (int row = 0; row < call.num_rows; ++row)
    std::copy_n(results[row].query, size, queries + row * size);
  call.rows = wholes;
  call.begin = begin / kContextChunk * kContextChunk;
  call.end = std::min(end, call.begin + kContextChunk);
  kernels.attend(call);
  call.rows = wholes + call.num_rows;
  while (call.end < end) {
    call.begin = call.end;
    call.end = std::min(end, call.begin + kContextChunk);
    kernels.attend(call);
    for (int row = 0; row < call.num_rows; ++row)
      merge_attention(wholes[row], call.rows[row], size);
  }
  for (int row = 0; row < call.num_rows; ++row)
    finish_attention(wholes[row], size, results[row].output);
}

}  // namespace pliant
