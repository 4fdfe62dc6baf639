// What a sweep varies: --over texts and their combinations.
#include "trainer/config/sweep.hpp"

#include <doctest/doctest.h>

#include <functional>

#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::config;

namespace {

std::string refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    return error.what();
  }
  return "";
}

std::string refused(const std::string& text) {
  return refused([&] { parse_over(text); });
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("commas part values, but not inside brackets, braces and quotes") {
  CHECK(parse_over("parallel.pipeline=1,2,4").key == "parallel.pipeline");
  CHECK(parse_over("parallel.pipeline=1,2,4").values == Texts{"1", "2", "4"});
  CHECK(parse_over("parallel.partition=[3,5],[4,4],flops").values == Texts{"[3,5]", "[4,4]", "flops"});
  CHECK(parse_over(R"(model.layers=[{"type": "relu"},{"type": "tanh"}],[[1,2],[3]])").values ==
        Texts{R"([{"type": "relu"},{"type": "tanh"}])", "[[1,2],[3]]"});
  CHECK(parse_over(R"(data.path="a,b","c\"],d")").values == Texts{R"("a,b")", R"("c\"],d")"});
  CHECK(parse_over("data.path=a=b").values == Texts{"a=b"});
}

TEST_CASE("what is no list of values says why") {
  CHECK(refused("parallel.pipeline").find("expected KEY=VALUE") != std::string::npos);
  CHECK(refused("=1").find("expected KEY=VALUE") != std::string::npos);
  CHECK(refused("a=").find("value 1 is empty") != std::string::npos);
  CHECK(refused("a=1,,2").find("value 2 is empty") != std::string::npos);
  CHECK(refused("a=1,2,").find("value 3 is empty") != std::string::npos);
  CHECK(refused("a=1,2,1").find("1 is there twice") != std::string::npos);
  CHECK(refused("a=[1,2").find("\"]\" is missing") != std::string::npos);
  CHECK(refused("a=1]").find("\"]\" closes nothing") != std::string::npos);
  CHECK(refused("a=[1}").find("\"}\" closes nothing") != std::string::npos);
  CHECK(refused("a=\"b").find("quotation mark") != std::string::npos);
}

TEST_CASE("all combinations, the last key fastest") {
  const std::vector<Combination> all = combinations({{"a.b", {"1", "2"}}, {"c.d", {"x", "y", "z"}}}, {"e=1"});
  REQUIRE(all.size() == 6);
  CHECK(as_overrides(all[0]) == Texts{"a.b=1", "c.d=x"});
  CHECK(as_overrides(all[1]) == Texts{"a.b=1", "c.d=y"});
  CHECK(as_overrides(all[5]) == Texts{"a.b=2", "c.d=z"});
}

TEST_CASE("keys that somebody states already are refused") {
  const auto refusal = [](std::vector<Over> over, std::vector<std::string> set) {
    return refused([&] { combinations(over, set); });
  };
  CHECK(refusal({{"a.b", {"1"}}, {"a.b", {"2"}}}, {}).find("there already") != std::string::npos);
  CHECK(refusal({{"a", {"{}"}}, {"a.b", {"2"}}}, {}).find("there already") != std::string::npos);
  CHECK(refusal({{"a.b", {"1"}}}, {"a.b=3"}).find("--set a.b=3 states the same key") != std::string::npos);
  CHECK(refusal({{"a[1].b", {"1"}}}, {"a=[]"}).find("states the same key") != std::string::npos);
  CHECK(refusal({{"a.bc", {"1"}}}, {"a.b=3"}).empty());
  CHECK(refusal({{"training.steps", {"1"}}}, {}).find("--steps 10") != std::string::npos);
  CHECK(refusal({{"checkpoint.directory", {"x"}}}, {}).find("states this key itself") != std::string::npos);
  std::vector<std::string> many;
  for (int i = 0; i < 40; ++i) many.push_back(std::to_string(i));
  CHECK(refusal({{"a", many}, {"b", many}}, {}).find("more than 1000 combinations") != std::string::npos);
}
