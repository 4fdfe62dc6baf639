// parallel.compression over ranks as threads: the exchange against the same replicas one after the other, with ==; runs
// in several layouts, interrupted and resumed ones.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "support/compression_cases.hpp"
#include "trainer/comm/topology.hpp"
#include "trainer/core/error.hpp"
#include "trainer/core/random.hpp"
#include "trainer/runtime/compressed_exchange.hpp"

using namespace trainer;

namespace {

using Gradient = std::vector<float>;

using test::case_of;
using test::kCompressions;
using test::keys_of;
using test::plan_of;

bool same_bits(const Gradient& a, const Gradient& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// ---- the exchange alone -----------------------------------------------------------------------------------------

// Element i of a replica's gradient memory in a step.
float gradient_at(int replica, std::int64_t step, std::int64_t i) {
  const RandomStream stream(static_cast<std::uint64_t>(step), "gradient");
  return stream.normal(static_cast<std::uint64_t>(replica) * 100'000 + static_cast<std::uint64_t>(i));
}

struct Rounds {
  std::int64_t steps = 4;
  bool one_bucket = false;
  int bad_replica = -1;  // has a NaN in the last step, in element `bad_element`
  std::int64_t bad_element = 0;
  comm::SendMode mode = comm::SendMode::Eager;
  std::uint64_t fault_seed = 0;
};

struct Exchanged {
  std::vector<std::vector<Gradient>> after;  // [replica][step]
  std::vector<std::int64_t> sent;            // [replica]
};

std::vector<Range> buckets_of(const runtime::ParameterLayout& layout, bool one) {
  const auto end = static_cast<std::int64_t>(layout.gradient_elements);
  if (one) return {{0, end}};
  std::vector<Range> buckets;
  for (const NodeId node : layout.gradient_order) {
    const auto begin = static_cast<std::int64_t>(layout.of_node[node.index()].front().gradient);
    if (!buckets.empty()) buckets.back().end = begin;
    buckets.push_back({begin, end});
  }
  return buckets;
}

Exchanged exchange(const test::Case& c, const Rounds& rounds) {
  const runtime::RunPlan plan = plan_of(c);
  Exchanged result;
  result.after.resize(static_cast<std::size_t>(c.data));
  result.sent.resize(static_cast<std::size_t>(c.data));
  std::mutex lock;
  comm::run_in_process(
      static_cast<int>(c.data),
      [&](comm::Communicator& inner) {
        const auto faulty = rounds.fault_seed == 0 ? nullptr : comm::make_faulty(inner, rounds.fault_seed, 0.0003);
        comm::Communicator& data = faulty ? *faulty : inner;
        const plan::Coordinates at = plan.mesh.coordinates(data.rank());
        runtime::Parameters parameters(runtime::lay_out_parameters(plan, plan::shard(plan.graph, 1, 0), at), true, 0);
        runtime::CompressedExchange exchange(plan, at, parameters, data);
        std::vector<comm::AllReduce*> buckets;
        for (const Range range : buckets_of(parameters.layout(), rounds.one_bucket))
          buckets.push_back(&exchange.make_bucket(range));
        const auto elements = static_cast<std::int64_t>(parameters.layout().gradient_elements);
        std::vector<Gradient> after;
        for (std::int64_t step = 1; step <= rounds.steps; ++step) {
          exchange.begin_step(step);
          for (std::int64_t i = 0; i < elements; ++i) parameters.gradients()[i] = gradient_at(data.rank(), step, i);
          if (step == rounds.steps && data.rank() == rounds.bad_replica) {
            parameters.gradients()[rounds.bad_element] = std::numeric_limits<float>::quiet_NaN();
          }
          for (comm::AllReduce* bucket : buckets) bucket->start();
          for (comm::AllReduce* bucket : buckets) comm::wait(*bucket, {"a compressed bucket"});
          after.emplace_back(parameters.gradients(), parameters.gradients() + elements);
        }
        data.barrier();
        const std::lock_guard guard(lock);
        result.after[static_cast<std::size_t>(data.rank())] = std::move(after);
        result.sent[static_cast<std::size_t>(data.rank())] = exchange.sent_bytes();
      },
      rounds.mode);
  return result;
}

// ---- the same, one replica after the other ----------------------------------------------------------------------

struct Serial {
  const config::Compression& compression;
  std::uint64_t seed;
  std::string name;
  std::int64_t rows, columns;  // 0: no matrix
  std::vector<Gradient> errors;
  Gradient factor;

  Gradient plain(const std::vector<Gradient>& a) const {
    Gradient sum = a[0];
    for (std::size_t r = 1; r < a.size(); ++r) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += a[r][i];
    }
    return sum;
  }

  Gradient sparse(std::vector<Gradient>& a, std::int64_t step) {
    const std::size_t n = a[0].size();
    const auto k = static_cast<std::size_t>(std::ceil(compression.ratio * static_cast<double>(n)));
    const bool random = compression.type == config::CompressionType::RandomK;
    Gradient sum(n, 0.0f);
    for (std::size_t r = 0; r < a.size(); ++r) {
      std::vector<std::uint32_t> order(n);
      for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint32_t>(i);
      if (random) {
        order.resize(k);
        optim::random_k(seed, name, step, static_cast<std::int64_t>(n), order);
      } else {
        std::stable_sort(order.begin(), order.end(),
                         [&](auto x, auto y) { return std::abs(a[r][x]) > std::abs(a[r][y]); });
        order.resize(k);
      }
      const float scale = random && !compression.error_feedback
                              ? static_cast<float>(static_cast<double>(n) / static_cast<double>(k))
                              : 1.0f;
      for (const auto i : order) {
        sum[i] += scale * a[r][i];
        if (compression.error_feedback) a[r][i] = 0;
      }
      if (compression.error_feedback) errors[r] = a[r];
    }
    return sum;
  }

  Gradient vote(const std::vector<Gradient>& a) const {
    float scale = 0;
    for (const Gradient& g : a) {
      double sum = 0;
      for (const float x : g) sum += std::abs(static_cast<double>(x));
      scale += static_cast<float>(sum / static_cast<double>(g.size()));
    }
    Gradient result(a[0].size());
    for (std::size_t i = 0; i < result.size(); ++i) {
      int votes = 0;
      for (const Gradient& g : a) votes += std::signbit(g[i]) ? -1 : 1;
      result[i] = votes > 0 ? scale : votes < 0 ? -scale : 0.0f;
    }
    return result;
  }

  static Gradient rounded(const Gradient& g) {
    std::vector<std::byte> wire(optim::int8_bytes(static_cast<std::int64_t>(g.size())));
    optim::encode_int8(g, wire);
    Gradient decoded(g.size());
    optim::decode_int8(wire, false, decoded);
    return decoded;
  }

  Gradient power(const std::vector<Gradient>& a) {
    const optim::PowerShape shape{rows, columns, std::min({compression.rank, rows, columns})};
    if (factor.empty()) {
      factor.resize(static_cast<std::size_t>(shape.q_elements()));
      optim::first_factor(seed, name, shape, factor);
    }
    std::vector<Gradient> parts(a.size(), Gradient(static_cast<std::size_t>(shape.p_elements())));
    for (std::size_t r = 0; r < a.size(); ++r) optim::project(shape, a[r], factor, parts[r]);
    Gradient p = plain(parts);
    optim::orthonormalise(shape, p);
    parts.assign(a.size(), Gradient(factor.size()));
    for (std::size_t r = 0; r < a.size(); ++r) optim::project_back(shape, a[r], p, parts[r]);
    factor = plain(parts);
    Gradient result(a[0].size());
    optim::restore(shape, p, factor, result);
    for (std::size_t r = 0; r < a.size() && compression.error_feedback; ++r) {
      for (std::size_t i = 0; i < result.size(); ++i) {
        errors[r][i] = a[r][i] - 1.0f / static_cast<float>(a.size()) * result[i];
      }
    }
    return result;
  }

  Gradient step(std::vector<Gradient> a, std::int64_t number) {
    errors.resize(a.size(), Gradient(a[0].size(), 0.0f));
    for (std::size_t r = 0; r < a.size(); ++r) {
      for (std::size_t i = 0; i < a[r].size(); ++i) a[r][i] += errors[r][i];
    }
    switch (compression.type) {
      case config::CompressionType::TopK:
      case config::CompressionType::RandomK:
        return sparse(a, number);
      case config::CompressionType::Sign:
        return vote(a);
      case config::CompressionType::Int8: {
        for (Gradient& g : a) g = rounded(g);
        return rounded(plain(a));
      }
      case config::CompressionType::PowerSgd:
        return rows > 0 ? power(a) : plain(a);
      case config::CompressionType::None:
        break;
    }
    return plain(a);
  }
};

void check_against_serial(const test::Case& c, const Rounds& rounds) {
  const runtime::RunPlan plan = plan_of(c);
  const Exchanged result = exchange(c, rounds);
  const runtime::ParameterLayout layout =
      runtime::lay_out_parameters(plan, plan::shard(plan.graph, 1, 0), plan.mesh.coordinates(0));
  int compressed = 0;
  for (const runtime::HeldParameter& held : layout.held) {
    const model::Parameter& parameter = plan.graph.parameters[held.id.index()];
    config::Compression compression = plan.config.parallel.compression;
    if (!runtime::wants_compression(plan, held.id)) compression.type = config::CompressionType::None;
    compressed += compression.type != config::CompressionType::None ? 1 : 0;
    const bool matrix = parameter.shape.dims() == 2;
    Serial serial{compression,
                  plan.config.training.seed,
                  "compression/0/" + parameter.name,
                  matrix ? parameter.shape[0] : 0,
                  matrix ? parameter.shape[1] : 0,
                  {},
                  {}};
    const std::size_t begin = held.gradients.front();
    for (std::int64_t step = 1; step <= rounds.steps; ++step) {
      std::vector<Gradient> given(static_cast<std::size_t>(c.data));
      for (std::size_t r = 0; r < given.size(); ++r) {
        for (std::int64_t i = 0; i < held.elements; ++i) {
          given[r].push_back(gradient_at(static_cast<int>(r), step, static_cast<std::int64_t>(begin) + i));
        }
      }
      const Gradient expected = serial.step(given, step);
      for (const auto& after : result.after) {
        const auto first = after[static_cast<std::size_t>(step - 1)].begin() + static_cast<std::ptrdiff_t>(begin);
        CHECK(Gradient(first, first + held.elements) == expected);
      }
    }
  }
  CHECK(compressed >= 3);
}

}  // namespace

TEST_CASE("what replicas exchange is what a serial simulation of them gives, bit for bit") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string& type : kCompressions) {
    for (const std::int64_t replicas : {2, 3, 5}) {
      const bool kept = type == "top_k" || type == "random_k" || type == "power_sgd";
      for (const std::string& more : {std::string(), std::string(";parallel.compression.error_feedback=false")}) {
        if (!kept && !more.empty()) continue;
        const test::Case c = case_of("mlp", replicas, 1, 1, keys_of(type, more) + ";training.batch_size=120");
        CAPTURE(c.name());
        check_against_serial(c, {});
        if (more.empty()) {
          check_against_serial(c, {.one_bucket = true, .mode = comm::SendMode::Rendezvous, .fault_seed = 5});
        }
      }
    }
  }
}

