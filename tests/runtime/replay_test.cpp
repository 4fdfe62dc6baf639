// Served runs leave logs, and their serial replay on the ranks of one replica gives the same bits: weights and
// optimizer state of every checkpoint on the way.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "support/served_cases.hpp"
#include "trainer/core/error.hpp"
#include "trainer/runtime/exchange_recording.hpp"
#include "trainer/runtime/exchange_replay.hpp"

using namespace trainer;

namespace {

struct Folder {
  Folder() {
    static int count = 0;
    path = (std::filesystem::temp_directory_path() /
            ("trainer-replay-" + std::to_string(getpid()) + "-" + std::to_string(count++)))
               .string();
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

void train(const test::ServedCase& served, const std::string& directory, std::uint64_t fault_seed, bool resume = false,
           const std::string& more = "") {
  test::Case c = served.served();
  c.extra += ";checkpoint.every_steps=4;checkpoint.keep=9" + (more.empty() ? "" : ";" + more);
  comm::run_in_process(static_cast<int>(served.ranks()), [&](comm::Communicator& inner) {
    const auto faulty = fault_seed == 0 ? nullptr : comm::make_faulty(inner, fault_seed, 0.002);
    comm::Communicator& world = faulty ? *faulty : inner;
    const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, directory));
    const runtime::RunPlan plan = runtime::make_plan(config, world.size());
    const auto data =
        storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    runtime::TrainOptions options;
    options.overwrite = !resume;
    options.resume = resume;
    options.spin = false;
    runtime::train(world, plan, *data, storage::real_file_system(), options);
    world.barrier();
  });
}

std::unique_ptr<storage::CheckpointReader> checkpoint(const std::string& directory, std::int64_t step) {
  return storage::open_checkpoint(storage::real_file_system(), storage::final_path(directory, step));
}

// The first tensor whose replay between two steps (0: the beginning) has other bits than the run's; "": none.
std::string difference(const std::string& directory, std::int64_t from, std::int64_t to) {
  storage::FileSystem& files = storage::real_file_system();
  const auto end = checkpoint(directory, to);
  const auto start = from == 0 ? nullptr : checkpoint(directory, from);
  const runtime::ExchangeRecording recording = runtime::read_recording(files, directory, start.get(), *end);
  const config::Parallel& parallel = recording.config.parallel;
  const std::int64_t replica = parallel.pipeline * parallel.tensor;
  const runtime::RunPlan plan = runtime::make_plan(recording.config, parallel.data * replica + parallel.server.count);
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  std::string first;
  std::mutex lock;
  comm::run_in_process(static_cast<int>(replica), [&](comm::Communicator& world) {
    ThreadPool pool(2, false);
    runtime::ExchangeReplay replay(world, plan, *data, pool);
    if (start != nullptr) {
      const auto mine = checkpoint(directory, from);
      replay.load(*mine);
    } else {
      replay.initialise();
    }
    replay.run(recording.actions, recording.updates_less);
    const std::lock_guard guard(lock);
    std::size_t compared = 0;
    for (const storage::Piece& piece : replay.pieces()) {
      std::vector<float> values(static_cast<std::size_t>(piece.box.elements()));
      end->read(piece.name, piece.box, values.data());
      ++compared;
      if (std::memcmp(values.data(), piece.data, values.size() * sizeof(float)) != 0 && first.empty())
        first = piece.name;
    }
    CHECK(compared > 0);
  });
  return first;
}

test::Case mesh(const std::string& model, std::int64_t data, std::int64_t pipeline, std::int64_t tensor,
                const std::string& extra = "") {
  test::Case c;
  c.model = model;
  c.data = data;
  c.pipeline = pipeline;
  c.tensor = tensor;
  c.micro_batches = 2;
  c.extra = "training.steps=12" + (extra.empty() ? "" : ";" + extra);
  return c;
}

}  // namespace

TEST_CASE("the replay of a served run has its bits") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::string async = "parallel.consistency=async", bounded = "parallel.consistency=ssp;parallel.staleness=2";
  const std::string momentum =
      "optimizer={\"type\":\"sgd\",\"learning_rate\":0.02,\"momentum\":0.9,\"weight_decay\":0.01}";
  const std::vector<test::ServedCase> cases{
      {mesh("mlp", 3, 1, 1), 1, async},
      {mesh("mlp", 4, 1, 1, "training.gradient_clip=0.05"), 3, async + ";parallel.notify=true"},
      {mesh("gpt tied", 2, 2, 1), 2, async},
      {mesh("gpt tied", 3, 1, 2, momentum), 2, async},
      {mesh("gpt dropout", 2, 2, 2), 3, async},
      {mesh("mlp", 4, 1, 1), 2,
       async + ";parallel.tasks=true;parallel.task_batches=3;parallel.injected_delay=[4,0,0,0]"},
      {mesh("gpt untied", 3, 1, 1), 2, bounded + ";parallel.notify=true"},
      {mesh("gpt tied", 2, 2, 1), 2, bounded + ";parallel.tasks=true"},
      {mesh("mlp", 3, 1, 1, "training.gradient_clip=0.05"), 2, ""},
      {mesh("gpt tied", 3, 2, 1), 2, ""},
      {mesh("mlp", 3, 1, 1), 2, "parallel.backup=1"},
      {mesh("gpt tied", 3, 2, 1), 2, "parallel.backup=1"},
      {mesh("sequential", 2, 1, 2), 3, "parallel.notify=true"},
  };
  std::uint64_t seed = 1;
  for (const test::ServedCase& c : cases) {
    CAPTURE(c.name());
    const Folder run;
    train(c, run.path, seed++);
    CHECK(difference(run.path, 0, 12) == "");
    CHECK(difference(run.path, 0, 4) == "");
    CHECK(difference(run.path, 4, 12) == "");
  }
}

TEST_CASE("the log of a resumed run goes on where its checkpoint stands") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const test::ServedCase c{mesh("mlp", 3, 1, 1), 2, "parallel.consistency=async;parallel.tasks=true"};
  const Folder run;
  train(c, run.path, 5);
  // As if it had been killed behind step 8.
  std::filesystem::remove_all(storage::final_path(run.path, 12));
  train(c, run.path, 6, true);
  CHECK(difference(run.path, 0, 12) == "");
  CHECK(difference(run.path, 8, 12) == "");
  // In another form, a log of its own.
  std::filesystem::remove_all(storage::final_path(run.path, 12));
  train(c, run.path, 7, true, "optimizer.learning_rate=0.001");
  CHECK_THROWS_WITH_AS(difference(run.path, 0, 12), doctest::Contains("begins behind step 8"), Error);
  CHECK(difference(run.path, 8, 12) == "");
}
