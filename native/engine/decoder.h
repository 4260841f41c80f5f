// The decoder: every architecture of ModelSpec, every cut, one forward pass for everything.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "base/crew.h"
#include "base/threads.h"
#include "engine/cache.h"
#include "engine/pass.h"
#include "engine/step.h"
#include "engine/weights.h"
#include "engine/workspace.h"
#include "ops/rope_table.h"

namespace pliant {

struct DecoderMemory {
  size_t mapped_bytes = 0;   // planes and scales read, not owned
  size_t touched_bytes = 0;  // of them, those in memory now
  size_t vector_bytes = 0;   // norms and biases, owned
  size_t adapter_bytes = 0;  // factors of low-rank updates, made for this subnet
  size_t cache_bytes = 0;    // of all live caches, reserved
  size_t scratch_bytes = 0;  // workspace and rotation tables
};

class Decoder {
 public:
  // Views in `weights` must outlive the decoder. Throws UsageError where sizes disagree.
  // std::bad_alloc where weights are to be locked in memory and the system does not allow it.
  Decoder(DecoderConfig config, DecoderWeights weights);
  ~Decoder();

  std::unique_ptr<KVCache> new_cache(int capacity, size_t max_bytes) const;
  std::shared_ptr<const CacheLayout> cache_layout() const { return cache_layout_; }
  // The caches that were made for this decoder and not given back.
  std::vector<KVCache*> live_caches() const;
  // What `next` reads stays locked in memory when this decoder goes, as far as both lock it.
  void leave_locked(const Decoder& next) noexcept;

  // Appends the tokens of each sequence to its cache and writes the logits asked for, in the order
  // of the sequences: `logits` is [sum of num_logits][vocab_size].
  //
  // `choose` writes the likeliest token behind each wanted one instead, the lowest among equals;
  // GenerationError where a logit is NaN or infinite.
  //
  // Long requests are run in steps; `between_steps` is called between two and may throw. On any
  // failure all caches are as they were before. Several threads may call; they take turns.
  void forward(std::span<const Sequence> sequences, float* logits,
               const std::function<void()>& between_steps);

  void choose(std::span<const Sequence> sequences, int32_t* tokens,
              const std::function<void()>& between_steps);

  // Chooses from logits, [caches][vocab_size], of a step into a row of tokens.
  using Draw = std::function<void(int step, const float* logits, int32_t* row)>;

  // Writes on: each step appends a token to each cache, the ones in `tokens` in the first and then
  // those that `draw`, or `choose` where it is empty, has given before, and puts what it gives into
  // a row of `chosen`, [steps][caches]. Returns the rows that were filled: fewer than `steps` where
  // one of `ends` was chosen, where `stop` says so after a step, and where a step but the first
  // threw a GenerationError, for a logit that is NaN or a full cache. Failures of `draw` leave the
  // step's tokens in the caches, all others leave these as they were before the step that failed.
  int continue_texts(std::span<KVCache* const> caches, std::span<const int32_t> tokens, int steps,
                     std::span<const int32_t> ends, const std::function<bool()>& stop,
                     const Draw& draw, int32_t* chosen);

  Screening screening() const;
  const DecoderConfig& config() const { return config_; }
  DecoderMemory memory() const;

 private:
  void run(std::span<const Sequence> sequences, StepResults results,
           const std::function<void()>& between_steps);
  void run_step(StepResults results);

  const DecoderConfig config_;
  const DecoderWeights weights_;
  const Kernels& kernels_;
  const size_t num_block_weights_;
  const std::vector<ByteRange> weight_ranges_;
  std::vector<ByteRange> locked_ranges_;  // those that this decoder unlocks in the end
  std::shared_ptr<CacheLayout> cache_layout_;
  std::vector<int> window_kinds_;  // of each kept block, into the windows of `step_`
  Step step_;
  std::vector<RopeTable> ropes_;
  Workspace workspace_;
  mutable std::mutex mutex_;
  ThreadPool pool_;
  Crew crew_;
  Screening screening_;
};

}  // namespace pliant