TEST_CASE("everything kept is the plain sum, bit for bit") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string type : {"top_k", "random_k"}) {
    const test::Case c =
        case_of("mlp", 3, 1, 1, keys_of(type, ";parallel.compression.ratio=1;training.batch_size=120"));
    CAPTURE(c.name());
    const Exchanged result = exchange(c, {});
    for (std::int64_t step = 1; step <= 4; ++step) {
      Gradient expected(result.after[0][0].size());
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        expected[i] = gradient_at(0, step, at) + gradient_at(1, step, at) + gradient_at(2, step, at);
      }
      // Between parameters lies what nobody reads.
      const runtime::RunPlan plan = plan_of(c);
      const auto layout = runtime::lay_out_parameters(plan, plan::shard(plan.graph, 1, 0), plan.mesh.coordinates(0));
      for (const auto& after : result.after) {
        for (const runtime::HeldParameter& held : layout.held) {
          const auto begin = static_cast<std::ptrdiff_t>(held.gradients.front());
          const auto end = begin + held.elements;
          const Gradient& got = after[static_cast<std::size_t>(step - 1)];
          CHECK(
              same_bits({got.begin() + begin, got.begin() + end}, {expected.begin() + begin, expected.begin() + end}));
        }
      }
    }
  }
}

TEST_CASE("a NaN of one replica reaches all of them") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  for (const std::string& type : kCompressions) {
    const test::Case c = case_of("mlp", 3, 1, 1, keys_of(type, ";training.batch_size=120"));
    CAPTURE(c.name());
    const runtime::RunPlan plan = plan_of(c);
    const auto layout = runtime::lay_out_parameters(plan, plan::shard(plan.graph, 1, 0), plan.mesh.coordinates(0));
    for (const runtime::HeldParameter& held : layout.held) {
      for (const std::int64_t element : {std::int64_t{0}, held.elements / 2, held.elements - 1}) {
        const auto begin = static_cast<std::ptrdiff_t>(held.gradients.front());
        const Exchanged result = exchange(c, {.steps = 2, .bad_replica = 1, .bad_element = begin + element});
        for (const auto& after : result.after) {
          const auto first = after[1].begin() + begin;
          CHECK(std::any_of(first, first + held.elements, [](float x) { return std::isnan(x); }));
          CHECK(std::none_of(after[0].begin(), after[0].end(), [](float x) { return std::isnan(x); }));
        }
      }
    }
  }
}

