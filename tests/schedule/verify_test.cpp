// The verifier on tables that are broken by hand, one promise at a time.
#include <doctest/doctest.h>

#include <algorithm>
#include <tuple>

#include "replay.hpp"
#include "tables.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::schedule;
using namespace trainer::schedule::test;

namespace {

std::string fault_of(const Schedule& schedule) {
  const std::optional<Violation> violation = verify(schedule);
  return violation ? violation->message : "valid";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<Action>& row(Schedule& schedule, std::size_t rank) { return schedule.ranks[rank]; }

Action action(const std::string& text) { return parse_action(text).value(); }

void erase(Schedule& schedule, const std::string& text) {
  for (std::vector<Action>& r : schedule.ranks) std::erase(r, action(text));
}

/// Exchanges the places of two actions of a rank.
void exchange(Schedule& schedule, std::size_t rank, const std::string& a, const std::string& b) {
  std::vector<Action>& r = row(schedule, rank);
  std::iter_swap(std::find(r.begin(), r.end(), action(a)), std::find(r.begin(), r.end(), action(b)));
}

bool finishes(const Schedule& schedule, bool eager) {
  const std::vector<Ticks> ticks(static_cast<std::size_t>(schedule.stages));
  return replay(schedule, assign_slots(schedule), ticks, {eager, 0, 0}).finished;
}

}  // namespace

TEST_CASE("a missing or doubled action is named with its place") {
  const Schedule good = lowered(one_f_one_b({3, 2, true}));
  CHECK(fault_of(good) == "valid");

  Schedule bad = good;
  erase(bad, "1F1");
  CHECK(fault_of(bad) ==
        "1F1 is missing from rank 1\n"
        "  rank 1: 1RECV_F0 1F0 1SEND_F0 1RECV_F1 1SEND_F1 1RECV_B0 ...");

  bad = good;
  erase(bad, "0B1");
  CHECK(fault_of(bad) ==
        "0B1 (or 0I1 and 0W1) is missing from rank 0\n"
        "  rank 0: ... 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0REDUCE_GRAD");
  bad.ranks[0].clear();
  CHECK(fault_of(bad) == "0F0 is missing from rank 0\n  rank 0:");

  bad = good;
  erase(bad, "1W0");
  CHECK(has(fault_of(bad), "1I0 on rank 1 lacks its 1W0"));
  bad = good;
  erase(bad, "1I0");
  CHECK(has(fault_of(bad), "1W0 on rank 1 lacks its 1I0"));

  bad = good;
  row(bad, 0).push_back(action("0B0"));
  CHECK(has(fault_of(bad), "0B0 stands twice on rank 0: actions 5 and "));
  bad = good;
  row(bad, 2).push_back(action("2F1"));
  CHECK(has(fault_of(bad), "2F1 stands twice on rank 2"));
  bad = good;
  row(bad, 1).push_back(action("1B0"));
  CHECK(has(fault_of(bad), "micro-batch 0 of stage 1 goes backward twice on rank 1: 1I0"));
}

TEST_CASE("an action out of the table's bounds or on a foreign rank is named") {
  const Schedule good = lowered(one_f_one_b({3, 2, true}));
  for (const auto& [text, rank, message] : std::vector<std::tuple<std::string, std::size_t, std::string>>{
           {"3F0", 2, "3F0 is action 11 of rank 2, but the stages are 0 to 2"},
           {"2F2", 2, "but the micro-batches are 0 to 1"},
           {"2F0", 1, "but stage 2 is on rank 2"},
           {"0REDUCE_GRAD", 1, "but stage 0 is on rank 0"}}) {
    Schedule bad = good;
    row(bad, rank).push_back(action(text));
    CAPTURE(fault_of(bad));
    CHECK(has(fault_of(bad), message));
  }
  Schedule bad = good;
  bad.rank_of_stage.pop_back();
  CHECK(fault_of(bad) == "rank_of_stage has 2 entries for 3 stages");
  CHECK(has(fault_of(add_communication(bad)), "rank_of_stage"));
  bad = good;
  bad.rank_of_stage[1] = 3;
  CHECK(fault_of(bad) == "stage 1 is on rank 3, but the table has 3 rows");
  CHECK(verify(Schedule{}));
  bad = add_communication(forward_only({2, 2, true}));
  row(bad, 1).push_back(action("1B0"));
  CHECK(has(fault_of(bad), "but the table is forward only"));
}

TEST_CASE("order within a stage") {
  const Schedule good = lowered(one_f_one_b({3, 3, true}));
  Schedule bad = good;
  exchange(bad, 2, "2I0", "2W0");
  CHECK(has(fault_of(bad), ", before 2I0 (action"));
  CHECK(has(fault_of(bad), "2W0 is action"));

  bad = good;
  exchange(bad, 2, "2W0", "2W1");
  CHECK(has(fault_of(bad), ", before 2I1 (action"));

  bad = table(2, {0}, {"0F0 0F1 0I0 0I1 0W1 0W0"});
  CHECK(fault_of(bad) ==
        "0W1 is action 4 of rank 0, before 0W0 (action 5): weight gradients must be summed in ascending micro-batch\n"
        "  rank 0: 0F0 0F1 0I0 0I1 [0W1] 0W0");
  CHECK(has(fault_of(table(2, {0}, {"0F0 0F1 0B1 0B0"})), "ascending"));
  CHECK(fault_of(table(2, {0}, {"0F1 0F0 0I1 0B0 0W1"})) == "valid");  // only W is held to an order

  CHECK(has(fault_of(table(1, {0}, {"0B0 0F0"})), "0B0 is action 0 of rank 0, before 0F0 (action 1)"));

  bad = good;
  exchange(bad, 1, "1REDUCE_GRAD", "1W2");
  CHECK(has(fault_of(bad), "1REDUCE_GRAD is action"));
  bad = good;
  erase(bad, "1REDUCE_GRAD");
  CHECK(fault_of(bad) == "1REDUCE_GRAD is missing from rank 1, while other stages have theirs");
}

TEST_CASE("each send has its receive, each receive its send, in useful places") {
  const Schedule good = lowered(one_f_one_b({3, 3, true}));
  Schedule bad = good;
  erase(bad, "2RECV_F1");
  CHECK(has(fault_of(bad), "1SEND_F1 on rank 1 is never received: 2RECV_F1 is missing from rank 2"));
  bad = good;
  erase(bad, "2SEND_B1");
  CHECK(has(fault_of(bad), "1RECV_B1 on rank 1 is never sent: 2SEND_B1 is missing from rank 2"));
  bad = good;
  row(bad, 0).push_back(action("0SEND_F1"));
  CHECK(has(fault_of(bad), "0SEND_F1 stands twice on rank 0"));
  CHECK(has(fault_of(one_f_one_b({3, 3, true})), "needs what 0F0 on rank 0 makes, but the table has neither 0SEND_F0"));
  bad = good;
  row(bad, 0).push_back(action("0SEND_B1"));
  CHECK(has(fault_of(bad), "but stage 0 has no neighbour there"));
  bad = good;
  row(bad, 2).push_back(action("2RECV_B1"));
  CHECK(has(fault_of(bad), "but stage 2 has no neighbour there"));
  bad = good;
  exchange(bad, 0, "0F0", "0SEND_F0");
  CHECK(has(fault_of(bad), "0SEND_F0 is action 0 of rank 0, before 0F0 (action 1) has made it"));
  bad = good;
  exchange(bad, 1, "1F0", "1RECV_F0");
  CHECK(has(fault_of(bad), "1RECV_F0 is action 1 of rank 1, behind 1F0 (action 0), which needs it"));
  bad = lowered(chunked_gpipe(1, {0, 0, 1}, false));
  row(bad, 0).push_back(action("0SEND_F0"));
  CHECK(has(fault_of(bad), "stages 0 and 1 are both on that rank"));
}

TEST_CASE("a send held back behind a receive that depends on it") {
  const Schedule bad = table(1, {0, 1}, {"0F0 0RECV_B0 0SEND_F0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"});
  CHECK(fault_of(bad) ==
        "deadlock: 2 ranks wait for each other in a circle\n"
        "  rank 0 stands at 0RECV_B0 (action 1 of 4): waits for 1SEND_B0 of rank 1\n"
        "  rank 1 stands at 1RECV_F0 (action 0 of 4): waits for 0SEND_F0 of rank 0\n"
        "  rank 0: 0F0 [0RECV_B0] 0SEND_F0 0B0\n"
        "  rank 1: [1RECV_F0] 1F0 1B0 1SEND_B0");
  CHECK_FALSE(finishes(bad, true));
}

TEST_CASE("receives in an order that crosses the sends would take one message for another") {
  const Schedule bad = table(
      2, {0, 1},
      {"0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1", "1RECV_F1 1RECV_F0 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1"});
  CHECK(fault_of(bad) ==
        "1RECV_F0 is action 1 of rank 1, behind 1RECV_F1, but rank 0 sends 0SEND_F0 first; messages over one boundary "
        "arrive in the order in which they leave\n"
        "  rank 1: 1RECV_F1 [1RECV_F0] 1F0 1B0 1SEND_B0 1F1 ...");
  // Who needs the second one first receives the first one before it.
  const Schedule crossed = add_communication(table(2, {0, 1}, {"0F0 0F1 0B0 0B1", "1F1 1F0 1B0 1B1"}));
  CHECK(crossed.ranks[1] == table(2, {0, 1}, {"", "1RECV_F0 1RECV_F1 1F1 1F0 1B0 1SEND_B0 1B1 1SEND_B1"}).ranks[1]);
  CHECK(fault_of(crossed) == "valid");
}

TEST_CASE("finite send rings bring a deadlock back that eager sends hide") {
  // Rank 0 takes nothing back of stage 1 before it has done all of stage 0.
  std::string first;
  std::string last;
  std::string middle;
  for (const char* i : {"0", "1", "2", "3", "4", "5", "6", "7"}) {
    const std::string m = i;
    first += "0F" + m + " 0SEND_F" + m + " ";
    middle += "1RECV_F" + m + " 1F" + m + " 1SEND_F" + m + " ";
    last += "2RECV_F" + m + " 2F" + m + " ";
  }
  Schedule bad = table(8, {0, 1, 0}, {first + last, middle});
  bad.forward_only = true;
  CHECK(fault_of(bad) ==
        "deadlock: 2 ranks wait for each other in a circle\n"
        "  rank 0 stands at 0F7 (action 14 of 32): needs the send buffer of 0SEND_F5, which waits until rank 1 posts "
        "1RECV_F5\n"
        "  rank 1 stands at 1F3 (action 10 of 24): needs the send buffer of 1SEND_F1, which waits until rank 0 posts "
        "2RECV_F1\n"
        "  rank 0: ... 0F5 0SEND_F5 0F6 0SEND_F6 [0F7] 0SEND_F7 2RECV_F0 2F0 2RECV_F1 ...\n"
        "  rank 1: ... 1RECV_F2 1F2 1SEND_F2 1RECV_F3 [1F3] 1SEND_F3 1RECV_F4 1F4 1SEND_F4 ...");
  CHECK(finishes(bad, true));
  CHECK_FALSE(finishes(bad, false));
}

TEST_CASE("a rank that waits for itself") {
  Schedule bad = table(3, {0, 1}, {"0F0 0F1 0F2 0SEND_F0 0SEND_F1 0SEND_F2", "1RECV_F0 1F0 1RECV_F1 1F1 1RECV_F2 1F2"});
  bad.forward_only = true;
  CHECK(has(fault_of(bad),
            "deadlock: rank 0 waits for itself\n"
            "  rank 0 stands at 0F2 (action 2 of 6): needs the send buffer that 0SEND_F0 would free"));
  bad = table(1, {0, 0}, {"1F0 0F0"});
  bad.forward_only = true;
  CHECK(has(fault_of(bad), "rank 0 stands at 1F0 (action 0 of 2): needs micro-batch 0 of stage 0, which comes later"));
}

TEST_CASE("the smallest cycle is the one that is told") {
  // Ranks 0, 1 and 2 wait in a circle, since 0 wants stage 3's input first; so do 3 and 4; 5 only waits for 3.
  Schedule bad = table(1, {0, 1, 2, 0, 3, 4, 3, 5},
                       {"3RECV_F0 0F0 0SEND_F0 3F0 3SEND_F0", "1RECV_F0 1F0 1SEND_F0", "2RECV_F0 2F0 2SEND_F0",
                        "6RECV_F0 4RECV_F0 4F0 4SEND_F0 6F0 6SEND_F0", "5RECV_F0 5F0 5SEND_F0", "7RECV_F0 7F0"});
  bad.forward_only = true;
  const std::string told = fault_of(bad);
  CHECK(has(told, "deadlock: 2 ranks wait for each other"));
  CHECK(has(told, "rank 3 stands at 6RECV_F0 (action 0 of 6): waits for 5SEND_F0 of rank 4"));
  CHECK(has(told, "rank 4 stands at 5RECV_F0 (action 0 of 3): waits for 4SEND_F0 of rank 3"));
  for (const char* other : {"rank 0", "rank 1", "rank 2", "rank 5"}) CHECK_FALSE(has(told, other));
}

TEST_CASE("a circle of three ranks is told whole") {
  // Stage 3 is on rank 0 again: 0 waits for 2's F, 2 for 1's, 1 for 0's.
  Schedule bad =
      table(1, {0, 1, 2, 0}, {"3RECV_F0 0F0 0SEND_F0 3F0", "1RECV_F0 1F0 1SEND_F0", "2RECV_F0 2F0 2SEND_F0"});
  bad.forward_only = true;
  const std::string told = fault_of(bad);
  CHECK(has(told, "deadlock: 3 ranks wait for each other"));
  CHECK(has(told, "rank 0 stands at 3RECV_F0 (action 0 of 4): waits for 2SEND_F0 of rank 2"));
  CHECK(has(told, "rank 1 stands at 1RECV_F0 (action 0 of 3): waits for 0SEND_F0 of rank 0"));
  CHECK(has(told, "rank 2 stands at 2RECV_F0 (action 0 of 3): waits for 1SEND_F0 of rank 1"));
}

TEST_CASE("the simulator refuses what cannot run") {
  const std::vector<StageTimes> times(2);
  const Schedule bad = table(1, {0, 1}, {"0F0 0RECV_B0 0SEND_F0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"});
  CHECK_THROWS_AS(simulate(bad, times), Error);
  CHECK_THROWS_AS(simulate(table(1, {0, 1}, {"0F0", "1F0 1B0"}), times), Error);
  CHECK_THROWS_AS(simulate(one_f_one_b({3, 1, true}), times), Error);
  CHECK_THROWS_AS(draw(one_f_one_b({3, 1, true}), times), Error);
  CHECK_THROWS_AS(one_f_one_b({0, 1, true}), Error);
  CHECK_THROWS_AS(gpipe({1, 0, true}), Error);
}

TEST_CASE("a table that stands still is drawn up to there") {
  const Schedule bad = table(1, {0, 1}, {"0F0 0RECV_B0 0SEND_F0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"});
  CHECK(draw(bad, std::vector<StageTimes>(2)) == "rank 0  F0 stands at 0RECV_B0\nrank 1  ... stands at 1RECV_F0\n");
}
