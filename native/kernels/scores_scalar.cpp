// The definition of what is done to scores: plain C++, one value at a time.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/scores.h"

namespace pliant {
namespace {

float maximum(const float* scores, int size) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < size; ++i) {
    if (std::isnan(scores[i])) return scores[i];
    largest = std::max(largest, scores[i]);
  }
  return largest;
}

float weigh(const float* scores, int size, float maximum, float factor, float* weights) {
  float sum = 0.0f;
  for (int i = 0; i < size; ++i) {
    const float exponent = (scores[i] - maximum) * factor;
    weights[i] = exponent > kLeastExponent ? std::exp(exponent) : 0.0f;
    sum += weights[i];
  }
  return sum;
}

int collect(const float* values, int size, float lower, float upper, int first, float* found,
            int32_t* places) {
  int count = 0;
  for (int i = 0; i < size; ++i) {
    found[count] = values[i], places[count] = first + i;
    count += int(lower <= values[i] && values[i] <= upper);
  }
  return count;
}

void sum_above(const float* weights, int size, const float (&bounds)[kBounds],
               double (&sums)[kBounds]) {
  for (int n = 0; n < kBounds; ++n) {
    sums[n] = 0.0;
    for (int i = 0; i < size; ++i) sums[n] += weights[i] >= bounds[n] ? double(weights[i]) : 0.0;
  }
}

}  // namespace

const ScoreKernels kScoresScalar = {maximum, weigh, collect, sum_above};

}  // namespace pliant
