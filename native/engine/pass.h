// One step through all blocks.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "base/threads.h"
#include "engine/step.h"
#include "engine/weights.h"
#include "engine/workspace.h"
#include "ops/rope_table.h"

namespace pliant {

// Where a step writes what is wanted of its tokens: one of the two.
struct StepResults {
  float* logits = nullptr;    // [logit tokens][vocab_size]
  int32_t* tokens = nullptr;  // [logit tokens], the likeliest token behind each
};

// Work of choosing tokens, summed over steps.
struct Screening {
  size_t tokens = 0;
  size_t tiles = 0;           // of the head, over all steps
  size_t tiles_rescored = 0;  // of them, those of which all planes were read
};

// Runs one step: five phases a block, each split between the workers once and ended by one
// barrier. A block without groups skips the three of attention, one without neurons the two of the
// MLP. Everything is borrowed from the decoder.
class ForwardPass {
 public:
  ForwardPass(const DecoderConfig& config, const DecoderWeights& weights,
              const std::vector<int>& window_kinds, const Kernels& kernels, const Step& step,
              std::vector<RopeTable>& ropes, Workspace& workspace, ThreadPool& pool, int workers,
              StepResults results, Screening& screening);

  // Fills the cache entries of the step's tokens and writes its results.
  void run();

 private:
  // work(worker, workers) on every worker.
  template <typename Work>
  void split(Work&& work) {
    if (workers_ == 1) {
      work(0, 1);
    } else {
      pool_.run(work);
    }
  }
  // row(lane, item) for `count` items, then work(lane, worker, workers) once all rows are there.
  template <typename Row, typename Work>
  void split_after_rows(int count, Row&& row, Work&& work) {
    if (own_lanes_ || workers_ == 1) {
      split([&](int worker, int workers) {
        Lane& lane = workspace_.lanes[size_t(worker)];
        for (int item = 0; item < count; ++item) row(lane, item);
        work(lane, worker, workers);
      });
      return;
    }
    Lane& lane = workspace_.lanes[0];
    split([&](int worker, int workers) {
      const Share share = share_of(count, worker, workers);
      for (int item = share.begin; item < share.end; ++item) row(lane, item);
    });
    split([&](int worker, int workers) { work(lane, worker, workers); });
  }

  // multiply(products, input, worker, workers) once the rows of their input are there, as above.
  // input_of(lane) is the input that a lane holds. Adapters cost no barrier of their own: where a
  // worker has all rows it goes on from what it summed of them, where workers split the rows each
  // sums what it made.
  template <typename Row, typename InputOf, typename Multiply>
  void split_products(int count, Row&& row, std::span<const Product> products, InputOf&& input_of,
                      Multiply&& multiply) {
    const bool adapted = std::any_of(products.begin(), products.end(),
                                     [](const Product& p) { return p.low_rank != nullptr; });
    const auto lane_of = [&](int worker) -> Lane& {
      return workspace_.lanes[own_lanes_ ? size_t(worker) : 0];
    };
    const auto run = [&](int worker, int workers) {
      multiply(products, input_of(lane_of(worker)), worker, workers);
    };
    const bool own_rows = own_lanes_ || workers_ == 1;
    Reduction* reduction = adapted ? &workspace_.reduction : nullptr;
    if (adapted) reduction->begin(products, workers_);
    const auto make_rows = [&](int worker, int workers) {
      const Share share = own_rows ? Share{0, count} : share_of(count, worker, workers);
      Lane& lane = lane_of(worker);
      for (int item = share.begin; item < share.end; ++item) row(lane, item);
      if (adapted) reduction->sum_share(kernels_, input_of(lane), worker);
    };
    if (own_rows) {
      split([&](int worker, int workers) {
        make_rows(worker, workers);
        run(worker, workers);
      });
    } else {
      if (adapted || count > 0) split(make_rows);
      split(run);
    }
  }

  // Multiplies this worker's share of the tiles of `products`.
  void multiply_share(std::span<const Product> products, const ProductInput& input, int worker,
                      int workers);
  // As split_products wants it.
  auto multiplier() {
    return [this](std::span<const Product> products, const ProductInput& input, int worker,
                  int workers) { multiply_share(products, input, worker, workers); };
  }

  void make_rotations();
  void project_inputs(size_t place);     // norm, q, k, v
  void attend(size_t place);             // q/k norm, rotation, cache, attention
  void project_attention(size_t place);  // o
  void expand(size_t place);             // norm, gate, up, activation
  void contract(size_t place);           // down
  void make_logits();
  void choose_tokens();

  // Brings the residual stream of `token` up to date: its embedding before the first half block,
  // then what the last one put out.
  void continue_stream(Lane& lane, int row, int token) const;
  void embed(Lane& lane, int token) const;
  void add_output(Lane& lane, int row, int token, const std::vector<float>& post_norm) const;
  void normalize(Lane& lane, int row, const float* hidden, const std::vector<float>& norm) const;
  ProductInput normed_input(Lane& lane, int rows) const;
  // The chunks of the context that a tile of tokens sees, where windows are of one kind.
  Share chunks_of(const TokenTile& tile, int window_kind) const;
  void plan_attention();
  using Tiles = std::span<const TokenTile>;
  bool splits_context(size_t place, Tiles tiles) const;
  void attend_phase(size_t place, Tiles tiles);
  // Rotates queries and key of a token and stores its key and value.
  void enter_group(size_t place, int token, int group) const;
  AttentionCall attention_call(size_t place, const TokenTile& tile, int group, AttentionRow* rows,
                               int worker) const;
  void attend_tile(size_t place, const TokenTile& tile, int group, int worker) const;
  void attend_context(size_t place, Tiles tiles);
  void attend_chunk(size_t place, Tiles tiles, int task, int worker) const;
  void rotate_head(float* head, const BlockWeights& block, const std::vector<float>& norm,
                   int token) const;
  void expand_share(const BlockWeights& block, std::span<const Product> products,
                    const ProductInput& input, int worker, int workers);
  void cap_scores(float* scores, Share rows) const;
  void cap_logits(int worker, int workers) const;
  void find_bounds(const ProductInput& input, int worker, int workers) const;
  void find_best(int worker, int workers) const;
  void rescore(const Product& exact, const ProductInput& input, int worker, int workers) const;
  int32_t best_of(int row, int count) const;
  void collect_choices(int count);

  // With check_finite: throws naming block and operation where a row holds a NaN or infinity.
  void check_rows(FloatRows& rows, int columns, int count, size_t place, const char* operation);

  const DecoderConfig& config_;
  const DecoderWeights& weights_;
  const std::vector<int>& window_kinds_;
  const Kernels& kernels_;
  const Step& step_;
  std::vector<RopeTable>& ropes_;
  Workspace& workspace_;
  ThreadPool& pool_;
  const int workers_;
  float* const logits_;
  int32_t* const best_tokens_;
  Screening& screening_;
  const int num_tokens_;
  const bool own_lanes_;          // each worker computes all rows in a lane of its own
  std::vector<int> most_chunks_;  // of any tile, for each kind of window
  // The norm of the half block whose output waits to be added; nullptr before the first one.
  const std::vector<float>* pending_norm_ = nullptr;
};

}  // namespace pliant