TEST_CASE("bytes that are sent are those of the wire formats") {
  comm::set_wait_policy({.yield = true, .hang_seconds = 60, .progress = {}});
  // 13·29 + 29·17 + 17·23 + 23·7 elements in matrices; biases and what is smaller than 100 are summed as they are.
  const std::int64_t biases = (29 + 17 + 23 + 7) * 4;
  const auto sent = [&](const std::string& type) {
    const Exchanged result = exchange(case_of("mlp", 2, 1, 1, keys_of(type, ";training.batch_size=120")), {.steps = 1});
    CHECK(result.sent[0] == result.sent[1]);
    return result.sent[0];
  };
  // Two replicas trade whole buffers. 0.1 of 377, 493, 391 and 161 elements, rounded up: 38, 50, 40, 17.
  CHECK(sent("top_k") == biases + 8 * (38 + 50 + 40 + 17));
  CHECK(sent("random_k") == biases + 4 * (38 + 50 + 40 + 17));
  // A float and a bit an element, in whole floats; 7 blocks of a float and 256 bytes, traded and handed out.
  CHECK(sent("sign") == biases + 52 + 68 + 56 + 28);
  CHECK(sent("int8") == biases + 7 * 260);
  CHECK(sent("power_sgd") == biases + 4 * 2 * (13 + 29 + 29 + 17 + 17 + 23 + 23 + 7));
}

