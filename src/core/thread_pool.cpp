#include "trainer/core/thread_pool.hpp"

#include <atomic>
#include <thread>
#include <vector>

namespace trainer {

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// A loop is published by opening it and bumping `generation`. A worker that is awake enters (`inside`), checks that the
// loop is still open, and takes indices from `next` until they run out. The caller closes the loop when it finds no
// index left, and waits only for workers that are inside: one that still sleeps, or has no core to run on, is not
// waited for. Workers spin a while on `generation` before they sleep in the kernel (atomic wait).
struct ThreadPool::State {
  int threads = 1;
  int spins = 0;
  std::vector<std::thread> workers;
  std::atomic<std::uint32_t> generation{0};
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<int> inside{0};
  std::atomic<bool> open{false};
  alignas(64) std::atomic<std::int64_t> next{0};
  std::int64_t count = 0;
  void* body = nullptr;
  Trampoline call = nullptr;

  void work(int thread) {
    for (std::int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      call(body, i, thread);
    }
  }

  void serve(int thread) {
    std::uint32_t seen = 0;
    while (true) {
      std::uint32_t now = generation.load(std::memory_order_acquire);
      for (int i = 0; now == seen && i < spins; ++i) {
        relax();
        now = generation.load(std::memory_order_acquire);
      }
      while (now == seen) {
        generation.wait(seen, std::memory_order_acquire);
        now = generation.load(std::memory_order_acquire);
      }
      seen = now;
      if (stop.load(std::memory_order_relaxed)) return;
      inside.fetch_add(1, std::memory_order_seq_cst);
      if (open.load(std::memory_order_seq_cst)) work(thread);
      if (inside.fetch_sub(1, std::memory_order_seq_cst) == 1) inside.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads, bool spin) : state_(std::make_unique<State>()) {
  state_->threads = threads < 1 ? 1 : threads;
  state_->spins = spin ? 20000 : 0;
  for (int t = 1; t < state_->threads; ++t) {
    state_->workers.emplace_back([s = state_.get(), t] { s->serve(t); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_relaxed);
  state_->generation.fetch_add(1, std::memory_order_release);
  state_->generation.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::run(std::int64_t count, void* body, Trampoline call) {
  if (count <= 0) return;
  State& s = *state_;
  if (s.threads == 1 || count == 1) {
    for (std::int64_t i = 0; i < count; ++i) call(body, i, 0);
    return;
  }
  s.count = count;
  s.body = body;
  s.call = call;
  s.next.store(0, std::memory_order_relaxed);
  s.open.store(true, std::memory_order_seq_cst);
  s.generation.fetch_add(1, std::memory_order_release);
  s.generation.notify_all();
  s.work(0);
  s.open.store(false, std::memory_order_seq_cst);
  int left = s.inside.load(std::memory_order_seq_cst);
  for (int i = 0; left != 0 && i < s.spins; ++i) {
    relax();
    left = s.inside.load(std::memory_order_seq_cst);
  }
  while (left != 0) {
    s.inside.wait(left, std::memory_order_seq_cst);
    left = s.inside.load(std::memory_order_seq_cst);
  }
}

}  // namespace trainer
