#include "ops/rope_table.h"

#include <cmath>

namespace pliant {

void RopeTable::reserve(int tokens) {
  cosine_.reserve(tokens * frequencies_.size());
  sine_.reserve(tokens * frequencies_.size());
}

void RopeTable::fill(int token, int position) {
  const size_t first = token * frequencies_.size();
  for (size_t pair = 0; pair < frequencies_.size(); ++pair) {
    const double angle = double(position) * frequencies_[pair];
    cosine_[first + pair] = float(amplitude_ * std::cos(angle));
    sine_[first + pair] = float(amplitude_ * std::sin(angle));
  }
}

}  // namespace pliant
