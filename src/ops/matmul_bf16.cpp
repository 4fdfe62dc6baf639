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

constexpr std::int64_t kMaxWords = 2;           // ≥ Bf16Kernel::words
constexpr std::int64_t kLine = 16;              // words of a cache line
constexpr std::int64_t kRowsAtOnce = 2048;      // of A packed at a time
constexpr std::int64_t kColumnsAtOnce = 2048;   // of B packed at a time: 3 MB, level-3 cache
constexpr std::int64_t kColumnsInLevel2 = 384;  // of them swept by one task: 0.6 MB
constexpr std::int64_t kFewRows = 96;           // up to here a thread packs one panel of B and sweeps all rows
constexpr std::int64_t kRowsATask = 56;         // packed by one task where k runs along memory,
constexpr std::int64_t kColumnsATask = 504;     // or where it does not: long stretches of memory,
constexpr std::int64_t kDepthATask = 256;       // and as many k
constexpr double kWorthThreads = 2e5;           // FLOP

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
  std::int64_t pairs;    // of a k-block
  std::int64_t rows;     // of A, at one word a pair
  std::int64_t columns;  // of B, at one word a pair

  explicit Capacity(const MatmulShape& shape)
      : pairs(divide_up(std::min(shape.k, kBlockKBFloat16), 2)),
        rows(std::clamp(shape.m, kMaxWords * kMaxRows, kRowsAtOnce)),
        columns(std::clamp(round_up(shape.n, kMaxPanel), kMaxWords * kMaxPanel, kColumnsAtOnce)) {}

  /// Between packed rows of A: an odd number of cache lines, so that rows do not share a set of a cache.
  std::int64_t row_step() const { return (divide_up(pairs, kLine) | 1) * kLine; }
  std::int64_t a_words() const { return (rows + kMaxWords * kMaxRows) * row_step(); }
  std::int64_t panel_words() const { return round_up(kMaxWords * kMaxPanel * pairs, kLine); }
  std::int64_t b_words(int threads) const { return std::max(columns * pairs, threads * panel_words()); }
};

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
  float* packed_b;  // or the panels of the threads, where rows are few

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

std::int64_t steps_of(const Problem& problem, std::int64_t k) { return divide_up(k, 2) * problem.kernel.words; }

/// Rows of k lie row after row in A as stored, or (TN) a tile is packed step after step.
Operand packed_tile(const Problem& problem, const Rows& rows, const Depth& depth, std::int64_t tile) {
  const std::int64_t first = tile * rows.height;
  if (problem.a_by_k()) return {problem.packed_a + first * depth.steps, 1, rows.height};
  const std::int64_t step = problem.kernel.words * problem.capacity.row_step();
  return {problem.packed_a + first * step, step, 1};
}

/// Packing cut into tasks: pieces of rows or columns, and where k does not run along memory, pieces of k.
struct Cut {
  std::int64_t size;   // rows or columns in all
  std::int64_t piece;  // of them in a task
  std::int64_t depth;  // in all
  std::int64_t depth_piece;

  Cut(std::int64_t count, std::int64_t tile, bool along_memory, const Depth& k)
      : size(count),
        piece(std::max<std::int64_t>(1, (along_memory ? kRowsATask : kColumnsATask) / tile) * tile),
        depth(k.size),
        depth_piece(along_memory ? k.size : kDepthATask) {}

  std::int64_t tasks() const { return divide_up(size, piece) * divide_up(depth, depth_piece); }
  std::int64_t begin(std::int64_t task) const { return task % divide_up(size, piece) * piece; }
  std::int64_t count(std::int64_t task) const { return std::min(piece, size - begin(task)); }
  std::int64_t depth_begin(std::int64_t task) const { return task / divide_up(size, piece) * depth_piece; }
  std::int64_t depth_count(std::int64_t task) const { return std::min(depth_piece, depth - depth_begin(task)); }
};

Cut cut_a(const Problem& problem, const Rows& rows, const Depth& depth) {
  return {rows.size, rows.height, !problem.a_by_k(), depth};
}

void pack_a(const Problem& problem, const Rows& rows, const Depth& depth, const Cut& cut, std::int64_t task) {
  const std::int64_t first = cut.begin(task), count = cut.count(task), size = cut.depth_count(task);
  const std::int64_t i = rows.begin + first, p = depth.begin + cut.depth_begin(task), lda = problem.shape.lda;
  const Operand to = packed_tile(problem, rows, depth, first / rows.height);
  float* data = const_cast<float*>(to.data);
  if (problem.a_by_k()) {
    problem.kernel.pack_columns(problem.a + p * lda + i, lda, count, size, rows.height, depth.steps * rows.height,
                                false, data + steps_of(problem, cut.depth_begin(task)) * rows.height);
  } else {
    problem.kernel.convert_rows(problem.a + i * lda + p, lda, count, size, to.step, data);
  }
}

/// Of columns from j on, into panels.
void pack_b(const Problem& problem, std::int64_t j, const Depth& depth, const Cut& cut, std::int64_t task, float* to) {
  const std::int64_t ldb = problem.shape.ldb, first = cut.begin(task), count = cut.count(task);
  const std::int64_t p = depth.begin + cut.depth_begin(task), panel = problem.kernel.panel;
  to += first * depth.steps;
  if (problem.b_by_n()) {
    problem.kernel.pack_transposed(problem.b + (j + first) * ldb + p, ldb, count, cut.depth_count(task), to);
  } else {
    problem.kernel.pack_columns(problem.b + p * ldb + j + first, ldb, count, cut.depth_count(task), panel,
                                depth.steps * panel, true, to + steps_of(problem, cut.depth_begin(task)) * panel);
  }
}

