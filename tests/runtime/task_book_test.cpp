// The task server's book under random speeds, pauses, stops, kills and changes of the number of replicas: every
// position of the stream counts exactly once, epoch after epoch; and what it does for uneven replicas.
#include "trainer/runtime/task_book.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "trainer/core/error.hpp"

using namespace trainer;
using runtime::StreamBatch;
using runtime::TaskBook;
using runtime::TaskSettings;

namespace {

using Random = std::mt19937_64;

std::int64_t between(Random& random, std::int64_t least, std::int64_t most) {
  return least + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most - least + 1));
}

// What the world sees of a book: how often each position has counted.
struct Ledger {
  std::vector<int> counts;
  void add(const StreamBatch& batch) {
    const auto end = static_cast<std::size_t>(batch.first + batch.size);
    if (counts.size() < end) counts.resize(end);
    for (auto i = static_cast<std::size_t>(batch.first); i < end; ++i) ++counts[i];
  }
  bool once_until(std::int64_t end) const {
    return static_cast<std::int64_t>(counts.size()) >= end &&
           std::all_of(counts.begin(), counts.begin() + end, [](int n) { return n == 1; });
  }
  std::int64_t sum() const {
    std::int64_t total = 0;
    for (const int n : counts) total += n;
    return total;
  }
};

struct Worker {
  double pace = 1;  // seconds a sample
  std::optional<StreamBatch> hand;
  double done = 0;
};

// Replicas that compute at paces of their own, in simulated time.
class Cluster {
 public:
  Cluster(const TaskSettings& settings, Random& random, double unevenness, bool in_order)
      : settings_(settings),
        in_order_(in_order),
        random_(random),
        workers_(static_cast<std::size_t>(settings.replicas)) {
    for (Worker& worker : workers_) worker.pace = std::exp(unevenness * normal_(random_));
  }
  std::vector<Worker>& workers() { return workers_; }
  double now() const { return now_; }

  // Everyone without a batch asks, in a random order; `ledger` is for the epochs' order only.
  void ask(TaskBook& book, const Ledger& ledger) {
    std::vector<int> order(workers_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::shuffle(order.begin(), order.end(), random_);
    for (const int i : order) {
      Worker& worker = workers_[static_cast<std::size_t>(i)];
      if (worker.hand) continue;
      worker.hand = book.next(i, now_);
      if (!worker.hand) continue;
      check_batch(*worker.hand, ledger);
      const double jitter = random_() % 16 == 0 ? 20.0 : 1.0;
      worker.done =
          now_ + worker.pace * static_cast<double>(worker.hand->size) * (0.8 + 0.4 * uniform_(random_)) * jitter;
    }
  }

  // The next one reports, or time passes; false when nobody computes.
  bool report(TaskBook& book, Ledger& ledger) {
    int first = -1;
    for (int i = 0; i < static_cast<int>(workers_.size()); ++i) {
      const Worker& worker = workers_[static_cast<std::size_t>(i)];
      if (worker.hand && (first < 0 || worker.done < workers_[static_cast<std::size_t>(first)].done)) first = i;
    }
    if (first < 0) return false;
    Worker& worker = workers_[static_cast<std::size_t>(first)];
    if (worker.done > now_ + 1 && random_() % 4 == 0) {
      now_ += 1;  // those who wait ask again
      return true;
    }
    now_ = std::max(now_, worker.done);
    if (book.report(first, now_)) ledger.add(*worker.hand);
    worker.hand.reset();
    return true;
  }

 private:
  void check_batch(const StreamBatch& batch, const Ledger& ledger) const {
    CHECK(batch.size == settings_.batch_samples);
    int holders = 0;
    for (const Worker& worker : workers_) holders += worker.hand && worker.hand->first == batch.first ? 1 : 0;
    CHECK(holders <= 2);
    // Nothing of an epoch before the last one is whole. (Larger batches of a time with fewer replicas may have left a
    // piece behind the end of their epoch.)
    if (!in_order_) return;
    const std::int64_t before = batch.first / settings_.epoch_samples * settings_.epoch_samples;
    CHECK(ledger.once_until(before));
  }

  TaskSettings settings_;
  bool in_order_;
  Random& random_;
  std::vector<Worker> workers_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
  double now_ = 0;
};

struct Saved {
  std::int64_t step = 0;
  std::vector<std::int64_t> words;
  Ledger ledger;
};

// One process's life from a checkpoint on: until the end, a stop or a kill.
enum class End { Done, Stopped, Killed };
End live(TaskBook& book, Cluster& cluster, Saved& saved, std::int64_t steps, std::int64_t step_samples, Random& random,
         int deadliness) {
  Ledger ledger = saved.ledger;
  std::int64_t step = saved.step;
  while (step < steps) {
    const std::int64_t from = step;
    step = std::min(steps, step + between(random, 1, 9));
    book.open_until(step);
    bool closed = false;
    while (!book.complete()) {
      cluster.ask(book, ledger);
      if (!cluster.report(book, ledger)) {
        FAIL("everybody waits");
        return End::Done;
      }
      const auto fate = static_cast<int>(random() % 200);
      if (fate < deadliness) return End::Killed;
      if (fate < 2 * deadliness && !closed) {
        closed = true;
        const std::int64_t until = book.close();
        CHECK(until >= from);
        CHECK(until <= step);
        step = until;
      }
    }
    while (std::any_of(cluster.workers().begin(), cluster.workers().end(), [](const Worker& w) { return w.hand; })) {
      if (!cluster.report(book, ledger)) break;
    }
    CHECK(book.counted() == step * step_samples);
    CHECK(ledger.sum() == step * step_samples);
    CHECK(std::all_of(ledger.counts.begin(), ledger.counts.end(), [](int n) { return n <= 1; }));
    CHECK(book.holes().empty() == ledger.once_until(step * step_samples));
    saved = {step, book.state(), ledger};
    if (closed) return End::Stopped;
  }
  return End::Done;
}

// Whether a run with batches of this size can go on.
bool fits(const Saved& saved, std::int64_t batch) {
  TaskBook book({.replicas = 1, .batch_samples = batch, .task_batches = 1, .epoch_samples = 7});
  try {
    book.restore(24 * saved.step / batch, saved.words);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return false;
  }
  return true;
}

bool refuses(TaskBook& book, const std::vector<std::int64_t>& words) {
  try {
    book.restore(4, words);
  } catch (const Error& error) {
    CHECK((error.code() == ExitCode::Storage || error.code() == ExitCode::Usage));
    return true;
  }
  return false;
}

// Seconds until every position of one epoch counts.
double makespan(const std::vector<double>& paces, std::int64_t batches, std::int64_t task_batches) {
  Random random(1);
  const auto replicas = static_cast<std::int64_t>(paces.size());
  const TaskSettings settings{replicas, 4, task_batches, 4 * batches};
  TaskBook book(settings);
  Ledger ledger;
  book.open_until(batches / replicas);
  std::vector<Worker> workers(paces.size());
  double now = 0;
  while (!book.complete()) {
    std::size_t first = workers.size();
    for (std::size_t i = 0; i < workers.size(); ++i) {
      Worker& worker = workers[i];
      if (!worker.hand && (worker.hand = book.next(static_cast<int>(i), now))) {
        worker.done = now + 4 * paces[i];
      }
      if (worker.hand && (first == workers.size() || worker.done < workers[first].done)) first = i;
    }
    REQUIRE(first < workers.size());
    now = workers[first].done;
    if (book.report(static_cast<int>(first), now)) ledger.add(*workers[first].hand);
    workers[first].hand.reset();
  }
  CHECK(ledger.once_until(4 * batches));
  return now;
}

}  // namespace

