// The packed bfloat16 matrix multiply: blocks of both operands are rounded and packed once, shared by all threads, then
// swept by the register tiles as in matmul_native.cpp. No cut of rows or columns changes a bit.
#include "matmul_bf16.hpp"

#include <algorithm>
#include <atomic>

#include "trainer/core/error.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::ops {

namespace {

using kernel::Bf16Kernel;
using kernel::Operand;
using kernel::TileRow;

constexpr std::int64_t kMaxWords = 2;        // ≥ Bf16Kernel::words of every kernel
constexpr std::int64_t kLine = 16;           // words of a cache line
constexpr std::int64_t kRowsAtOnce = 2048;   // of A packed at a time
constexpr std::int64_t kGroupWords = 32768;  // of B packed at a time by a thread: 128 KB of its level-2 cache
constexpr std::int64_t kRowsATask = 56;      // of A packed by one task where k runs along memory,
constexpr std::int64_t kColumnsATask = 504;  // or where it does not: long stretches of memory,
constexpr std::int64_t kDepthATask = 256;    // and as many k
constexpr double kWorthThreads = 2e5;        // FLOP

std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }
std::int64_t round_up(std::int64_t n, std::int64_t to) { return divide_up(n, to) * to; }

bool cpu_has_instruction() {
#if defined(__x86_64__)
  return isa_available(Isa::Avx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const Bf16Kernel* kernel_of(Isa isa, bool instruction) {
#if defined(__x86_64__)
  if (isa == Isa::Avx512) {
    return instruction && cpu_has_instruction() ? &kernel::kBf16Instruction : &kernel::kBf16Avx512;
  }
  if (isa == Isa::Avx2) return &kernel::kBf16Avx2;
#endif
  return isa == Isa::Portable ? &kernel::kBf16Portable : nullptr;
}

const Bf16Kernel* widest_kernel() {
  for (Isa isa : {Isa::Avx512, Isa::Avx2}) {
    if (isa_available(isa)) return kernel_of(isa, true);
  }
  return &kernel::kBf16Portable;
}

std::atomic<const Bf16Kernel*>& chosen_kernel() {
  static std::atomic<const Bf16Kernel*> chosen{widest_kernel()};
  return chosen;
}

/// What a workspace holds, in words. A kernel of two words a pair takes half as many rows and columns at once, so that
/// the sizes are every kernel's.
struct Capacity {
  std::int64_t pairs;        // of a k-block
  std::int64_t rows;         // of A, at one word a pair
  std::int64_t group_words;  // of B, for each thread

  explicit Capacity(const MatmulShape& shape)
      : pairs(divide_up(std::min(shape.k, kBlockKBFloat16), 2)),
        rows(std::clamp(shape.m, kMaxWords * kMaxRows, kRowsAtOnce)),
        group_words(round_up(std::min(kGroupWords, round_up(shape.n, kMaxPanel) * pairs * kMaxWords), kLine)) {}

  /// Between packed rows of A: an odd number of cache lines, so that rows do not share a set of a cache.
  std::int64_t row_step() const { return (divide_up(pairs, kLine) | 1) * kLine; }
  std::int64_t a_words() const { return (rows + kMaxWords * kMaxRows) * row_step(); }
};
static_assert(kGroupWords >= kMaxPanel * kBlockKBFloat16 / 2 * kMaxWords, "a group holds a panel");

/// One call.
struct Problem {
  const Bf16Kernel& kernel;
  const MatmulShape& shape;
  const float* a;
  const float* b;
  float* c;
  bool accumulate;
  const float* bias;
  Capacity capacity;
  float* packed_a;
  float* groups;  // of the threads, one behind the other

  bool a_by_k() const { return shape.layout == Layout::TN; }
  bool b_by_n() const { return shape.layout == Layout::NT; }
};

/// A range of k that is one chain.
struct Depth {
  std::int64_t begin;
  std::int64_t size;
  std::int64_t steps;  // packed
};

/// Rows of A that are packed at a time, and the tiles they make.
struct Rows {
  std::int64_t begin;
  std::int64_t size;
  std::int64_t height;  // of a tile; the last may be lower
  std::int64_t tiles() const { return divide_up(size, height); }
};

Rows rows_of(const Problem& problem, std::int64_t begin, std::int64_t size) {
  const std::int64_t height = divide_up(size, divide_up(size, problem.kernel.rows));
  return {begin, size, height};
}

/// Rows of k lie row after row in A as stored, or (TN) a tile is packed step after step.
Operand packed_tile(const Problem& problem, const Rows& rows, const Depth& depth, std::int64_t tile) {
  const std::int64_t first = tile * rows.height;
  if (problem.a_by_k()) return {problem.packed_a + first * depth.steps, 1, rows.height};
  const std::int64_t step = problem.kernel.words * problem.capacity.row_step();
  return {problem.packed_a + first * step, step, 1};
}

/// The packing of A cut into tasks: pieces of rows, and where k does not run along memory, pieces of k.
struct PackingOfA {
  std::int64_t rows;   // of a task
  std::int64_t depth;  // of a task
  std::int64_t row_pieces;
  std::int64_t tasks;

  PackingOfA(const Problem& problem, const Rows& all, const Depth& k)
      : rows(std::max<std::int64_t>(1, (problem.a_by_k() ? kColumnsATask : kRowsATask) / all.height) * all.height),
        depth(problem.a_by_k() ? kDepthATask : k.size),
        row_pieces(divide_up(all.size, rows)),
        tasks(row_pieces * divide_up(k.size, depth)) {}
};

void pack_a(const Problem& problem, const Rows& rows, const Depth& depth, const PackingOfA& packing,
            std::int64_t task) {
  const std::int64_t first = task % packing.row_pieces * packing.rows, k = task / packing.row_pieces * packing.depth;
  const std::int64_t count = std::min(packing.rows, rows.size - first), size = std::min(packing.depth, depth.size - k);
  const std::int64_t i = rows.begin + first, p = depth.begin + k, lda = problem.shape.lda;
  const Operand to = packed_tile(problem, rows, depth, first / rows.height);
  float* data = const_cast<float*>(to.data);
  if (problem.a_by_k()) {
    problem.kernel.pack_columns(problem.a + p * lda + i, lda, count, size, rows.height, depth.steps * rows.height,
                                false, data + k / 2 * problem.kernel.words * rows.height);
  } else {
    problem.kernel.convert_rows(problem.a + i * lda + p, lda, count, size, to.step, data);
  }
}

/// C cut into tasks: groups of panels of B, which a task packs itself, so that they lie in the cache of the thread that
/// needs them, times parts of the rows.
struct Cut {
  std::int64_t panels;
  std::int64_t groups;
  std::int64_t tiles;  // of a part
  std::int64_t parts;

  Cut(const Problem& problem, const Rows& rows, const Depth& depth, int threads)
      : panels(divide_up(problem.shape.n, problem.kernel.panel)) {
    const std::int64_t most = problem.capacity.group_words / (depth.steps * problem.kernel.panel);
    // Whole rounds of all threads.
    groups = std::min(panels, round_up(divide_up(panels, most), threads));
    parts = std::min(rows.tiles(), divide_up(threads, groups));
    tiles = divide_up(rows.tiles(), parts);
    parts = divide_up(rows.tiles(), tiles);
  }
  std::int64_t tasks() const { return groups * parts; }
  std::int64_t group(std::int64_t task) const { return task / parts; }
  std::int64_t first_panel(std::int64_t group) const { return panels * group / groups; }
};

/// Columns of C and B.
struct Columns {
  std::int64_t begin;
  std::int64_t end;
};

Columns columns_of(const Problem& problem, const Cut& cut, std::int64_t group) {
  const std::int64_t panel = problem.kernel.panel;
  return {cut.first_panel(group) * panel, std::min(cut.first_panel(group + 1) * panel, problem.shape.n)};
}

/// What one group packs of B, as it lies there.
struct Source {
  const float* data;
  std::int64_t step;  // between rows
  std::int64_t rows;  // columns (NT) or k
  std::int64_t columns;
};

Source source_of(const Problem& problem, const Depth& depth, Columns columns) {
  const std::int64_t ldb = problem.shape.ldb, j = columns.begin, count = columns.end - columns.begin;
  if (problem.b_by_n()) return {problem.b + j * ldb + depth.begin, ldb, count, depth.size};
  return {problem.b + depth.begin * ldb + j, ldb, depth.size, count};
}

/// Fetches a source from memory while the multiply leaves it idle, a few lines at a time: cores drop what is asked for
/// in one burst.
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const Source& source, std::int64_t turns)
      : source_(source), lines_a_turn_(divide_up(source.rows * divide_up(source.columns, kLine), turns)) {}

  void turn() {
    for (std::int64_t i = 0; i < lines_a_turn_ && source_.rows > 0; ++i) {
      __builtin_prefetch(source_.data + column_, 0, 2);
      column_ += kLine;
      if (column_ < source_.columns) continue;
      column_ = 0;
      source_.data += source_.step;
      --source_.rows;
    }
  }

 private:
  Source source_{};
  std::int64_t lines_a_turn_ = 0;
  std::int64_t column_ = 0;
};

