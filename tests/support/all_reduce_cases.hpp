// What every algorithm of all_reduce.hpp must do, whatever carries the messages. Run on all ranks.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "support/communicator_cases.hpp"
#include "trainer/comm/all_reduce.hpp"
#include "trainer/comm/communicator.hpp"

namespace trainer::test {

using comm::AllReduceAlgorithm;
using comm::AllReduceOptions;
using comm::Wire;

struct NamedAlgorithm {
  const char* name;
  AllReduceAlgorithm algorithm;
};
/// Those whose messages are ours.
inline constexpr NamedAlgorithm kOurAlgorithms[] = {{"auto", AllReduceAlgorithm::Automatic},
                                                    {"direct", AllReduceAlgorithm::Direct},
                                                    {"ring", AllReduceAlgorithm::Ring},
                                                    {"tree", AllReduceAlgorithm::Tree},
                                                    {"hierarchy", AllReduceAlgorithm::Hierarchy}};

using Sums = std::vector<float>;

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// bfloat16 by its definition: of the two neighbours the nearer one, and of two as near the even one.
inline float rounded(float value) {
  if (std::isnan(value) || std::isinf(value)) return value;
  const std::uint32_t below_bits = bits_of(value) & 0xffff0000u, above_bits = below_bits + 0x10000u;
  const auto float_of = [](std::uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    return f;
  };
  // The neighbour past the largest number counts as the power of two that it would be.
  const auto number = [&](std::uint32_t bits) {
    const float f = float_of(bits);
    return std::isinf(f) ? std::copysign(0x1p128, static_cast<double>(f)) : static_cast<double>(f);
  };
  const double to_below = std::abs(value - number(below_bits)), to_above = std::abs(number(above_bits) - value);
  if (to_below != to_above) return float_of(to_below < to_above ? below_bits : above_bits);
  return float_of((below_bits >> 16 & 1) == 0 ? below_bits : above_bits);
}

/// What an algorithm is defined to give, element by element: written out once more, without pieces or messages.
class SerialSum {
 public:
  SerialSum(int ranks, const AllReduceOptions& options) : ranks_(ranks), options_(options) {
    for (int r = 0; r < ranks; ++r) {
      const int node = options.node_of_rank.empty() ? 0 : options.node_of_rank[static_cast<std::size_t>(r)];
      const auto same = [&](const std::vector<int>& other) {
        return !options.node_of_rank.empty() && options.node_of_rank[static_cast<std::size_t>(other.front())] == node;
      };
      const auto found = options.node_of_rank.empty() && !nodes_.empty()
                             ? nodes_.begin()
                             : std::find_if(nodes_.begin(), nodes_.end(), same);
      if (found == nodes_.end()) {
        nodes_.push_back({r});
      } else {
        found->push_back(r);
      }
    }
  }

  /// x: [rank] one element's addends.
  float operator()(const std::vector<float>& x) const {
    const bool rounds = options_.wire == Wire::BFloat16;
    const auto sent = [&](float value) { return rounds ? rounded(value) : value; };
    const auto direct = [&](const std::vector<float>& terms) {
      float sum = sent(terms[0]);
      for (std::size_t r = 1; r < terms.size(); ++r) sum += sent(terms[r]);
      return terms.size() > 2 ? sent(sum) : sum;
    };
    if (ranks_ == 1) return x[0];
    switch (options_.algorithm) {
      case AllReduceAlgorithm::Ring: {
        float sum = x[0];
        for (int r = 1; r < ranks_; ++r) sum = sent(sum) + x[static_cast<std::size_t>(r)];
        return sent(sum);
      }
      case AllReduceAlgorithm::Tree:
        return sent(subtree(x, 0, ranks_, sent));
      case AllReduceAlgorithm::Hierarchy: {
        std::vector<float> sums;
        for (const std::vector<int>& node : nodes_) {
          sums.push_back(x[static_cast<std::size_t>(node.front())]);
          for (std::size_t i = 1; i < node.size(); ++i) sums.back() += x[static_cast<std::size_t>(node[i])];
        }
        return sums.size() == 1 ? sums[0] : direct(sums);
      }
      default:
        return direct(x);
    }
  }

 private:
  // Ranks [first, first + size): the largest power of two below `size` splits off what the root's last child sums.
  template <class Sent>
  float subtree(const std::vector<float>& x, int first, int size, const Sent& sent) const {
    float sum = x[static_cast<std::size_t>(first)];
    for (int bit = 1; bit < size; bit *= 2) sum += sent(subtree(x, first + bit, std::min(bit, size - bit), sent));
    return sum;
  }