TEST_CASE("a compression that would compress nothing, or names nothing, is refused") {
  const auto message = [](const test::Case& c) -> std::string {
    try {
      runtime::require_compression(plan_of(c));
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Usage);
      return error.what();
    }
    return "";
  };
  CHECK(message(case_of("mlp", 2, 1, 1, keys_of("top_k"))).empty());
  CHECK(
      message(case_of("mlp", 1, 1, 1, keys_of("top_k"))) ==
      "parallel.compression: there is one replica (parallel.data is 1), which sends its gradients to nobody; expected "
      "parallel.data of 2 or more, or the type \"none\"");
  CHECK(message(case_of("mlp", 2, 1, 1, "parallel.compression.type=int8")) ==
        "parallel.compression: no parameter is compressed: of those that could be the largest has 493 elements, and "
        "parallel.compression.min_elements is 4096; smaller min_elements or other layers would work");
  const test::Case gpt = case_of("gpt tied", 2, 1, 1, keys_of("sign", ";parallel.compression.layers=[\"h.*.mlp\"]"));
  CHECK(message(gpt).empty());
  const runtime::RunPlan plan = plan_of(gpt);
  for (std::size_t p = 0; p < plan.graph.parameters.size(); ++p) {
    const model::Parameter& parameter = plan.graph.parameters[p];
    const bool mlp = parameter.name.find(".mlp.") != std::string::npos && parameter.shape.elements() >= 100;
    CHECK(runtime::wants_compression(plan, ParameterId(static_cast<std::int64_t>(p))) == mlp);
  }
  const std::string typo =
      message(case_of("gpt tied", 2, 1, 1, keys_of("sign", ";parallel.compression.layers=[\"h.0.mpl\"]")));
  CHECK(typo.starts_with("parallel.compression.layers[0] is \"h.0.mpl\", which fits no parameter of this model;"));
  CHECK(typo.ends_with("did you mean \"h.0.mlp\"?"));
}
