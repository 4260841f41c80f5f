// Attention of a step: who stores which keys, and who attends to which part of the context.
#include <algorithm>

#include "engine/pass.h"

namespace pliant {
namespace {

// Tasks of tile and group per worker from which on dealing them out keeps all workers busy.
constexpr int kEnoughTasks = 8;

}  // namespace

Share ForwardPass::chunks_of(const TokenTile& tile, int window_kind) const {
  int begin = step_.sight(window_kind, tile.begin).begin, end = 0;
  for (int token = tile.begin; token < tile.end; ++token) {
    const Sight& sight = step_.sight(window_kind, token);
    begin = std::min(begin, sight.begin), end = std::max(end, sight.end);
  }
  return {begin / kContextChunk, ceil_div(end, kContextChunk)};
}

void ForwardPass::plan_attention() {
  const int num_kinds = 1 + *std::max_element(window_kinds_.begin(), window_kinds_.end());
  most_chunks_.assign(size_t(num_kinds), 1);
  if (workers_ == 1) return;
  for (int kind = 0; kind < num_kinds; ++kind)
    for (const TokenTile& tile : step_.tiles()) {
      const Share chunks = chunks_of(tile, kind);
      most_chunks_[size_t(kind)] = std::max(most_chunks_[size_t(kind)], chunks.end - chunks.begin);
    }
  for (size_t place = 0; place < weights_.blocks.size(); ++place)
    for (const Tiles tiles : step_.phases()) {
      if (!splits_context(place, tiles)) continue;
      const size_t places = tiles.size() * size_t(weights_.blocks[place].groups);
      const size_t chunks = size_t(most_chunks_[size_t(window_kinds_[place])]);
      workspace_.reserve_context(places, places * chunks, config_.tile_rows(), config_.head_dim);
    }
}

// Whole tiles and groups need no parts kept, so the context is split only where they are too few
// to occupy all workers alike.
bool ForwardPass::splits_context(size_t place, Tiles tiles) const {
  const int tasks = int(tiles.size()) * weights_.blocks[place].groups;
  return workers_ > 1 && most_chunks_[size_t(window_kinds_[place])] > 1 && tasks % workers_ != 0 &&
         tasks < kEnoughTasks * workers_;
}

void ForwardPass::attend(size_t place) {
  for (const Tiles tiles : step_.phases()) attend_phase(place, tiles);
  check_rows(workspace_.attended, weights_.blocks[place].q.matrix.rows, num_tokens_, place,
             "attention");
}

void ForwardPass::attend_phase(size_t place, Tiles tiles) {
  const int groups = weights_.blocks[place].groups;
  const int num_tasks = int(tiles.size()) * groups;
  const bool split_context = splits_context(place, tiles);
  const auto enter_tile = [&](const TokenTile& tile, int group) {
    for (int token = tile.begin; token < tile.end; ++token) enter_group(place, token, group);
  };
  // Where no token looks at another of the step, or tokens come in order, a worker can attend to
  // an entry as soon as it has stored it.
  if (workers_ == 1 || (step_.one_token_each() && !split_context)) {
    split([&](int worker, int workers) {
      const Share share = share_of(num_tasks, worker, workers);
      for (int task = share.begin; task < share.end; ++task) {
        const TokenTile& tile = tiles[size_t(task / groups)];
        enter_tile(tile, task % groups);
        attend_tile(place, tile, task % groups, worker);
      }
    });
    return;
  }
  split([&](int worker, int workers) {
    const Share share = share_of(num_tasks, worker, workers);
    for (int task = share.begin; task < share.end; ++task)
      enter_tile(tiles[size_t(task / groups)], task % groups);
  });
  if (split_context) return attend_context(place, tiles);
  // Dealt out in turn: later tokens see more entries.
  split([&](int worker, int workers) {
    for (int task = worker; task < num_tasks; task += workers)
      attend_tile(place, tiles[size_t(task / groups)], task % groups, worker);
  });
}

void ForwardPass::rotate_head(float* head, const BlockWeights& block,
                              const std::vector<float>& norm, int token) const {
  if (!norm.empty())
    kernels_.rms_norm(head, norm.data(), config_.norm_offset, config_.norm_epsilon,
                      config_.head_dim, head);
  if (block.rotation < 0) return;
  const RopeTable& rope = ropes_[size_t(block.rotation)];
  kernels_.rotate(head, rope.cosine(token), rope.sine(token), config_.head_dim);
}

void ForwardPass::enter_group(size_t place, int token, int group) const {
  const BlockWeights& block = weights_.blocks[place];
  const int size = config_.head_dim;
  for (int head = group * config_.heads_per_group; head < (group + 1) * config_.heads_per_group;
       ++head)
    rotate_head(workspace_.query.row(token) + head * size, block, block.q_norm, token);
  float* key = workspace_.key.row(token) + group * size;
  rotate_head(key, block, block.k_norm, token);
  const StepToken& target = step_.tokens()[size_t(token)];
  KVCache& cache = *target.cache;
  if (target.folded > target.folded_before)
    cache.fold(int(place), group, target.folded_before, target.folded);
  const size_t offset = cache.row_of(target.entry) * cache.row_bytes();
  float* key_scales = cache.key_scales(int(place), group);
  float* value_scales = cache.value_scales(int(place), group);
  const bool scaled = key_scales != nullptr;
  kernels_.store(key, size, config_.cache_type, cache.keys(int(place), group) + offset,
                 scaled ? key_scales + target.entry : nullptr);
  kernels_.store(workspace_.value.row(token) + group * size, size, config_.cache_type,
                 cache.values(int(place), group) + offset,
                 scaled ? value_scales + target.entry : nullptr);
}

AttentionCall ForwardPass::attention_call(size_t place, const TokenTile& tile, int group,
                                          AttentionRow* rows, int worker) const {
  const StepToken& first = step_.tokens()[size_t(tile.begin)];
  KVCache& cache = *first.cache;
  const int size = config_.head_dim;
  AttentionCall call;
  call.keys = cache.keys(int(place), group);
  call.values = cache.values(int(place), group);
  call.key_scales = cache.key_scales(int(place), group);
  call.value_scales = cache.value_scales(int(place), group);
  call.log_weights = cache.log_weights();
  call.type = config_.cache_type;
  call.head_dim = size;
  call.coded_bits = config_.cache_bits;
  if (call.coded_bits > 0) {
    call.coded_keys = cache.coded(int(place), group, true);
    call.coded_values = cache.coded(int(place), group, false);
    call.folded = first.folded * kCacheUnit;
    call.ring_units = cache.ring_units();
    call.decoded = workspace_.attention[size_t(worker)].decoded.data();
  }
  call.scale = config_.attention_scale;
  call.softcap = config_.attention_softcap;
  call.rows = rows;
  call.begin = step_.sight(window_kinds_[place], tile.begin).begin;
  for (int token = tile.begin; token < tile.end; ++token) {
    const Sight& sight = step_.sight(window_kinds_[place], token);
    call.begin = std::min(call.begin, sight.begin), call.end = std::max(call.end, sight.end);
    for (int head = 0; head < config_.heads_per_group; ++head) {
      const size_t offset = size_t(group * config_.heads_per_group + head) * size_t(size);
      rows[call.num_rows++] = {workspace_.query.row(token) + offset,
                               workspace_.attended.row(token) + offset,
                               sight.visible,
                               sight.begin,
                               sight.end,
                               0.0f,
                               0.0f};
    }
  }
  return call;
}

void ForwardPass::attend_tile(size_t place, const TokenTile& tile, int group, int worker) const {
  TileRows& own = workspace_.attention[size_t(worker)];
  attend_in_chunks(kernels_, attention_call(place, tile, group, own.rows.data(), worker),
                   own.parts);
}

void ForwardPass::attend_context(size_t place, Tiles tiles) {
  const int chunks = most_chunks_[size_t(window_kinds_[place])];
  const int num_tasks = int(tiles.size()) * weights_.blocks[place].groups * chunks;
  split([&](int worker, int workers) {
    const Share share = share_of(num_tasks, worker, workers);
    for (int task = share.begin; task < share.end; ++task) attend_chunk(place, tiles, task, worker);
  });
}

// Tasks are numbered by tile, then group, then chunk.
void ForwardPass::attend_chunk(size_t place, Tiles tiles, int task, int worker) const {
  const int groups = weights_.blocks[place].groups;
  const int most_chunks = most_chunks_[size_t(window_kinds_[place])];
  const int chunk = task % most_chunks, group = task / most_chunks % groups;
  const TokenTile& tile = tiles[size_t(task / most_chunks / groups)];
  const size_t place_in_parts = size_t(task / most_chunks);
  const size_t first = place_in_parts * size_t(most_chunks) * size_t(config_.tile_rows());
  AttentionParts& parts = workspace_.context.parts;
  AttentionRow* rows = parts.rows.data() + first + size_t(chunk) * size_t(config_.tile_rows());
  AttentionCall call = attention_call(place, tile, group, rows, worker);
  const Share chunks{call.begin / kContextChunk, ceil_div(call.end, kContextChunk)};
  if (chunks.begin + chunk < chunks.end) {
    for (int row = 0; row < call.num_rows; ++row)
      rows[row].output = parts.outputs.data() + (rows + row - parts.rows.data()) * config_.head_dim;
    call.end = std::min(call.end, (chunks.begin + chunk + 1) * kContextChunk);
    call.begin = (chunks.begin + chunk) * kContextChunk;
    kernels_.attend(call);
  }
  std::atomic<int>& done = workspace_.context.chunks_done[place_in_parts];
  if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < most_chunks) return;
  done.store(0, std::memory_order_relaxed);
  for (int row = 0; row < call.num_rows; ++row) {
    AttentionRow& whole = parts.rows[first + size_t(row)];
    for (int part = 1; part < chunks.end - chunks.begin; ++part)
      merge_attention(whole, parts.rows[first + size_t(part * config_.tile_rows() + row)],
                      config_.head_dim);
    const int head = group * config_.heads_per_group + row % config_.heads_per_group;
    finish_attention(whole, config_.head_dim,
                     workspace_.attended.row(tile.begin + row / config_.heads_per_group) +
                         size_t(head) * size_t(config_.head_dim));
  }
}

}  // namespace pliant
