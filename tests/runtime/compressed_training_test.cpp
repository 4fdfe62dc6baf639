// Training with parallel.compression over ranks as threads: bits in several layouts, interrupted and resumed, and with
// other layouts' checkpoints.
#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <mutex>

#include "support/compression_cases.hpp"
#include "trainer/storage/checkpoint.hpp"

using namespace trainer;

namespace {

using Gradient = std::vector<float>;
using test::case_of;
using test::kCompressions;
using test::keys_of;
using test::plan_of;

}  // namespace

namespace {

test::Trained train(const test::Case& c, int ranks_per_node = 0) {
  test::Trained trained;
  const std::string directory =
      (std::filesystem::temp_directory_path() / ("trainer-compression-" + std::to_string(getpid()))).string();
  comm::run_in_process(
      static_cast<int>(c.ranks()),
      [&](comm::Communicator& world) {
        test::Trained mine = test::run(world, c, directory);
        if (world.rank() == 0) trained = std::move(mine);
      },
      comm::SendMode::Eager, ranks_per_node);
  return trained;
}

}  // namespace

TEST_CASE("training with everything kept has the bits of training without compression, in every layout") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::string all = ";parallel.compression.ratio=1;parallel.compression.min_elements=0";
  for (const auto& [model, data, pipeline, tensor] : {std::tuple{"mlp", 3, 1, 1},
                                                      {"gpt tied", 2, 1, 1},
                                                      {"gpt tied", 2, 2, 1},
                                                      {"sequential", 2, 1, 2},
                                                      {"gpt untied", 2, 2, 2}}) {
    const test::Trained dense = train(case_of(model, data, pipeline, tensor, ""));
    for (const std::string type : {"top_k", "random_k"}) {
      const test::Case c = case_of(model, data, pipeline, tensor, keys_of(type, all));
      CAPTURE(c.name());
      CHECK(test::distance(train(c), dense).same_bits);
    }
  }
}

TEST_CASE("no stage cut, schedule, thread count, node or optimistic step changes a bit") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string& type : kCompressions) {
    for (const std::string model : {"mlp", "gpt tied"}) {
      const test::Trained one = train(case_of(model, 2, 1, 1, keys_of(type)));
      CHECK(one.losses.size() == 20);
      CHECK_FALSE(test::distance(one, train(case_of(model, 2, 1, 1, ""))).same_bits);
      test::Case cut = case_of(model, 2, 2, 1, keys_of(type));
      cut.schedule = "zb-h1";
      test::Case threads = case_of(model, 2, 1, 1, keys_of(type));
      threads.threads = 3;
      test::Case optimistic = case_of(model, 2, 2, 1, keys_of(type, ";training.optimistic_step=true"));
      for (const test::Case& c : {cut, threads, optimistic}) {
        CAPTURE(c.name());
        CHECK(test::distance(train(c), one).same_bits);
      }
      CHECK(test::distance(train(cut, 1), one).same_bits);
    }
  }
}

TEST_CASE("tensor ranks keep their copies alike") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string& type : kCompressions) {
    const test::Case c = case_of("gpt tied", 2, 1, 2, keys_of(type, ";training.steps=8"));
    CAPTURE(c.name());
    const runtime::RunPlan plan = plan_of(c);
    const auto data =
        storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    std::map<std::string, std::vector<Gradient>> copies;
    std::mutex lock;
    comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
      ThreadPool pool(1, false);
      runtime::Worker worker(world, plan, *data, pool, true);
      worker.initialise();
      for (std::int64_t step = 1; step <= 8; ++step) CHECK(std::isfinite(worker.step(step, false).loss));
      const plan::LocalGraph local = plan::shard(plan.graph, 2, worker.coordinates().tensor);
      const std::lock_guard guard(lock);
      for (const runtime::HeldParameter& held : worker.parameters().layout().held) {
        const float* weights = worker.parameters().weights() + held.weight;
        const bool sharded = local.parameters[held.id.index()].sharded;
        const std::string part = sharded ? std::to_string(worker.coordinates().tensor) : "";
        copies[plan.graph.parameters[held.id.index()].name + part].emplace_back(weights, weights + held.elements);
      }
    });
    CHECK(copies.size() > 10);
    for (const auto& [name, all] : copies) {
      CHECK(all.size() >= 2);
      for (const Gradient& copy : all) CHECK(copy == all.front());
    }
  }
}

// ---- resumed ----------------------------------------------------------------------------------------------------

namespace {

struct Folder {
  std::string path;
  explicit Folder(const std::string& name)
      : path((std::filesystem::temp_directory_path() / ("trainer-compression-" + name + std::to_string(getpid())))
                 .string()) {}
  ~Folder() { std::filesystem::remove_all(path); }
};

// Stops when rank 0 hears of step `stop_at`; returns the last step.
std::int64_t train_in(const Folder& folder, const test::Case& c, std::int64_t stop_at, bool resume,
                      std::vector<double>& losses) {
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, folder.path));
  const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
  const auto data =
      storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
  struct StopAt final : Observer {
    std::vector<double>& losses;
    std::atomic<bool>& stop;
    std::int64_t at;
    StopAt(std::vector<double>& l, std::atomic<bool>& s, std::int64_t a) : losses(l), stop(s), at(a) {}
    void step(const StepReport& report) override {
      losses.push_back(report.loss);
      CHECK(report.exchange_bytes > 0);
      if (report.step == at) stop = true;
    }
  };
  std::atomic<bool> stop{false};
  std::int64_t last = 0;
  comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
    runtime::TrainOptions options;
    options.overwrite = !resume;
    options.resume = resume;
    options.spin = false;
    options.stop = &stop;
    options.observers = [&](std::int64_t, std::int64_t) { return std::make_unique<StopAt>(losses, stop, stop_at); };
    const auto result = runtime::train(world, plan, *data, storage::real_file_system(), options);
    if (world.rank() == 0) last = result.last_step;
  });
  return last;
}

