// From one decoder to the next of the same model: what becomes of the caches that are alive.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/decoder.h"

namespace pliant {

// The live caches of `before` on their way to `next`: all of them, or none. While it lives no
// forward pass may use them.
class CacheMove {
 public:
  // UsageError where a cache is in use.
  CacheMove(Decoder& before, Decoder& next);
  ~CacheMove();
  CacheMove(const CacheMove&) = delete;
  CacheMove& operator=(const CacheMove&) = delete;

  const std::vector<KVCache*>& caches() const { return caches_; }
  // Makes the caches to be beside those that are: from their entries, or with `rebuild` by running
  // their tokens again, each at its position. GenerationError where a cache was edited so that its
  // tokens no longer say what it holds, or does not fit into its limit of bytes.
  void prepare(bool rebuild, const std::function<void()>& between_steps);
  // Puts them in place. What only `before` kept locked in memory is let go with it.
  void commit() noexcept;

 private:
  Decoder& before_;
  Decoder& next_;
  std::vector<KVCache*> caches_;
  std::vector<std::unique_ptr<KVCache>> fresh_;
};

}  // namespace pliant
