#include "ops/nucleus.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>

namespace pliant {
namespace {

// Weights that are put in order; more are narrowed down first. Sorting so many takes a few
// microseconds, as long as narrowing some thousands once.
constexpr int kMostSorted = 256;
constexpr float kFirstBounds[kBounds] = {0x1p-2f,  0x1p-4f,  0x1p-6f,  0x1p-8f,
                                         0x1p-10f, 0x1p-13f, 0x1p-17f, 0x1p-24f};

// Weights from `lower` on and below `upper`, as the bits of floats: of positive ones the order is
// that of the numbers. What is not below `upper` adds up to `above`, which is less than the mass
// looked for, and with the bracket it is more.
struct Bracket {
  uint32_t lower;
  uint32_t upper;
  double above;
};

float number(uint32_t bits) { return std::bit_cast<float>(bits); }

// The bounds of kBounds + 1 parts of a bracket of as many floats: so each is some factor of the
// numbers, and at the end a single one.
void divide(const Bracket& bracket, uint32_t (&bits)[kBounds]) {
  const uint64_t width = bracket.upper - bracket.lower;
  for (uint64_t i = 0; i < kBounds; ++i)
    bits[i] = uint32_t(bracket.upper - width * (i + 1) / (kBounds + 1));
}

// The part of the bracket in which the mass is reached; `bits` are falling.
Bracket narrowed(const ScoreKernels& kernels, const float* weights, int count, double mass,
                 const Bracket& bracket, const uint32_t (&bits)[kBounds]) {
  float bounds[kBounds];
  double sums[kBounds];
  for (int i = 0; i < kBounds; ++i) bounds[i] = number(bits[i]);
  kernels.sum_above(weights, count, bounds, sums);
  Bracket part = bracket;
  for (int i = 0; i < kBounds; ++i) {
    // Weights at hand end below bracket.upper: what is above it is added.
    if (bracket.above + sums[i] >= mass) {
      part.lower = bits[i];
      break;
    }
    part.upper = bits[i], part.above = bracket.above + sums[i];
  }
  return part;
}

// About where the nucleus ends, by a sample: what is outside is many small weights, of which some
// blocks have their share, whereas few weights can make the inside. Nine tenths of it, so that it
// is seldom too much. The least finite score where a sample cannot tell.
float guessed_score(const ScoreKernels& kernels, const Scores& scores, const Weighing& weighing,
                    double outside, DrawRoom& room) {
  if (!collect_sample(scores, room)) return -FLT_MAX;
  const Candidates& sample = room.likely;
  const double all = weigh_candidates(kernels, weighing, room.likely);
  const double mass = all - 0.9 * outside * double(sample.count) / double(scores.size());
  const float* values = sample.values.data();
  const float edge = mass > 0.0
                         ? nucleus_edge(kernels, sample, mass, room.narrowed, room.ordered).weight
                         : *std::max_element(values, values + sample.count);
  return edge > 0.0f ? weighing.score_of(double(edge) * (1.0 - kExponentSlack)) : -FLT_MAX;
}

}  // namespace

NucleusEdge nucleus_edge(const ScoreKernels& kernels, const Candidates& weights, double mass,
                         Candidates& inside, std::vector<float>& ordered) {
  // Above the largest weight, 1, and from the least number above zero on: a weight of zero is
  // never needed.
  Bracket bracket{1, std::bit_cast<uint32_t>(1.0f) + 1, 0.0};
  // First where nuclei of models end.
  uint32_t bits[kBounds];
  for (int i = 0; i < kBounds; ++i) bits[i] = std::bit_cast<uint32_t>(kFirstBounds[i]);
  const float* values = weights.values.data();
  int count = weights.count;
  while (count > kMostSorted && bracket.upper - bracket.lower > 1) {
    bracket = narrowed(kernels, values, count, mass, bracket, bits);
    divide(bracket, bits);
    if (values == weights.values.data()) {
      inside.count = 0;
      inside.reserve(count);
    }
    const float* from = values;
    values = inside.values.data();  // the second time its own: what is found never overtakes
    count = kernels.collect(from, count, number(bracket.lower), number(bracket.upper - 1), 0,
                            inside.values.data(), inside.places.data());
  }
  if (bracket.upper - bracket.lower == 1) {  // all are equal
    const double weight = double(number(bracket.lower));
    const double ties = std::ceil(std::clamp((mass - bracket.above) / weight, 1.0, double(count)));
    return {number(bracket.lower), int(ties)};
  }
  ordered.assign(values, values + count);
  std::sort(ordered.begin(), ordered.end(), std::greater<>());
  double before = bracket.above;
  // Where rounding left nothing that reaches the mass, all of the bracket belongs.
  NucleusEdge edge{number(bracket.upper), std::numeric_limits<int>::max()};
  for (const float weight : ordered) {
    if (before >= mass || weight < number(bracket.lower)) break;
    edge = {weight, weight == edge.weight ? edge.ties + 1 : 1};
    before += double(weight);
  }
  return edge;
}

void collect_nucleus(const ScoreKernels& kernels, const Scores& scores, const Weighing& weighing,
                     double top_p, double total, float least, DrawRoom& room) {
  const double outside = (1.0 - top_p) * total;
  // Weights below this stay below what is outside together, so they cannot belong; half of it, so
  // that rounding leaves out none.
  const float bound = std::max(weighing.score_of(0.5 * outside / double(scores.size())), least);
  const float guess = guessed_score(kernels, scores, weighing, outside, room);
  if (guess > bound) {
    collect(kernels, scores, guess, room);
    if (weigh_candidates(kernels, weighing, room.likely) >= top_p * total) return;
  }
  collect(kernels, scores, bound, room);
  weigh_candidates(kernels, weighing, room.likely);
}

}  // namespace pliant
