// The keys of parallel that say how replicas work together: exchange, all_reduce, servers, local, balance.
#pragma once

#include "origin.hpp"
#include "schema.hpp"

namespace trainer::config {

std::vector<Key<Parallel>> exchange_keys();

/// Checks the keys against each other, and counts one server where exchange "server" leaves it open.
void complete_exchange(Config& config, const Origin& origin);

/// What a number of ranks and replicas decides: servers, backups and lists of one value a replica. `ranks` are all that
/// run; returns those of the mesh.
std::int64_t mesh_ranks(const Parallel& parallel, std::int64_t ranks);
void check_replicas(const Parallel& parallel);

}  // namespace trainer::config
