// Whole forward passes of small random models: every form of weights and kind of cache, with and
// without adapters. What a token gives must not depend, to the last bit, on how its text was cut
// into requests, nor on what was taken back before.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "checks.h"
#include "engine/decoder.h"
#include "engine/switch.h"

namespace pliant {
namespace {

constexpr int kTokens = 200;  // beyond a window and a unit
constexpr int kVocabulary = 70;
constexpr int kHidden = 40;

struct Variant {
  PlaneForm form;
  int planes;
  CacheType cache;
  int cache_bits;
  int cache_window;
  int rank;  // of the adapters; 0: none
  int head_screen;
  int threads;
};

// A model of two blocks, of which the second lacks one half, and the memory of its weights.
class RandomModel {
 public:
  RandomModel(const Variant& variant, int groups) : variant_(variant) {
    config_.vocab_size = kVocabulary, config_.hidden_size = kHidden;
    config_.heads_per_group = 2, config_.head_dim = 10;
    config_.max_context = kTokens + 8;
    config_.attention_scale = 0.3f;
    config_.rotations.push_back({{1.0f, 0.5f, 0.1f, 0.02f, 0.001f}, 1.0f});
    config_.cache_type = variant.cache;
    config_.cache_bits = variant.cache_bits, config_.cache_window = variant.cache_window;
    config_.head_screen = variant.head_screen, config_.threads = variant.threads;
    config_.check_finite = true;
    weights_.embedding = matrix(kVocabulary, kHidden);
    weights_.head = matrix(kVocabulary, kHidden);
    weights_.final_norm.assign(kHidden, 1.0f);
    for (int block = 0; block < 2; ++block) add_block(block, groups, block == 0 ? 70 : 0);
    weights_.blocks[1].window = 90;
  }

  std::unique_ptr<Decoder> decoder() const { return std::make_unique<Decoder>(config_, weights_); }

 private:
  CodedMatrix matrix(int rows, int columns) {
    // A few more columns are stored than read, as in a cut.
    const auto& made = *matrices_.emplace_back(
        std::make_unique<RandomMatrix>(variant_.planes, rows, columns, columns + 30));
    CodedMatrix coded;
    static_cast<PlaneMatrix&>(coded) = made.view;
    coded.form = variant_.form;
    return coded;
  }

  Linear linear(int rows, int columns) {
    Linear made;
    made.matrix = matrix(rows, columns);
    made.bias = exact(normals(size_t(rows), 0.1f));
    if (variant_.rank > 0)
      made.low_rank =
          updates_.emplace_back(std::make_unique<RandomLowRank>(variant_.rank, rows, columns))
              ->view;
    return made;
  }

  void add_block(int index, int groups, int neurons) {
    BlockWeights& block = weights_.blocks.emplace_back();
    block.block = index, block.groups = groups, block.neurons = neurons, block.rotation = 0;
    const int keys = groups * config_.head_dim, queries = keys * config_.heads_per_group;
    block.q = linear(queries, kHidden), block.k = linear(keys, kHidden);
    block.v = linear(keys, kHidden), block.o = linear(kHidden, queries);
    block.attention_norm.assign(kHidden, 1.0f);
    block.q_norm.assign(size_t(config_.head_dim), 1.0f);
    block.k_norm.assign(size_t(config_.head_dim), 1.0f);
    if (neurons == 0) return;
    block.gate = linear(neurons, kHidden), block.up = linear(neurons, kHidden);
    block.down = linear(kHidden, neurons);
    block.mlp_norm.assign(kHidden, 1.0f);
  }

