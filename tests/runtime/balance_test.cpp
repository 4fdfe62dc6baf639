// Uneven shares of micro-batches (parallel.balance "auto"): the same gradient, the same bits in every layout, and
// shares that follow measured speed.
#include <doctest/doctest.h>

#include <cmath>
#include <mutex>
#include <numeric>

#include "support/local_cases.hpp"
#include "trainer/core/error.hpp"
#include "trainer/runtime/pass_table.hpp"

using namespace trainer;
using test::local_case;
using test::travel;

namespace {

using Shares = std::vector<std::int64_t>;

void be_patient() { comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}}); }

const std::string kAuto = "parallel.balance=auto;parallel.balance_every=1000";

struct Network {
  comm::SendMode mode = comm::SendMode::Eager;
  std::uint64_t fault_seed = 0;  // 0: none
  int ranks_per_node = 0;        // 0: all on one, sharing memory
};

struct Told {
  std::vector<double> losses, norms;
  std::map<std::string, std::vector<float>> weights;  // [name and box]
  std::vector<std::vector<float>> gradients;          // [rank] of the last step
  bool operator==(const Told& other) const {
    return losses == other.losses && norms == other.norms && weights == other.weights;
  }
};

// Steps in which replicas take `courses` in turn, a few steps each; empty: as the plan has it.
Told run(const test::Case& c, std::int64_t steps, const std::vector<Shares>& courses, Network network = {}) {
  const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, ""));
  const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
  const auto data = storage::load_dataset(config.data, runtime::model_input(plan.graph), config.training.seed);
  Told told;
  told.gradients.resize(static_cast<std::size_t>(c.ranks()));
  std::mutex lock;
  comm::run_in_process(
      static_cast<int>(c.ranks()),
      [&](comm::Communicator& inner) {
        const auto faulty = network.fault_seed == 0 ? nullptr : comm::make_faulty(inner, network.fault_seed, 0.0005);
        comm::Communicator& world = faulty ? *faulty : inner;
        ThreadPool pool(c.threads, false);
        runtime::RunPlan own = plan;
        own.node_of_rank = comm::node_of_rank(world);
        runtime::Worker worker(world, own, *data, pool, true);
        worker.initialise();
        std::vector<runtime::StepOutcome> outcomes;
        for (std::int64_t step = 1; step <= steps; ++step) {
          if (!courses.empty() && (step - 1) % 3 == 0) {
            worker.take_shares(courses[static_cast<std::size_t>((step - 1) / 3) % courses.size()]);
          }
          outcomes.push_back(worker.step(step, false));
        }
        world.barrier();
        const std::lock_guard guard(lock);
        for (const storage::Piece& piece : worker.pieces()) {
          if (piece.name.starts_with("optimizer.balance.")) continue;
          const auto* values = static_cast<const float*>(piece.data);
          // Rows in the order of the ranks, so whole tensors: replicas hold shares of rows, pipeline ranks all of them.
          auto& rows = told.weights[piece.name + to_string(piece.box.start)];
          rows.assign(values, values + piece.box.elements());
        }
        const float* gradients = worker.parameters().gradients();
        told.gradients[static_cast<std::size_t>(world.rank())].assign(
            gradients, gradients + worker.parameters().layout().gradient_elements);
        if (world.rank() != 0) return;
        for (const runtime::StepOutcome& outcome : outcomes) {
          told.losses.push_back(outcome.loss);
          told.norms.push_back(outcome.grad_norm);
        }
      },
      network.mode, network.ranks_per_node);
  return told;
}

test::Case with_micro_batches(test::Case c, std::int64_t micro_batches) {
  c.micro_batches = micro_batches;
  return c;
}

}  // namespace

TEST_CASE("what is left to single micro-batches at the end has the bits of one rank") {
  be_patient();
  // ((g0 + g1) + g2) + g3 is the order of one rank, where a micro-batch's gradient is made before it is added: in
  // products and sums of columns over few rows, not in embeddings. Norms are of shares of rows, so nothing is clipped.
  const std::string free = "training.gradient_clip=0";
  const Told one = run(with_micro_batches(local_case("mlp", 1, 1, 1, free), 8), 6, {});
  for (const Shares& shares : {Shares{7, 1}, Shares{5, 1, 1, 1}, Shares{1, 1, 1, 1, 1, 1, 1, 1}}) {
    const auto replicas = static_cast<std::int64_t>(shares.size());
    for (const int ranks_per_node : {0, 1}) {
      const test::Case c = with_micro_batches(local_case("mlp", replicas, 1, 1, free + ";" + kAuto), 8 / replicas);
      CAPTURE(c.name());
      const Told told = run(c, 6, {shares}, {.ranks_per_node = ranks_per_node});
      CHECK(told.losses == one.losses);
      std::size_t compared = 0;
      for (const auto& weight : one.weights) {
        const auto& mine = told.weights.at(weight.first);  // the first replica's rows of it
        CHECK_MESSAGE(std::equal(mine.begin(), mine.end(), weight.second.begin()), weight.first);
        compared += mine.size();
      }
      CHECK(compared > 200);
    }
  }
}

