// The parts of a forward pass that work on one token, head or row.
#include <algorithm>
#include <cmath>
#include <string>

#include "engine/errors.h"
#include "engine/pass.h"

namespace pliant {

void ForwardPass::continue_stream(Lane& lane, int row, int token) const {
  if (pending_norm_ == nullptr) {
    embed(lane, token);
  } else {
    add_output(lane, row, token, *pending_norm_);
  }
}

void ForwardPass::embed(Lane& lane, int token) const {
  float* hidden = lane.hidden.row(token);
  read_row(kernels_, weights_.embedding, step_.tokens()[size_t(token)].token, hidden);
  if (config_.embedding_scale == 1.0f) return;
  for (int column = 0; column < config_.hidden_size; ++column)
    hidden[column] *= config_.embedding_scale;
}

// All lanes read the output row, so its norm goes to row `row` of this lane, which is free yet.
void ForwardPass::add_output(Lane& lane, int row, int token,
                             const std::vector<float>& post_norm) const {
  const float* output = workspace_.output.row(token);
  if (!post_norm.empty()) {
    float* normed = lane.normed.row(row);
    kernels_.rms_norm(output, post_norm.data(), config_.norm_offset, config_.norm_epsilon,
                      config_.hidden_size, normed);
    output = normed;
  }
  kernels_.add(output, config_.hidden_size, lane.hidden.row(token));
}

void ForwardPass::normalize(Lane& lane, int row, const float* hidden,
                            const std::vector<float>& norm) const {
  const int size = config_.hidden_size;
  if (config_.mode == ActivationMode::kInt8) {
    lane.quantized.norm(kernels_, hidden, norm.data(), config_.norm_offset, config_.norm_epsilon,
                        row, size);
  } else {
    kernels_.rms_norm(hidden, norm.data(), config_.norm_offset, config_.norm_epsilon, size,
                      lane.normed.row(row));
  }
}

ProductInput ForwardPass::normed_input(Lane& lane, int rows) const {
  return {config_.mode, rows, lane.quantized.view(rows, config_.hidden_size), lane.normed.row(0),
          lane.normed.stride()};
}

void ForwardPass::multiply_share(std::span<const Product> products, const ProductInput& input,
                                 int worker, int workers) {
  for_each_share(products, worker, workers, [&](size_t place, Share tiles) {
    multiply(kernels_, products[place], input, tiles, workspace_.scratch[size_t(worker)].data());
    if (products[place].low_rank != nullptr)
      workspace_.reduction.add(kernels_, place, input, tiles, worker);
  });
}

void ForwardPass::cap_scores(float* scores, Share rows) const {
  const float cap = config_.logit_softcap;
  for (int token = rows.begin; token < rows.end; ++token)
    scores[token] = cap * std::tanh(scores[token] / cap);
}

void ForwardPass::cap_logits(int worker, int workers) const {
  const Share tiles = share_of(weights_.head.tiles(), worker, workers);
  const Share rows{tiles.begin * kTileRows, std::min(tiles.end * kTileRows, config_.vocab_size)};
  for (size_t row = 0; row < step_.logit_tokens().size(); ++row)
    cap_scores(logits_ + row * size_t(config_.vocab_size), rows);
}

void ForwardPass::check_rows(FloatRows& rows, int columns, int count, size_t place,
                             const char* operation) {
  if (!config_.check_finite) return;
  for (int token = 0; token < count; ++token)
    for (int column = 0; column < columns; ++column)
      if (!std::isfinite(rows.row(token)[column]))
        throw GenerationError("Block " + std::to_string(weights_.blocks[place].block) +
                              ", operation " + operation + ": token " + std::to_string(token) +
                              " of the step has a NaN or infinity in column " +
                              std::to_string(column) + ".");
}

}  // namespace pliant