  int ranks_;
  AllReduceOptions options_;
  std::vector<std::vector<int>> nodes_;
};

/// The elementwise sums of what all ranks hand in: `addend_of(rank)` is that of `count` elements.
template <class AddendOf>
Sums serial_sums(int ranks, std::int64_t count, const AllReduceOptions& options, const AddendOf& addend_of) {
  const SerialSum sum(ranks, options);
  std::vector<Sums> terms;
  for (int r = 0; r < ranks; ++r) terms.push_back(addend_of(r));
  Sums sums(static_cast<std::size_t>(count));
  std::vector<float> x(terms.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    for (std::size_t r = 0; r < terms.size(); ++r) x[r] = terms[r][i];
    sums[i] = sum(x);
  }
  return sums;
}

inline Sums sum_over(comm::Communicator& comm, Sums data, const AllReduceOptions& options, int repetitions = 1) {
  const Sums mine = data;
  const auto count = static_cast<std::int64_t>(data.size());
  const auto all_reduce = comm.make_all_reduce(data.data(), count, options);
  CHECK(all_reduce->test());
  for (int i = 0; i < repetitions; ++i) {
    data = mine;
    all_reduce->start();
    comm::wait(*all_reduce, {"all-reduce", -1, count});
  }
  return data;
}

/// Whether rank 0 and all others hold the same bits.
inline bool same_everywhere(comm::Communicator& comm, const Sums& sums) {
  const std::vector<std::string> all =
      comm.gather_strings({reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(float)});
  return std::all_of(all.begin(), all.end(), [&](const std::string& other) { return other == all.front(); });
}

/// Ranks of several machines: `per_node` on each, dealt out in turn or one after the other.
inline std::vector<int> nodes_of(int ranks, int per_node, bool dealt) {
  std::vector<int> nodes;
  const int count = (ranks + per_node - 1) / per_node;
  for (int r = 0; r < ranks; ++r) nodes.push_back(dealt ? r % count : r / per_node);
  return nodes;
}

inline void check_algorithms(comm::Communicator& comm, const std::vector<std::int64_t>& counts) {
  const int ranks = comm.size();
  for (const auto& named : kOurAlgorithms) {
    const char* const name = named.name;
    const AllReduceAlgorithm algorithm = named.algorithm;
    for (const Wire wire : {Wire::Float32, Wire::BFloat16}) {
      for (const std::vector<int>& nodes :
           {std::vector<int>{}, nodes_of(ranks, 2, false), nodes_of(ranks, 1, false), nodes_of(ranks, 3, true)}) {
        if (algorithm != AllReduceAlgorithm::Hierarchy && !nodes.empty()) continue;  // nothing else looks at them
        const AllReduceOptions options{algorithm, wire, nodes};
        for (const std::int64_t count : counts) {
          const Sums sums = sum_over(comm, addend(comm.rank(), count), options, 2);
          const std::string what = std::string(name) + (wire == Wire::Float32 ? "" : " in bfloat16");
          CHECK_MESSAGE(same_everywhere(comm, sums), what, ", ", count, " elements over ", ranks);
          if (comm.rank() > 0) continue;
          const Sums expected = serial_sums(ranks, count, options, [&](int r) { return addend(r, count); });
          CHECK_MESSAGE(same_bits(sums, expected), what, ", ", count, " elements over ", ranks);
        }
      }
    }
  }
}

/// Where all_reduce.hpp promises the bits of Direct.
inline void check_equal_to_direct(comm::Communicator& comm) {
  constexpr std::int64_t kCount = 150001;  // auto: a ring, where there are nodes
  const int ranks = comm.size();
  const Sums direct = sum_over(comm, addend(comm.rank(), kCount), {});
  const auto sums = [&](AllReduceAlgorithm algorithm, std::vector<int> nodes = {}) {
    return sum_over(comm, addend(comm.rank(), kCount), {algorithm, Wire::Float32, std::move(nodes)});
  };
  std::vector<int> first_node(static_cast<std::size_t>(ranks), 0);
  for (int r = 2; r < ranks; ++r) first_node[static_cast<std::size_t>(r)] = r - 1;
  CHECK(same_bits(sums(AllReduceAlgorithm::Ring), direct));
  CHECK(same_bits(sums(AllReduceAlgorithm::Automatic), direct));
  CHECK(same_bits(sums(AllReduceAlgorithm::Automatic, nodes_of(ranks, 4, false)), direct));
  CHECK(same_bits(sums(AllReduceAlgorithm::Hierarchy), direct));
  CHECK(same_bits(sums(AllReduceAlgorithm::Hierarchy, first_node), direct));
  CHECK(same_bits(sums(AllReduceAlgorithm::Tree), direct) == (ranks <= 3));
  CHECK(same_bits(sums(AllReduceAlgorithm::Hierarchy, nodes_of(ranks, 2, false)), direct) == (ranks <= 3));
}

/// The message library's own: the sum but for rounding, and, of MPICH on one kind of machine, the same bits on all
/// ranks and each time.
inline void check_library_all_reduce(comm::Communicator& comm) {
  for (const std::int64_t count : {0, 1, 1000, 70001}) {
    const AllReduceOptions options{AllReduceAlgorithm::Mpi, Wire::Float32, {}};
    const Sums sums = sum_over(comm, addend(comm.rank(), count), options);
    const Sums ordered = serial_sum(comm.size(), count);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const double magnitude = comm.size() * 0x1p31;  // of addend()
      CHECK(std::abs(sums[i] - ordered[i]) <= 2 * comm::wire_error_bound(comm.size(), options) * magnitude);
    }
    CHECK(same_everywhere(comm, sums));
    CHECK(same_bits(sums, sum_over(comm, addend(comm.rank(), count), options, 2)));
  }
}

