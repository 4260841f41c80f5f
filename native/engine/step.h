// From the sequences of a request to steps of bounded size, and what each token of a step sees.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cache.h"

namespace pliant {

// New tokens of one sequence.
struct Sequence {
  KVCache* cache = nullptr;
  std::span<const int32_t> tokens;     // at least one
  std::span<const int32_t> positions;  // one for each token, or empty: those that follow the cache
  const uint8_t* mask = nullptr;       // [tokens][tokens], row sees column, or nullptr: causal
  int num_logits = 0;                  // logits of so many last tokens are wanted

  int size() const { return int(tokens.size()); }
};

// Throws unless every sequence can be run as it stands; `owner` made the caches.
void check_request(std::span<const Sequence> sequences, const CacheLayout& owner, int vocab_size);

// The entries [begin, end) that a token attends to, less those whose `visible` byte is zero.
struct Sight {
  int begin = 0;
  int end = 0;
  const uint8_t* visible = nullptr;  // [end - begin] or nullptr: all
};

struct StepToken {
  KVCache* cache = nullptr;
  int32_t token = 0;
  int position = 0;
  int entry = 0;  // where its key and value go
  // Units of the cache that it reads as codes, and those before it in the step or the cache: what
  // lies between is to be coded when its key and value are stored.
  int folded = 0;
  int folded_before = 0;
};

// Tokens [begin, end) of a step, of one sequence, that attend together. With coded caches they are
// of one unit of entries; the units of a sequence attend one after another, in phases.
struct TokenTile {
  int begin = 0;
  int end = 0;
  int phase = 0;
};

// Up to kMaxTokens tokens that pass through the blocks together, in the order of the request.
// Bounds the scratch memory; 256 tokens are enough to make products bound by arithmetic.
class Step {
 public:
  static constexpr int kMaxTokens = 256;

  // `windows[n]` tokens are visible in the blocks of window kind n; 0 shows all. Tiles have at most
  // `tile_tokens` tokens.
  Step(std::vector<int> windows, int tile_tokens)
      : windows_(std::move(windows)), tile_tokens_(tile_tokens) {}

  // Takes the next tokens of a request, `done[n]` of sequence n having been taken before, and
  // writes their positions into the caches. False when none are left.
  bool take(std::span<const Sequence> sequences, std::span<int> done);
  // Makes the new entries part of their caches.
  void commit();

  std::span<const StepToken> tokens() const { return tokens_; }
  std::span<const int> logit_tokens() const { return logit_tokens_; }
  // All tokens, cut into neighbours of one sequence.
  std::span<const TokenTile> tiles() const { return tiles_; }
  // The tiles whose turn is together, in the order of their turns; all of them without coded
  // caches.
  std::span<const std::span<const TokenTile>> phases() const { return phases_; }
  bool one_token_each() const { return parts_.size() == tokens_.size(); }
  const Sight& sight(int window_kind, int token) const {
    return sights_[size_t(window_kind) * tokens_.size() + token];
  }
  size_t size_bytes() const { return visible_.capacity(); }

 private:
  // Tokens [begin, end) of one sequence.
  struct Part {
    const Sequence* sequence;
    int begin;
    int end;
  };

  void add_tokens(const Part& part);
  void find_phases();
  void find_sights();
  Sight plain_sight(const StepToken& token, int window) const;
  Sight masked_sight(const StepToken& token, int window, const uint8_t* mask_row, int index);

  std::vector<int> windows_;
  int tile_tokens_;
  std::vector<Part> parts_;
  std::vector<TokenTile> tiles_;
  std::vector<std::span<const TokenTile>> phases_;
  std::vector<StepToken> tokens_;
  std::vector<int> logit_tokens_;
  std::vector<Sight> sights_;
  std::vector<uint8_t> visible_;
  size_t num_visible_ = 0;
};

}  // namespace pliant
