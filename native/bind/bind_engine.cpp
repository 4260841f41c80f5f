// Caches and the decoder as Python objects.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>

#include "base/cpus.h"
#include "bind/bindings.h"
#include "bind/bound_block.h"
#include "bind/bound_matrix.h"
#include "bind/bound_sampler.h"
#include "engine/decoder.h"
#include "engine/errors.h"
#include "engine/switch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pliant {
namespace {

using TokenArray = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MaskArray = nb::ndarray<const bool, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using UniformArray = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LogitArray = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A decoder and the arrays its views point into. Kept behind a shared pointer so that `close` can
// let go of it while another thread is still within a forward pass.
class BoundDecoder {
 public:
  BoundDecoder(DecoderConfig config, DecoderWeights weights, nb::list matrices)
      : decoder_(std::make_shared<Decoder>(std::move(config), std::move(weights))),
        matrices_(std::move(matrices)) {}

  std::shared_ptr<Decoder> get() const {
    if (decoder_ == nullptr) throw UsageError("This engine is closed; open another one to go on.");
    return decoder_;
  }
  // The arrays stay: a pass that runs meanwhile still reads them.
  void close() { decoder_.reset(); }
  bool is_closed() const { return decoder_ == nullptr; }
  void exchange(BoundDecoder& other) noexcept {
    decoder_.swap(other.decoder_);
    std::swap(matrices_, other.matrices_);
  }