TEST_CASE("any shares give the global gradient, within rounding") {
  be_patient();
  for (const std::string model : {"mlp", "gpt untied"}) {
    // Eight replicas that train alone have the gradients of the eight micro-batches, each times 8, to the bit.
    const Told parts = run(with_micro_batches(local_case(model, 8, 1, 1, test::rounds_of(100)), 1), 1, {});
    std::vector<double> reach(parts.gradients.front().size(), 0);
    for (const auto& part : parts.gradients) {
      for (std::size_t i = 0; i < reach.size(); ++i) reach[i] += std::abs(static_cast<double>(part[i])) / 8;
    }
    const Told even = run(with_micro_batches(local_case(model, 2, 1, 1, ""), 4), 1, {}, {.ranks_per_node = 1});
    for (const Shares& shares : {Shares{5, 3}, Shares{1, 7}, Shares{7, 1}, Shares{3, 2, 1, 2}, Shares{1, 1, 1, 5}}) {
      const auto replicas = static_cast<std::int64_t>(shares.size());
      const test::Case c = with_micro_batches(local_case(model, replicas, 1, 1, kAuto), 8 / replicas);
      CAPTURE(c.name());
      const Told told = run(c, 1, {shares}, {.ranks_per_node = 1});
      // Two orders of the same sum of 8 numbers: each is off by 7 roundings of at most the sum of magnitudes.
      std::size_t beyond = 0, other = 0;
      for (std::size_t i = 0; i < reach.size(); ++i) {
        const double distance = std::abs(static_cast<double>(told.gradients[0][i]) - even.gradients[0][i]);
        if (!(distance <= 1.001 * 14 * 0x1p-24 * reach[i])) ++beyond;
        if (distance != 0) ++other;
        if (told.gradients[0][i] != told.gradients.back()[i]) ++beyond;  // replicas have the same bits
      }
      CHECK(beyond == 0);
      CHECK(other > 0);  // the order of the sum is another
      CHECK(std::abs(told.losses[0] - even.losses[0]) <= 1e-14 * even.losses[0]);
    }
  }
}

TEST_CASE("stage cuts, schedules, threads, nodes and late messages change no bit of uneven and changing shares") {
  be_patient();
  const std::vector<Shares> courses{{2, 6}, {7, 1}, {1, 7}, {4, 4}};
  for (const std::string model : {"gpt tied", "gpt dropout", "mlp"}) {
    const test::Case plain = with_micro_batches(local_case(model, 2, 1, 1, kAuto), 4);
    const Told expected = run(plain, 15, courses);
    CHECK(expected.losses.size() == 15);
    CHECK_FALSE(run(plain, 15, {{4, 4}}) == expected);
    const std::string delayed = kAuto + ";parallel.delayed_gradients=true";
    CHECK(run(with_micro_batches(local_case(model, 2, 2, 1, delayed), 4), 15, courses) ==
          run(with_micro_batches(local_case(model, 2, 1, 1, delayed), 4), 15, courses));
    std::vector<test::Case> cases;
    const auto add = [&](std::int64_t pipeline, const std::string& schedule, int threads,
                         const std::string& more = "") {
      test::Case c = with_micro_batches(local_case(model, 2, pipeline, 1, kAuto + more), 4);
      c.schedule = schedule;
      c.threads = threads;
      cases.push_back(c);
    };
    add(1, "1f1b", 3);
    add(2, "1f1b", 1);
    add(2, "gpipe", 1);
    add(3, "zb-h1", 1);
    add(2, "zb-h2", 1);
    add(2, "interleaved", 1);
    add(2, "1f1b", 1, ";training.recompute=full");
    add(2, "1f1b", 1, ";parallel.split_backward=false");
    for (const test::Case& c : cases) {
      CAPTURE(c.name());
      for (const Network network : {Network{}, Network{comm::SendMode::Rendezvous, 2, 1}}) {
        if (network.fault_seed != 0 && c.schedule == "gpipe") continue;
        CHECK(run(c, 15, courses, network) == expected);
      }
    }
  }
}

