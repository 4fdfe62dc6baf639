// The packed matrix multiply around the register tiles (Goto, van de Geijn: Anatomy of high-performance matrix
// multiplication; Van Zee, van de Geijn: BLIS). Cutting C into tiles and panels is free here: no cut changes a bit.
#include "matmul_native.hpp"

#include <algorithm>
#include <atomic>

#include "trainer/core/error.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::ops {

namespace {

using kernel::Kernel;
using kernel::Operand;
using kernel::TileRow;

constexpr std::int64_t kMaxStepA = 16;           // ≥ Kernel::a_step
constexpr std::int64_t kColumnsAtOnce = 2048;    // of B packed at a time, shared by all threads: 3 MB, level-3 cache
constexpr std::int64_t kColumnsInLevel2 = 256;   // of them swept by one task: 0.5 MB
constexpr std::int64_t kFewRows = 96;            // up to here a thread packs one panel of B and sweeps all rows
constexpr std::int64_t kLevel1WayFloats = 1024;  // rows this far apart fall into one set of a level-1 cache
constexpr std::int64_t kConflictFreeRows = 8;
constexpr double kWorthThreads = 1e5;  // FLOP

const Kernel* kernel_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::Avx512) return &kernel::kAvx512;
  if (isa == Isa::Avx2) return &kernel::kAvx2;
#endif
  return isa == Isa::Portable ? &kernel::kPortable : nullptr;
}

const Kernel* widest_kernel() {
  for (Isa isa : {Isa::Avx512, Isa::Avx2}) {
    if (isa_available(isa)) return kernel_of(isa);
  }
  return &kernel::kPortable;
}

std::atomic<const Kernel*>& chosen_kernel() {
  static std::atomic<const Kernel*> chosen{widest_kernel()};
  return chosen;
}

std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

/// One call, operands as (i, k) addresses.
struct Problem {
  const Kernel& kernel;
  Operand a, b;
  std::int64_t m, n, k;
  float* c;
  std::int64_t ldc;
  bool accumulate;
  const float* bias;

  const Operand a_at(std::int64_t i, std::int64_t p) const {
    return {a.data + i * a.step + p * a.k_step, a.step, a.k_step};
  }
  const Operand b_at(std::int64_t j, std::int64_t p) const {
    return {b.data + j * b.step + p * b.k_step, b.step, b.k_step};
  }
  /// The row of tiles at (i, j) of the k-block that starts at p; its b and a still to be named.
  TileRow tiles(std::int64_t i, std::int64_t rows, std::int64_t j, std::int64_t columns, std::int64_t p) const {
    const std::int64_t depth = std::min(kBlockK, k - p);
    const bool last = p + depth == k;
    return {.a = a_at(i, p),
            .b = nullptr,
            .b_step = depth * kernel.panel,
            .c = c + i * ldc + j,
            .ldc = ldc,
            .bias = last && bias != nullptr ? bias + j : nullptr,
            .rows = rows,
            .columns = columns,
            .k = depth,
            .add = accumulate || p > 0};
  }
};

/// Scratch of one thread: a packed tile of A and one packed panel of B.
struct Scratch {
  static constexpr std::int64_t kFloats = kBlockK * (kMaxStepA + kMaxPanel);
  float* a_tile;
  float* b_panel;
};

Scratch scratch_of(float* scratch, int thread) {
  float* mine = scratch + thread * Scratch::kFloats;
  return {mine, mine + kBlockK * kMaxStepA};
}

/// Runs the loop on the calling thread, as a pool of one.
struct Serial {
  int threads() const { return 1; }
  template <class Body>
  void for_each(std::int64_t count, const Body& body) {
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  }
};

/// Whether an operand read in place would fight itself for the sets of a cache. Otherwise reading it in place is faster
/// than packing it, by measurement.
bool conflicts(const Operand& operand) { return (operand.step * operand.k_step) % kLevel1WayFloats == 0; }

/// Few rows: each task packs one panel of B at a time for itself and sweeps all rows with it; A is read in place.
template <class Team>
void multiply_few_rows(Team& team, const Problem& problem, float* scratch) {
  const Kernel& kernel = problem.kernel;
  const std::int64_t most = conflicts(problem.a) ? std::min<std::int64_t>(kernel.rows, kConflictFreeRows) : kernel.rows;
  const std::int64_t height = divide_up(problem.m, divide_up(problem.m, most));
  team.for_each(divide_up(problem.n, kernel.panel), [&](std::int64_t panel, int thread) {
    float* packed = scratch_of(scratch, thread).b_panel;
    const std::int64_t j = panel * kernel.panel;
    const std::int64_t columns = std::min<std::int64_t>(kernel.panel, problem.n - j);
    for (std::int64_t p = 0; p < problem.k; p += kBlockK) {
      kernel.pack(problem.b_at(j, p), columns, std::min(kBlockK, problem.k - p), kernel.panel, packed);
      for (std::int64_t i = 0; i < problem.m; i += height) {
        TileRow work = problem.tiles(i, std::min(height, problem.m - i), j, columns, p);
        work.b = packed;
        kernel.multiply(work);
      }
    }
  });
}

