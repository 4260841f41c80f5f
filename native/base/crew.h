// How many workers a step of a forward pass gets: all, or the caller alone.
#pragma once

#include <cstddef>

namespace pliant {

// Results do not depend on the number of workers, so the choice is free to follow the clock. Two
// cases are known where workers hurt: models so small that barriers cost more than they save, where
// the price of a barrier depends on which cores the system lends; and cores that are given to other
// processes, where everyone waits for the worker that has none.
class Crew {
 public:
  // `workers` at least 1, the caller included.
  explicit Crew(int workers) : workers_(workers) {}

  // Workers for the next step, which multiplies `work` weights by activations: 1 or all.
  int size_for(size_t work);

  // What that step took, and for how long its caller slept waiting for workers.
  void record(int workers, size_t work, double seconds, double slept_seconds);

 private:
  const int workers_;
  size_t work_ = 0;  // of the small steps that are compared
  // Seconds of such a step, the best of late; 0 while not known.
  double alone_ = 0.0, together_ = 0.0;
  int small_steps_ = 0;
  int steps_alone_ = 0;  // to come, before all are tried again
  int next_steps_alone_ = 1;
};

}  // namespace pliant
