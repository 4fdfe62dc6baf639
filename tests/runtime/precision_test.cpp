// training.precision "bfloat16" over a whole run: refused or emulated where the CPU lacks it, and the same bits either
// way.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "matmul_bf16.hpp"
#include "support/equivalence.hpp"
#include "trainer/core/error.hpp"
#include "trainer/runtime/inference.hpp"

using namespace trainer;

namespace {

std::string scratch(const char* name) {
  const char* tmp = std::getenv("TMPDIR");
  return std::string(tmp ? tmp : "/tmp") + "/trainer-precision-" + std::to_string(getpid()) + "-" + name;
}

/// Leaves the process with its widest kernel.
struct Restore {
  ~Restore() { ops::set_bf16_kernel(widest(), true); }
  static ops::Isa widest() {
    for (const ops::Isa isa : {ops::Isa::Avx512, ops::Isa::Avx2}) {
      if (ops::isa_available(isa)) return isa;
    }
    return ops::Isa::Portable;
  }
};

config::Config config_of(const std::vector<std::string>& set) {
  return config::parse(test::model_json("gpt tied"), "test", set);
}

/// On a thread that flushes denormals, as every thread of the program does.
test::Trained train_alone(const test::Case& c) {
  test::Trained result;
  std::thread([&] {
    ops::flush_denormals();
    comm::run_in_process(1, [&](comm::Communicator& alone) { result = test::run(alone, c, scratch("run")); });
  }).join();
  return result;
}

}  // namespace

TEST_CASE("bfloat16 without its instructions is refused in one sentence, or emulated where that was asked for") {
  const Restore restore;
  const std::string wanted = "training.precision=bfloat16";
  ops::set_bf16_kernel(ops::Isa::Portable, true);
  CHECK_NOTHROW(runtime::require_precision(config_of({})));
  CHECK_NOTHROW(runtime::require_precision(config_of({wanted, "training.bfloat16_emulation=true"})));
  try {
    runtime::require_precision(config_of({wanted}));
    FAIL("not refused");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK(std::string(error.what()) ==
          "training.precision: is \"bfloat16\", but this CPU has no bfloat16 instructions (AVX-512 BF16); "
          "training.bfloat16_emulation = true gives the same results at float32's speed, or \"float32\"");
  }
  ops::set_bf16_kernel(Restore::widest(), true);
  if (ops::has_bfloat16()) CHECK_NOTHROW(runtime::require_precision(config_of({wanted})));
}

TEST_CASE("a run has the same bits on every CPU's kernel, and they are not float32's") {
  const Restore restore;
  for (const std::string model : {"gpt untied", "mlp"}) {
    test::Case c{.model = model, .threads = 2, .extra = "training.steps=6", .precision = "bfloat16"};
    const test::Trained once = train_alone(c);
    for (const ops::Isa isa : {ops::Isa::Portable, ops::Isa::Avx2, ops::Isa::Avx512}) {
      if (!ops::isa_available(isa)) continue;
      ops::set_bf16_kernel(isa, false);
      CAPTURE(ops::describe_matmul(ops::MatmulPrecision::BFloat16));
      CHECK(test::distance(train_alone(c), once).same_bits);
    }
    ops::set_bf16_kernel(Restore::widest(), true);
    c.precision = "float32";
    CHECK(!test::distance(train_alone(c), once).same_bits);
  }
}

TEST_CASE("memory is predicted the same on every kernel, and the arena is what was laid out") {
  const Restore restore;
  std::vector<std::size_t> totals;
  const auto plan = runtime::make_plan(config_of({"training.precision=bfloat16"}), 1);
  for (const bool instruction : {true, false}) {
    ops::set_bf16_kernel(Restore::widest(), instruction);
    totals.push_back(runtime::predict_memory(plan, 0, 2, 0).total());
  }
  CHECK(totals[0] == totals[1]);
}

TEST_CASE("a checkpoint of bfloat16 holds float32, and what reads it multiplies as its training did") {
  const std::string directory = scratch("kept");
  comm::run_in_process(1, [&](comm::Communicator& alone) {
    const auto set =
        test::overrides({.model = "gpt tied", .extra = "training.steps=3", .precision = "bfloat16"}, directory);
    const auto config = config::parse(test::model_json("gpt tied"), "test", set);
    const runtime::RunPlan plan = runtime::make_plan(config, 1);
    const auto data =
        storage::load_dataset(plan.config.data, runtime::model_input(plan.graph), plan.config.training.seed);
    runtime::TrainOptions options;
    options.overwrite = true;
    runtime::train(alone, plan, *data, storage::real_file_system(), options);
    std::vector<std::string> passed_over;
    const auto checkpoint = storage::find_checkpoint(storage::real_file_system(), directory, passed_over);
    for (const storage::TensorEntry& tensor : checkpoint->tensors()) CHECK(tensor.type == DType::F32);

    ThreadPool pool(1);
    const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5};
    const auto logits = [&](const std::string& precision) {
      const config::Config asked =
          config::parse(checkpoint->record().config, "test", {"training.precision=" + precision});
      runtime::InferenceModel model(alone, asked, *checkpoint, pool);
      const ConstMatrix view = model.logits(tokens);
      return std::vector<float>(view.data, view.data + view.elements());
    };
    runtime::InferenceModel model(alone, config::parse(checkpoint->record().config, "test"), *checkpoint, pool);
    const ConstMatrix view = model.logits(tokens);
    const std::vector<float> as_trained(view.data, view.data + view.elements());
    CHECK(as_trained == logits("bfloat16"));
    CHECK(as_trained != logits("float32"));
  });
  std::filesystem::remove_all(directory);
}