TEST_CASE("every position counts once, whatever is slow, stopped or killed") {
  int killed = 0, stopped = 0;
  for (std::uint64_t seed = 1; seed <= 4000; ++seed) {
    INFO("seed ", seed);
    Random random(seed);
    // 24 samples a step, whatever the number of replicas.
    constexpr std::int64_t kStep = 24;
    constexpr std::int64_t kReplicas[] = {1, 2, 3, 4, 6, 8};
    const std::int64_t steps = between(random, 1, 25);
    const std::int64_t epoch = between(random, 1, 150);
    const int deadliness = static_cast<int>(random() % 5);
    const bool changes = random() % 3 == 0;
    std::int64_t replicas = kReplicas[random() % 6];
    Saved saved;
    End end = End::Killed;
    for (int lives = 0; end != End::Done && lives < 200; ++lives) {
      const std::int64_t before = replicas;
      if (changes) replicas = kReplicas[random() % 6];
      if (!fits(saved, kStep / replicas)) replicas = before;
      const TaskSettings settings{replicas, kStep / replicas, between(random, 1, 5), epoch};
      TaskBook book(settings);
      book.restore(saved.step, saved.words);
      Cluster cluster(settings, random, random() % 2 == 0 ? 0.1 : 1.2, !changes);
      end = live(book, cluster, saved, steps, kStep, random, lives < 100 ? deadliness : 0);
      killed += end == End::Killed ? 1 : 0;
      stopped += end == End::Stopped ? 1 : 0;
    }
    CHECK(end == End::Done);
    CHECK(saved.step == steps);
    CHECK(saved.ledger.sum() == steps * kStep);
  }
  CHECK(killed > 1000);
  CHECK(stopped > 1000);
}

TEST_CASE("uneven replicas finish together") {
  // 64 batches of 4 s: ideal is 256 s over the sum of speeds.
  const double even = makespan({1, 1, 1, 1}, 64, 4);
  CHECK(even == 64);
  for (const std::int64_t task_batches : {1, 4, 16, 64}) {
    INFO("task_batches ", task_batches);
    const double slow = makespan({4, 1, 1, 1}, 64, task_batches);
    CHECK(slow >= 256 / 3.25);
    CHECK(slow <= 256 / 3.25 + 6);  // fixed shares would take 256
  }
  // The slow one is not given a batch that it would be last with.
  CHECK(makespan({100, 1}, 16, 2) <= 400);
}

