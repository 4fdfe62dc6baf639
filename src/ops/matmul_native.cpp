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

constexpr std::int64_t kMaxStepA = 16;  // ≥ Kernel::a_step
// Of B packed at a time by a thread: little enough that A and it share a level-2 cache (128 KB), more where tiles of A
// are packed for it first.
constexpr std::int64_t kGroupFloats = 32 << 10;
constexpr std::int64_t kLargeGroupFloats = kBlockK * 384;
constexpr std::int64_t kFewRows = 96;            // up to here one panel at a time stays in a level-1 cache
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
            .add = accumulate || p > 0,
            .next_a = nullptr};
  }
};

/// Scratch of one thread: a packed tile of A and a group of packed panels of B.
struct Scratch {
  static constexpr std::int64_t kTileFloats = kBlockK * kMaxStepA;
  static constexpr std::int64_t kFloats = kTileFloats + kLargeGroupFloats;
  float* a_tile;
  float* b_group;
};

Scratch scratch_of(float* scratch, int thread) {
  float* mine = scratch + thread * Scratch::kFloats;
  return {mine, mine + Scratch::kTileFloats};
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

/// How C is cut into tasks: groups of panels times parts of the rows. A task packs its own part of B, so that it lies
/// in the cache of the thread that needs it and nobody waits for others.
struct Cut {
  bool pack_a;
  std::int64_t panels;  // of a group
  std::int64_t groups;
  std::int64_t height;     // rows of a register tile
  std::int64_t part_rows;  // a multiple of height
  std::int64_t row_parts;
};

Cut cut_of(const Problem& problem, int threads) {
  const Kernel& kernel = problem.kernel;
  const std::int64_t panels = divide_up(problem.n, kernel.panel);
  const std::int64_t panel_floats = std::min(kBlockK, problem.k) * kernel.panel;
  const bool few_rows = problem.m <= kFewRows;
  const bool fight = conflicts(problem.a);
  Cut cut{};
  cut.pack_a = fight && !few_rows && panels > 2;
  const std::int64_t floats = few_rows ? 1 : cut.pack_a ? kLargeGroupFloats : kGroupFloats;
  cut.panels = std::max<std::int64_t>(1, floats / panel_floats);
  cut.groups = divide_up(panels, cut.panels);
  if (threads > 1 && !cut.pack_a) {  // whole rounds of all threads
    cut.panels = divide_up(panels, std::min(panels, divide_up(cut.groups, threads) * threads));
    cut.groups = divide_up(panels, cut.panels);
  }
  const bool short_tiles = fight && !cut.pack_a;
  const std::int64_t most = short_tiles ? std::min<std::int64_t>(kernel.rows, kConflictFreeRows) : kernel.rows;
  cut.height = divide_up(problem.m, divide_up(problem.m, most));
  const std::int64_t tiles = divide_up(problem.m, cut.height);
  const std::int64_t parts = std::min(tiles, divide_up(threads, cut.groups));
  cut.part_rows = divide_up(tiles, parts) * cut.height;
  cut.row_parts = divide_up(problem.m, cut.part_rows);
  return cut;
}

void multiply_task(const Problem& problem, const Cut& cut, std::int64_t task, const Scratch& scratch) {
  const Kernel& kernel = problem.kernel;
  const std::int64_t j = task / cut.row_parts * cut.panels * kernel.panel;
  const std::int64_t columns = std::min(cut.panels * kernel.panel, problem.n - j);
  const std::int64_t first = task % cut.row_parts * cut.part_rows;
  const std::int64_t end = std::min(first + cut.part_rows, problem.m);
  for (std::int64_t p = 0; p < problem.k; p += kBlockK) {
    const std::int64_t depth = std::min(kBlockK, problem.k - p);
    for (std::int64_t at = 0; at < columns; at += kernel.panel) {
      kernel.pack(problem.b_at(j + at, p), std::min<std::int64_t>(kernel.panel, columns - at), depth, kernel.panel,
                  scratch.b_group + at * depth);
    }
    for (std::int64_t i = first; i < end; i += cut.height) {
      const std::int64_t rows = std::min(cut.height, end - i);
      TileRow work = problem.tiles(i, rows, j, columns, p);
      work.b = scratch.b_group;
      if (cut.pack_a) {
        kernel.pack(work.a, rows, depth, kernel.a_step, scratch.a_tile);
        work.a = {scratch.a_tile, 1, kernel.a_step};
      } else if (i + 2 * cut.height <= end) {
        work.next_a = work.a.data + cut.height * work.a.step;
      }
      kernel.multiply(work);
    }
  }
}

template <class Team>
void multiply(Team& team, const Problem& problem, float* scratch) {
  const Cut cut = cut_of(problem, team.threads());
  team.for_each(cut.groups * cut.row_parts,
                [&](std::int64_t task, int thread) { multiply_task(problem, cut, task, scratch_of(scratch, thread)); });
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

std::size_t native_workspace_bytes(const MatmulShape&, int threads) {
  return static_cast<std::size_t>(threads * Scratch::kFloats) * sizeof(float) + Buffer::kAlignment;
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