TEST_CASE("tables of any number of micro-batches fit one memory, or balance is refused") {
  for (const schedule::Generator& generator : schedule::generators()) {
    for (const std::int64_t pipeline : {1, 2, 3, 4}) {
      for (const std::int64_t replicas : {2, 3}) {
        test::Case c = with_micro_batches(local_case("gpt untied", replicas, pipeline, 1,
                                                     kAuto + ";training.batch_size=96;parallel.partition=uniform"),
                                          replicas == 2 ? 6 : 4);
        c.schedule = std::string(generator.name);
        if (generator.chunks != 1 && pipeline > 2) c.extra += ";model.num_layers=8";
        CAPTURE(c.name());
        const auto config = config::parse(test::model_json(c.model), "test", test::overrides(c, ""));
        std::string refused;
        try {
          const runtime::RunPlan plan = runtime::make_plan(config, c.ranks());
          CHECK(runtime::most_micro_batches(plan) == 12 - (replicas - 1));
          for (std::int64_t m = 1; m <= runtime::most_micro_batches(plan); ++m) {
            const runtime::PassTable table = runtime::pass_table(plan, m);
            CHECK(table.schedule.micro_batches == m);
            CHECK(table.schedule.rank_of_stage == plan.training.rank_of_stage);
            for (std::size_t s = 0; s < table.slots.size(); ++s) {
              CHECK(table.slots[s].activation_count <= plan.booked_slots[s].activation_count);
              CHECK(table.slots[s].weight_input_count <= plan.booked_slots[s].weight_input_count);
              CHECK(table.slots[s].weight_gradient_count <= plan.booked_slots[s].weight_gradient_count);
              CHECK(table.slots[s].output_gradient_count <= plan.booked_slots[s].output_gradient_count);
            }
            for (std::int64_t r = 0; r < pipeline; ++r) {
              CHECK(runtime::stages_by_completion(table.schedule, r) ==
                    runtime::stages_by_completion(plan.training, r));
            }
          }
        } catch (const Error& error) {
          refused = error.what();
          CHECK(error.code() == ExitCode::Usage);
          CHECK(refused.starts_with("parallel.balance: is \"auto\""));
        }
        const std::string name = c.schedule;
        if (name == "1f1b" || name == "gpipe" || name == "zb-h1" || name == "zb-h2" || name == "interleaved") {
          CHECK(refused.empty());
        }
        if (std::getenv("TRAINER_TEST_VERBOSE") && !refused.empty()) MESSAGE(c.name() << ": " << refused);
      }
    }
  }
}

TEST_CASE("shares follow the speed of replicas, are reported and saved, and a resumed run goes on with them") {
  be_patient();
  // Replica 0 sleeps 4 ms a sample, replica 1 one: 3 samples a micro-batch, so that computing hardly counts.
  const std::string slow = ";parallel.injected_delay=[4,1];training.gradient_clip=0;checkpoint.every_steps=6";
  for (const std::int64_t pipeline : {1, 2}) {
    const test::Folder folder("balance");
    const std::string optimistic = pipeline == 2 ? ";training.optimistic_step=true" : "";
    test::Case c = with_micro_batches(
        local_case("mlp", 2, pipeline, 1,
                   "parallel.balance=auto;parallel.balance_every=8;training.steps=12" + slow + optimistic),
        4);
    const test::Heard heard = travel(folder, c);
    REQUIRE(heard.shares.size() >= 2);
    CHECK(heard.shares[0] == std::pair<std::int64_t, Shares>{0, {4, 4}});
    CHECK(heard.shares[1].first == 4);
    const Shares& shares = heard.shares.back().second;
    CHECK(shares[0] + shares[1] == 8);
    CHECK(shares[0] <= 3);
    CHECK(heard.result.micro_batches == shares);
    CHECK(heard.result.balance_changes == static_cast<std::int64_t>(heard.shares.size()) - 1);
    CHECK(std::any_of(heard.notes.begin(), heard.notes.end(), [](const std::string& note) {
      return note.starts_with("step 4: replicas take ") &&
             note.find(" micro-batches from here on") != std::string::npos;
    }));
    const test::Tensors saved = test::tensors_of(folder);
    const auto& kept = saved.at("optimizer.balance.micro_batches");
    CHECK(Shares(kept.begin(), kept.end()) == shares);
    c.extra += ";training.steps=14";
    const test::Heard more = travel(folder, c, {.resume = true});
    REQUIRE(!more.shares.empty());
    CHECK(more.shares[0] == std::pair<std::int64_t, Shares>{12, shares});
    // The same run with even shares loses what slow replica 0 takes longer.
    test::Case even = c;
    even.extra = slow.substr(1) + ";training.steps=12";
    const test::Heard unbalanced = travel(test::Folder("balance-even"), even);
    CHECK(unbalanced.shares.empty());
    double fast = 0, slow_steps = 0;
    for (std::size_t i = 8; i < 12; ++i) {
      fast += heard.steps[i].step_seconds;
      slow_steps += unbalanced.steps[i].step_seconds;
    }
    CHECK(fast < 0.8 * slow_steps);
  }
}