TEST_CASE("near the end of an epoch a late batch is made a second time, and the first report counts") {
  TaskBook book({.replicas = 2, .batch_samples = 4, .task_batches = 1, .epoch_samples = 16});
  book.open_until(4);
  CHECK(book.next(0, 0) == StreamBatch{0, 4, 1});
  CHECK(book.next(1, 0) == StreamBatch{4, 4, 2});
  CHECK(book.report(0, 1));
  CHECK(book.next(0, 1) == StreamBatch{8, 4, 3});
  CHECK(book.report(0, 2));
  CHECK(book.next(0, 2) == StreamBatch{12, 4, 4});
  CHECK(book.report(0, 3));
  // Replica 1 is two seconds late; nothing of the next epoch begins before its batch counts.
  CHECK(book.next(0, 3) == StreamBatch{4, 4, 2});
  CHECK(book.row(0).again);
  SUBCASE("the second is first") {
    CHECK(book.report(0, 4));
    CHECK(book.next(0, 4) == StreamBatch{16, 4, 5});
    CHECK(!book.report(1, 9));
    CHECK(book.row(1).dropped == 1);
    CHECK(book.epoch() == 2);
  }
  SUBCASE("the first is first after all") {
    CHECK(book.report(1, 3.5));
    CHECK(book.next(1, 3.5) == StreamBatch{16, 4, 5});
    CHECK(!book.report(0, 4));
    CHECK(book.row(0).dropped == 1);
  }
  SUBCASE("a checkpoint cannot know who will be first") {
    CHECK(book.holes() == std::vector<runtime::StreamRange>{{4, 4}});
  }
}

TEST_CASE("where the run pauses, nobody makes a batch twice") {
  TaskBook book({.replicas = 2, .batch_samples = 4, .task_batches = 1, .epoch_samples = 16});
  book.open_until(2);
  CHECK(book.next(1, 0));
  for (double now : {0.0, 1.0, 2.0}) {
    CHECK(book.next(0, now));
    CHECK(book.report(0, now + 1));
  }
  CHECK(!book.next(0, 3));
  CHECK(!book.complete());
  CHECK(book.report(1, 50));
  CHECK(book.complete());
}

TEST_CASE("a slow replica's task is taken over") {
  TaskBook book({.replicas = 2, .batch_samples = 1, .task_batches = 8, .epoch_samples = 16});
  book.open_until(8);
  CHECK(book.next(0, 0)->task == 1);
  CHECK(book.next(1, 0)->task == 2);
  CHECK(book.report(1, 8));  // 8 s a sample
  CHECK(book.next(1, 8));
  for (int i = 0; i < 7; ++i) {
    CHECK(book.report(0, 8 + i));
    CHECK(book.next(0, 8 + i)->first == i + 1);
  }
  CHECK(book.row(1).left == 6);
  CHECK(book.report(0, 15));
  const auto stolen = book.next(0, 15);
  CHECK(stolen->task == 2);
  CHECK(book.row(1).left < 3);
  CHECK(book.row(1).taken + book.row(1).left == 6);
  CHECK(stolen->first == 10 + book.row(1).left);
}

TEST_CASE("words that no book has written are refused") {
  TaskBook book({.replicas = 2, .batch_samples = 4, .task_batches = 2, .epoch_samples = 30});
  book.open_until(4);
  CHECK(book.next(0, 0));
  CHECK(book.next(1, 0));
  CHECK(book.report(0, 1));
  const std::vector<std::int64_t> words = book.state();
  CHECK(!refuses(book, words));
  for (std::size_t length = 1; length < words.size(); ++length) {
    // Whole pairs of a hole may be missing.
    const bool whole = length >= 11 && length % 2 == 1;
    CHECK(refuses(book, std::vector(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(length))) == !whole);
  }
  Random random(5);
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::int64_t> damaged = words;
    damaged[random() % damaged.size()] = static_cast<std::int64_t>(random() >> (random() % 64));
    if (refuses(book, damaged)) continue;
    CHECK(book.counted() == 32);
    CHECK(!refuses(book, book.state()));
  }
}

TEST_CASE("a state tells what it leaves out to those who go on without a book") {
  TaskBook book({.replicas = 2, .batch_samples = 4, .task_batches = 2, .epoch_samples = 64});
  book.open_until(4);
  REQUIRE(book.next(0, 0.0));
  REQUIRE(book.next(1, 0.0));
  CHECK(book.close() == 1);
  CHECK(book.report(0, 1.0));
  CHECK(book.report(1, 1.0));
  REQUIRE(book.complete());
  CHECK(runtime::holes_of(book.state()) == std::vector<runtime::StreamRange>{{4, 4}});
  CHECK(runtime::holes_of({}).empty());
  const std::vector<std::int64_t> nonsense(5, 1'000'000);
  CHECK(runtime::holes_of(nonsense).empty());
}
