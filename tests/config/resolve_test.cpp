// Mesh sizes and batch sizes that follow from the number of ranks.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "config_samples.hpp"
#include "trainer/config/config.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::config;

namespace {

struct Sizes {
  std::int64_t data, pipeline, tensor;
  bool operator==(const Sizes&) const = default;
};

Config gpt(const Sizes& sizes, std::vector<std::string> sets = {}) {
  sets.insert(sets.begin(), fmt::format(R"(parallel={{"data":{},"pipeline":{},"tensor":{}}})", sizes.data,
                                        sizes.pipeline, sizes.tensor));
  return parse(samples::kGpt, "gpt.json", sets);
}

Sizes resolved(const Sizes& sizes, std::int64_t ranks, const std::vector<std::string>& sets = {}) {
  Config c = gpt(sizes, sets);
  resolve_parallel(c, ranks);
  CHECK(c.parallel.data * c.parallel.pipeline * c.parallel.tensor == ranks);
  CHECK(c.parallel.data * c.training.micro_batches * c.training.micro_batch_size == c.training.batch_size);
  Config again = c;
  resolve_parallel(again, ranks);
  CHECK(again == c);
  return {c.parallel.data, c.parallel.pipeline, c.parallel.tensor};
}

std::string refused(Config c, std::int64_t ranks) {
  try {
    resolve_parallel(c, ranks);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return "";
}

struct Batch {
  std::int64_t batch_size, micro_batches, micro_batch_size;
  bool operator==(const Batch&) const = default;
};

Config batch_config(const Batch& b) {
  Config c = gpt({2, 1, 1});
  c.training.batch_size = b.batch_size;
  c.training.micro_batches = b.micro_batches;
  c.training.micro_batch_size = b.micro_batch_size;
  return c;
}

Batch batch(const Batch& b) {
  Config c = batch_config(b);
  resolve_parallel(c, 2);
  return {c.training.batch_size, c.training.micro_batches, c.training.micro_batch_size};
}

}  // namespace

TEST_CASE("sizes of the mesh follow from the ranks") {
  CHECK(resolved({0, 0, 0}, 1) == Sizes{1, 1, 1});
  CHECK(resolved({0, 0, 0}, 4) == Sizes{4, 1, 1});
  CHECK(resolved({1, 2, 2}, 4) == Sizes{1, 2, 2});
  CHECK(resolved({0, 2, 2}, 8) == Sizes{2, 2, 2});
  CHECK(resolved({2, 0, 1}, 4) == Sizes{2, 2, 1});
  CHECK(resolved({1, 2, 0}, 6) == Sizes{1, 2, 3});
  CHECK(resolved({0, 2, 0}, 2) == Sizes{1, 2, 1});
  CHECK(resolved({0, 0, 2}, 4) == Sizes{2, 1, 2});
  CHECK(resolved({2, 0, 0}, 2) == Sizes{2, 1, 1});
}

TEST_CASE("a written partition says how many stages there are") {
  CHECK(resolved({0, 0, 1}, 4, {"parallel.partition=[4,4]"}) == Sizes{2, 2, 1});
  CHECK(refused(gpt({0, 0, 1}, {"parallel.partition=[4,2,2]"}), 4).find("does not divide") != std::string::npos);
}

TEST_CASE("a mesh that does not fit the ranks is refused with numbers and with what would work") {
  CHECK(refused(gpt({1, 2, 2}), 6) ==
        "parallel: data 1 × pipeline 2 × tensor 2 = 4 ranks, but 6 were started; start 4 (mpiexec -n 4), or change the "
        "sizes; data × pipeline × tensor that would work: 1 × 2 × 3, 1 × 3 × 2, 1 × 1 × 6");
  CHECK(refused(gpt({0, 4, 0}), 6).find("4 does not divide 6") != std::string::npos);
  CHECK(refused(gpt({1, 0, 0}), 6).find("whether pipeline or tensor takes the factor 6") != std::string::npos);
  CHECK(refused(gpt({100000, 100000, 100000}), 4) != "");
  CHECK(refused(gpt({0, 0, 0}), 0) != "");
}

TEST_CASE("suggestions keep to the model's heads and layers and to the batch") {
  // 6 heads: tensor 1, 2, 3 or 6; batch 32 in 8 micro-batches: data 1, 2 or 4; 8 units: at most 8 stages.
  CHECK(refused(gpt({1, 1, 1}), 5).find("work: 1 × 5 × 1") != std::string::npos);
  CHECK(refused(gpt({1, 1, 1}), 11).find("fit no data × pipeline × tensor of 11 ranks") != std::string::npos);
}

TEST_CASE("any two of the three sizes of a batch give the third") {
  CHECK(batch({32, 4, 0}) == Batch{32, 4, 4});
  CHECK(batch({32, 0, 4}) == Batch{32, 4, 4});
  CHECK(batch({0, 4, 4}) == Batch{32, 4, 4});
  CHECK(batch({32, 4, 4}) == Batch{32, 4, 4});
  CHECK(batch({32, 0, 0}) == Batch{32, 1, 16});
}

TEST_CASE("sizes of a batch that contradict each other are refused with all the numbers") {
  CHECK(
      refused(batch_config({64, 4, 4}), 2) ==
      "training.batch_size is 64, but parallel.data × micro_batches × micro_batch_size = 2 × 4 × 4 = 32; leave one of "
      "the three out, or take batch_size 32, or micro_batches 8, or micro_batch_size 8");
  CHECK(refused(batch_config({30, 8, 0}), 2) ==
        "training.batch_size is 30, which is not a multiple of parallel.data × micro_batches = 2 × 8 = 16; what would "
        "work: batch_size 16 or 32, or micro_batches 5 or 15");
  CHECK(refused(batch_config({3, 1, 0}), 2) ==
        "training.batch_size is 3, which is not a multiple of parallel.data × micro_batches = 2 × 1 = 2; what would "
        "work: batch_size 2 or 4");
  CHECK(refused(batch_config({0, 100000, 16777216}), 2).find("more than 16777216 samples") != std::string::npos);
  CHECK(refused(batch_config({0, 4, 0}), 2).find("training.batch_size is missing") != std::string::npos);
}

TEST_CASE("servers are ranks beside the mesh") {
  const std::string served = "parallel.exchange=server";
  Config one = gpt({0, 0, 0}, {served});
  resolve_parallel(one, 3);
  CHECK(one.parallel.server.count == 1);
  CHECK(one.parallel.data == 2);
  Config three = gpt({1, 2, 2}, {served, "parallel.servers=3"});
  resolve_parallel(three, 7);
  CHECK(three.parallel.data == 1);
  CHECK(refused(gpt({0, 0, 0}, {served, "parallel.servers=4"}), 4).find("start at least 5 (mpiexec -n 5)") !=
        std::string::npos);
  CHECK(refused(gpt({0, 0, 0}, {served}), 1).find("1 rank was started in all") != std::string::npos);
  // What to start counts them too.
  CHECK(refused(gpt({3, 0, 0}, {served}), 3).find("a multiple of 3 and the servers (mpiexec -n 4)") !=
        std::string::npos);
  CHECK(refused(gpt({2, 1, 1}, {served, "parallel.servers=2"}), 3)
            .find("1 were started beside 2 servers; start 4 (mpiexec -n 4)") != std::string::npos);
  CHECK(refused(gpt({2, 1, 1}, {served, "parallel.backup=2"}), 3).find("expected at most 1") != std::string::npos);
  CHECK(refused(gpt({2, 1, 1}, {"parallel.injected_delay=[1,2,3]"}), 2).find("expected one a replica") !=
        std::string::npos);
}
