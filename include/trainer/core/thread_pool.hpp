// A fixed team of threads for one rank. Threads only decide who computes what, never what is computed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace trainer {

/// Runs loops over a fixed number of threads, the caller being one of them. One loop at a time.
class ThreadPool {
 public:
  /// `threads` ≥ 1. `spin` says whether idle threads may spin briefly before they sleep: true only when the
  /// machine has a core for each of them.
  explicit ThreadPool(int threads, bool spin = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  /// Calls body(index, thread) for each index in [0, count), handed out in ascending order as threads come
  /// free; `thread` in [0, threads()) names the scratch a body may use. Returns when all are done. A body
  /// must not throw and must not call the pool again. Allocates nothing.
  template <class Body>
  void for_each(std::int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(count, const_cast<void*>(static_cast<const void*>(&body)),
        [](void* b, std::int64_t index, int thread) { (*static_cast<Plain*>(b))(index, thread); });
  }

 private:
  using Trampoline = void (*)(void* body, std::int64_t index, int thread);
  void run(std::int64_t count, void* body, Trampoline call);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trainer
