// Tables as text and back.
#include <doctest/doctest.h>

#include "check_table.hpp"
#include "tables.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

std::string complaint(const std::string& text) {
  try {
    parse_csv(text);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return "none";
}

}  // namespace

TEST_CASE("every generated table is read back as it was, from either form") {
  for (const Generator& generator : generators()) {
    CAPTURE(generator.name);
    const std::int64_t chunks = generator.chunks == 0 ? 2 : generator.chunks;
    for (const std::int64_t ranks : {1, 2, 5}) {
      for (const std::int64_t m : {1, 4, 11}) {
        const Schedule compute = generator.make({ranks * chunks, m, true, chunks});
        CHECK(parse_csv(to_step_csv(compute)).schedule == compute);
        CHECK(parse_csv(to_csv(compute)).schedule == compute);
        const Schedule full = lowered(compute);
        CHECK(parse_csv(to_csv(full)).schedule == full);
        CHECK(to_step_csv(full) == to_step_csv(compute));
      }
    }
  }
}

TEST_CASE("a column is a step of every rank") {
  CHECK(to_step_csv(one_f_one_b({2, 2, false})) == "0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1\n");
}

TEST_CASE("cells keep their number, blanks and line ends do not count") {
  const CsvTable read = parse_csv("0F0, 0F1 ,,0B0,,0B1\r\n,1F0,1B0,1F1,1B1\r\n\r\n");
  CHECK(read.schedule == one_f_one_b({2, 2, false}));
  CHECK(read.cells == std::vector<std::vector<std::int32_t>>{{1, 2, 4, 6}, {2, 3, 4, 5}});
  const CsvTable pair = parse_csv("0F0,(0F1;0B0)OVERLAP_F_B,0B1");
  CHECK(to_csv(pair.schedule) == "0F0,0F1,0B0,0B1\n");
  CHECK(pair.cells == std::vector<std::vector<std::int32_t>>{{1, 2, 2, 3}});
}

TEST_CASE("what cannot be read is named by row and cell") {
  CHECK(complaint("0F0,0X0") ==
        "row 1, cell 2: \"0X0\" is no action; expected a stage, F, B, I or W, and a micro-batch, such as 0F3");
  CHECK(complaint("0F0,0B0\n,,0F1") ==
        "row 2, cell 3: 0F1, but row 1 has stage 0 already (cell 1); a stage is on one rank");
  CHECK(complaint("0F0,(0F1;zz)OVERLAP_F_B").starts_with("row 1, cell 2: \"zz\""));
  CHECK(complaint("0F99999999").starts_with("row 1, cell 1: 0F99999999: stages and micro-batches are numbers below"));
  CHECK(complaint("1F0,1B0") == "stage 0 is missing from all rows; the stages are 0 to 1");
  CHECK(complaint("0F0,0B0\n,,\n1F0,1B0") == "row 2 is empty; every rank holds a stage");
  CHECK(complaint("").starts_with("there is no action in it"));
  CHECK(complaint("\n,\n").starts_with("there is no action in it"));
}

TEST_CASE("a violation says which action it is about") {
  Schedule bad = lowered(one_f_one_b({2, 2, false}));
  bad.ranks[1].push_back(bad.ranks[1][1]);
  const std::optional<Violation> twice = verify(bad);
  REQUIRE(twice);
  CHECK(twice->rank == 1);
  CHECK(twice->position == static_cast<std::int32_t>(bad.ranks[1].size()) - 1);
  bad.ranks[1] = {};
  const std::optional<Violation> missing = verify(bad);
  REQUIRE(missing);
  CHECK(missing->rank == 1);
  CHECK(missing->position == -1);
}
