#include "exchange_keys.hpp"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "trainer/core/error.hpp"

namespace trainer::config {

namespace {

template <class E, std::size_t N>
using Words = std::array<std::pair<const char*, E>, N>;

constexpr Words<Exchange, 3> kExchanges = {
    {{"all_reduce", Exchange::AllReduce}, {"server", Exchange::Server}, {"local", Exchange::Local}}};
constexpr Words<Consistency, 3> kConsistencies = {
    {{"bsp", Consistency::Bsp}, {"ssp", Consistency::Ssp}, {"async", Consistency::Async}}};
constexpr Words<AllReduceAlgorithm, 6> kAlgorithms = {{{"auto", AllReduceAlgorithm::Automatic},
                                                       {"direct", AllReduceAlgorithm::Direct},
                                                       {"ring", AllReduceAlgorithm::Ring},
                                                       {"tree", AllReduceAlgorithm::Tree},
                                                       {"hierarchy", AllReduceAlgorithm::Hierarchy},
                                                       {"mpi", AllReduceAlgorithm::Mpi}}};
constexpr Words<Precision, 2> kWires = {{{"float32", Precision::Float32}, {"bfloat16", Precision::BFloat16}}};
constexpr Words<bool, 2> kResults = {{{"mean", false}, {"sum", true}}};
constexpr Words<Balance, 2> kBalances = {{{"even", Balance::Even}, {"auto", Balance::Auto}}};

constexpr std::int64_t kMostServers = 100'000;
constexpr std::int64_t kMostSteps = 1'000'000'000;
constexpr std::int64_t kMostElements = std::int64_t{1} << 40;
constexpr double kMostSeconds = 1e9;

template <class E, std::size_t N>
const char* word_of(const Words<E, N>& words, E wanted) {
  for (const auto& [word, value] : words) {
    if (value == wanted) return word;
  }
  return "";
}

double number_of(const Value& value) {
  if (const auto* integer = value.as<std::int64_t>()) return static_cast<double>(*integer);
  return *value.as<double>();
}

// A key whose field `at` finds: a function from Parallel& to T&.
template <class T, class At>
Key<Parallel> bind(const char* name, Rule rule, const char* help, At at, std::function<T(const Value&)> read,
                   std::function<Value(const T&)> write) {
  Parallel usual;
  return {{name, std::move(rule), help, "", write(at(usual))},
          [at, read](Parallel& p, const Value& v) { at(p) = read(v); },
          [at, write](const Parallel& p) { return write(at(const_cast<Parallel&>(p))); }};
}

template <class E, std::size_t N, class At>
Key<Parallel> choice(const char* name, const Words<E, N>& words, const char* help, At at) {
  Rule rule{.kind = Kind::Choice};
  for (const auto& [word, value] : words) rule.choices.emplace_back(word);
  return bind<E>(
      name, std::move(rule), help, at,
      [&words](const Value& v) {
        for (const auto& [word, value] : words) {
          if (*v.as<std::string>() == word) return value;
        }
        internal_error("a word that no key has");
      },
      [&words](const E& e) { return Value{std::string(word_of(words, e))}; });
}

template <class At>
Key<Parallel> integer(const char* name, std::int64_t least, std::int64_t most, const char* help, At at) {
  return bind<std::int64_t>(
      name, {.kind = Kind::Integer, .least = least, .most = most}, help, at,
      [](const Value& v) { return *v.as<std::int64_t>(); }, [](const std::int64_t& i) { return Value{i}; });
}

template <class At>
Key<Parallel> number(const char* name, Rule range, const char* help, At at) {
  range.kind = Kind::Number;
  return bind<double>(name, range, help, at, number_of, [](const double& d) { return Value{d}; });
}

template <class At>
Key<Parallel> boolean(const char* name, const char* help, At at) {
  return bind<bool>(
      name, {.kind = Kind::Boolean}, help, at, [](const Value& v) { return *v.as<bool>(); },
      [](const bool& b) { return Value{b}; });
}

Value list_of(const std::vector<double>& numbers) {
  Value list{Array{}};
  for (const double number : numbers) list.as<Array>()->emplace_back().data = number;
  return list;
}

Key<Parallel> injected_delay_key() {
  return bind<std::vector<double>>(
      "injected_delay", {.kind = Kind::Numbers, .high = 60'000},
      "for experiments: ms a sample, one number a replica, that it sleeps as if its machine were slower",
      [](Parallel& p) -> std::vector<double>& { return p.injected_delay; },
      [](const Value& v) {
        std::vector<double> list;
        for (const Value& each : *v.as<Array>()) list.push_back(number_of(each));
        return list;
      },
      list_of);
}

}  // namespace

std::vector<Key<Parallel>> exchange_keys() {
  return {
      choice("exchange", kExchanges,
             "how replicas come to one model: sums of gradients, parameter servers, or means of models now and then",
             [](Parallel& p) -> Exchange& { return p.exchange; }),
      choice("all_reduce.algorithm", kAlgorithms, "how sums of gradients travel; auto: by size, ranks and nodes",
             [](Parallel& p) -> AllReduceAlgorithm& { return p.all_reduce.algorithm; }),
      choice("all_reduce.wire", kWires, "what sums of gradients travel as; added in float32 always",
             [](Parallel& p) -> Precision& { return p.all_reduce.wire; }),
      choice("all_reduce.result", kResults, "mean of the replicas' gradients, or their sum: data times as much",
             [](Parallel& p) -> bool& { return p.all_reduce.sum; }),
      integer("all_reduce.bucket_elements", 1, kMostElements, "gradients that are summed together, at least",
              [](Parallel& p) -> std::int64_t& { return p.all_reduce.bucket_elements; }),
      boolean("delayed_gradients",
              "a step applies the gradients of the step before (staleness 1), whose sum runs behind it",
              [](Parallel& p) -> bool& { return p.delayed_gradients; }),
      integer("servers", 0, kMostServers, "exchange server: ranks that hold the parameters, outside the mesh; 0: 1",
              [](Parallel& p) -> std::int64_t& { return p.server.count; }),
      choice("consistency", kConsistencies,
             "exchange server: all together each step, at most staleness apart, or each at its own pace",
             [](Parallel& p) -> Consistency& { return p.server.consistency; }),
      integer("staleness", 0, kMostSteps, "ssp: updates that the fastest replica may be ahead of the slowest",
              [](Parallel& p) -> std::int64_t& { return p.server.staleness; }),
      boolean("notify", "exchange server: servers send new parameters to those that wait, unasked",
              [](Parallel& p) -> bool& { return p.server.notify; }),
      integer("backup", 0, kMostServers, "bsp: the slowest replicas of a step, whose gradients are left out",
              [](Parallel& p) -> std::int64_t& { return p.server.backup; }),
      number("timeout", {.high = kMostSeconds, .open_low = true},
             "exchange server: seconds of silence, longer than a batch takes, after which a replica is named and the "
             "run ends "
             "with code 6",
             [](Parallel& p) -> double& { return p.server.timeout; }),
      boolean("tasks", "exchange server: hands out ranges of samples and watches over them, each counted once",
              [](Parallel& p) -> bool& { return p.tasks; }),
      integer("task_batches", 1, kMostSteps, "tasks: batches of a replica in one task",
              [](Parallel& p) -> std::int64_t& { return p.task_batches; }),
      choice("balance", kBalances, "how replicas divide a batch: equal shares, or by their measured speed",
             [](Parallel& p) -> Balance& { return p.balance; }),
      integer("balance_every", 1, kMostSteps, "balance auto: steps between measurements",
              [](Parallel& p) -> std::int64_t& { return p.balance_every; }),
      integer("local.steps", 1, kMostSteps, "exchange local: steps that replicas make by themselves in a round",
              [](Parallel& p) -> std::int64_t& { return p.local.steps; }),
      number("local.outer_learning_rate", {.high = 10, .open_low = true},
             "exchange local: share of the replicas' mean change that is made; 1 with momentum 0 is local SGD",
             [](Parallel& p) -> double& { return p.local.outer_learning_rate; }),
      number("local.outer_momentum", {.high = 1, .open_high = true}, "exchange local: share of the last change kept",
             [](Parallel& p) -> double& { return p.local.outer_momentum; }),
      boolean("local.nesterov", "exchange local: the outer step looks ahead, as DiLoCo's",
              [](Parallel& p) -> bool& { return p.local.nesterov; }),
      injected_delay_key()};
}

namespace {

// A key that has another value than its default although what it belongs to was not asked for.
struct Stray {
  const char* key;
  bool set;
  bool fits;
  const char* belongs;  // "belongs to …"
};

void refuse_strays(const Config& config, const Origin& origin) {
  const Parallel& p = config.parallel;
  const Parallel usual;
  const bool served = p.exchange == Exchange::Server;
  const bool summed = p.exchange == Exchange::AllReduce;
  const bool local = p.exchange == Exchange::Local;
  const Consistency consistency = p.server.consistency;
  const std::array<Stray, 20> strays = {{
      {"servers", p.server.count > 0, served, "exchange \"server\""},
      {"consistency", consistency != usual.server.consistency, served, "exchange \"server\""},
      {"staleness", p.server.staleness != usual.server.staleness, served && consistency == Consistency::Ssp,
       "consistency \"ssp\" of exchange \"server\""},
      {"notify", p.server.notify, served, "exchange \"server\""},
      {"timeout", p.server.timeout != usual.server.timeout, served,
       "exchange \"server\" (training.hang_timeout is that of all others)"},
      {"backup", p.server.backup > 0, served && consistency == Consistency::Bsp,
       "consistency \"bsp\" of exchange \"server\", as only servers can leave a replica out of a step"},
      {"tasks", p.tasks, served && consistency != Consistency::Bsp,
       "consistency \"ssp\" or \"async\" of exchange \"server\", where replicas need not all have a share of each "
       "step"},
      {"task_batches", p.task_batches != usual.task_batches, p.tasks, "tasks true"},
      {"all_reduce.algorithm", p.all_reduce.algorithm != usual.all_reduce.algorithm, summed, "exchange \"all_reduce\""},
      {"all_reduce.wire", p.all_reduce.wire != usual.all_reduce.wire, summed, "exchange \"all_reduce\""},
      {"all_reduce.result", p.all_reduce.sum, summed, "exchange \"all_reduce\""},
      {"all_reduce.bucket_elements", p.all_reduce.bucket_elements != usual.all_reduce.bucket_elements, summed,
       "exchange \"all_reduce\""},
      {"delayed_gradients", p.delayed_gradients, summed,
       "exchange \"all_reduce\"; servers (\"async\") and local steps have a delay of their own"},
      {"compression.type", p.compression.type != CompressionType::None, summed,
       "exchange \"all_reduce\"; servers apply every gradient whole, and local steps exchange none"},
      {"balance", p.balance == Balance::Auto, summed,
       "exchange \"all_reduce\"; servers balance by handing out work (\"tasks\"), and local steps have equal shares"},
      {"balance_every", p.balance_every != usual.balance_every, p.balance == Balance::Auto, "balance \"auto\""},
      {"local.steps", p.local.steps != usual.local.steps, local, "exchange \"local\""},
      {"local.outer_learning_rate", p.local.outer_learning_rate != usual.local.outer_learning_rate, local,
       "exchange \"local\""},
      {"local.outer_momentum", p.local.outer_momentum != usual.local.outer_momentum, local, "exchange \"local\""},
      {"local.nesterov", p.local.nesterov != usual.local.nesterov, local, "exchange \"local\""},
  }};
  for (const Stray& stray : strays) {
    if (!stray.set || stray.fits) continue;
    const std::string path = fmt::format("parallel.{}", stray.key);
    origin.fail({path, "parallel.exchange", "parallel.consistency"},
                fmt::format("{} is set, but parallel.exchange is \"{}\"{}; it belongs to {}", path,
                            word_of(kExchanges, p.exchange),
                            served ? fmt::format(" with consistency \"{}\"", word_of(kConsistencies, consistency)) : "",
                            stray.belongs));
  }
}

}  // namespace

void complete_exchange(Config& config, const Origin& origin) {
  Parallel& p = config.parallel;
  refuse_strays(config, origin);
  if (p.exchange == Exchange::Server && p.server.count == 0) p.server.count = 1;
  const auto refuse = [&](std::vector<std::string> paths, const char* text) { origin.fail(paths, text); };
  if (config.training.optimistic_step && p.exchange != Exchange::AllReduce) {
    refuse(
        {"training.optimistic_step", "parallel.exchange"},
        "training.optimistic_step is true, but only exchange \"all_reduce\" has an agreement at the end of each step "
        "that it could run ahead of; expected false, or another parallel.exchange");
  }
  if (config.training.optimistic_step && p.delayed_gradients) {
    refuse({"training.optimistic_step", "parallel.delayed_gradients"},
           "training.optimistic_step and parallel.delayed_gradients are both true; a delayed gradient has long been "
           "agreed on when it is applied, so there is nothing to be optimistic about; take one of them");
  }
  const bool compressed = p.compression.type != CompressionType::None;
  if (compressed &&
      (p.all_reduce.algorithm != AllReduceAlgorithm::Automatic || p.all_reduce.wire != Precision::Float32)) {
    refuse({"parallel.all_reduce.algorithm", "parallel.all_reduce.wire", "parallel.compression.type"},
           "parallel.compression has messages of its own, which parallel.all_reduce.algorithm and wire do not change; "
           "leave these out, or the compression");
  }
  if (compressed && p.delayed_gradients) {
    refuse({"parallel.delayed_gradients", "parallel.compression.type"},
           "parallel.delayed_gradients is true with parallel.compression; what a compressor keeps back of a step comes "
           "from the exchange of the step before, which would still run; take one of them");
  }
  if (p.all_reduce.algorithm == AllReduceAlgorithm::Mpi && p.all_reduce.wire != Precision::Float32) {
    refuse({"parallel.all_reduce.algorithm", "parallel.all_reduce.wire"},
           "parallel.all_reduce.algorithm is \"mpi\" with wire \"bfloat16\", a type that MPI does not have; expected "
           "wire \"float32\", or another algorithm");
  }
  if (p.balance == Balance::Auto && (p.schedule == ScheduleName::File || p.schedule == ScheduleName::Automatic)) {
    origin.fail(
        {"parallel.balance", "parallel.schedule"},
        fmt::format("parallel.balance is \"auto\", but parallel.schedule is \"{}\", which is made for one number "
                    "of micro-batches; replicas that divide a batch by their speed need schedules for many: "
                    "take another schedule, or balance \"even\"",
                    name_of(p.schedule)));
  }
}

std::int64_t mesh_ranks(const Parallel& parallel, std::int64_t ranks) {
  const std::int64_t servers = parallel.exchange == Exchange::Server ? parallel.server.count : 0;
  if (servers < ranks) return ranks - servers;
  throw Error(ExitCode::Usage,
              fmt::format("parallel.servers is {}, but {} rank{} in all; servers are ranks of their own beside those "
                          "that compute: start at least {} (mpiexec -n {}), or take {}",
                          servers, ranks, ranks == 1 ? " was started" : "s were started", servers + 1, servers + 1,
                          ranks > 1 ? "fewer servers" : "another parallel.exchange"));
}

void check_replicas(const Parallel& parallel) {
  const auto refuse = [](const std::string& text) { throw Error(ExitCode::Usage, text); };
  const std::int64_t replicas = parallel.data;
  if (parallel.server.backup >= replicas) {
    if (parallel.server.backup == 0) return;
    refuse(
        fmt::format("parallel.backup is {}, but there are {} replicas (parallel.data), and a step needs one at least; "
                    "expected at most {}",
                    parallel.server.backup, replicas, replicas - 1));
  }
  const auto delays = static_cast<std::int64_t>(parallel.injected_delay.size());
  if (delays > 0 && delays != replicas) {
    refuse(
        fmt::format("parallel.injected_delay has {} numbers, but there are {} replicas (parallel.data); expected one "
                    "a replica",
                    delays, replicas));
  }
}

}  // namespace trainer::config