/// One k-block of `columns` columns from j on: all threads pack B, then share out the rows of tiles.
template <class Team>
void multiply_block(Team& team, const Problem& problem, std::int64_t j, std::int64_t columns, std::int64_t p,
                    float* packed_b, float* scratch) {
  const Kernel& kernel = problem.kernel;
  const std::int64_t depth = std::min(kBlockK, problem.k - p);
  const std::int64_t panels = divide_up(columns, kernel.panel);
  team.for_each(panels, [&](std::int64_t panel, int) {
    const std::int64_t at = panel * kernel.panel;
    kernel.pack(problem.b_at(j + at, p), std::min<std::int64_t>(kernel.panel, columns - at), depth, kernel.panel,
                packed_b + at * depth);
  });

  const std::int64_t height = divide_up(problem.m, divide_up(problem.m, kernel.rows));
  const std::int64_t rows_of_tiles = divide_up(problem.m, height);
  std::int64_t groups = divide_up(columns, kColumnsInLevel2);
  if (team.threads() > 1) groups = std::max(groups, std::min(panels, divide_up(32 * team.threads(), rows_of_tiles)));
  const std::int64_t group_columns = divide_up(panels, groups) * kernel.panel;
  groups = divide_up(columns, group_columns);
  const bool pack_a = group_columns > 2 * kernel.panel && conflicts(problem.a);
  // Groups are the outer loop, so that a thread keeps its part of B in its level-2 cache.
  team.for_each(groups * rows_of_tiles, [&](std::int64_t task, int thread) {
    const std::int64_t at = task / rows_of_tiles * group_columns;
    const std::int64_t i = task % rows_of_tiles * height;
    const std::int64_t rows = std::min(height, problem.m - i);
    TileRow work = problem.tiles(i, rows, j + at, std::min(group_columns, columns - at), p);
    work.b = packed_b + at * depth;
    if (pack_a) {
      float* tile = scratch_of(scratch, thread).a_tile;
      kernel.pack(work.a, rows, depth, kernel.a_step, tile);
      work.a = {tile, 1, kernel.a_step};
    }
    kernel.multiply(work);
  });
}

template <class Team>
void multiply(Team& team, const Problem& problem, float* workspace) {
  float* scratch = workspace;
  if (problem.m <= kFewRows) return multiply_few_rows(team, problem, scratch);
  float* packed_b = scratch + team.threads() * Scratch::kFloats;
  for (std::int64_t j = 0; j < problem.n; j += kColumnsAtOnce) {
    const std::int64_t columns = std::min(kColumnsAtOnce, problem.n - j);
    for (std::int64_t p = 0; p < problem.k; p += kBlockK) {
      multiply_block(team, problem, j, columns, p, packed_b, scratch);
    }
  }
}

/// k = 0: an empty sum.
void multiply_nothing(const Problem& problem) {
  for (std::int64_t i = 0; i < problem.m; ++i) {
    float* row = problem.c + i * problem.ldc;
    for (std::int64_t j = 0; j < problem.n; ++j) {
      const float sum = problem.accumulate ? row[j] : 0.0F;
      row[j] = problem.bias != nullptr ? sum + problem.bias[j] : sum;
    }
  }
}

}  // namespace

bool isa_available(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::Avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  }
  if (isa == Isa::Avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::Portable;
}

void set_matmul_isa(Isa isa) {
  if (!isa_available(isa)) internal_error("a matrix multiply kernel was set that this CPU cannot run");
  chosen_kernel().store(kernel_of(isa), std::memory_order_relaxed);
}

const kernel::Kernel& matmul_kernel() { return *chosen_kernel().load(std::memory_order_relaxed); }

std::size_t native_workspace_bytes(const MatmulShape& shape, int threads) {
  const std::int64_t columns = divide_up(std::min(shape.n, kColumnsAtOnce), kMaxPanel) * kMaxPanel;
  const std::int64_t floats = std::min(shape.k, kBlockK) * columns + threads * Scratch::kFloats;
  return static_cast<std::size_t>(floats) * sizeof(float) + Buffer::kAlignment;
}

void native_matmul(ThreadPool* pool, const MatmulShape& shape, const float* a, const float* b, float* c,
                   bool accumulate, const float* bias, std::byte* workspace) {
  const Operand a_operand = shape.layout == Layout::TN ? Operand{a, 1, shape.lda} : Operand{a, shape.lda, 1};
  const Operand b_operand = shape.layout == Layout::NT ? Operand{b, shape.ldb, 1} : Operand{b, 1, shape.ldb};
  const Problem problem{matmul_kernel(), a_operand, b_operand, shape.m,    shape.n,
                        shape.k,         c,         shape.ldc, accumulate, bias};
  if (shape.m <= 0 || shape.n <= 0) return;
  if (shape.k <= 0) return multiply_nothing(problem);
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  float* aligned = reinterpret_cast<float*>(align_up(address));
  const double flops = 2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  if (pool == nullptr || pool->threads() == 1 || flops < kWorthThreads) {
    Serial serial;
    multiply(serial, problem, aligned);
  } else {
    multiply(*pool, problem, aligned);
  }
}

}  // namespace trainer::ops
