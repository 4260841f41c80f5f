// What is done to scores, against the scalar definition.
#include "kernels/scores.h"

#include <algorithm>
#include <limits>

#include "checks.h"

namespace pliant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Scores with some of minus infinity and many equals.
std::vector<float> some_scores(int size) {
  std::vector<float> scores = normals(size_t(size), 20.0f);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (random_bits() % 4 == 0) scores[i] = std::round(scores[i] / 8);
    if (random_bits() % 16 == 0) scores[i] = -kInfinity;
  }
  return exact(scores);
}

void check_maximum(const ScoreKernels& scalar, const ScoreKernels& path, std::vector<float> scores,
                   const std::string& what) {
  const int size = int(scores.size());
  expect(scalar.maximum(scores.data(), size) == path.maximum(scores.data(), size),
         what + ": maximum");
  scores[random_bits() % scores.size()] = kInfinity;
  expect(path.maximum(scores.data(), size) == kInfinity, what + ": infinite maximum");
  scores[random_bits() % scores.size()] = std::numeric_limits<float>::quiet_NaN();
  expect(std::isnan(path.maximum(scores.data(), size)), what + ": maximum of NaN");
}

void check_weigh(const ScoreKernels& scalar, const ScoreKernels& path,
                 const std::vector<float>& scores, const std::string& what) {
  const int size = int(scores.size());
  const float maximum = std::max(scalar.maximum(scores.data(), size), -1e30f);
  for (float factor : {1.0f, 0.01f, 30.0f}) {
    std::vector<float> expected(scores), found = exact(scores);  // in place
    const float total = scalar.weigh(scores.data(), size, maximum, factor, expected.data());
    const float sum = path.weigh(found.data(), size, maximum, factor, found.data());
    for (size_t i = 0; i < scores.size(); ++i) {
      // Exponentials below 4 u each, u = 2^-24, and what is taken away of them.
      const double bound = double(expected[i]) * 8 * 0x1p-24 + 2.5e-38;
      expect(std::fabs(double(found[i]) - double(expected[i])) <= bound, what + ": weight");
      if (scores[i] == -kInfinity) expect(found[i] == 0.0f, what + ": weight of nothing");
    }
    expect(std::fabs(sum - total) <= double(total) * (size + 16) * 0x1p-24 + 1e-35, what + ": sum");
  }
}

void check_collect(const ScoreKernels& scalar, const ScoreKernels& path,
                   const std::vector<float>& scores, const std::string& what) {
  const int size = int(scores.size());
  const size_t room = scores.size() + kCollectSlack;
  for (const auto& [lower, upper] :
       {std::array{-kInfinity, kInfinity}, std::array{0.0f, kInfinity}, std::array{-3.0f, 2.0f},
        std::array{1.0f, 1.0f}, std::array{60.0f, 61.0f}}) {
    std::vector<float> values(room), found(room);
    std::vector<int32_t> places(room), found_places(room);
    const int expected =
        scalar.collect(scores.data(), size, lower, upper, 7, values.data(), places.data());
    const int count =
        path.collect(scores.data(), size, lower, upper, 7, found.data(), found_places.data());
    expect(count == expected, what + ": number collected");
    expect(std::equal(values.begin(), values.begin() + expected, found.begin()) &&
               std::equal(places.begin(), places.begin() + expected, found_places.begin()),
           what + ": collected");
    std::copy(scores.begin(), scores.end(), found.begin());  // in place
    path.collect(found.data(), size, lower, upper, 7, found.data(), found_places.data());
    expect(std::equal(values.begin(), values.begin() + expected, found.begin()),
           what + ": collected in place");
  }
}

void check_sums(const ScoreKernels& scalar, const ScoreKernels& path,
                const std::vector<float>& scores, const std::string& what) {
  const int size = int(scores.size());
  std::vector<float> weights(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) weights[i] = std::exp(scores[i] / 10 - 6);
  weights = exact(weights);
  const float bounds[kBounds] = {1.0f, 0.1f, 0.01f, weights[0], 1e-3f, 1e-5f, 1e-20f, 1e-45f};
  double expected[kBounds], found[kBounds];
  scalar.sum_above(weights.data(), size, bounds, expected);
  path.sum_above(weights.data(), size, bounds, found);
  // Up to 64 additions of one lane, then of lanes.
  for (int n = 0; n < kBounds; ++n)
    expect(std::fabs(found[n] - expected[n]) <= expected[n] * 72 * 0x1p-24, what + ": sums");
}

}  // namespace

void check_scores(const Kernels& scalar, const Kernels& path) {
  for (int size : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 100, 127, 128, 257, 1000}) {
    const std::string what = std::string(path.isa) + " scores of " + std::to_string(size);
    const std::vector<float> scores = some_scores(size);
    check_maximum(*scalar.scores, *path.scores, scores, what);
    check_weigh(*scalar.scores, *path.scores, scores, what);
    check_collect(*scalar.scores, *path.scores, scores, what);
    check_sums(*scalar.scores, *path.scores, scores, what);
  }
}

}  // namespace pliant
