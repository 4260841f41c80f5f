#include "ops/candidates.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

namespace pliant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Blocks of a sample, and how many a row has where one is worth taking.
constexpr int kSampleBlocks = 16, kFewBlocks = 4 * kSampleBlocks;

// A score that about `count` tokens at least have: that many blocks have a largest one like it.
// Minus infinity where there are fewer blocks.
float score_of_maxima(const std::vector<float>& maxima, int count, std::vector<float>& ordered) {
  if (size_t(count) >= maxima.size()) return -kInfinity;
  ordered = maxima;
  std::nth_element(ordered.begin(), ordered.begin() + (count - 1), ordered.end(), std::greater<>());
  return ordered[size_t(count - 1)];
}

// A score that some more than `count` tokens have, by a sample; minus infinity where none can tell.
float score_of_sample(const Scores& scores, int count, DrawRoom& room) {
  if (!collect_sample(scores, room)) return -kInfinity;
  const int size = room.likely.count;
  const double place = 1.25 * double(count) * double(size) / double(scores.size()) + 16.0;
  if (place >= double(size)) return -kInfinity;
  const auto first = room.likely.values.begin();
  std::nth_element(first, first + int(place), first + size, std::greater<>());
  return room.likely.values[size_t(place)];
}

}  // namespace

void Candidates::reserve(int more) {
  const size_t needed = size_t(count) + size_t(more) + kCollectSlack;
  if (values.size() >= needed) return;
  values.resize(std::max(needed, 2 * values.size()));
  places.resize(values.size());
}

float Weighing::score_of(double weight) const {
  const double score = double(largest) + std::log(weight) / double(factor);
  return float(std::max(score, -double(FLT_MAX)));
}

float weigh_block(const ScoreKernels& kernels, const Scores& scores, int block,
                  const Weighing& weighing, float* room) {
  const float* values = scores.block(block, room);
  if (values == nullptr) {
    std::fill_n(room, scores.block_size(block), 0.0f);
    return 0.0f;
  }
  return kernels.weigh(values, scores.block_size(block), weighing.largest, weighing.factor, room);
}

double sum(const float* weights, int count) {
  double sums[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int lane = 0; lane < 4; ++lane) sums[lane] += double(weights[i + lane]);
  }
  for (; i < count; ++i) sums[0] += double(weights[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void collect(const ScoreKernels& kernels, const Scores& scores, float bound, DrawRoom& room) {
  Candidates& likely = room.likely;
  float changed[kScoreBlock];
  likely.count = 0;
  for (int block = 0; block < scores.blocks(); ++block) {
    if (room.maxima[size_t(block)] < bound) continue;
    const float* values = scores.block(block, changed);
    if (values == nullptr) continue;
    likely.reserve(scores.block_size(block));
    likely.count +=
        kernels.collect(values, scores.block_size(block), bound, kInfinity, block * kScoreBlock,
                        likely.values.data() + likely.count, likely.places.data() + likely.count);
  }
}

void keep(const ScoreKernels& kernels, float bound, int ties, DrawRoom& room) {
  const Candidates& likely = room.likely;
  Candidates& kept = room.narrowed;
  kept.count = 0;
  kept.reserve(likely.count);
  kept.count = kernels.collect(likely.values.data(), likely.count, bound, kInfinity, 0,
                               kept.values.data(), kept.places.data());
  const auto values = kept.values.begin();
  if (std::count(values, values + kept.count, bound) <= ties) return;
  int count = 0;
  for (int i = 0; i < kept.count; ++i) {
    if (kept.values[size_t(i)] == bound && ties-- <= 0) continue;
    kept.values[size_t(count)] = kept.values[size_t(i)];
    kept.places[size_t(count++)] = kept.places[size_t(i)];
  }
  kept.count = count;
}

bool collect_sample(const Scores& scores, DrawRoom& room) {
  Candidates& sample = room.likely;
  sample.count = 0;
  if (scores.blocks() < kFewBlocks) return false;
  float changed[kScoreBlock];
  for (int i = 0; i < kSampleBlocks; ++i) {
    const int block = int(int64_t(scores.blocks()) * (2 * i + 1) / (2 * kSampleBlocks));
    const float* values = scores.block(block, changed);
    const int count = scores.block_size(block);
    sample.reserve(count);
    float* out = sample.values.data() + sample.count;
    if (values == nullptr) std::fill_n(out, count, -kInfinity);
    if (values != nullptr) std::copy_n(values, count, out);
    sample.count += count;
  }
  return true;
}

void collect_largest(const ScoreKernels& kernels, const Scores& scores, int count, float least,
                     DrawRoom& room) {
  float bound = score_of_maxima(room.maxima, count, room.ordered);
  if (bound == -kInfinity) bound = score_of_sample(scores, count, room);
  Candidates& likely = room.likely;
  collect(kernels, scores, std::max(bound, least), room);
  if (likely.count < count && bound > least) collect(kernels, scores, least, room);
  if (likely.count <= count) return;
  room.ordered.assign(likely.values.begin(), likely.values.begin() + likely.count);
  const auto last = room.ordered.begin() + (count - 1);
  std::nth_element(room.ordered.begin(), last, room.ordered.end(), std::greater<>());
  keep(kernels, *last, likely.count, room);
  Candidates& kept = room.narrowed;
  for (int i = 0; i < kept.count; ++i)
    kept.places[size_t(i)] = likely.places[size_t(kept.places[size_t(i)])];
  std::swap(likely, kept);
}

double weigh_candidates(const ScoreKernels& kernels, const Weighing& weighing,
                        Candidates& candidates) {
  double total = 0.0;
  for (int begin = 0; begin < candidates.count; begin += kScoreBlock) {
    float* values = candidates.values.data() + begin;
    const int count = std::min(kScoreBlock, candidates.count - begin);
    total += double(kernels.weigh(values, count, weighing.largest, weighing.factor, values));
  }
  return total;
}

}  // namespace pliant
