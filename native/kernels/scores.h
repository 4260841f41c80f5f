// The contract of what is done to the scores of tokens when one of them is drawn (ops/sampling.h).
//
// A score is a logit with all that a text asks for added; minus infinity is a token that may not
// come. A weight is the exponential of a score, in proportion to the token's probability.
// scores_scalar.cpp is the definition; scores_simd.h repeats it for every vector width, sums in
// another order and exponentials below 4 u from it (vectors.h), u = 2^-24.
#pragma once

#include <cstdint>

namespace pliant {

// Bounds above which `sum_above` sums at the same time: their sums are half of AVX2's registers.
constexpr int kBounds = 8;
// The weight of a smaller exponent is 0: below it exp leaves the normal numbers.
constexpr float kLeastExponent = -87.3f;
// What `collect` may write beyond what it found.
constexpr int kCollectSlack = 8;

struct ScoreKernels {
  // The largest of `size` scores (at least one), NaN where one of them is.
  float (*maximum)(const float* scores, int size);

  // weights[i] = exp((scores[i] - maximum) * factor), exactly 0 where the exponent is
  // kLeastExponent or less; `weights` may be `scores`. Returns their sum; a sum of many is to be
  // put together from calls of a few hundred. No score is NaN, maximum and factor are finite and
  // no score is above the maximum.
  float (*weigh)(const float* scores, int size, float maximum, float factor, float* weights);

  // The values from `lower` to `upper`, both included, in their order, and their places from
  // `first` on, to `found` and `places`, which have room for kCollectSlack more than are found.
  // Returns how many.
  int (*collect)(const float* values, int size, float lower, float upper, int first, float* found,
                 int32_t* places);

  // sums[i] = sum of the weights that are bounds[i] or more.
  void (*sum_above)(const float* weights, int size, const float (&bounds)[kBounds],
                    double (&sums)[kBounds]);
};

extern const ScoreKernels kScoresScalar;
extern const ScoreKernels kScoresAvx2;   // of AVX-512 too: none to measure wider ones on
extern const ScoreKernels kScoresAsimd;  // of every ARM path

}  // namespace pliant
