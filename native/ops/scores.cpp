#include "ops/scores.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace pliant {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kWordTokens = 32;
static_assert(kScoreBlock % kWordTokens == 0);

bool earlier(const ScoreChange& change, int32_t token) { return change.token < token; }

// Takes away from `count` scores those whose bit is not set.
void exclude(const uint32_t* allowed, int count, float* scores) {
  for (int begin = 0; begin < count; begin += kWordTokens) {
    const int here = std::min(kWordTokens, count - begin);
    const uint32_t among = here < kWordTokens ? (1u << here) - 1u : ~0u;
    uint32_t without = ~allowed[begin / kWordTokens] & among;
    if (without == among) {
      std::fill_n(scores + begin, here, kMinusInfinity);
      continue;
    }
    for (; without != 0; without &= without - 1)
      scores[begin + std::countr_zero(without)] = kMinusInfinity;
  }
}

}  // namespace

ScoreChanges::ScoreChanges(const Penalties& penalties, std::vector<ScoreChange> changes)
    : penalties_(penalties), changes_(std::move(changes)) {
  std::stable_sort(changes_.begin(), changes_.end(),
                   [](const auto& a, const auto& b) { return a.token < b.token; });
  size_t kept = 0;
  for (size_t i = 0; i < changes_.size(); ++i) {
    if (kept == 0 || changes_[kept - 1].token != changes_[i].token) {
      changes_[kept++] = changes_[i];
      continue;
    }
    ScoreChange& known = changes_[kept - 1];
    known.bias += changes_[i].bias, known.written += changes_[i].written;
    known.seen |= changes_[i].seen, known.excluded |= changes_[i].excluded;
  }
  changes_.resize(kept);
}

void ScoreChanges::write(int32_t token) {
  const bool counts = penalties_.presence != 0.0f || penalties_.frequency != 0.0f;
  if (!counts && penalties_.repetition == 1.0f) return;
  auto place = std::lower_bound(changes_.begin(), changes_.end(), token, earlier);
  if (place == changes_.end() || place->token != token) {
    place = changes_.insert(place, ScoreChange{});
    place->token = token;
  }
  place->written += 1;
  place->seen = true;
}

float ScoreChanges::changed(const ScoreChange& change, float logit) const {
  float score = logit + change.bias;
  if (change.written != 0)
    score -= penalties_.presence + penalties_.frequency * float(change.written);
  if (change.excluded) return kMinusInfinity;
  if (!change.seen || penalties_.repetition == 1.0f) return score;
  return score < 0.0f ? score * penalties_.repetition : score / penalties_.repetition;
}

Scores::Scores(const float* logits, int size, const ScoreChanges* changes, const uint32_t* allowed)
    : logits_(logits), size_(size), changes_(changes), allowed_(allowed) {
  if (changes == nullptr || changes->sorted().empty()) return;
  begins_.assign(size_t(blocks()) + 1, 0);
  for (const ScoreChange& change : changes->sorted())
    ++begins_[size_t(change.token / kScoreBlock) + 1];
  for (size_t block = 1; block < begins_.size(); ++block) begins_[block] += begins_[block - 1];
}

int Scores::block_size(int block) const {
  return std::min(kScoreBlock, size_ - block * kScoreBlock);
}

const float* Scores::block(int block, float* room) const {
  const int first = block * kScoreBlock, count = block_size(block);
  const size_t at = size_t(block);
  const uint32_t* allowed = nullptr;
  if (allowed_ != nullptr) {
    allowed = allowed_ + first / kWordTokens;
    uint32_t any = 0, all = ~0u;
    for (int word = 0; word < (count + kWordTokens - 1) / kWordTokens; ++word)
      any |= allowed[word], all &= allowed[word];
    if (any == 0) return nullptr;
    if (all == ~0u) allowed = nullptr;
  }
  const bool changes = !begins_.empty() && begins_[at] != begins_[at + 1];
  if (!changes && allowed == nullptr) return logits_ + first;
  std::copy_n(logits_ + first, count, room);
  if (changes) {
    for (int i = begins_[at]; i < begins_[at + 1]; ++i) {
      const ScoreChange& change = changes_->sorted()[size_t(i)];
      float& score = room[change.token - first];
      score = changes_->changed(change, score);
    }
  }
  if (allowed != nullptr) exclude(allowed, count, room);
  return room;
}

}  // namespace pliant
