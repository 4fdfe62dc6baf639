// Generators and passes: golden texts, and what each pass promises.
#include <doctest/doctest.h>

#include <fstream>
#include <sstream>

#include "tables.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

std::string golden(const std::string& name) {
  const std::string path = "tests/golden/schedules/" + name + ".csv";
  std::ifstream file(path);
  REQUIRE_MESSAGE(file, "cannot read " << path << " (run from the top of the source tree)");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("the published orders, as text") {
  for (const auto& [p, m] : std::vector<std::pair<int, int>>{{4, 8}, {4, 2}, {1, 3}}) {
    const std::string size = "_p" + std::to_string(p) + "_m" + std::to_string(m);
    CHECK(to_csv(gpipe({p, m, true})) == golden("gpipe" + size));
    CHECK(to_csv(one_f_one_b({p, m, true})) == golden("1f1b" + size));
    CHECK(to_csv(zero_bubble_h1({p, m, true})) == golden("zb_h1" + size));
  }
  for (const auto& [p, m] : std::vector<std::pair<int, int>>{{4, 8}, {4, 2}}) {
    const std::string size = "_p" + std::to_string(p) + "_m" + std::to_string(m);
    CHECK(to_csv(zero_bubble_h2({p, m, true})) == golden("zb_h2" + size));
    CHECK(to_csv(zero_bubble_v({2 * p, m, true, 2})) == golden("zb_v" + size));
    CHECK(to_csv(dualpipe_v({2 * p, m, true, 2})) == golden("dualpipe_v" + size));
    CHECK(to_csv(interleaved({2 * p, m, false, 2})) == golden("interleaved_v2" + size));
  }
  CHECK(to_csv(interleaved({6, 7, true, 3, 3})) == golden("interleaved_v3_g3_p2_m7"));
  CHECK(to_csv(one_f_one_b({4, 8, false})) == golden("1f1b_joint_p4_m8"));
  CHECK(to_csv(lowered(one_f_one_b({4, 2, true}))) == golden("1f1b_lowered_p4_m2"));
  CHECK(to_csv(add_communication(forward_only({3, 2, true}))) == golden("forward_only_lowered_p3_m2"));
}

TEST_CASE("ZB-H1 has no joint backward, but on stage 0") {
  CHECK_THROWS_AS(zero_bubble_h1({2, 4, false}), Error);
  CHECK(zero_bubble_h1({5, 7, true}).ranks[0] == one_f_one_b({5, 7, true}).ranks[0]);
}

TEST_CASE("passes commute and a second time changes nothing") {
  for (bool split : {false, true}) {
    for (const Schedule& compute :
         {one_f_one_b({4, 6, split}), zero_bubble_h1({4, 6, true}), gpipe({3, 2, split}), forward_only({3, 2, split}),
          chunked_gpipe(3, {0, 1, 0, 1}, split), chunked_gpipe(3, {0, 0, 1, 1}, split)}) {
      const Schedule once = lowered(compute);
      CHECK(add_communication(add_reductions(compute)) == once);
      CHECK(add_communication(once) == once);
      CHECK(add_reductions(once) == once);
    }
  }
}

TEST_CASE("neighbouring stages on one rank exchange no messages") {
  CHECK(to_csv(lowered(chunked_gpipe(1, {0, 0, 1}, false))) ==
        "0F0,1F0,1SEND_F0,1RECV_B0,1B0,1REDUCE_GRAD,0B0,0REDUCE_GRAD\n"
        "2RECV_F0,2F0,2B0,2SEND_B0,2REDUCE_GRAD\n");
  CHECK(add_communication(chunked_gpipe(4, {0, 0, 0}, true)) == chunked_gpipe(4, {0, 0, 0}, true));
}

TEST_CASE("evaluation has no reductions") {
  CHECK(add_reductions(forward_only({3, 4, true})) == forward_only({3, 4, true}));
}

TEST_CASE("warm-up is clamped to the micro-batches there are") {
  const Schedule schedule = one_f_one_b({8, 3, false});
  CHECK(to_csv(schedule).substr(0, 24) == "0F0,0F1,0F2,0B0,0B1,0B2\n");
}
