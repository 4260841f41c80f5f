#include "engine/pass.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "engine/errors.h"

namespace pliant {
namespace {

// Values per step up to which computing all rows in every worker beats a barrier.
constexpr int kOwnLaneValues = 2048;

// The gated MLP splits by whole groups of quantization, so that one worker can finish a group.
constexpr int kTilesPerGroup = kGroupColumns / kTileRows;

}  // namespace

ForwardPass::ForwardPass(const DecoderConfig& config, const DecoderWeights& weights,
                         const std::vector<int>& window_kinds, const Kernels& kernels,
                         const Step& step, std::vector<RopeTable>& ropes, Workspace& workspace,
                         ThreadPool& pool, int workers, StepResults results, Screening& screening)
    : config_(config),
      weights_(weights),
      window_kinds_(window_kinds),
      kernels_(kernels),
      step_(step),
      ropes_(ropes),
      workspace_(workspace),
      pool_(pool),
      workers_(workers),
      logits_(results.logits),
      best_tokens_(results.tokens),
      screening_(screening),
      num_tokens_(int(step.tokens().size())),
      own_lanes_(workers > 1 &&
                 (num_tokens_ == 1 || num_tokens_ * config.hidden_size <= kOwnLaneValues)) {
  workspace_.reserve(kernels_, config_, weights_, num_tokens_, own_lanes_ ? workers_ : 1,
                     pool_.size());
  for (RopeTable& rope : ropes_) rope.reserve(num_tokens_);
  plan_attention();
}

void ForwardPass::run() {
  make_rotations();
  for (size_t place = 0; place < weights_.blocks.size(); ++place) {
    if (weights_.blocks[place].groups > 0) {
      project_inputs(place);
      attend(place);
      project_attention(place);
    }
    if (weights_.blocks[place].neurons > 0) {
      expand(place);
      contract(place);
    }
  }
  if (best_tokens_ != nullptr) {
    choose_tokens();
  } else {
    make_logits();
  }
}

void ForwardPass::make_rotations() {
  const auto fill = [&](int worker, int workers) {
    const Share share = share_of(num_tokens_, worker, workers);
    for (RopeTable& rope : ropes_)
      for (int token = share.begin; token < share.end; ++token)
        rope.fill(token, step_.tokens()[size_t(token)].position);
  };
  if (num_tokens_ == 1) {
    fill(0, 1);
  } else {
    split(fill);
  }
}

void ForwardPass::project_inputs(size_t place) {
  const BlockWeights& block = weights_.blocks[place];
  const std::array products{block.q.product(workspace_.query.row(0), workspace_.query.stride()),
                            block.k.product(workspace_.key.row(0), workspace_.key.stride()),
                            block.v.product(workspace_.value.row(0), workspace_.value.stride())};
  split_products(
      num_tokens_,
      [&](Lane& lane, int token) {
        continue_stream(lane, token, token);
        normalize(lane, token, lane.hidden.row(token), block.attention_norm);
      },
      products, [&](Lane& lane) { return normed_input(lane, num_tokens_); }, multiplier());
  check_rows(workspace_.lanes[0].hidden, config_.hidden_size, num_tokens_, place, "input");
  check_rows(workspace_.query, block.q.matrix.rows, num_tokens_, place, "q");
  check_rows(workspace_.key, block.k.matrix.rows, num_tokens_, place, "k");
  check_rows(workspace_.value, block.v.matrix.rows, num_tokens_, place, "v");
}

void ForwardPass::project_attention(size_t place) {
  const BlockWeights& block = weights_.blocks[place];
  const int size = block.q.matrix.rows;
  const std::array products{block.o.product(workspace_.output.row(0), workspace_.output.stride())};
  const bool quantized = config_.mode == ActivationMode::kInt8;
  split_products(
      quantized ? num_tokens_ : 0,
      [&](Lane& lane, int token) {
        lane.quantized.quantize(kernels_, workspace_.attended.row(token), token, size, {0, size});
      },
      products,
      [&](Lane& lane) {
        return ProductInput{config_.mode, num_tokens_, lane.quantized.view(num_tokens_, size),
                            workspace_.attended.row(0), workspace_.attended.stride()};
      },
      multiplier());
  pending_norm_ = &block.attention_post_norm;
  check_rows(workspace_.output, config_.hidden_size, num_tokens_, place, "o");
}

void ForwardPass::expand(size_t place) {
  const BlockWeights& block = weights_.blocks[place];
  const std::array products{block.gate.product(workspace_.gate.row(0), workspace_.gate.stride()),
                            block.up.product(workspace_.up.row(0), workspace_.up.stride())};
  split_products(
      num_tokens_,
      [&](Lane& lane, int token) {
        continue_stream(lane, token, token);
        normalize(lane, token, lane.hidden.row(token), block.mlp_norm);
      },
      products, [&](Lane& lane) { return normed_input(lane, num_tokens_); },
      [&](std::span<const Product> mlp, const ProductInput& input, int worker, int workers) {
        expand_share(block, mlp, input, worker, workers);
      });
  check_rows(workspace_.gate, block.neurons, num_tokens_, place, "gated MLP");
}

void ForwardPass::expand_share(const BlockWeights& block, std::span<const Product> products,
                               const ProductInput& input, int worker, int workers) {
  const int tiles = block.gate.matrix.tiles();
  const Share groups = share_of(ceil_div(tiles, kTilesPerGroup), worker, workers);
  const Share share{groups.begin * kTilesPerGroup, std::min(groups.end * kTilesPerGroup, tiles)};
  if (share.begin >= share.end) return;
  FloatRows& gate = workspace_.gate;
  FloatRows& up = workspace_.up;
  void* scratch = workspace_.scratch[size_t(worker)].data();
  for (size_t place = 0; place < products.size(); ++place) {
    multiply(kernels_, products[place], input, share, scratch);
    if (products[place].low_rank != nullptr)
      workspace_.reduction.add(kernels_, place, input, share, worker);
  }
  const Share rows{share.begin * kTileRows, std::min(share.end * kTileRows, block.neurons)};
  for (int token = 0; token < num_tokens_; ++token) {
    float* product = gate.row(token) + rows.begin;
    kernels_.gated(config_.activation, product, up.row(token) + rows.begin, rows.end - rows.begin,
                   product);
    if (config_.mode == ActivationMode::kInt8)
      workspace_.neurons.quantize(kernels_, product, token, block.neurons, rows);
  }
}

void ForwardPass::contract(size_t place) {
  const BlockWeights& block = weights_.blocks[place];
  const std::array products{
      block.down.product(workspace_.output.row(0), workspace_.output.stride())};
  const ProductInput input{config_.mode, num_tokens_,
                           workspace_.neurons.view(num_tokens_, block.neurons),
                           workspace_.gate.row(0), workspace_.gate.stride()};
  split_products(0, [](Lane&, int) {}, products, [&](Lane&) { return input; }, multiplier());
  pending_norm_ = &block.mlp_post_norm;
  check_rows(workspace_.output, config_.hidden_size, num_tokens_, place, "down");
}

void ForwardPass::make_logits() {
  const std::span<const int> wanted = step_.logit_tokens();
  const int count = int(wanted.size());
  if (count == 0) return;
  const Product product{&weights_.head, nullptr, logits_, size_t(config_.vocab_size)};
  split_after_rows(
      count,
      [&](Lane& lane, int row) {
        const int token = wanted[size_t(row)];
        continue_stream(lane, row, token);
        normalize(lane, row, lane.hidden.row(token), weights_.final_norm);
      },
      [&](Lane& lane, int worker, int workers) {
        multiply_share({&product, 1}, normed_input(lane, count), worker, workers);
        if (config_.logit_softcap > 0) cap_logits(worker, workers);
      });
  if (!config_.check_finite) return;
  for (size_t index = 0; index < size_t(count) * size_t(config_.vocab_size); ++index)
    if (!std::isfinite(logits_[index]))
      throw GenerationError("The logits hold a NaN or infinity though no block made one.");
}

}  // namespace pliant
