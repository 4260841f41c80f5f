// Cosine and sine of the rotation angles of the tokens of one step.
#pragma once

#include <vector>

#include "base/buffer.h"

namespace pliant {

// One rotary embedding. Angles are made in double, since position * frequency in float would lose
// the turns of fast pairs at long contexts; a table for the whole context would cost more memory
// than making the few rows of a step costs time.
class RopeTable {
 public:
  // `frequencies` holds radians per token of each of the head_dim / 2 pairs.
  RopeTable(std::vector<float> frequencies, float amplitude)
      : frequencies_(std::move(frequencies)), amplitude_(amplitude) {}

  void reserve(int tokens);
  void fill(int token, int position);

  const float* cosine(int token) const { return cosine_.data() + token * frequencies_.size(); }
  const float* sine(int token) const { return sine_.data() + token * frequencies_.size(); }
  size_t size_bytes() const { return cosine_.size_bytes() + sine_.size_bytes(); }

 private:
  std::vector<float> frequencies_;
  float amplitude_;
  AlignedBuffer<float> cosine_;
  AlignedBuffer<float> sine_;
};

}  // namespace pliant