std::map<std::string, Gradient> tensors_in(const Folder& folder) {
  std::vector<std::string> passed_over;
  const auto checkpoint = storage::find_checkpoint(storage::real_file_system(), folder.path, passed_over);
  std::map<std::string, Gradient> tensors;
  for (const storage::TensorEntry& tensor : checkpoint->tensors()) {
    auto& values = tensors[tensor.name];
    values.resize(static_cast<std::size_t>(tensor.shape.elements()));
    checkpoint->read(tensor.name, whole(tensor.shape), values.data());
  }
  return tensors;
}

}  // namespace

TEST_CASE("an interrupted and resumed run has the bits of one that was not, errors and factors included") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string& type : kCompressions) {
    for (const auto& [model, pipeline, tensor] : {std::tuple{"gpt tied", 2, 1}, {"gpt untied", 1, 2}}) {
      const test::Case c = case_of(model, 2, pipeline, tensor, keys_of(type));
      CAPTURE(c.name());
      const Folder whole("whole"), cut("cut");
      std::vector<double> expected, losses;
      CHECK(train_in(whole, c, 0, false, expected) == 20);
      CHECK(train_in(cut, c, 8, false, losses) < 12);
      CHECK(train_in(cut, c, 0, true, losses) == 20);
      CHECK(losses == expected);
      const auto tensors = tensors_in(whole);
      CHECK(tensors_in(cut) == tensors);
      const auto has = [&](const std::string& begin) {
        const auto first = tensors.lower_bound(begin);
        return first != tensors.end() && first->first.starts_with(begin);
      };
      CHECK(has("optimizer.compression_error.1.0.") == (type != "sign" && type != "int8"));
      CHECK(has("optimizer.compression_factor.0of" + std::to_string(tensor) + ".0.") == (type == "power_sgd"));
    }
  }
}

TEST_CASE("another number of replicas goes on with all that was not sent, and another layout with the same") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  const std::string keys = keys_of("top_k", ";training.batch_size=24");
  const Folder folder("layouts");
  std::vector<double> losses;
  CHECK(train_in(folder, case_of("gpt tied", 3, 1, 1, keys), 0, false, losses) == 20);
  const auto saved = tensors_in(folder);
  std::vector<std::string> passed_over;
  const auto checkpoint = storage::find_checkpoint(storage::real_file_system(), folder.path, passed_over);
  for (const auto& sizes : {std::tuple{2, 2, 1}, {3, 1, 2}, {4, 1, 1}}) {
    const std::int64_t data_ranks = std::get<0>(sizes);
    const test::Case c = case_of("gpt tied", data_ranks, std::get<1>(sizes), std::get<2>(sizes), keys);
    test::Case divisible = c;
    divisible.micro_batches = 1;
    CAPTURE(c.name());
    const runtime::RunPlan plan = plan_of(divisible);
    const auto data =
        storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    std::mutex lock;
    std::size_t compared = 0;
    comm::run_in_process(static_cast<int>(c.ranks()), [&](comm::Communicator& world) {
      ThreadPool pool(1, false);
      runtime::Worker worker(world, plan, *data, pool, true);
      {
        const std::lock_guard guard(lock);
        CHECK(worker.load(*checkpoint));
      }
      const std::string mine = "optimizer.compression_error." + std::to_string(worker.coordinates().data) + ".";
      world.barrier();  // nobody waits with the lock in hand
      const std::lock_guard guard(lock);
      for (const storage::Piece& piece : worker.pieces()) {
        if (!piece.name.starts_with(mine)) continue;
        Gradient expected(static_cast<std::size_t>(piece.global.elements()), 0.0f);
        for (std::int64_t r = worker.coordinates().data; r < 3; r += data_ranks) {
          const Gradient& error =
              saved.at("optimizer.compression_error." + std::to_string(r) + "." + piece.name.substr(mine.size()));
          for (std::size_t i = 0; i < error.size(); ++i) expected[i] += error[i];
        }
        // Boxes are rows, or columns, of the whole.
        const auto* values = static_cast<const float*>(piece.data);
        const std::int64_t columns = piece.global[piece.global.dims() - 1];
        const std::int64_t width = piece.box.extent[piece.box.extent.dims() - 1];
        for (std::int64_t i = 0; i < piece.box.elements(); ++i) {
          const std::int64_t row = piece.box.extent.dims() > 1 ? piece.box.start[0] + i / width : 0;
          const std::int64_t column = piece.box.start[piece.box.start.dims() - 1] + i % width;
          if (values[i] == expected[static_cast<std::size_t>(row * columns + column)]) ++compared;
        }
      }
    });
    std::size_t all = 0;
    for (const auto& [name, values] : saved) {
      if (name.starts_with("optimizer.compression_error.0.")) all += values.size();
    }
    CHECK(all > 1000);
    CHECK(compared == all * static_cast<std::size_t>(data_ranks));
  }
}
