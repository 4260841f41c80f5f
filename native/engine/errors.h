// Failures of a request; the binding turns them into the Python errors of the same names.
#pragma once

#include <stdexcept>

namespace pliant {

// The request itself makes no sense: a wrong shape, a closed engine, a cache of another engine.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The tokens cannot be run: out of the vocabulary, the context or the cache.
struct GenerationError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace pliant
