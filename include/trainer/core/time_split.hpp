// Where the time of a step went.
#pragma once

#include <array>
#include <string_view>

namespace trainer {

/// Seconds of one rank in a step (or a mean of steps). The parts before `evaluation` are apart and sum to the step.
struct TimeSplit {
  // Computing, without the waits within.
  double forward = 0;          // with the loss
  double backward = 0;         // joint
  double backward_input = 0;   // split
  double backward_weight = 0;  // split
  double bubble = 0;           // waits that the schedule forces at these computing times, messages taking no time
  double receive = 0;          // other waits for messages of the pass
  double send = 0;             // starting messages, and waits for room for them
  double tensor = 0;           // waits for sums over tensor ranks
  double gradients = 0;        // sums over replicas and of tied parameters, other replicas' part of the weights
  double agreement = 0;        // other waits for all ranks at the end of the step
  double optimizer = 0;        // norms and update
  double data = 0;             // reading samples
  double other = 0;            // none of these
  // Between steps.
  double evaluation = 0;
  double checkpoint = 0;

  double compute() const { return forward + backward + backward_input + backward_weight; }
  double step() const;
};

struct TimePart {
  std::string_view name;  // "backward_input"
  double TimeSplit::*seconds;
};
/// The parts that sum to a step, in the order above; then those between steps.
inline constexpr std::size_t kStepParts = 13;
inline constexpr std::array<TimePart, 15> kTimeParts{{{"forward", &TimeSplit::forward},
                                                      {"backward", &TimeSplit::backward},
                                                      {"backward_input", &TimeSplit::backward_input},
                                                      {"backward_weight", &TimeSplit::backward_weight},
                                                      {"bubble", &TimeSplit::bubble},
                                                      {"receive", &TimeSplit::receive},
                                                      {"send", &TimeSplit::send},
                                                      {"tensor", &TimeSplit::tensor},
                                                      {"gradients", &TimeSplit::gradients},
                                                      {"agreement", &TimeSplit::agreement},
                                                      {"optimizer", &TimeSplit::optimizer},
                                                      {"data", &TimeSplit::data},
                                                      {"other", &TimeSplit::other},
                                                      {"evaluation", &TimeSplit::evaluation},
                                                      {"checkpoint", &TimeSplit::checkpoint}}};

inline double TimeSplit::step() const {
  double sum = 0;
  for (std::size_t p = 0; p < kStepParts; ++p) sum += this->*kTimeParts[p].seconds;
  return sum;
}

}  // namespace trainer
