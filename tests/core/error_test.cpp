#include <doctest/doctest.h>

#include "trainer/core/error.hpp"

using namespace trainer;

TEST_CASE("the nearest word is near or nothing") {
  const std::vector<std::string> known{"learning_rate", "weight_decay", "betas"};
  CHECK(nearest_word("learning_rat", known) == "learning_rate");
  CHECK(nearest_word("lerning_rate", known) == "learning_rate");
  CHECK(nearest_word("beta", known) == "betas");
  CHECK(nearest_word("colour", known) == "");
}
