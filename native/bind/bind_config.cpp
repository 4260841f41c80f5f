// The numbers of an architecture and the options of a decoder as Python objects.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "bind/bindings.h"
#include "engine/weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pliant {

void bind_config(nb::module_& m) {
  nb::enum_<Activation>(m, "Activation")
      .value("silu", Activation::kSilu)
      .value("gelu", Activation::kGelu)
      .value("gelu_tanh", Activation::kGeluTanh);
  nb::enum_<ActivationMode>(m, "ActivationMode")
      .value("int8", ActivationMode::kInt8)
      .value("float32", ActivationMode::kFloat32);
  nb::enum_<Preload>(m, "Preload")
      .value("none", Preload::kNone)
      .value("ahead", Preload::kAhead)
      .value("all", Preload::kAll)
      .value("lock", Preload::kLock);
  nb::enum_<CacheType>(m, "CacheType")
      .value("float32", CacheType::kFloat32)
      .value("float16", CacheType::kFloat16)
      .value("int8", CacheType::kInt8);
  nb::class_<DecoderConfig>(m, "DecoderConfig", "Numbers of a ModelSpec and how to run it.")
      .def(nb::init<>())
      .def_rw("vocab_size", &DecoderConfig::vocab_size)
      .def_rw("hidden_size", &DecoderConfig::hidden_size)
      .def_rw("heads_per_group", &DecoderConfig::heads_per_group)
      .def_rw("head_dim", &DecoderConfig::head_dim)
      .def_rw("max_context", &DecoderConfig::max_context)
      .def_rw("norm_epsilon", &DecoderConfig::norm_epsilon)
      .def_rw("norm_offset", &DecoderConfig::norm_offset)
      .def_rw("activation", &DecoderConfig::activation)
      .def_rw("embedding_scale", &DecoderConfig::embedding_scale)
      .def_rw("attention_scale", &DecoderConfig::attention_scale)
      .def_rw("attention_softcap", &DecoderConfig::attention_softcap)
      .def_rw("logit_softcap", &DecoderConfig::logit_softcap)
      .def_rw("mode", &DecoderConfig::mode)
      .def_rw("cache_type", &DecoderConfig::cache_type)
      .def_rw("cache_bits", &DecoderConfig::cache_bits)
      .def_rw("cache_window", &DecoderConfig::cache_window)
      .def_rw("threads", &DecoderConfig::threads)
      .def_rw("check_finite", &DecoderConfig::check_finite)
      .def_rw("preload", &DecoderConfig::preload)
      .def_rw("head_screen", &DecoderConfig::head_screen)
      .def(
          "add_rotation",
          [](DecoderConfig& config,
             const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>&
                 frequencies,
             float amplitude) {
            const float* begin = frequencies.data();
            config.rotations.push_back({{begin, begin + frequencies.size()}, amplitude});
          },
          "frequencies"_a, "amplitude"_a);
}

}  // namespace pliant
