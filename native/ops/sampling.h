// From the scores of a row to one token, and to log-probabilities.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/scores.h"
#include "ops/candidates.h"
#include "ops/scores.h"

namespace pliant {

// As `SamplingOptions` of pliant/runtime/sampling.py has them.
struct DrawOptions {
  float temperature = 0.0f;  // 0: the largest score, the lowest token of equals
  int top_k = 0;             // 0: all
  double top_p = 1.0;
  float min_p = 0.0f;

  // Whether top_k leaves out any of `size` tokens, equals of the last one aside.
  bool keeps_some(int size) const { return 0 < top_k && top_k < size; }
};

// A token and its score. The score is finite, or the row is damaged: it is then the first NaN, or
// the first of the largest.
struct ChosenToken {
  int token = 0;
  float score = 0.0f;
};

// The token at `uniform`, in [0, 1), of the inverse of the cumulative distribution by ascending
// tokens, after temperature, top-k, top-p and min-p in this order.
ChosenToken draw(const ScoreKernels& kernels, const Scores& scores, const DrawOptions& options,
                 double uniform, DrawRoom& room);

struct LogProbabilities {
  ChosenToken best;  // of all, as ChosenToken says where the row is damaged
  double token = 0;  // of the token asked for
  std::vector<std::pair<int32_t, double>> top;  // falling, the lower token first among equals
};

// Log-probabilities of the unchanged row, of `token` and of the `count` likeliest.
LogProbabilities log_probabilities(const ScoreKernels& kernels, const float* logits, int size,
                                   int token, int count, DrawRoom& room);

}  // namespace pliant
