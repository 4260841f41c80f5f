// The sampler of one text and log-probabilities as Python calls.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bind/bindings.h"
#include "bind/bound_sampler.h"

namespace pliant {
namespace {

auto score(const std::string& isa, const Vector<float>& logits, int token, int count) {
  const ScoreKernels& kernels = *kernels_named(isa).scores;
  check_vocabulary(logits);
  require(count >= 0, "count must be 0 or more");
  require(token >= 0 && size_t(token) < logits.size(), "no such token");
  LogProbabilities found;
  {
    const nb::gil_scoped_release release;
    found = log_probabilities(kernels, logits.data(), int(logits.size()), token, count,
                              room_of_thread());
    check_finite(found.best);
  }
  return std::pair{found.token, std::move(found.top)};
}

}  // namespace

void bind_sampling(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<BoundSampler>(m, "Sampler", "Draws the tokens of one text.")
      .def(nb::init<std::string, double, int, double, double, double, double, double,
                    Vector<int32_t>, Vector<float>, Vector<int32_t>, Vector<int32_t>>(),
           "isa"_a, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
           "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "biased"_a,
           "biases"_a, "excluded"_a, "seen"_a)
      .def("sample", &BoundSampler::sample, "logits"_a, "uniform"_a, "allowed"_a = nb::none(),
           "The token at `uniform` of the distribution; the text goes on with it.");
  m.def("log_probabilities", &score, "isa"_a, "logits"_a, "token"_a, "count"_a,
        "Of a token, and of the `count` likeliest.");
}

}  // namespace pliant