void multiply_tiles(const Problem& problem, const Rows& rows, const Depth& depth, std::int64_t tile,
                    const float* panels, std::int64_t j, std::int64_t columns) {
  const MatmulShape& shape = problem.shape;
  const bool last = depth.begin + depth.size == shape.k;
  const std::int64_t i = tile * rows.height;
  problem.kernel.multiply(TileRow{.a = packed_tile(problem, rows, depth, tile),
                                  .b = panels,
                                  .b_step = depth.steps * problem.kernel.panel,
                                  .c = problem.c + (rows.begin + i) * shape.ldc + j,
                                  .ldc = shape.ldc,
                                  .bias = last && problem.bias != nullptr ? problem.bias + j : nullptr,
                                  .rows = std::min(rows.height, rows.size - i),
                                  .columns = columns,
                                  .k = depth.steps,
                                  .add = problem.accumulate || depth.begin > 0});
}

/// Runs the loop on the calling thread, as a pool of one.
struct Serial {
  int threads() const { return 1; }
  template <class Body>
  void for_each(std::int64_t count, const Body& body) {
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  }
};

/// Few rows: each task packs one panel of B for itself and sweeps all rows with it.
template <class Team>
void multiply_few_rows(Team& team, const Problem& problem, const Rows& rows, const Depth& depth) {
  const Cut cut = cut_a(problem, rows, depth);
  for (std::int64_t task = 0; task < cut.tasks(); ++task) pack_a(problem, rows, depth, cut, task);
  const std::int64_t panel = problem.kernel.panel;
  team.for_each(divide_up(problem.shape.n, panel), [&](std::int64_t index, int thread) {
    float* packed = problem.packed_b + thread * problem.capacity.panel_words();
    const std::int64_t j = index * panel;
    const std::int64_t columns = std::min(panel, problem.shape.n - j);
    const Cut whole(columns, columns, problem.b_by_n(), depth);
    for (std::int64_t task = 0; task < whole.tasks(); ++task) pack_b(problem, j, depth, whole, task, packed);
    for (std::int64_t tile = 0; tile < rows.tiles(); ++tile) {
      multiply_tiles(problem, rows, depth, tile, packed, j, columns);
    }
  });
}

/// All threads pack what is not packed yet, then share out the rows of tiles.
template <class Team>
void multiply_block(Team& team, const Problem& problem, const Rows& rows, bool new_rows, std::int64_t j,
                    std::int64_t columns, const Depth& depth) {
  const std::int64_t panel = problem.kernel.panel;
  const Cut a = cut_a(problem, rows, depth), b(columns, panel, problem.b_by_n(), depth);
  const std::int64_t a_tasks = new_rows ? a.tasks() : 0;
  team.for_each(a_tasks + b.tasks(), [&](std::int64_t task, int) {
    if (task < a_tasks) {
      pack_a(problem, rows, depth, a, task);
    } else {
      pack_b(problem, j, depth, b, task - a_tasks, problem.packed_b);
    }
  });

  const std::int64_t panels = divide_up(columns, panel);
  std::int64_t groups = divide_up(columns, kColumnsInLevel2);
  if (team.threads() > 1) groups = std::max(groups, std::min(panels, divide_up(32 * team.threads(), rows.tiles())));
  const std::int64_t group_columns = divide_up(panels, groups) * panel;
  groups = divide_up(columns, group_columns);
  // Groups are the outer loop, so that a thread keeps its part of B in its level-2 cache.
  team.for_each(groups * rows.tiles(), [&](std::int64_t task, int) {
    const std::int64_t at = task / rows.tiles() * group_columns;
    multiply_tiles(problem, rows, depth, task % rows.tiles(), problem.packed_b + at * depth.steps, j + at,
                   std::min(group_columns, columns - at));
  });
}

template <class Team>
void multiply(Team& team, const Problem& problem) {
  const MatmulShape& shape = problem.shape;
  const std::int64_t rows_at_once = problem.capacity.rows / problem.kernel.words;
  const std::int64_t columns_at_once = problem.capacity.columns / problem.kernel.words;
  for (std::int64_t p = 0; p < shape.k; p += kBlockKBFloat16) {
    const std::int64_t size = std::min(kBlockKBFloat16, shape.k - p);
    const Depth depth{p, size, divide_up(size, 2) * problem.kernel.words};
    for (std::int64_t i = 0; i < shape.m; i += rows_at_once) {
      const Rows rows = rows_of(problem, i, std::min(rows_at_once, shape.m - i));
      if (rows.size <= kFewRows) {
        multiply_few_rows(team, problem, rows, depth);
        continue;
      }
      for (std::int64_t j = 0; j < shape.n; j += columns_at_once) {
        multiply_block(team, problem, rows, j == 0, j, std::min(columns_at_once, shape.n - j), depth);
      }
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
  return static_cast<std::size_t>(capacity.a_words() + capacity.b_words(threads)) * sizeof(float) + Buffer::kAlignment;
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
