// The likeliest token without all logits: the head's first planes rule most rows out.
#include <algorithm>
#include <cstdlib>
#include <limits>

#include "engine/errors.h"
#include "engine/pass.h"

namespace pliant {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Sums of scale_g * a_g * sum|code| over the groups of one token: what its bound is made of.
void add_magnitudes(const Int8Activations& x, int token, float* magnitudes) {
  const int groups = x.stride / kGroupColumns;
  for (int group = 0; group < groups; ++group) {
    const int8_t* codes = x.codes + size_t(token) * x.stride + size_t(group) * kGroupColumns;
    int sum = 0;
    for (int i = 0; i < kGroupColumns; ++i) sum += std::abs(int(codes[i]));
    magnitudes[group] = float(sum) * x.scales[token * groups + group];
  }
}

// How far the product with `screen` planes may lie from that with all of `head`, for a row whose
// magnitudes sum to 1. A weight lies within half the difference of the steps of what fewer planes
// make of it. In fp32 each product of G groups is off by (G + 3) u times its magnitudes, at most
// 128 of them for each weight, and so is the sum of magnitudes itself.
float bound_factor(const PlaneMatrix& head, int screen) {
  const int coarse = 1 << (kMaxPlanes - screen), fine = 1 << (kMaxPlanes - head.num_planes);
  const float half_step = 0.5f * float(coarse - fine);
  const float rounding = float(head.groups() + 4) * 0x1p-23f;
  return (half_step + 256.0f * rounding) * (1.0f + 4.0f * rounding);
}

}  // namespace

void ForwardPass::choose_tokens() {
  const std::span<const int> wanted = step_.logit_tokens();
  const int count = int(wanted.size());
  if (count == 0) return;
  const CodedMatrix& head = weights_.head;
  const bool screened = config_.head_screen > 0 && config_.head_screen < head.num_planes;
  CodedMatrix first = head;
  if (screened) first.num_planes = config_.head_screen;
  HeadScores& scores = workspace_.scores;
  scores.reserve(count, config_.vocab_size, head.groups(), workers_);
  const Product product{&first, nullptr, scores.values.row(0), scores.values.stride()};
  split_after_rows(
      count,
      [&](Lane& lane, int row) {
        const int token = wanted[size_t(row)];
        continue_stream(lane, row, token);
        normalize(lane, row, lane.hidden.row(token), weights_.final_norm);
      },
      [&](Lane& lane, int worker, int workers) {
        const ProductInput input = normed_input(lane, count);
        multiply_share({&product, 1}, input, worker, workers);
        if (screened) {
          find_bounds(input, worker, workers);
        } else {
          find_best(worker, workers);
        }
      });
  if (screened) {
    const Product exact{&head, nullptr, scores.values.row(0), scores.values.stride()};
    split([&](int worker, int workers) {
      const Lane& lane = workspace_.lanes[own_lanes_ ? size_t(worker) : 0];
      const ProductInput input{config_.mode, count,
                               lane.quantized.view(count, config_.hidden_size)};
      rescore(exact, input, worker, workers);
    });
  }
  collect_choices(count);
}

void ForwardPass::collect_choices(int count) {
  for (int row = 0; row < count; ++row) best_tokens_[row] = best_of(row, count);
  screening_.tokens += size_t(count);
  screening_.tiles += size_t(weights_.head.tiles());
  for (int worker = 0; worker < workers_; ++worker)
    screening_.tiles_rescored += size_t(workspace_.scores.rescored[size_t(worker)]);
}

int32_t ForwardPass::best_of(int row, int count) const {
  BestToken best;
  for (int worker = 0; worker < workers_; ++worker) {
    const BestToken& other = workspace_.scores.found[size_t(worker * count + row)];
    best.broken |= other.broken;
    // Tokens of later workers are higher, and the lowest of equals is wanted.
    if (other.token >= 0 && (best.token < 0 || other.score > best.score)) {
      best.token = other.token;
      best.score = other.score;
    }
  }
  if (best.broken || best.token < 0)
    throw GenerationError(
        "The model gave a logit that is NaN or infinite; its weights or its cut are damaged. Run "
        "`pliant verify` on the artifact.");
  return best.token;
}

void ForwardPass::find_bounds(const ProductInput& input, int worker, int workers) const {
  HeadScores& scores = workspace_.scores;
  const PlaneMatrix& head = weights_.head;
  const Share tiles = share_of(head.tiles(), worker, workers);
  const Share rows{tiles.begin * kTileRows, std::min(tiles.end * kTileRows, head.rows)};
  const float factor = bound_factor(head, config_.head_screen);
  float* magnitudes = scores.magnitudes.data() + size_t(worker) * head.groups();
  for (int token = 0; token < input.tokens; ++token) {
    float* bounds = scores.bounds.row(token);
    add_magnitudes(input.quantized, token, magnitudes);
    kernels_.sum_scales(head, magnitudes, tiles.begin, tiles.end, bounds);
    const float* values = scores.values.row(token);
    float lowest = kMinusInfinity;  // the best score is at least this
    for (int row = rows.begin; row < rows.end; ++row) {
      bounds[row] *= factor;
      lowest = std::max(lowest, values[row] - bounds[row]);
    }
    scores.lowest[size_t(worker * input.tokens + token)] = lowest;
  }
}

void ForwardPass::find_best(int worker, int workers) const {
  HeadScores& scores = workspace_.scores;
  const Share tiles = share_of(weights_.head.tiles(), worker, workers);
  const int count = int(step_.logit_tokens().size());
  for (int token = 0; token < count; ++token) {
    const Share rows{tiles.begin * kTileRows, std::min(tiles.end * kTileRows, weights_.head.rows)};
    float* values = scores.values.row(token);
    // Different scores may be equal once capped, and then the lower token is wanted.
    if (config_.logit_softcap > 0) cap_scores(values, rows);
    BestToken best;
    best.look(values, rows.begin, rows.end);
    scores.found[size_t(worker * count + token)] = best;
  }
  scores.rescored[size_t(worker)] = 0;
}

void ForwardPass::rescore(const Product& exact, const ProductInput& input, int worker,
                          int workers) const {
  HeadScores& scores = workspace_.scores;
  const PlaneMatrix& head = weights_.head;
  const Share tiles = share_of(head.tiles(), worker, workers);
  const int count = input.tokens;
  float* limits = scores.limits.data() + size_t(worker * count);
  BestToken* found = scores.found.data() + size_t(worker * count);
  for (int token = 0; token < count; ++token) {
    found[token] = {};
    limits[token] = kMinusInfinity;
    for (int other = 0; other < workers; ++other)
      limits[token] = std::max(limits[token], scores.lowest[size_t(other * count + token)]);
  }
  int rescored = 0;
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const Share rows{tile * kTileRows, std::min((tile + 1) * kTileRows, head.rows)};
    bool possible = false;
    for (int token = 0; token < count; ++token) {
      const float* values = scores.values.row(token);
      const float* bounds = scores.bounds.row(token);
      // Written so that a NaN counts as possible.
      for (int row = rows.begin; row < rows.end; ++row)
        possible |= !(values[row] + bounds[row] < limits[token]);
    }
    if (!possible) continue;
    ++rescored;
    multiply(kernels_, exact, input, {tile, tile + 1}, workspace_.scratch[size_t(worker)].data());
    for (int token = 0; token < count; ++token)
      found[token].look(scores.values.row(token), rows.begin, rows.end);
  }
  scores.rescored[size_t(worker)] = rescored;
}

}  // namespace pliant