void pack_b(const Problem& problem, const Source& source, const Depth& depth, float* packed) {
  if (problem.b_by_n()) {
    problem.kernel.pack_transposed(source.data, source.step, source.rows, source.columns, packed);
  } else {
    const std::int64_t panel = problem.kernel.panel;
    problem.kernel.pack_columns(source.data, source.step, source.columns, source.rows, panel, depth.steps * panel, true,
                                packed);
  }
}

/// `next` is the task that this thread will probably do after it.
void multiply_task(const Problem& problem, const Rows& rows, const Depth& depth, const Cut& cut, std::int64_t task,
                   std::int64_t next, float* packed) {
  const MatmulShape& shape = problem.shape;
  const std::int64_t panel = problem.kernel.panel, group = cut.group(task);
  const Columns columns = columns_of(problem, cut, group);
  pack_b(problem, source_of(problem, depth, columns), depth, packed);
  const std::int64_t begin = task % cut.parts * cut.tiles, end = std::min(begin + cut.tiles, rows.tiles());
  Prefetch prefetch;
  if (next < cut.tasks() && cut.group(next) != group) {
    prefetch = Prefetch(source_of(problem, depth, columns_of(problem, cut, cut.group(next))),
                        (end - begin) * (cut.first_panel(group + 1) - cut.first_panel(group)));
  }
  const bool last = depth.begin + depth.size == shape.k;
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t i = tile * rows.height;
    TileRow work{.a = packed_tile(problem, rows, depth, tile),
                 .b = packed,
                 .b_step = depth.steps * panel,
                 .c = problem.c + (rows.begin + i) * shape.ldc + columns.begin,
                 .ldc = shape.ldc,
                 .bias = last && problem.bias != nullptr ? problem.bias + columns.begin : nullptr,
                 .rows = std::min(rows.height, rows.size - i),
                 .columns = panel,
                 .k = depth.steps,
                 .add = problem.accumulate || depth.begin > 0,
                 .next_a = nullptr};
    for (std::int64_t j = columns.begin; j < columns.end; j += panel) {
      work.columns = std::min(panel, columns.end - j);
      problem.kernel.multiply(work);
      work.b += work.b_step;
      work.c += panel;
      if (work.bias != nullptr) work.bias += panel;
      prefetch.turn();
    }
  }
}

