#include "engine/step.h"

#include <algorithm>
#include <string>

#include "engine/errors.h"

namespace pliant {
namespace {

std::string name_of(size_t index) { return "Sequence " + std::to_string(index); }

void check_tokens(const std::string& name, const Sequence& sequence, int vocab_size) {
  for (int32_t token : sequence.tokens)
    if (token < 0 || token >= vocab_size)
      throw GenerationError(name + " has token " + std::to_string(token) +
                            "; this vocabulary ends at " + std::to_string(vocab_size - 1) + ".");
}

void check_room(const std::string& name, const Sequence& sequence) {
  const KVCache& cache = *sequence.cache;
  const int free = cache.capacity() - cache.length();
  if (sequence.size() > free)
    throw GenerationError(name + " brings " + std::to_string(sequence.size()) +
                          " tokens and its cache has room for " + std::to_string(free) + " of " +
                          std::to_string(cache.capacity()) +
                          "; shorten the prompt or make a larger cache.");
}

void check_positions(const std::string& name, const Sequence& sequence) {
  const int limit = sequence.cache->layout().max_context;
  if (sequence.positions.empty()) {
    if (sequence.size() <= limit - sequence.cache->next_position()) return;
    throw GenerationError(
        name + " would reach position " +
        std::to_string(int64_t(sequence.cache->next_position()) + sequence.size() - 1) +
        "; this model reads " + std::to_string(limit) + " tokens. Shorten the prompt.");
  }
  if (sequence.positions.size() != sequence.tokens.size())
    throw UsageError(name + " has " + std::to_string(sequence.positions.size()) +
                     " positions for " + std::to_string(sequence.size()) + " tokens.");
  for (int32_t position : sequence.positions)
    if (position < 0 || position >= limit)
      throw GenerationError(name + " has position " + std::to_string(position) +
                            "; this model has positions 0 to " + std::to_string(limit - 1) + ".");
}

void check_mask(const std::string& name, const Sequence& sequence) {
  if (sequence.mask == nullptr) return;
  const int size = sequence.size();
  for (int row = 0; row < size; ++row) {
    const uint8_t* seen = sequence.mask + size_t(row) * size;
    if (!seen[row] || std::any_of(seen + row + 1, seen + size, [](uint8_t s) { return s != 0; }))
      throw UsageError(name + " has a mask where token " + std::to_string(row) +
                       " does not see itself or sees a later one; put parents before children.");
  }
}

}  // namespace

void check_request(std::span<const Sequence> sequences, const CacheLayout& owner, int vocab_size) {
  if (sequences.empty()) throw UsageError("The batch is empty; give at least one chunk.");
  for (size_t index = 0; index < sequences.size(); ++index) {
    const Sequence& sequence = sequences[index];
    const std::string name = name_of(index);
    if (sequence.cache == nullptr || &sequence.cache->layout() != &owner)
      throw UsageError(name + " brings a cache of another engine; use new_cache of this one.");
    for (size_t other = 0; other < index; ++other)
      if (sequences[other].cache == sequence.cache)
        throw UsageError(name + " and sequence " + std::to_string(other) +
                         " share one cache; give each its own (clone copies one).");
    if (sequence.size() == 0) throw UsageError(name + " has no tokens; give at least one.");
    if (sequence.num_logits < 0 || sequence.num_logits > sequence.size())
      throw UsageError(name + " asks for more logits than it has tokens.");
    check_tokens(name, sequence, vocab_size);
    check_room(name, sequence);
    check_positions(name, sequence);
    check_mask(name, sequence);
  }
}

bool Step::take(std::span<const Sequence> sequences, std::span<int> done) {
  parts_.clear();
  tiles_.clear();
  tokens_.clear();
  logit_tokens_.clear();
  for (size_t index = 0; index < sequences.size(); ++index) {
    const int room = kMaxTokens - int(tokens_.size());
    const int begin = done[index];
    const int end = std::min(sequences[index].size(), begin + room);
    if (begin == end) continue;
    parts_.push_back({&sequences[index], begin, end});
    add_tokens(parts_.back());
    done[index] = end;
  }
  if (tokens_.empty()) return false;
  find_phases();
  find_sights();
  return true;
}

void Step::add_tokens(const Part& part) {
  const Sequence& sequence = *part.sequence;
  KVCache& cache = *sequence.cache;
  const int next = cache.next_position();
  const int first = int(tokens_.size()), last = first + part.end - part.begin;
  const bool coded = cache.layout().bits > 0;
  const int first_unit = cache.length() / kCacheUnit;
  for (int begin = first, end = first; begin < last; begin = end) {
    const int entry = cache.length() + begin - first;
    end = std::min(begin + tile_tokens_, last);
    if (coded) end = std::min(end, begin + kCacheUnit - entry % kCacheUnit);
    tiles_.push_back({begin, end, coded ? entry / kCacheUnit - first_unit : 0});
  }
  int folded = cache.folded_units();
  for (int index = part.begin; index < part.end; ++index) {
    const int offset = index - part.begin;
    const int position =
        sequence.positions.empty() ? next + offset : sequence.positions[size_t(index)];
    const int entry = cache.length() + offset;
    if (index >= sequence.size() - sequence.num_logits)
      logit_tokens_.push_back(int(tokens_.size()));
    tokens_.push_back(
        {&cache, sequence.tokens[size_t(index)], position, entry, cache.folded_at(entry), folded});
    folded = tokens_.back().folded;
    cache.set_token(entry, sequence.tokens[size_t(index)], position);
  }
}

void Step::find_phases() {
  const auto phase_of = [](const TokenTile& tile) { return tile.phase; };
  std::ranges::stable_sort(tiles_, {}, phase_of);
  phases_.clear();
  for (auto begin = tiles_.begin(); begin != tiles_.end();) {
    const auto end = std::find_if(begin, tiles_.end(),
                                  [&](const TokenTile& t) { return t.phase != begin->phase; });
    phases_.push_back({begin, end});
    begin = end;
  }
}

void Step::find_sights() {
  const size_t num_tokens = tokens_.size();
  sights_.resize(windows_.size() * num_tokens);
  size_t most_visible = 0;
  for (const StepToken& token : tokens_) most_visible += token.entry + 1;
  num_visible_ = 0;
  size_t first = 0;
  for (const Part& part : parts_) {
    const Sequence& sequence = *part.sequence;
    const int size = part.end - part.begin;
    bool plain = sequence.mask == nullptr;
    const KVCache& cache = *sequence.cache;
    plain = plain && cache.is_ascending(cache.length());
    const int32_t* positions = cache.position_data();
    for (int entry = std::max(cache.length(), 1); entry < cache.length() + size; ++entry)
      plain = plain && positions[entry] > positions[entry - 1];
    // Reserved once, before any pointer into it is handed out.
    if (!plain && visible_.size() < most_visible * windows_.size())
      visible_.resize(most_visible * windows_.size());
    for (size_t kind = 0; kind < windows_.size(); ++kind)
      for (int offset = 0; offset < size; ++offset) {
        const StepToken& token = tokens_[first + offset];
        const int index = part.begin + offset;
        const uint8_t* row =
            sequence.mask ? sequence.mask + size_t(index) * sequence.size() : nullptr;
        sights_[kind * num_tokens + first + offset] =
            plain ? plain_sight(token, windows_[kind])
                  : masked_sight(token, windows_[kind], row, index);
      }
    first += size;
  }
}

Sight Step::plain_sight(const StepToken& token, int window) const {
  int begin = 0;
  if (window > 0 && token.position >= window) {
    const int32_t* positions = token.cache->position_data();
    const int oldest = token.position - window + 1;
    begin = int(std::lower_bound(positions, positions + token.entry, oldest) - positions);
  }
  return {begin, token.entry + 1, nullptr};
}

Sight Step::masked_sight(const StepToken& token, int window, const uint8_t* mask_row, int index) {
  const int end = token.entry + 1;
  const int first_new = token.entry - index;  // entry of the first token of the sequence
  const int32_t* positions = token.cache->position_data();
  uint8_t* visible = visible_.data() + num_visible_;
  for (int entry = 0; entry < end; ++entry) {
    const bool near = window == 0 || token.position - positions[entry] < window;
    const bool seen = mask_row == nullptr || entry < first_new || mask_row[entry - first_new];
    visible[entry] = near && seen;
  }
  num_visible_ += end;
  return {0, end, visible};
}

void Step::commit() {
  for (const Part& part : parts_) part.sequence->cache->append(part.end - part.begin);
}

}  // namespace pliant
