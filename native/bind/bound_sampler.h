// The sampler of one text, as Python and a run of the engine call it.
#pragma once

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "engine/errors.h"
#include "ops/sampling.h"

namespace pliant {

// One for each thread that draws: texts of a batch take turns, so each having its own would only
// cost memory.
inline DrawRoom& room_of_thread() {
  static thread_local DrawRoom room;
  return room;
}

inline void check_vocabulary(const Vector<float>& logits) {
  require(logits.size() > 0 && logits.size() <= size_t(1) << 30, "1 to 2^30 logits");
}

inline void check_finite(const ChosenToken& chosen) {
  if (std::isfinite(chosen.score)) return;
  const char* score = std::isnan(chosen.score) ? "nan" : chosen.score > 0 ? "inf" : "-inf";
  throw GenerationError(std::string("The model gave the logit ") + score + " for token " +
                        std::to_string(chosen.token) +
                        "; its weights or its cut are damaged. Run `pliant verify` on the "
                        "artifact.");
}

// Changes of these tokens, made by `set(change, place of the token)`.
template <typename Set>
void append(std::vector<ScoreChange>& changes, const Vector<int32_t>& tokens, Set&& set) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    ScoreChange change;
    change.token = tokens.data()[i];
    require(change.token >= 0, "tokens are 0 or more");
    set(change, i);
    changes.push_back(change);
  }
}

class BoundSampler {
 public:
  BoundSampler(const std::string& isa, double temperature, int top_k, double top_p, double min_p,
               double repetition_penalty, double presence_penalty, double frequency_penalty,
               const Vector<int32_t>& biased, const Vector<float>& biases,
               const Vector<int32_t>& excluded, const Vector<int32_t>& seen)
      : kernels_(*kernels_named(isa).scores),
        options_{float(temperature), top_k, top_p, float(min_p)},
        changes_({float(repetition_penalty), float(presence_penalty), float(frequency_penalty)},
                 changes_of(biased, biases, excluded, seen)) {
    require(temperature >= 0 && top_k >= 0 && top_p > 0 && min_p >= 0 && repetition_penalty > 0,
            "options out of their range");
    // What float32 cannot hold is still no greedy choice.
    if (temperature > 0) options_.temperature = std::max(options_.temperature, 1e-37f);
  }

  int sample(const Vector<float>& logits, double uniform,
             const std::optional<Vector<uint32_t>>& allowed) {
    check_vocabulary(logits);
    require(uniform >= 0 && uniform < 1, "uniform must be in [0, 1)");
    require(!allowed || allowed->size() * 32 >= logits.size(), "a bit for each token");
    const nb::gil_scoped_release release;
    const int token =
        choose(logits.data(), int(logits.size()), uniform, allowed ? allowed->data() : nullptr);
    write(token);
    return token;
  }

  // The token of a row; the text does not go on with it before `write`. Needs no interpreter.
  int choose(const float* logits, int size, double uniform, const uint32_t* allowed) {
    const std::lock_guard lock(mutex_);
    const auto& sorted = changes_.sorted();
    if (!sorted.empty() && sorted.back().token >= size)
      throw GenerationError("Token " + std::to_string(sorted.back().token) +
                            " has a bias or a penalty, and the model has " + std::to_string(size) +
                            " tokens only.");
    const Scores scores(logits, size, &changes_, allowed);
    const ChosenToken chosen = draw(kernels_, scores, options_, uniform, room_of_thread());
    check_finite(chosen);
    return chosen.token;
  }

  void write(int token) {
    const std::lock_guard lock(mutex_);
    changes_.write(token);
  }

 private:
  static std::vector<ScoreChange> changes_of(const Vector<int32_t>& biased,
                                             const Vector<float>& biases,
                                             const Vector<int32_t>& excluded,
                                             const Vector<int32_t>& seen) {
    require(biased.size() == biases.size(), "as many biases as tokens");
    std::vector<ScoreChange> changes;
    append(changes, biased, [&](ScoreChange& change, size_t i) { change.bias = biases.data()[i]; });
    append(changes, excluded, [](ScoreChange& change, size_t) { change.excluded = true; });
    append(changes, seen, [](ScoreChange& change, size_t) { change.seen = true; });
    return changes;
  }

  std::mutex mutex_;  // a sampler is for one thread, but another one must not break memory
  const ScoreKernels& kernels_;
  DrawOptions options_;
  ScoreChanges changes_;
};

}  // namespace pliant
