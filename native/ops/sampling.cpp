#include "ops/sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>

#include "ops/nucleus.h"

namespace pliant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The largest score of each block and of all; NaN where a score is NaN. With a factor above 0 the
// sums of each block's weights too, as if its largest score were that of all: so memory is read
// once.
float find_maxima(const ScoreKernels& kernels, const Scores& scores, float factor, DrawRoom& room) {
  float changed[kScoreBlock], weights[kScoreBlock], largest = -kInfinity;
  room.maxima.resize(size_t(scores.blocks()));
  room.sums.assign(room.maxima.size(), 0.0);
  for (int block = 0; block < scores.blocks(); ++block) {
    const float* values = scores.block(block, changed);
    const int count = scores.block_size(block);
    const float maximum = values == nullptr ? -kInfinity : kernels.maximum(values, count);
    room.maxima[size_t(block)] = maximum;
    if (!(maximum <= largest) && !std::isnan(largest)) largest = maximum;
    if (factor > 0.0f && std::isfinite(maximum))
      room.sums[size_t(block)] = kernels.weigh(values, count, maximum, factor, weights);
  }
  return largest;
}

// The first token of the score `largest` of find_maxima.
ChosenToken first_of(const Scores& scores, float largest, const DrawRoom& room) {
  const auto is_it = [&](float score) {
    return std::isnan(largest) ? std::isnan(score) : score == largest;
  };
  const auto block = std::find_if(room.maxima.begin(), room.maxima.end(), is_it);
  const int number = int(block - room.maxima.begin());
  float changed[kScoreBlock];
  const float* values = scores.block(number, changed);
  if (values == nullptr) return {number * kScoreBlock, largest};
  const auto place = std::find_if(values, values + scores.block_size(number), is_it);
  return {number * kScoreBlock + int(place - values), largest};
}

// The sums of find_maxima beside the largest score of all, and what they add up to.
double scale_sums(const ScoreKernels& kernels, const Weighing& weighing, DrawRoom& room) {
  const size_t blocks = room.maxima.size();
  room.ordered.resize(blocks);
  kernels.weigh(room.maxima.data(), int(blocks), weighing.largest, weighing.factor,
                room.ordered.data());
  double total = 0.0;
  for (size_t block = 0; block < blocks; ++block)
    total += room.sums[block] *= double(room.ordered[block]);
  return total;
}

// Which of the weights of a block the cumulative sum, `before` them, passes `target` with: the last
// above zero where rounding let it pass with none.
int place_in_block(const float* weights, int count, double before, double target) {
  int last = 0;
  for (int i = 0; i < count; ++i) {
    if (!(weights[i] > 0.0f)) continue;
    before += double(weights[i]);
    last = i;
    if (before > target) break;
  }
  return last;
}

// The block in which the cumulative sum of `sums` passes `target`, and what is before it: the last
// above zero where rounding let it pass in none.
std::pair<int, double> block_at(const std::vector<double>& sums, double target) {
  std::pair<int, double> found{0, 0.0};
  double before = 0.0;
  for (size_t block = 0; block < sums.size(); ++block) {
    if (!(sums[block] > 0.0)) continue;
    found = {int(block), before};
    before += sums[block];
    if (before > target) break;
  }
  return found;
}

// The place of one of weights that are all there.
int draw_candidate(const Candidates& likely, double uniform, std::vector<double>& sums) {
  sums.assign(size_t((likely.count + kScoreBlock - 1) / kScoreBlock), 0.0);
  double total = 0.0;
  const float* weights = likely.values.data();
  for (size_t block = 0; block < sums.size(); ++block) {
    const int begin = int(block) * kScoreBlock, end = std::min(begin + kScoreBlock, likely.count);
    sums[block] = sum(weights + begin, end - begin);
    total += sums[block];
  }
  const double target = uniform * total;
  const auto [block, before] = block_at(sums, target);
  const int begin = block * kScoreBlock, count = std::min(kScoreBlock, likely.count - begin);
  return likely.places[size_t(begin + place_in_block(weights + begin, count, before, target))];
}