/// Runs the loop on the calling thread, as a pool of one.
struct Serial {
  int threads() const { return 1; }
  template <class Body>
  void for_each(std::int64_t count, const Body& body) {
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  }
};

template <class Team>
void multiply(Team& team, const Problem& problem) {
  const MatmulShape& shape = problem.shape;
  const std::int64_t rows_at_once = problem.capacity.rows / problem.kernel.words;
  for (std::int64_t p = 0; p < shape.k; p += kBlockKBFloat16) {
    const std::int64_t size = std::min(kBlockKBFloat16, shape.k - p);
    const Depth depth{p, size, divide_up(size, 2) * problem.kernel.words};
    for (std::int64_t i = 0; i < shape.m; i += rows_at_once) {
      const Rows rows = rows_of(problem, i, std::min(rows_at_once, shape.m - i));
      const PackingOfA packing(problem, rows, depth);
      team.for_each(packing.tasks, [&](std::int64_t task, int) { pack_a(problem, rows, depth, packing, task); });
      const Cut cut(problem, rows, depth, team.threads());
      team.for_each(cut.tasks(), [&](std::int64_t task, int thread) {
        multiply_task(problem, rows, depth, cut, task, task + team.threads(),
                      problem.groups + thread * problem.capacity.group_words);
      });
    }
  }
}

}  // namespace

bool has_bfloat16() { return bf16_kernel().instruction; }

void set_bf16_kernel(Isa isa, bool instruction) {
  if (!isa_available(isa)) internal_error("a matrix multiply kernel was set that this CPU cannot run");
  chosen_kernel().store(kernel_of(isa, instruction), std::memory_order_relaxed);
}

const kernel::Bf16Kernel& bf16_kernel() { return *chosen_kernel().load(std::memory_order_relaxed); }

std::size_t bf16_workspace_bytes(const MatmulShape& shape, int threads) {
  const Capacity capacity(shape);
  return static_cast<std::size_t>(capacity.a_words() + threads * capacity.group_words) * sizeof(float) +
         Buffer::kAlignment;
}

void bf16_matmul(ThreadPool* pool, const MatmulShape& shape, const float* a, const float* b, float* c, bool accumulate,
                 const float* bias, std::byte* workspace) {
  if (shape.m <= 0 || shape.n <= 0) return;
  const Capacity capacity(shape);
  float* aligned = reinterpret_cast<float*>(align_up(reinterpret_cast<std::uintptr_t>(workspace)));
  const Problem problem{bf16_kernel(), shape, a,        b,       c,
                        accumulate,    bias,  capacity, aligned, aligned + capacity.a_words()};
  const double flops = 2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  if (pool == nullptr || pool->threads() == 1 || flops < kWorthThreads) {
    Serial serial;
    multiply(serial, problem);
  } else {
    multiply(*pool, problem);
  }
}

}  // namespace trainer::ops