  Variant variant_;
  DecoderConfig config_;
  DecoderWeights weights_;
  std::vector<std::unique_ptr<RandomMatrix>> matrices_;
  std::vector<std::unique_ptr<RandomLowRank>> updates_;
};

std::vector<int32_t> random_tokens() {
  std::vector<int32_t> tokens(kTokens);
  for (int32_t& token : tokens) token = int32_t(random_bits() % kVocabulary);
  return exact(tokens);
}

// Logits of the tokens [begin, end) of a text, `sizes` of them at a time in turn.
std::vector<float> logits_of(Decoder& decoder, KVCache& cache, const std::vector<int32_t>& tokens,
                             int begin, const std::vector<int>& sizes) {
  std::vector<float> logits(size_t(kTokens - begin) * kVocabulary);
  float* out = logits.data();
  for (size_t turn = 0; begin < kTokens; ++turn) {
    const int size = std::min(sizes[turn % sizes.size()], kTokens - begin);
    const Sequence part{&cache, {tokens.data() + begin, size_t(size)}, {}, nullptr, size};
    decoder.forward({&part, 1}, out, [] {});
    out += size_t(size) * kVocabulary, begin += size;
  }
  return logits;
}

std::vector<float> rows_from(const std::vector<float>& logits, int token) {
  return {logits.begin() + std::ptrdiff_t(token) * kVocabulary, logits.end()};
}

void check_choice(Decoder& decoder, const std::vector<int32_t>& tokens,
                  const std::vector<float>& logits, const std::string& what) {
  const auto cache = decoder.new_cache(kTokens, 0);
  const Sequence whole{cache.get(), tokens, {}, nullptr, kTokens};
  std::vector<int32_t> chosen(kTokens), expected;
  decoder.choose({&whole, 1}, chosen.data(), [] {});
  for (auto row = logits.begin(); row != logits.end(); row += kVocabulary)
    expected.push_back(int32_t(std::max_element(row, row + kVocabulary) - row));
  expect(chosen == expected, what + ": chosen tokens");
}

// A request that fails midway, a cut within what is exact, and copies leave everything as it was.
void check_taken_back(Decoder& decoder, KVCache& cache, const std::vector<int32_t>& tokens,
                      const std::vector<float>& logits, const std::string& what) {
  const int kept = std::max(cache.exact_from(), kTokens - 30);
  cache.truncate(kept);
  // With two other texts beside it there are more tokens than one step has.
  const auto second = decoder.new_cache(kTokens, 0), third = decoder.new_cache(kTokens, 0);
  const Sequence parts[] = {
      {&cache, {tokens.data() + kept, size_t(kTokens - kept)}, {}, nullptr, 0},
      {second.get(), tokens, {}, nullptr, 0},
      {third.get(), tokens, {}, nullptr, 0}};
  bool stopped = false;
  try {
    decoder.forward(parts, nullptr, [] { throw std::runtime_error("expected"); });
  } catch (const std::runtime_error&) {
    stopped = true;
  }
  expect(stopped && cache.length() == kept && second->length() + third->length() == 0,
         what + ": a request that is stopped");
  const auto copy = cache.copy(kept, kTokens);
  for (KVCache* one : {copy.get(), &cache})
    expect(same_bits(logits_of(decoder, *one, tokens, kept, {3, 1}), rows_from(logits, kept)),
           what + ": what was taken back");
}

// Several tokens in one call are those of one call each, and leave the same cache.
void check_writing_on(Decoder& decoder, KVCache& cache, const std::vector<int32_t>& tokens,
                      const std::string& what) {
  constexpr int kSteps = 4, kBegin = kTokens - 10;
  cache.truncate(kBegin);
  const auto other = cache.clone();
  int32_t written[kSteps], apart[kSteps], last = tokens[kBegin];
  KVCache* const caches[] = {&cache};
  const int filled =
      decoder.continue_texts(caches, {&last, 1}, kSteps, {}, [] { return false; }, {}, written);
  for (int32_t& token : apart) {
    const Sequence one{other.get(), {&last, 1}, {}, nullptr, 1};
    decoder.choose({&one, 1}, &token, [] {});
    last = token;
  }
  expect(filled == kSteps && std::equal(written, written + kSteps, apart) &&
             cache.length() == kBegin + kSteps &&
             std::ranges::equal(cache.tokens(), other->tokens()),
         what + ": written in one call");
  cache.truncate(kBegin);
  std::vector<float> again = logits_of(decoder, cache, tokens, kBegin, {kTokens});
  other->truncate(kBegin);
  expect(same_bits(again, logits_of(decoder, *other, tokens, kBegin, {1})),
         what + ": after writing");
}

// To a subnet with fewer groups and back, caches with it; the tokens run again are as ever.
void check_switch(Decoder& decoder, const RandomModel& smaller, KVCache& cache,
                  const std::vector<int32_t>& tokens, const std::vector<float>& logits,
                  const std::string& what) {
  const auto next = smaller.decoder();
  for (const auto& [from, to, rebuilt] :
       {std::tuple{&decoder, next.get(), false}, {next.get(), &decoder, true}}) {
    CacheMove move(*from, *to);
    move.prepare(rebuilt, [] {});
    move.commit();
  }
  const int kept = std::max(cache.exact_from(), kTokens - 10);
  cache.truncate(kept);
  expect(same_bits(logits_of(decoder, cache, tokens, kept, {2}), rows_from(logits, kept)),
         what + ": after a switch and back");
}

void check_variant(const Variant& variant, const std::string& what) {
  const RandomModel model(variant, 2), smaller(variant, 1);
  const auto decoder = model.decoder();
  const std::vector<int32_t> tokens = random_tokens();
  const auto cache = decoder->new_cache(kTokens, 0), other = decoder->new_cache(kTokens, 0);
  const std::vector<float> logits = logits_of(*decoder, *cache, tokens, 0, {kTokens});
  expect(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }),
         what + ": finite");
  expect(same_bits(logits_of(*decoder, *other, tokens, 0, {1, 7, 64, 2, 31}), logits),
         what + ": chunks of other sizes");
  check_choice(*decoder, tokens, logits, what);
  check_taken_back(*decoder, *cache, tokens, logits, what);
  check_writing_on(*decoder, *cache, tokens, what);
  check_switch(*decoder, smaller, *cache, tokens, logits, what);
}

}  // namespace

void check_engine() {
  constexpr PlaneForm kUniform = PlaneForm::kUniform, kSigns = PlaneForm::kSigns;
  constexpr CacheType kHalf = CacheType::kFloat16;
  const Variant variants[] = {
      {kUniform, 4, CacheType::kInt8, 0, 0, 5, 2, 1},
      {kSigns, 3, CacheType::kFloat32, 0, 0, 0, 0, 1},
      {kUniform, 3, kHalf, 4, 64, 0, 1, 2},
      {kSigns, 4, kHalf, 3, 64, 9, 0, 1},
      {kUniform, 5, kHalf, 2, 0, 17, 0, 2},
      {kSigns, 2, kHalf, 4, 0, 1, 0, 1},
  };
  const char* before = std::getenv("PLIANT_ISA");
  const std::string asked = before == nullptr ? "" : before;
  for (const Kernels* path : available_kernels()) {
    setenv("PLIANT_ISA", path->isa, 1);
    for (size_t place = 0; place < std::size(variants); ++place)
      check_variant(variants[place], std::string(path->isa) + " model " + std::to_string(place));
    std::printf("%-12s ran models, %d failures so far\n", path->isa, num_failures);
  }
  setenv("PLIANT_ISA", asked.c_str(), 1);
}

}  // namespace pliant
