// The scores of a row: its logits, and block by block what a text asks to be changed of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pliant {

// Tokens of one block. Sums of a block are fp32, sums of blocks double; and as many of the largest
// scores as there are blocks are found without looking at most of them (sampling.cpp).
constexpr int kScoreBlock = 128;

// What is taken from the logit of a token that came before.
struct Penalties {
  float repetition = 1.0f;  // of the prompt or the text: divides above zero, multiplies below
  float presence = 0.0f;    // of the text: subtracted
  float frequency = 0.0f;   // of the text: subtracted for each time
};

struct ScoreChange {
  int32_t token = 0;
  float bias = 0.0f;
  int32_t written = 0;  // times in the text
  bool seen = false;    // in the prompt or the text
  bool excluded = false;
};

// What one text asks to be changed, token by token. Not for several threads.
class ScoreChanges {
 public:
  ScoreChanges(const Penalties& penalties, std::vector<ScoreChange> changes);

  // The text goes on with this token.
  void write(int32_t token);
  // score + bias - presence - frequency * written, nothing of an excluded token, then repetition.
  float changed(const ScoreChange& change, float logit) const;
  // By token, each once.
  const std::vector<ScoreChange>& sorted() const { return changes_; }

 private:
  Penalties penalties_;
  std::vector<ScoreChange> changes_;
};

// A view; owns nothing but where the changes of each block begin.
class Scores {
 public:
  // `allowed` has a bit for each token, the lowest first, or is nullptr: all. `changes` may be
  // nullptr; its tokens are below `size`.
  Scores(const float* logits, int size, const ScoreChanges* changes, const uint32_t* allowed);

  int size() const { return size_; }
  int blocks() const { return (size_ + kScoreBlock - 1) / kScoreBlock; }
  int block_size(int block) const;
  // Those of a block: of the row itself where nothing is changed, else put into `room`; nullptr
  // where no token is allowed.
  const float* block(int block, float* room) const;

 private:
  const float* logits_;
  int size_;
  const ScoreChanges* changes_;
  const uint32_t* allowed_;
  std::vector<int32_t> begins_;  // [blocks + 1], or none without changes
};

}  // namespace pliant
