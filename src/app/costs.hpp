// Profiles as the subcommands use them: read by one rank, held against this machine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/config/config.hpp"
#include "trainer/model/graph.hpp"
#include "trainer/plan/cost_model.hpp"

namespace trainer::app {

/// A configuration that rank 0 reads, with the schedule's file where it names one, parsed on every rank. Collective.
config::Config agreed_config(comm::Communicator& world, const std::string& path,
                             const std::vector<std::string>& overrides);

/// The profile that the configuration names, for its cut and its automatic schedule. Collective.
std::optional<plan::CostModel> agreed_profile(comm::Communicator& world, const config::Config& config);

/// What a profile is a profile of; ranks, threads and precision are left to who knows them.
plan::Machine this_machine();

/// "" or how the profile's machine differs from this one, as a sentence.
std::string taken_elsewhere(const plan::Machine& profiled, const std::string& path);

/// "" or how many of the model's pieces the profile has no times of, as a sentence.
std::string taken_of_another(const plan::CostModel& costs, const model::Graph& graph, const std::string& path);

}  // namespace trainer::app
