// Attention of one query head, written once for every vector width.
#pragma once

#include <limits>

#include "kernels/vectors.h"

namespace pliant {
namespace {

// Entries whose scores are turned to weights together. A multiple of every vector width.
constexpr int kAttentionBlock = 64;

// The visible entries of a block and what becomes of them.
struct AttentionBlock {
  int size = 0;
  int entries[kAttentionBlock];
  alignas(64) float weights[kAttentionBlock];  // first scores, then exp(score - maximum)
};

template <typename Simd, typename Element>
struct Attention {
  using Float = typename Simd::Float;
  static constexpr int kLanes = Simd::kLanes;
  static constexpr bool kHalf = sizeof(Element) == 2;

  template <typename Count>
  static PLIANT_INLINE Float load(const Element* p, Count count) {
    if constexpr (!kHalf) {
      return load_some<Simd>(p, count);
    } else {
      if constexpr (std::is_same_v<Count, int>) return Simd::load_half_first(p, count);
      return Simd::load_half(p);
    }
  }

  // Takes entries from `next` on until the block is full; returns the entry after the last.
  static int gather(const AttentionCall& call, int next, AttentionBlock& block) {
    block.size = 0;
    for (; next < call.end && block.size < kAttentionBlock; ++next) {
      if (call.visible != nullptr && call.visible[next - call.begin] == 0) continue;
      block.entries[block.size++] = next;
    }
    return next;
  }

  // Four entries at a time: four independent sums, one transposing reduction.
  static void multiply_keys(const AttentionCall& call, AttentionBlock& block) {
    const Element* keys = static_cast<const Element*>(call.keys);
    while (block.size % 4 != 0 && block.size < kAttentionBlock) {
      // Repeats the last entry up to a multiple of four; its score is not used.
      block.entries[block.size] = block.entries[block.size - 1];
      ++block.size;
    }
    for (int i = 0; i < block.size; i += 4) {
      const Element* rows[4];
      Float dots[4];
      unroll<4>([&](auto n) PLIANT_BODY {
        rows[n] = keys + size_t(block.entries[i + n]) * size_t(call.head_dim);
        dots[n] = Simd::set(0.0f);
      });
      for_each_vector<Simd>(call.head_dim, [&](int d, auto count) PLIANT_BODY {
        const Float query = load_some<Simd>(call.query + d, count);
        unroll<4>([&](auto n) PLIANT_BODY {
          dots[n] = Simd::fma(query, load(rows[n] + d, count), dots[n]);
        });
      });
      Simd::sum4(dots, block.weights + i);
    }
  }

  // Scores from the products q.k, and their maximum.
  static float score(const AttentionCall& call, AttentionBlock& block, int size) {
    for (int i = 0; i < size; i += kLanes) {
      Float score = Simd::mul(Simd::load(block.weights + i), Simd::set(call.scale));
      if (call.softcap != 0.0f) {
        const Float ratio = Simd::div(score, Simd::set(call.softcap));
        score = Simd::mul(Simd::set(call.softcap), hyperbolic_tangent<Simd>(ratio));
      }
      Simd::store(block.weights + i, score);
    }
    float maximum = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < size; ++i) {
      if (call.log_weights != nullptr) block.weights[i] += call.log_weights[block.entries[i]];
      maximum = block.weights[i] > maximum ? block.weights[i] : maximum;
    }
    return maximum;
  }

  // weights = exp(score - maximum); returns their sum.
  static float weigh(AttentionBlock& block, int size, float maximum) {
    // Beyond the block's end: a score of minus infinity.
    for (int i = size; i % kLanes != 0; ++i) {
      block.weights[i] = -std::numeric_limits<float>::infinity();
    }
    Float total = Simd::set(0.0f);
    for (int i = 0; i < size; i += kLanes) {
      const Float weight =
          exponential<Simd>(Simd::sub(Simd::load(block.weights + i), Simd::set(maximum)));
      Simd::store(block.weights + i, weight);
      total = Simd::add(total, weight);
    }
    return Simd::sum(total);
  }

  // output = output * rescale + sum of weight * value, kVectors vectors of the head at a time.
  template <int kVectors, typename Count>
  static PLIANT_INLINE void add_values(const AttentionCall& call, const AttentionBlock& block,
                                       int size, float rescale, int d, Count count) {
    const Element* values = static_cast<const Element*>(call.values) + d;
    Float sums[kVectors];
    unroll<kVectors>([&](auto n) PLIANT_BODY {
      sums[n] = Simd::mul(load_some<Simd>(call.output + d + n * kLanes, count), Simd::set(rescale));
    });
    for (int i = 0; i < size; ++i) {
      const Element* row = values + size_t(block.entries[i]) * size_t(call.head_dim);
      const Float weight = Simd::set(block.weights[i]);
      unroll<kVectors>([&](auto n) PLIANT_BODY {
        sums[n] = Simd::fma(weight, load(row + n * kLanes, count), sums[n]);
      });
    }
    unroll<kVectors>([&](auto n) PLIANT_BODY {
      store_some<Simd>(call.output + d + n * kLanes, sums[n], count);
    });
  }

  static void multiply_values(const AttentionCall& call, const AttentionBlock& block, int size,
                              float rescale) {
    constexpr std::integral_constant<int, kLanes> kWhole{};
    int d = 0;
    for (; d + 8 * kLanes <= call.head_dim; d += 8 * kLanes) {
      add_values<8>(call, block, size, rescale, d, kWhole);
    }
    for (; d + 4 * kLanes <= call.head_dim; d += 4 * kLanes) {
      add_values<4>(call, block, size, rescale, d, kWhole);
    }
    for (; d + kLanes <= call.head_dim; d += kLanes) {
      add_values<1>(call, block, size, rescale, d, kWhole);
    }
    if (d < call.head_dim) {
      add_values<1>(call, block, size, rescale, d, call.head_dim - d);
    }
  }

  static void attend(const AttentionCall& call) {
    constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
    AttentionBlock block;
    float maximum = kMinusInfinity, total = 0.0f;
    std::fill_n(call.output, call.head_dim, 0.0f);
    for (int next = call.begin; next < call.end;) {
      next = gather(call, next, block);
      if (block.size == 0) break;
      const int size = block.size;
      multiply_keys(call, block);
      const float block_maximum = score(call, block, size);
      if (maximum == kMinusInfinity && block_maximum == kMinusInfinity) continue;
      const float grown = block_maximum > maximum ? block_maximum : maximum;
      const float rescale = std::exp(maximum - grown);
      total = total * rescale + weigh(block, size, grown);
      multiply_values(call, block, size, rescale);
      maximum = grown;
    }
    const Float factor = Simd::set(1.0f / total);
    for_each_vector<Simd>(call.head_dim, [&](int d, auto count) PLIANT_BODY {
      store_some<Simd>(call.output + d, Simd::mul(load_some<Simd>(call.output + d, count), factor),
                       count);
    });
  }
};

template <typename Simd>
void attend(const AttentionCall& call) {
  if (call.type == CacheType::kFloat32) return Attention<Simd, float>::attend(call);
  Attention<Simd, uint16_t>::attend(call);
}

}  // namespace
}  // namespace pliant
