// The tokens that a draw looks at, out of a vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/scores.h"
#include "ops/scores.h"

namespace pliant {

// What an exponent is lowered by where tokens are left out, so that the rounding of exponentials
// leaves out none too many.
constexpr double kExponentSlack = 1e-3;

// Values and their places, ascending.
struct Candidates {
  std::vector<float> values;
  std::vector<int32_t> places;
  int count = 0;

  // Room for `more` behind those there are.
  void reserve(int more);
};

// What a draw needs room for; kept between draws, for one thread. It grows with the number of
// candidates, which is small beside a vocabulary unless all tokens are about as likely.
struct DrawRoom {
  std::vector<float> maxima;   // [blocks], the largest score of each
  std::vector<double> sums;    // [blocks], of weights, later for selections
  std::vector<float> ordered;  // for selections
  Candidates likely, narrowed;
};

// How scores become weights: exp((score - largest) * factor), so that the largest weight is 1.
struct Weighing {
  float largest = 0.0f;
  float factor = 1.0f;

  // The score of a weight; the least finite one where that is above it.
  float score_of(double weight) const;
};

// The weights of a block of scores, in `weights`; returns their sum.
float weigh_block(const ScoreKernels& kernels, const Scores& scores, int block,
                  const Weighing& weighing, float* weights);

// Four sums at a time: one alone would wait for each addition.
double sum(const float* weights, int count);

// These fill room.likely, which is what "candidates" are below; maxima are there already.

// Tokens of a score of at least `bound`, from those blocks alone that have one.
void collect(const ScoreKernels& kernels, const Scores& scores, float bound, DrawRoom& room);

// The `count` largest scores that are at least `least`, and those equal to the last of them.
void collect_largest(const ScoreKernels& kernels, const Scores& scores, int count, float least,
                     DrawRoom& room);

// All scores of some blocks that lie evenly apart. False, and nothing, where there are so few
// blocks that all of them can as well be looked at.
bool collect_sample(const Scores& scores, DrawRoom& room);

// Puts into room.narrowed the candidates above `bound` and of those equal to it the first `ties`,
// with their places among the candidates.
void keep(const ScoreKernels& kernels, float bound, int ties, DrawRoom& room);

// Scores to weights; returns their sum.
double weigh_candidates(const ScoreKernels& kernels, const Weighing& weighing,
                        Candidates& candidates);

}  // namespace pliant
