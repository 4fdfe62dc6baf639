#include <doctest/doctest.h>

#include <limits>
#include <random>

#include "tables.hpp"

using namespace trainer;
using namespace trainer::schedule;

TEST_CASE("actions print as the field writes them") {
  const auto text = [](ActionKind kind) { return to_string(Action{StageId(2), kind, MicroBatchId(10)}); };
  CHECK(text(ActionKind::Forward) == "2F10");
  CHECK(text(ActionKind::Backward) == "2B10");
  CHECK(text(ActionKind::BackwardInput) == "2I10");
  CHECK(text(ActionKind::BackwardWeight) == "2W10");
  CHECK(text(ActionKind::SendForward) == "2SEND_F10");
  CHECK(text(ActionKind::RecvForward) == "2RECV_F10");
  CHECK(text(ActionKind::SendBackward) == "2SEND_B10");
  CHECK(text(ActionKind::RecvBackward) == "2RECV_B10");
  CHECK(text(ActionKind::ReduceGradients) == "2REDUCE_GRAD");
}

TEST_CASE("parsing undoes printing") {
  std::mt19937 random(1);
  const std::int32_t most = std::numeric_limits<std::int32_t>::max();
  const auto number = [&] {
    const std::int32_t any = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(most));
    return random() % 8 == 0 ? most : any >> (random() % 31);
  };
  for (int k = 0; k < 5000; ++k) {
    Action action{StageId(number()), static_cast<ActionKind>(random() % 9), MicroBatchId(number())};
    if (action.kind == ActionKind::ReduceGradients) action.micro_batch = MicroBatchId();
    const std::optional<Action> back = parse_action(to_string(action));
    REQUIRE(back);
    CHECK(*back == action);
  }
}

TEST_CASE("what does not print back is no action") {
  for (const char* junk : {"",
                           " ",
                           "F0",
                           "2",
                           "2F",
                           "F",
                           "2f0",
                           "2F0 ",
                           " 2F0",
                           "2 F0",
                           "2F 0",
                           "+2F0",
                           "2F+0",
                           "-1F0",
                           "2F-1",
                           "02F0",
                           "2F00",
                           "2F01",
                           "2X0",
                           "2FB0",
                           "2SEND0",
                           "2SEND_F",
                           "2SEND_W0",
                           "2RECV_",
                           "2REDUCE_GRAD0",
                           "2REDUCE_GRAD ",
                           "2REDUCE",
                           "REDUCE_GRAD",
                           "2147483648F0",
                           "2F2147483648",
                           "99999999999999999999F0",
                           "2F0F0",
                           "2F0,2B0",
                           "2.0F0",
                           "0x2F0"}) {
    CAPTURE(junk);
    CHECK_FALSE(parse_action(junk));
  }
}

TEST_CASE("whatever parses prints back to the same text") {
  const std::string alphabet = "0129FBIWSEND_RCVUGA ,-";
  std::mt19937 random(2);
  int parsed = 0;
  for (int k = 0; k < 200000; ++k) {
    std::string text;
    for (std::size_t n = random() % 6; n > 0; --n) text += alphabet[random() % alphabet.size()];
    const std::optional<Action> action = parse_action(text);
    if (!action) continue;
    ++parsed;
    CHECK(to_string(*action) == text);
  }
  CHECK(parsed > 100);
}