inline void check_several_algorithms_in_flight(comm::Communicator& comm) {
  struct Running {
    AllReduceOptions options;
    Sums data;
    std::unique_ptr<comm::AllReduce> sum;
  };
  std::vector<Running> all;
  std::int64_t count = 3;
  for (const Wire wire : {Wire::Float32, Wire::BFloat16}) {
    for (const auto& named : kOurAlgorithms) {
      const AllReduceAlgorithm algorithm = named.algorithm;
      all.push_back({{algorithm, wire, nodes_of(comm.size(), 2, false)}, addend(comm.rank(), count), nullptr});
      count = count * 5 % 400009 + 1;
    }
  }
  for (Running& r : all) {
    r.sum = comm.make_all_reduce(r.data.data(), static_cast<std::int64_t>(r.data.size()), r.options);
  }
  // Started in the order made by even ranks, in the opposite order by odd ones.
  for (std::size_t i = 0; i < all.size(); ++i) all[comm.rank() % 2 == 0 ? i : all.size() - 1 - i].sum->start();
  const auto complete = [&] {
    bool done = true;
    for (Running& r : all) done &= r.sum->test();
    return done;
  };
  comm::wait_until(std::ref(complete), {"several all-reduces"});
  for (const Running& r : all) {
    CHECK(same_everywhere(comm, r.data));
    if (comm.rank() > 0) continue;
    const auto length = static_cast<std::int64_t>(r.data.size());
    CHECK(
        same_bits(r.data, serial_sums(comm.size(), length, r.options, [&](int rank) { return addend(rank, length); })));
  }
}

/// Values that are not finite reach every rank as such, also where they are rounded.
inline void check_not_finite(comm::Communicator& comm) {
  constexpr std::size_t kCount = 5;
  const float infinity = std::numeric_limits<float>::infinity();
  const int last = comm.size() - 1;
  for (const auto& named : kOurAlgorithms) {
    const char* const name = named.name;
    const AllReduceAlgorithm algorithm = named.algorithm;
    for (const Wire wire : {Wire::Float32, Wire::BFloat16}) {
      Sums data(kCount, 1.0F);
      if (comm.rank() == last) data = {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity, infinity, 1.0F};
      if (comm.rank() == 0 && last > 0) data[3] = -infinity;
      const Sums sums = sum_over(comm, data, {algorithm, wire, nodes_of(comm.size(), 2, false)});
      CAPTURE(name);
      CHECK(std::isnan(sums[0]));
      CHECK(sums[1] == infinity);
      CHECK(sums[2] == -infinity);
      CHECK(std::isnan(sums[3]) == (last > 0));
      CHECK(sums[4] == static_cast<float>(comm.size()));
      CHECK(same_everywhere(comm, sums));
    }
  }
}

/// The stated bound, on addends of both signs that nearly cancel; and that it is not far off.
inline void check_wire_errors(comm::Communicator& comm) {
  constexpr std::int64_t kCount = 20011;
  const int ranks = comm.size();
  const auto nearly_cancelling = [&](int rank) {
    Sums values = addend(rank, kCount);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = (rank % 2 == 0 ? 1.0F : -1.0F) * std::abs(values[i]);
    return values;
  };
  for (const auto& named : kOurAlgorithms) {
    const char* const name = named.name;
    const AllReduceAlgorithm algorithm = named.algorithm;
    for (const std::vector<int>& nodes : {std::vector<int>{}, nodes_of(ranks, 2, false)}) {
      const AllReduceOptions options{algorithm, Wire::BFloat16, nodes};
      const Sums sums = sum_over(comm, nearly_cancelling(comm.rank()), options);
      const double bound = comm::wire_error_bound(ranks, options);
      std::vector<double> exact(sums.size()), magnitude(sums.size());
      for (int r = 0; r < ranks; ++r) {
        const Sums values = nearly_cancelling(r);
        for (std::size_t i = 0; i < values.size(); ++i) {
          exact[i] += values[i];
          magnitude[i] += std::abs(values[i]);
        }
      }
      double worst = 0;
      for (std::size_t i = 0; i < sums.size(); ++i)
        worst = std::max(worst, std::abs(sums[i] - exact[i]) / magnitude[i]);
      CAPTURE(name);
      CHECK(worst <= bound);
      const bool rounds = ranks > 1 && !(algorithm == AllReduceAlgorithm::Hierarchy && (nodes.empty() || ranks == 2));
      if (rounds) CHECK(worst >= bound / 8);
    }
  }
}

}  // namespace trainer::test
