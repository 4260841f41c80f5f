// Threads that stay alive between phases of work: one static split and one barrier per phase. A
// share that its worker has not begun when the caller is done with its own falls to the caller, so
// that a worker without a CPU delays a phase only by a share it is in the middle of.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace pliant {

constexpr int kMaxThreads = 256;

// The part [begin, end) of `count` items that falls to `worker` of `workers`; sizes differ by one.
struct Share {
  int begin;
  int end;
};
inline Share share_of(int count, int worker, int workers) {
  return {int(int64_t(count) * worker / workers), int(int64_t(count) * (worker + 1) / workers)};
}

class ThreadPool {
 public:
  // `threads` in [1, kMaxThreads], counting the caller of run(); std::invalid_argument otherwise.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // To be called by the thread that is about to run phases. Workers stay on CPUs of their own; one
  // that shares the caller's moves to the CPU the caller has left. The caller itself is not pinned:
  // its affinity would outlive the call and pass on to threads and processes it starts.
  void step_aside();

  // Seconds that callers have slept at barriers since the last call, because a worker was not
  // running: its CPU was given to someone else.
  double take_slept_seconds() { return std::exchange(slept_seconds_, 0.0); }

  // Calls work(worker, workers) once for each worker and returns when all are done; the caller is
  // worker 0, and any other whose thread is late. No call may wait for another. The first exception
  // thrown is thrown again here. Callers from several threads take turns; `work` must not call
  // run() of the same pool.
  template <typename Work>
  void run(Work&& work) {
    if (size_ == 1) {
      work(0, 1);
      return;
    }
    using Function = std::remove_reference_t<Work>;
    run_phase([](void* function, int worker,
                 int workers) { (*static_cast<Function*>(function))(worker, workers); },
              const_cast<void*>(static_cast<const void*>(&work)));
  }

 private:
  using Phase = void (*)(void* function, int worker, int workers);

  // What share of a phase a worker has: that of generation g is free at 2 g and begun at 2 g + 1.
  // On lines of their own: only the worker and, where it is late, the caller write one.
  struct alignas(64) Turn {
    std::atomic<uint32_t> state{1};
  };

  void run_phase(Phase phase, void* function);
  bool begin_share(int worker, uint32_t generation);
  void run_late_shares(uint32_t generation);
  void run_worker(int worker);
  void run_guarded(int worker);
  void stop();

  const int size_;
  bool spins_ = false;
  std::vector<int> cpus_;  // of the caller and each worker; empty where there are too few
  std::vector<std::thread> threads_;
  std::unique_ptr<Turn[]> turns_;  // of each worker but the caller, from 1 on
  std::mutex callers_;
  double slept_seconds_ = 0.0;
  bool stopping_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;

  // What a phase needs lies on one line, written by the caller; the other line every worker writes.
  alignas(64) std::atomic<uint32_t> generation_{0};
  Phase phase_ = nullptr;
  void* function_ = nullptr;
  alignas(64) std::atomic<uint32_t> num_running_{0};
};

}  // namespace pliant
