// What is done to scores, written once for every vector width; scores.h is the contract.
#pragma once

#include "kernels/scores.h"
#include "kernels/vectors.h"

namespace pliant {
namespace {

template <typename Simd>
struct ScoreVectors {
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;
  static constexpr int kLanes = Simd::kLanes;
  static_assert(kLanes <= kCollectSlack);
  // Vectors whose exponentials are computed together: one would wait for each multiplication.
  static constexpr int kAtOnce = 4;
  // A little above what exponentials end at. Taken away it leaves 0 there, and all else as it is
  // but for weights that are as small.
  static constexpr float kLeastWeight = 1.25e-38f;
  // Weights that are summed in fp32 before they join a double: 32 or 64 of a lane.
  static constexpr int kSumChunk = 256;

  // The lanes of a value of which only some are there, the others from `rest`.
  template <typename Count>
  static PLIANT_INLINE Float with_rest(Float value, float rest, Count count) {
    if constexpr (!std::is_same_v<Count, int>) return value;
    float lanes[kLanes];
    Simd::store(lanes, Simd::set(rest));
    Simd::store_first(lanes, value, int(count));
    return Simd::load(lanes);
  }

  // A maximum of vectors drops a NaN on one machine and keeps it on another, so each is looked at.
  static float maximum(const float* scores, int size) {
    constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
    Float largest[kAtOnce];
    Int numbers = Simd::set32(-1);  // lanes that were never NaN
    unroll<kAtOnce>([&](auto n) PLIANT_BODY { largest[n] = Simd::set(kMinusInfinity); });
    int i = 0;
    for (; i + kAtOnce * kLanes <= size; i += kAtOnce * kLanes) {
      unroll<kAtOnce>([&](auto n) PLIANT_BODY {
        const Float score = Simd::load(scores + i + n * kLanes);
        largest[n] = Simd::at_least(largest[n], score);
        numbers = Simd::bit_and(numbers, Simd::at_or_above(score, score));
      });
    }
    for_each_vector<Simd>(size - i, [&](int j, auto count) PLIANT_BODY {
      const Float score = with_rest(load_some<Simd>(scores + i + j, count), kMinusInfinity, count);
      largest[0] = Simd::at_least(largest[0], score);
      numbers = Simd::bit_and(numbers, Simd::at_or_above(score, score));
    });
    if (Simd::lanes(numbers) != (1u << kLanes) - 1u) return std::numeric_limits<float>::quiet_NaN();
    unroll<kAtOnce - 1>(
        [&](auto n) PLIANT_BODY { largest[0] = Simd::at_least(largest[0], largest[n + 1]); });
    return largest_lane<Simd>(largest[0]);
  }

  // weights of kCount vectors from scores, and their sum.
  template <int kCount>
  static PLIANT_INLINE Float weigh_vectors(Float (&scores)[kCount], Float top, Float factor) {
    unroll<kCount>([&](auto i)
                       PLIANT_BODY { scores[i] = Simd::mul(Simd::sub(scores[i], top), factor); });
    exponentials<Simd>(scores);
    Float sum = Simd::set(0.0f);
    unroll<kCount>([&](auto i) PLIANT_BODY {
      scores[i] = Simd::at_least(Simd::set(0.0f), Simd::sub(scores[i], Simd::set(kLeastWeight)));
      sum = Simd::add(sum, scores[i]);
    });
    return sum;
  }

  static float weigh(const float* scores, int size, float maximum, float factor, float* weights) {
    const Float top = Simd::set(maximum), times = Simd::set(factor);
    Float sum = Simd::set(0.0f);
    int i = 0;
    for (; i + kAtOnce * kLanes <= size; i += kAtOnce * kLanes) {
      Float values[kAtOnce];
      unroll<kAtOnce>([&](auto n) PLIANT_BODY { values[n] = Simd::load(scores + i + n * kLanes); });
      sum = Simd::add(sum, weigh_vectors(values, top, times));
      unroll<kAtOnce>([&](auto n)
                          PLIANT_BODY { Simd::store(weights + i + n * kLanes, values[n]); });
    }
    for_each_vector<Simd>(size - i, [&](int j, auto count) PLIANT_BODY {
      Float values[1] = {load_some<Simd>(scores + i + j, count)};
      weigh_vectors(values, top, times);
      store_some<Simd>(weights + i + j, values[0], count);
      sum = Simd::add(sum, with_rest(values[0], 0.0f, count));
    });
    return Simd::sum(sum);
  }

  // Without a branch on whether a vector has any: where half of them have, it is mostly foretold
  // wrong.
  static int collect(const float* values, int size, float lower, float upper, int first,
                     float* found, int32_t* places) {
    const Float least = Simd::set(lower), most = Simd::set(upper);
    int count = 0, i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const Float value = Simd::load(values + i);
      const unsigned lanes = Simd::lanes(
          Simd::bit_and(Simd::at_or_above(value, least), Simd::at_or_above(most, value)));
      Simd::store_bytes(found + count, Simd::packed(Simd::bits(value), lanes));
      Simd::store_bytes(
          places + count,
          Simd::packed(Simd::add32(Simd::ascending(), Simd::set32(first + i)), lanes));
      count += __builtin_popcount(lanes);
    }
    for (; i < size; ++i) {
      found[count] = values[i], places[count] = first + i;
      count += int(lower <= values[i] && values[i] <= upper);
    }
    return count;
  }

  static void sum_above(const float* weights, int size, const float (&bounds)[kBounds],
                        double (&sums)[kBounds]) {
    Float limits[kBounds];
    unroll<kBounds>([&](auto n) PLIANT_BODY { limits[n] = Simd::set(bounds[n]), sums[n] = 0.0; });
    for (int begin = 0; begin < size; begin += kSumChunk) {
      Float totals[kBounds / 4][4];
      unroll<kBounds>([&](auto n) PLIANT_BODY { totals[n / 4][n % 4] = Simd::set(0.0f); });
      const int count_here = std::min(kSumChunk, size - begin);
      for_each_vector<Simd>(count_here, [&](int i, auto count) PLIANT_BODY {
        const Float weight = load_some<Simd>(weights + begin + i, count);
        unroll<kBounds>([&](auto n) PLIANT_BODY {
          const Int kept = Simd::bit_and(Simd::bits(weight), Simd::at_or_above(weight, limits[n]));
          totals[n / 4][n % 4] = Simd::add(totals[n / 4][n % 4], Simd::from_bits(kept));
        });
      });
      float part[kBounds];
      unroll<kBounds / 4>([&](auto n) PLIANT_BODY { Simd::sum4(totals[n], part + 4 * n); });
      unroll<kBounds>([&](auto n) PLIANT_BODY { sums[n] += double(part[n]); });
    }
  }
};

template <typename Simd>
constexpr ScoreKernels score_kernels() {
  using Path = ScoreVectors<Simd>;
  return {Path::maximum, Path::weigh, Path::collect, Path::sum_above};
}

}  // namespace
}  // namespace pliant
