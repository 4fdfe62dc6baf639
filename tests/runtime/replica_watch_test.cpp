// Who is silent, and who only waits for others.
#include "replica_watch.hpp"

#include <doctest/doctest.h>

using namespace trainer;
using runtime::ReplicaWatch;
using runtime::StreamBatch;

namespace {

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a replica that computes is silent, one that waits is not") {
  ReplicaWatch watch({.data = 3, .pipeline = 2, .tensor = 1}, 1, 5);
  watch.begin(100);
  for (int r = 0; r < 3; ++r) {
    watch.given(r, {.first = 8 * r, .size = 8, .task = r == 1 ? 4 : -1}, 2, 100);
    watch.waits(r, false, 100);
  }
  CHECK(watch.silent({false, false, false}, 105).empty());
  // Replica 0 waits for the coordinator, 2 for the server.
  watch.reported(0, true, 101);
  watch.waits(0, true, 101);
  const std::string text = watch.silent({false, false, true}, 106.25);
  CHECK(has(text, "replica 1 (ranks 1, 4) has been silent for 6.2 s"));
  CHECK(has(text, "parallel.timeout is 5 s"));
  CHECK(has(text, "--resume"));
  CHECK(has(text, "it holds samples 8 to 15 (clock 2, task 4)"));
  // What the server sees of it counts too.
  watch.heard(1, 104);
  CHECK(watch.silent({false, false, true}, 108).empty());
  CHECK(has(watch.silent({false, false, true}, 110), "replica 1"));
  // An answer that has come begins its time anew.
  watch.waits(0, false, 110);
  CHECK(watch.silent({false, true, true}, 115).empty());
  CHECK(has(watch.silent({false, true, true}, 115.5), "it has reported samples 0 to 7 (clock 2)"));
  watch.begin(200);
  CHECK(watch.silent({false, false, false}, 205).empty());
}

TEST_CASE("who waits for a silent server looks silent too") {
  ReplicaWatch watch({.data = 2, .pipeline = 1, .tensor = 1}, 3, 5);
  watch.begin(0);
  const std::string text = watch.silent({false, false}, 6);
  CHECK(has(text, "replica 0 (rank 0)"));
  CHECK(has(text, "or waits for a server that does (ranks 3 to 4)"));
}

TEST_CASE("rows of the table") {
  ReplicaWatch watch({.data = 2, .pipeline = 1, .tensor = 2}, 1, 60);
  watch.begin(0);
  watch.given(0, {0, 8}, 0, 0);
  watch.pulled(0, 5, 0);
  watch.reported(0, true, 2);
  watch.given(0, {16, 8}, 1, 2);
  watch.pulled(0, 7, 2);
  watch.given(1, {8, 8}, 0, 0);
  watch.reported(1, false, 1);
  watch.waits(1, true, 1);
  observe::RunStatus status;
  watch.fill(status, {false, false}, 9, nullptr, 3);
  REQUIRE(status.replicas.size() == 2);
  CHECK(status.replicas[0].doing == "computing");
  CHECK(status.replicas[0].first == 16);
  CHECK(status.replicas[0].staleness == 2);
  CHECK(status.replicas[0].samples == 8);
  CHECK(status.replicas[0].samples_per_second == 4);
  CHECK(status.replicas[0].heard == 1);
  CHECK(status.replicas[1].doing == "waiting");
  CHECK(status.replicas[1].dropped == 1);
  CHECK(status.replicas[1].first == -1);
  CHECK(status.replicas[1].rank == 2);
  watch.fill(status, {false, false}, 9, nullptr, 20);
  CHECK(status.replicas[0].doing == "silent");
}

TEST_CASE("who stops within an update of bsp is named, and a listener who was stopped blames nobody") {
  runtime::ReplicaWatch watch({.data = 2, .pipeline = 1, .tensor = 2}, 3, 10);
  watch.begin(0);
  const std::string push = watch.silent_push(1, 7, 10.5);
  CHECK(push.find("replica 1 (ranks 2, 3) for step 7 have not come for 10.5 s") != std::string::npos);
  const std::string server = watch.silent_server(2, 7, 10.5);
  CHECK(server.find("server 2 (rank 6) has not finished step 7 for 10.5 s") != std::string::npos);
  CHECK(!watch.silent({false, false}, 11).empty());
  watch.hear_all(11);
  CHECK(watch.silent({false, false}, 21).empty());
  CHECK(!watch.silent({false, false}, 21.5).empty());
}
