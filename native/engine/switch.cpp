#include "engine/switch.h"

#include <algorithm>
#include <string>

#include "engine/errors.h"

namespace pliant {
namespace {

// Merged entries stand for tokens that are gone, and out of order there is no plain sequence.
void check_rebuildable(const KVCache& cache) {
  const float* weights = cache.log_weights();
  const bool merged =
      weights != nullptr &&
      std::any_of(weights, weights + cache.length(), [](float weight) { return weight != 0.0f; });
  if (merged || !cache.is_ascending(cache.length()))
    throw GenerationError(
        "A cache holds merged entries or positions out of order, so its " +
        std::to_string(cache.length()) +
        " tokens cannot be run again; switch to a subnet whose blocks and groups it has.");
}

}  // namespace

CacheMove::CacheMove(Decoder& before, Decoder& next)
    : before_(before), next_(next), caches_(before.live_caches()) {
  for (size_t held = 0; held < caches_.size(); ++held) {
    if (caches_[held]->try_acquire()) continue;
    for (size_t index = 0; index < held; ++index) caches_[index]->release();
    throw UsageError("A cache is in use by a forward pass; wait for it to return, then switch.");
  }
}

CacheMove::~CacheMove() {
  for (KVCache* cache : caches_) cache->release();
}

void CacheMove::prepare(bool rebuild, const std::function<void()>& between_steps) {
  std::vector<Sequence> sequences;
  for (const KVCache* cache : caches_) {
    if (!rebuild) {
      fresh_.push_back(cache->kept_for(next_.cache_layout()));
      continue;
    }
    check_rebuildable(*cache);
    fresh_.push_back(cache->empty_for(next_.cache_layout()));
    if (cache->length() == 0) continue;
    Sequence& sequence = sequences.emplace_back();
    sequence.cache = fresh_.back().get();
    sequence.tokens = cache->tokens();
    sequence.positions = cache->positions();
  }
  if (!sequences.empty()) next_.forward(sequences, nullptr, between_steps);
}

void CacheMove::commit() noexcept {
  for (size_t index = 0; index < caches_.size(); ++index) caches_[index]->exchange(*fresh_[index]);
  before_.leave_locked(next_);
}

}  // namespace pliant
