// Logits, gradients, losses and weights against PyTorch's, from fixtures (tests/oracle).
//
// Bounds: the fixtures hold float64 results and, for each tensor, the largest error that PyTorch's own float32 run has
// in it. Ours is another float32 computation of the same sums, with as many roundings in another order, so its errors
// are of the same size: a largest of many random sums, which differs between two orders by a small factor. We allow 4
// times PyTorch's error plus 4 units of the last place of the tensor's largest value (for tensors in which PyTorch's
// few roundings happened to cancel). Weights after ten steps have one scale in common, the errors of ten updates of the
// size of the learning rate, and a bias of 18 elements is too small a sample of it: for them PyTorch's error is the
// largest over all weights of the model.
#include <doctest/doctest.h>

#include <cmath>
#include <mutex>

#include "support/fixture.hpp"
#include "trainer/comm/communicator.hpp"
#include "trainer/runtime/agreement.hpp"
#include "trainer/runtime/worker.hpp"

using namespace trainer;

namespace {

double bound_of(const test::Fixture& fixture, const std::string& name) {
  double largest = 0;
  for (std::int64_t i = 0; i < fixture.shape(name).elements(); ++i)
    largest = std::max(largest, std::abs(fixture.data<double>(name)[i]));
  double error = fixture.error(name);
  if (name.starts_with("final/")) {
    for (const std::string& other : fixture.names("error/final/"))
      error = std::max(error, fixture.error("final/" + other));
  }
  return 4.0 * (error + std::ldexp(largest, -23));
}

// Compares a box of a tensor with the fixture's; returns the largest difference.
void check_box(const test::Fixture& fixture, const std::string& name, const Box& box, const float* mine) {
  std::vector<double> theirs(static_cast<std::size_t>(box.elements()));
  copy_box(box, whole(fixture.shape(name)), fixture.data<double>(name), box, theirs.data(), sizeof(double));
  double worst = 0;
  for (std::size_t i = 0; i < theirs.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(mine[i]) - theirs[i]));
  const double allowed = bound_of(fixture, name);
  CAPTURE(name);
  CHECK(worst <= allowed);
}

struct Mesh {
  std::int64_t data, pipeline, tensor;
};

void compare(const std::string& name, Mesh mesh) {
  CAPTURE(name);
  CAPTURE(mesh.data);
  CAPTURE(mesh.pipeline);
  CAPTURE(mesh.tensor);
  const test::Fixture fixture("tests/oracle/data/" + name + ".safetensors");
  const auto set = [](const std::string& key, std::int64_t value) { return key + "=" + std::to_string(value); };
  const config::Config config =
      config::parse(fixture.config(), name,
                    {set("parallel.data", mesh.data), set("parallel.pipeline", mesh.pipeline),
                     set("parallel.tensor", mesh.tensor), set("training.micro_batches", mesh.pipeline)});
  const runtime::RunPlan plan = runtime::make_plan(config, mesh.data * mesh.pipeline * mesh.tensor);
  const test::FixtureData data(fixture, config.training.seed);
  const test::FixtureCheckpoint initial(fixture);
  std::mutex one_at_a_time;
  comm::run_in_process(static_cast<int>(plan.mesh.size()), [&](comm::Communicator& world) {
    ThreadPool pool(1, false);
    runtime::Worker worker(world, plan, data, pool, true);
    worker.load(initial);
    world.barrier();
    for (std::int64_t step = 1; step <= 10; ++step) {
      const runtime::StepOutcome outcome = worker.step(step, false);
      const std::lock_guard lock(one_at_a_time);
      const auto i = static_cast<std::size_t>(step - 1);
      CHECK(std::abs(outcome.loss - fixture.data<double>("losses")[i]) <= bound_of(fixture, "losses"));
      CHECK(std::abs(outcome.grad_norm - fixture.data<double>("gradient_norms")[i]) <=
            bound_of(fixture, "gradient_norms"));
      const runtime::ParameterLayout& layout = worker.parameters().layout();
      for (const runtime::HeldParameter& held : layout.held) {
        const std::string& parameter = plan.graph.parameters[held.id.index()].name;
        // Replicas that share memory sum a share each.
        for (const runtime::Piece& piece : worker.parameters().duty(held)) {
          if (step == 1)
            check_box(fixture, "gradient/" + parameter, piece.box,
                      worker.parameters().gradients() + held.gradients.front() + piece.begin);
        }
        std::size_t offset = 0;
        for (const Box& box : held.boxes) {
          if (step == 10)
            check_box(fixture, "final/" + parameter, box, worker.parameters().weights() + held.weight + offset);
          offset += static_cast<std::size_t>(box.elements());
        }
      }
    }
  });
}

// The model's output before any update, through the layout that generation uses.
void compare_logits(const std::string& name) {
  CAPTURE(name);
  const test::Fixture fixture("tests/oracle/data/" + name + ".safetensors");
  const config::Config config = config::parse(fixture.config(), name);
  const runtime::RunPlan plan = runtime::make_plan(config, 1);
  const plan::LocalGraph local = plan::shard(plan.graph, 1, 0);
  const test::FixtureCheckpoint initial(fixture);
  runtime::Parameters parameters(runtime::lay_out_parameters(plan, local, {}), false, 0);
  for (const runtime::HeldParameter& held : parameters.layout().held) {
    initial.read(plan.graph.parameters[held.id.index()].name, held.boxes.front(), parameters.weights() + held.weight);
  }
  const runtime::StageLayout layout = runtime::lay_out({.graph = plan.graph,
                                                        .local = local,
                                                        .nodes = plan.nodes(StageId(0)),
                                                        .samples = plan.micro_batch_samples,
                                                        .threads = 1,
                                                        .training = false,
                                                        .split_backward = false,
                                                        .with_loss = false});
  const runtime::ArenaLayout arena_layout = runtime::lay_out_arena(layout, {});
  Buffer arena(arena_layout.bytes);
  runtime::Frame frame{};
  for (std::size_t region = 0; region < runtime::kRegions; ++region)
    frame[region] = arena.data() + arena_layout.begin[region];
  comm::run_in_process(1, [&](comm::Communicator& alone) {
    ThreadPool pool(1, false);
    runtime::TensorGroup tensor(alone, 0);
    runtime::StageRunner runner(plan.graph, local, layout, parameters, pool, tensor);
    const Shape inputs = fixture.shape("inputs");
    std::memcpy(runtime::at(frame, layout.data_input), fixture.data<float>("inputs"),
                static_cast<std::size_t>(inputs[1] * inputs[2]) * 4);
    runner.forward(frame, {.samples = plan.micro_batch_samples, .positions = plan.graph.positions, .training = false});
    check_box(fixture, "logits", whole(fixture.shape("logits")),
              reinterpret_cast<const float*>(runtime::at(frame, layout.model_output)));
  });
}

}  // namespace

TEST_CASE("logits are PyTorch's") {
  for (const char* name : {"gpt_tied", "gpt_untied", "mlp_adamw", "mlp_sgd", "mlp_mse"}) compare_logits(name);
}

TEST_CASE("gradients, ten losses, norms and weights are PyTorch's, in several layouts") {
  for (const char* name : {"gpt_tied", "gpt_untied", "mlp_adamw", "mlp_sgd", "mlp_mse"}) {
    for (const Mesh mesh :
         {Mesh{1, 1, 1}, Mesh{1, 2, 1}, Mesh{1, 1, 2}, Mesh{1, 1, 3}, Mesh{2, 1, 1}, Mesh{1, 2, 2}, Mesh{1, 3, 1}}) {
      compare(name, mesh);
    }
  }
}
