#include "base/crew.h"

#include <algorithm>

namespace pliant {
namespace {

// Below, the barriers of a step alone take longer than its work; from kLargeWork on, one worker
// never beat two while both had a core (benchmarks/threads.py: from 2 M weights on).
constexpr size_t kSmallWork = 200'000;
constexpr size_t kLargeWork = 4'000'000;
// Of small steps every so many takes the way that seems slower, to see whether it still is.
constexpr int kStepsPerTrial = 32;
// How fast an old best time is forgotten.
constexpr double kForget = 1.01;
constexpr int kMostStepsAlone = 64;

}  // namespace

int Crew::size_for(size_t work) {
  if (workers_ == 1 || work < kSmallWork) return 1;
  if (steps_alone_ > 0) {
    --steps_alone_;
    return 1;
  }
  if (work >= kLargeWork) return workers_;
  if (work > work_ + work_ / 4 || work_ > work + work / 4) {
    work_ = work;
    alone_ = together_ = 0.0;
  }
  if (together_ == 0.0) return workers_;
  if (alone_ == 0.0) return 1;
  const bool trial = ++small_steps_ % kStepsPerTrial == 0;
  return (together_ <= alone_) != trial ? workers_ : 1;
}

void Crew::record(int workers, size_t work, double seconds, double slept_seconds) {
  if (workers > 1) {
    // Alone a step takes as many times longer as there are workers; so does one whose caller slept
    // for all but that part of it.
    if (slept_seconds > (1.0 - 1.0 / workers) * seconds) {
      steps_alone_ = next_steps_alone_;
      next_steps_alone_ = std::min(2 * next_steps_alone_, kMostStepsAlone);
      return;
    }
    next_steps_alone_ = 1;
  }
  if (work < kSmallWork || work >= kLargeWork) return;
  double& best = workers > 1 ? together_ : alone_;
  best = best == 0.0 ? seconds : std::min(seconds, kForget * best);
}

}  // namespace pliant