 private:
  std::shared_ptr<Decoder> decoder_;
  nb::list matrices_;
};

void check_result(const std::vector<Sequence>& sequences, const LogitArray& logits,
                  int vocab_size) {
  size_t rows = 0;
  for (const Sequence& sequence : sequences) rows += size_t(std::max(sequence.num_logits, 0));
  if (logits.shape(0) != rows || logits.shape(1) != size_t(vocab_size))
    throw UsageError("The array for logits is [" + std::to_string(logits.shape(0)) + ", " +
                     std::to_string(logits.shape(1)) + "]; it needs [" + std::to_string(rows) +
                     ", " + std::to_string(vocab_size) + "].");
}

Sequence bound_sequence(KVCache* cache, const TokenArray& tokens,
                        const std::optional<TokenArray>& positions,
                        const std::optional<MaskArray>& mask, int num_logits) {
  Sequence sequence;
  sequence.cache = cache;
  sequence.tokens = {tokens.data(), tokens.size()};
  sequence.num_logits = num_logits;
  if (positions) {
    if (positions->size() != tokens.size())
      throw UsageError(std::to_string(positions->size()) + " positions were given for " +
                       std::to_string(tokens.size()) + " tokens; give one for each.");
    sequence.positions = {positions->data(), positions->size()};
  }
  if (mask) {
    if (mask->shape(0) != tokens.size() || mask->shape(1) != tokens.size())
      throw UsageError("The mask of " + std::to_string(tokens.size()) + " tokens is [" +
                       std::to_string(mask->shape(0)) + ", " + std::to_string(mask->shape(1)) +
                       "]; it needs a row and a column for each.");
    sequence.mask = reinterpret_cast<const uint8_t*>(mask->data());
  }
  return sequence;
}

void raise_if_interrupted() {
  nb::gil_scoped_acquire hold;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

std::vector<Sequence> bound_sequences(const std::vector<KVCache*>& caches,
                                      const std::vector<TokenArray>& tokens,
                                      const std::vector<std::optional<TokenArray>>& positions,
                                      const std::vector<std::optional<MaskArray>>& masks,
                                      const std::vector<int>& num_logits) {
  const size_t count = caches.size();
  if (tokens.size() != count || positions.size() != count || masks.size() != count ||
      num_logits.size() != count)
    throw std::invalid_argument("The lists of a batch differ in length.");
  std::vector<Sequence> sequences;
  for (size_t index = 0; index < count; ++index)
    sequences.push_back(bound_sequence(caches[index], tokens[index], positions[index], masks[index],
                                       num_logits[index]));
  return sequences;
}

void forward(const BoundDecoder& bound, const std::vector<KVCache*>& caches,
             const std::vector<TokenArray>& tokens,
             const std::vector<std::optional<TokenArray>>& positions,
             const std::vector<std::optional<MaskArray>>& masks, const std::vector<int>& num_logits,
             const LogitArray& logits) {
  const std::shared_ptr<Decoder> decoder = bound.get();
  const auto sequences = bound_sequences(caches, tokens, positions, masks, num_logits);
  check_result(sequences, logits, decoder->config().vocab_size);
  float* rows = logits.data();
  nb::gil_scoped_release release;
  decoder->forward(sequences, rows, raise_if_interrupted);
}

std::vector<int32_t> choose(const BoundDecoder& bound, const std::vector<KVCache*>& caches,
                            const std::vector<TokenArray>& tokens,
                            const std::vector<std::optional<TokenArray>>& positions,
                            const std::vector<std::optional<MaskArray>>& masks,
                            const std::vector<int>& num_logits) {
  const std::shared_ptr<Decoder> decoder = bound.get();
  const auto sequences = bound_sequences(caches, tokens, positions, masks, num_logits);
  size_t rows = 0;
  for (const Sequence& sequence : sequences) rows += size_t(std::max(sequence.num_logits, 0));
  std::vector<int32_t> chosen(rows);
  nb::gil_scoped_release release;
  decoder->choose(sequences, chosen.data(), raise_if_interrupted);
  return chosen;
}

// Set by one thread to let another one's run end early.
class Interrupt {
 public:
  void set() { is_set_.store(true, std::memory_order_relaxed); }
  void clear() { is_set_.store(false, std::memory_order_relaxed); }
  bool is_set() const { return is_set_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> is_set_ = false;
};

// Ctrl-C is looked for so often: that takes the interpreter from whoever has it.
constexpr std::chrono::milliseconds kSignalTime{50};

// Draws with `uniforms`, [steps][samplers]; empty where there are no samplers.
Decoder::Draw drawing(const std::vector<BoundSampler*>& samplers, const double* uniforms,
                      int vocab_size) {
  if (samplers.empty()) return {};
  return [&samplers, uniforms, vocab_size](int step, const float* logits, int32_t* row) {
    const size_t count = samplers.size();
    for (size_t index = 0; index < count; ++index)
      row[index] = samplers[index]->choose(logits + index * size_t(vocab_size), vocab_size,
                                           uniforms[size_t(step) * count + index], nullptr);
    // Not before all have chosen: a step that fails has not been.
    for (size_t index = 0; index < count; ++index) samplers[index]->write(row[index]);
  };
}

nb::object continue_texts(const BoundDecoder& bound, const std::vector<KVCache*>& caches,
                          const std::vector<int32_t>& tokens, int steps,
                          const std::vector<int32_t>& ends, const Interrupt* interrupt,
                          const std::vector<BoundSampler*>& samplers,
                          const UniformArray& uniforms) {
  const std::shared_ptr<Decoder> decoder = bound.get();
  if (caches.empty() || tokens.size() != caches.size() || steps < 1)
    throw std::invalid_argument("A run has caches, a token for each, and a step.");
  const auto in_range = [](double uniform) { return uniform >= 0 && uniform < 1; };
  if (!samplers.empty() &&
      (samplers.size() != caches.size() || uniforms.shape(0) != size_t(steps) ||
       uniforms.shape(1) != caches.size() ||
       std::count(samplers.begin(), samplers.end(), nullptr) != 0 ||
       !std::all_of(uniforms.data(), uniforms.data() + uniforms.size(), in_range)))
    throw std::invalid_argument("A run has a sampler for each cache, and a number in [0, 1).");
  const Decoder::Draw draw = drawing(samplers, uniforms.data(), decoder->config().vocab_size);
  auto* chosen = new std::vector<int32_t>(size_t(steps) * caches.size());
  const nb::capsule owner(
      chosen, [](void* held) noexcept { delete static_cast<std::vector<int32_t>*>(held); });
  int done = 0;
  {
    nb::gil_scoped_release release;
    auto looked = std::chrono::steady_clock::now();
    const auto stop = [&] {
      if (std::chrono::steady_clock::now() - looked > kSignalTime) {
        raise_if_interrupted();
        looked = std::chrono::steady_clock::now();
      }
      return interrupt != nullptr && interrupt->is_set();
    };
    done = decoder->continue_texts(caches, tokens, steps, ends, stop, draw, chosen->data());
  }
  return nb::cast(nb::ndarray<nb::numpy, int32_t, nb::ndim<2>>(
      chosen->data(), {size_t(done), caches.size()}, owner));
}

void bind_errors() {
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    const auto raise = [](const char* name, const char* message) {
      PyErr_SetString(nb::module_::import_("pliant.errors").attr(name).ptr(), message);
    };
    try {
      std::rethrow_exception(error);
    } catch (const UsageError& usage) {
      raise("UsageError", usage.what());
    } catch (const GenerationError& generation) {
      raise("GenerationError", generation.what());
    }
  });
}

void check_idle(const KVCache& cache) {
  if (cache.is_busy())
    throw UsageError("The cache is in use by a forward pass; wait for it to return.");
}

void bind_interrupt(nb::module_& m) {
  nb::class_<Interrupt>(m, "Interrupt", "Set by one thread to let another one's run end early.")
      .def(nb::init<>())
      .def("set", &Interrupt::set)
      .def("clear", &Interrupt::clear)
      .def_prop_ro("is_set", &Interrupt::is_set);
}

void bind_cache(nb::module_& m) {
  nb::class_<KVCache>(m, "KVCache", "Keys and values of one sequence.")
      .def_prop_ro("length", &KVCache::length)
      .def_prop_ro("capacity", &KVCache::capacity)
      .def_prop_ro("num_bytes", &KVCache::num_bytes)
      .def_prop_ro("exact_from", &KVCache::exact_from)
      .def_prop_ro("positions",
                   [](const KVCache& cache) {
                     const auto positions = cache.positions();
                     return nb::cast(nb::ndarray<nb::numpy, const int32_t, nb::ndim<1>>(
                                         positions.data(), {positions.size()}),
                                     nb::rv_policy::copy);
                   })
      .def_prop_ro("log_weights",
                   [](const KVCache& cache) {
                     std::vector<float> weights(size_t(cache.length()), 0.0f);
                     if (cache.log_weights() != nullptr)
                       std::copy_n(cache.log_weights(), weights.size(), weights.begin());
                     return nb::cast(nb::ndarray<nb::numpy, const float, nb::ndim<1>>(
                                         weights.data(), {weights.size()}),
                                     nb::rv_policy::copy);
                   })
      .def_prop_ro("tokens",
                   [](const KVCache& cache) {
                     const auto tokens = cache.tokens();
                     return nb::cast(nb::ndarray<nb::numpy, const int32_t, nb::ndim<1>>(
                                         tokens.data(), {tokens.size()}),
                                     nb::rv_policy::copy);
                   })
      .def(
          "set_log_weights",
          [](KVCache& cache, const FloatVector& weights) {
            check_idle(cache);
            cache.set_log_weights({weights.data(), weights.size()});
          },
          "log_weights"_a)
      .def(
          "truncate",
          [](KVCache& cache, int length) {
            check_idle(cache);
            cache.truncate(length);
          },
          "length"_a)
      .def("clone",
           [](const KVCache& cache) {
             check_idle(cache);
             return cache.clone();
           })
      .def(
          "copy",
          [](KVCache& cache, int length, int capacity) {
            // Held, because other threads may run while the interpreter is let go.
            if (!cache.try_acquire()) check_idle(cache);
            const std::unique_ptr<KVCache, void (*)(KVCache*)> held(
                &cache, [](KVCache* source) { source->release(); });
            nb::gil_scoped_release release;
            return cache.copy(length, capacity);
          },
          "length"_a, "capacity"_a);
}

BoundDecoder* make_decoder(BoundDecoder* self, const DecoderConfig& config,
                           const BoundMatrix& embedding, const BoundMatrix& head,
                           const FloatVector& final_norm, const std::vector<BoundBlock*>& blocks) {
  DecoderWeights weights;
  weights.embedding = embedding.view();
  weights.head = head.view();
  weights.final_norm = copy_of(final_norm);
  nb::list matrices;
  matrices.append(nb::find(embedding));
  matrices.append(nb::find(head));
  for (const BoundBlock* block : blocks) {
    weights.blocks.push_back(block->weights);
    matrices.append(block->matrices);
  }
  return new (self) BoundDecoder(config, std::move(weights), std::move(matrices));
}

// Lets `bound` go on as `other` and the other way round, with all live caches of `bound`, and tells
// how many they are and how many tokens they hold. On any failure nothing has changed.
std::tuple<size_t, size_t> switch_to(BoundDecoder& bound, BoundDecoder& other, bool rebuild) {
  const std::shared_ptr<Decoder> old = bound.get(), next = other.get();
  nb::list kept_alive;
  for (KVCache* cache : old->live_caches()) {
    const nb::handle object = nb::find(*cache);
    if (!object.is_valid())
      throw UsageError("Another thread is making a cache; wait for it, then switch.");
    kept_alive.append(object);
  }
  CacheMove move(*old, *next);
  {
    nb::gil_scoped_release release;
    move.prepare(rebuild, raise_if_interrupted);
  }
  // With the interpreter held, so that no other thread looks at a cache meanwhile.
  move.commit();
  bound.exchange(other);
  size_t tokens = 0;
  for (const KVCache* cache : move.caches()) tokens += size_t(cache->length());
  return {move.caches().size(), tokens};
}

// A running pass asks for the interpreter between steps, so it must not be waited for holding it.
DecoderMemory memory_of(const Decoder& decoder) {
  nb::gil_scoped_release release;
  return decoder.memory();
}

void bind_decoder(nb::module_& m) {
  nb::class_<BoundDecoder>(m, "Decoder", "One subnet, ready to run.")
      .def(
          "__init__",
          [](BoundDecoder* self, const DecoderConfig& config, const BoundMatrix& embedding,
             const BoundMatrix& head, const FloatVector& final_norm,
             const std::vector<BoundBlock*>& blocks) {
            make_decoder(self, config, embedding, head, final_norm, blocks);
          },
          "config"_a, "embedding"_a, "head"_a, "final_norm"_a, "blocks"_a)
      .def(
          "new_cache",
          [](const BoundDecoder& bound, int capacity, size_t max_bytes) {
            return bound.get()->new_cache(capacity, max_bytes);
          },
          "capacity"_a, "max_bytes"_a = 0)
      .def("forward", &forward, "caches"_a, "tokens"_a.noconvert(), "positions"_a.noconvert(),
           "masks"_a.noconvert(), "num_logits"_a, "logits"_a.noconvert())
      .def("choose", &choose, "caches"_a, "tokens"_a.noconvert(), "positions"_a.noconvert(),
           "masks"_a.noconvert(), "num_logits"_a)
      .def("continue_texts", &continue_texts, "caches"_a, "tokens"_a, "steps"_a, "ends"_a,
           "interrupt"_a.none(), "samplers"_a, "uniforms"_a.noconvert())
      .def("screening",
           [](const BoundDecoder& bound) {
             const std::shared_ptr<Decoder> decoder = bound.get();
             nb::gil_scoped_release release;
             const Screening screening = decoder->screening();
             return std::make_tuple(screening.tokens, screening.tiles, screening.tiles_rescored);
           })
      .def("memory",
           [](const BoundDecoder& bound) {
             const DecoderMemory memory = memory_of(*bound.get());
             nb::dict result;
             result["mapped"] = memory.mapped_bytes;
             result["touched"] = memory.touched_bytes;
             result["vectors"] = memory.vector_bytes;
             result["adapters"] = memory.adapter_bytes;
             result["cache"] = memory.cache_bytes;
             result["scratch"] = memory.scratch_bytes;
             return result;
           })
      .def("switch_to", &switch_to, "other"_a, "rebuild"_a)
      .def("close", &BoundDecoder::close)
      .def_prop_ro("closed", &BoundDecoder::is_closed);
}

}  // namespace

void bind_engine(nb::module_& m) {
  bind_errors();
  bind_interrupt(m);
  bind_config(m);
  bind_cache(m);
  bind_weights(m);
  bind_decoder(m);
  m.def("default_threads", &default_threads, "Physical cores this process may use.");
  m.attr("MAX_THREADS") = kMaxThreads;
}

}  // namespace pliant