// A draw from all tokens: weights are computed twice in one block and kept nowhere.
int draw_any(const ScoreKernels& kernels, const Scores& scores, const Weighing& weighing,
             double uniform, DrawRoom& room) {
  const double target = uniform * scale_sums(kernels, weighing, room);
  const auto [block, before] = block_at(room.sums, target);
  float weights[kScoreBlock];
  weigh_block(kernels, scores, block, weighing, weights);
  const int place = place_in_block(weights, scores.block_size(block), before, target);
  return block * kScoreBlock + place;
}

// Finds the tokens that top-k, top-p and min-p may leave, with their weights; returns the sum that
// top-p is a part of.
double find_candidates(const ScoreKernels& kernels, const Scores& scores,
                       const DrawOptions& options, const Weighing& weighing, DrawRoom& room) {
  if (options.keeps_some(scores.size())) {
    collect_largest(kernels, scores, options.top_k, -FLT_MAX, room);
    return weigh_candidates(kernels, weighing, room.likely);
  }
  const double weight = double(options.min_p) * (1.0 - kExponentSlack);
  const float least = options.min_p > 0.0f ? weighing.score_of(weight) : -FLT_MAX;
  if (options.top_p < 1.0) {
    const double total = scale_sums(kernels, weighing, room);
    collect_nucleus(kernels, scores, weighing, options.top_p, total, least, room);
    return total;
  }
  collect(kernels, scores, least, room);
  return weigh_candidates(kernels, weighing, room.likely);
}

int draw_likely(const ScoreKernels& kernels, const Scores& scores, const DrawOptions& options,
                const Weighing& weighing, double uniform, DrawRoom& room) {
  const double total = find_candidates(kernels, scores, options, weighing, room);
  NucleusEdge edge{0.0f, room.likely.count};
  if (options.top_p < 1.0)
    edge = nucleus_edge(kernels, room.likely, options.top_p * total, room.narrowed, room.ordered);
  // The likeliest token has weight 1.
  if (options.min_p > edge.weight) edge = {options.min_p, room.likely.count};
  if (edge.weight == 0.0f) return draw_candidate(room.likely, uniform, room.sums);
  keep(kernels, edge.weight, edge.ties, room);
  return room.likely.places[size_t(draw_candidate(room.narrowed, uniform, room.sums))];
}

}  // namespace

ChosenToken draw(const ScoreKernels& kernels, const Scores& scores, const DrawOptions& options,
                 double uniform, DrawRoom& room) {
  const bool greedy = options.temperature == 0.0f;
  // So that neither 0 nor infinity ever meets minus infinity or 0.
  const float factor = greedy ? 0.0f : std::clamp(1.0f / options.temperature, FLT_MIN, FLT_MAX);
  const bool few = options.keeps_some(scores.size());
  const bool any = !few && options.top_p >= 1.0 && options.min_p <= 0.0f;
  const bool needs_sums = any || (!few && options.top_p < 1.0);
  const float largest = find_maxima(kernels, scores, needs_sums ? factor : 0.0f, room);
  if (greedy || !std::isfinite(largest)) return first_of(scores, largest, room);
  const Weighing weighing{largest, factor};
  const int token = any ? draw_any(kernels, scores, weighing, uniform, room)
                        : draw_likely(kernels, scores, options, weighing, uniform, room);
  return {token, largest};
}

LogProbabilities log_probabilities(const ScoreKernels& kernels, const float* logits, int size,
                                   int token, int count, DrawRoom& room) {
  const Scores scores(logits, size, nullptr, nullptr);
  LogProbabilities found;
  const float largest = find_maxima(kernels, scores, 1.0f, room);
  found.best = first_of(scores, largest, room);
  if (!std::isfinite(largest)) return found;
  const double shift = double(largest) + std::log(scale_sums(kernels, {largest, 1.0f}, room));
  found.token = double(logits[token]) - shift;
  count = std::min(count, size);
  if (count == 0) return found;
  collect_largest(kernels, scores, count, -kInfinity, room);
  const Candidates& likely = room.likely;
  for (int i = 0; i < likely.count; ++i)
    found.top.emplace_back(likely.places[size_t(i)], double(likely.values[size_t(i)]) - shift);
  // By tokens already, so equals stay in order.
  std::stable_sort(found.top.begin(), found.top.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  found.top.resize(size_t(count));
  return found;
}

}  // namespace pliant
