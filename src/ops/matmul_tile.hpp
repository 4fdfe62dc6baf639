// The register tile, packing and peak loop over a vector type V. V must have internal linkage (an unnamed namespace of
// the including file), which gives every instantiation internal linkage too: no copy compiled for one instruction set
// can be linked into code for another.
//
// V has Type, kLanes, kRows, kVectors, kStepA, kDepth; zero, broadcast, load, load_part, store, store_part, add,
// fma(x, y, z) = x·y + z. transpose4 reads 4 k-neighbours of kLanes rows and stores 4 vectors; transpose, where
// kDepth > 4, the same for kDepth.
#pragma once

#include <cstdint>

#include "matmul_kernel.hpp"

namespace trainer::ops::kernel {

template <int kCount, int kAt = 0, class F>
[[gnu::always_inline]] inline void unrolled(F f) {
  if constexpr (kAt < kCount) {
    f.template operator()<kAt>();
    unrolled<kCount, kAt + 1>(f);
  }
}

template <class V>
struct Tiles {
  using Type = typename V::Type;
  static constexpr int kPanel = V::kVectors * V::kLanes;
  static constexpr int kAhead = 16 * kPanel;  // how far B is prefetched

  /// C = sums, or C + sums, then + bias.
  template <int kRows, int kVectors>
  [[gnu::always_inline]] static void write_back(Type (&sums)[kRows][kVectors], const TileRow& work, float* c,
                                                std::int64_t columns, const float* bias) {
    const std::int64_t ldc = work.ldc;
    unrolled<kVectors>([&]<int v>() __attribute__((always_inline)) {
      const std::int64_t valid = columns - v * V::kLanes;
      if (valid >= V::kLanes) {
        unrolled<kRows>([&]<int r>() __attribute__((always_inline)) {
          float* at = c + r * ldc + v * V::kLanes;
          Type value = sums[r][v];
          if (work.add) value = V::add(V::load(at), value);
          if (bias != nullptr) value = V::add(value, V::load(bias + v * V::kLanes));
          V::store(at, value);
        });
      } else {
        const int part = static_cast<int>(valid);
        unrolled<kRows>([&]<int r>() __attribute__((always_inline)) {
          float* at = c + r * ldc + v * V::kLanes;
          Type value = sums[r][v];
          if (work.add) value = V::add(V::load_part(at, part), value);
          if (bias != nullptr) value = V::add(value, V::load_part(bias + v * V::kLanes, part));
          V::store_part(at, value, part);
        });
      }
    });
  }

  /// What a tile asks the memory for on its way: one line for two k-steps.
  struct Fetch {
    const float* at = nullptr;
    std::int64_t pair_step = 0;   // from one line to the next, eight times
    std::int64_t chunk_step = 0;  // from one such eight to the next
  };

  /// The part of the next tile of A that panel `panel` fetches: eight of its rows, or every other of its columns.
  static Fetch fetch_at(const TileRow& work, std::int64_t panel) {
    const Operand& a = work.a;
    if (work.next_a == nullptr) return {};
    if (a.k_step == 1) {
      if (8 * panel >= work.rows) return {};
      return {work.next_a + 8 * panel * a.step, a.step, 16};
    }
    if (panel > 1) return {};
    return {work.next_a + panel * a.k_step + (work.rows - 1) * a.step, 2 * a.k_step, 16 * a.k_step};
  }

  /// One kRows × (kVectors · lanes) tile.
  template <int kRows, int kVectors>
  static void tile(const TileRow& work, const float* b, float* c, std::int64_t columns, const float* bias,
                   const Fetch& fetch) {
    const std::int64_t ldc = work.ldc;
    Type sums[kRows][kVectors];
    unrolled<kRows>([&]<int r>() __attribute__((always_inline)) {
      __builtin_prefetch(c + r * ldc, 1);
      __builtin_prefetch(c + r * ldc + columns - 1, 1);
      unrolled<kVectors>([&]<int v>() __attribute__((always_inline)) { sums[r][v] = V::zero(); });
    });

    // Row r of A is at bases[r / 3] + (r % 3) · step, which x86 has an address mode for.
    constexpr int kBases = (kRows + 2) / 3;
    const std::int64_t step = work.a.step, k_step = work.a.k_step;
    const float* bases[kBases];
    unrolled<kBases>([&]<int i>() __attribute__((always_inline)) { bases[i] = work.a.data + 3 * i * step; });
    const auto add_product = [&]() __attribute__((always_inline)) {
      Type y[kVectors];
      unrolled<kVectors>([&]<int v>() __attribute__((always_inline)) { y[v] = V::load(b + v * V::kLanes); });
      unrolled<kPanel / 16>([&]<int l>() __attribute__((always_inline)) { __builtin_prefetch(b + kAhead + 16 * l); });
      unrolled<kRows>([&]<int r>() __attribute__((always_inline)) {
        const Type x = V::broadcast(bases[r / 3] + (r % 3) * step);
        unrolled<kVectors>([&]<int v>() __attribute__((always_inline)) { sums[r][v] = V::fma(x, y[v], sums[r][v]); });
      });
      b += kPanel;
      unrolled<kBases>([&]<int i>() __attribute__((always_inline)) {
        bases[i] += k_step;
        asm("" : "+r"(bases[i]));  // else the sum is folded into every address, at an instruction each
      });
    };
    std::int64_t left = work.k;
    if (fetch.at != nullptr) {
      for (const float* chunk = fetch.at; left >= 16; left -= 16, chunk += fetch.chunk_step) {
        const float* at = chunk;
        for (int pair = 0; pair < 8; ++pair, at += fetch.pair_step) {
          __builtin_prefetch(at);
          add_product();
          add_product();
        }
      }
    }
    for (; left >= 2; left -= 2) {
      add_product();
      add_product();
    }
    if (left != 0) add_product();

    write_back<kRows, kVectors>(sums, work, c, columns, bias);
  }

  using TileFunction = void (*)(const TileRow&, const float*, float*, std::int64_t, const float*, const Fetch&);

  template <int kVectors, int kRows = V::kRows>
  static TileFunction tile_for(std::int64_t rows) {
    if constexpr (kRows > 1) {
      if (rows < kRows) return tile_for<kVectors, kRows - 1>(rows);
    }
    return &tile<kRows, kVectors>;
  }

  static void multiply(const TileRow& work) {
    const TileFunction full = tile_for<V::kVectors>(work.rows);
    const float* b = work.b;
    std::int64_t at = 0;
    const auto bias_at = [&] { return work.bias == nullptr ? nullptr : work.bias + at; };
    for (; work.columns - at > kPanel - V::kLanes; at += kPanel, b += work.b_step) {
      const std::int64_t left = work.columns - at;
      full(work, b, work.c + at, left < kPanel ? left : kPanel, bias_at(), fetch_at(work, at / kPanel));
    }
    if (at < work.columns) tile_for<1>(work.rows)(work, b, work.c + at, work.columns - at, bias_at(), {});
  }

  static void pack(const Operand& from, std::int64_t count, std::int64_t k, std::int64_t dst_step, float* dst) {
    if (from.step == 1) {
      pack_rows(from, count, k, dst_step, dst);
    } else {
      for (std::int64_t i = 0; i < count; i += V::kLanes) {
        const Operand part{from.data + i * from.step, from.step, 1};
        pack_transposed(part, count - i, k, dst_step, dst + i);
      }
    }
  }

  static void pack_rows(const Operand& from, std::int64_t count, std::int64_t k, std::int64_t dst_step, float* dst) {
    constexpr std::int64_t kRowsAhead = 64;  // as far as memory is away
    const std::int64_t whole = count / V::kLanes * V::kLanes;
    const int part = static_cast<int>(count - whole);
    for (std::int64_t p = 0; p < k; ++p) {
      const float* row = from.data + p * from.k_step;
      __builtin_prefetch(row +
                         kRowsAhead * from.k_step);  // steps of a page or more are beyond the hardware's prefetcher
      __builtin_prefetch(row + kRowsAhead * from.k_step + count - 1);
      float* to = dst + p * dst_step;
      for (std::int64_t i = 0; i < whole; i += V::kLanes) V::store(to + i, V::load(row + i));
      if (part > 0) V::store(to + whole, V::load_part(row + whole, part));
    }
  }

  static void pack_transposed(const Operand& from, std::int64_t count, std::int64_t k, std::int64_t dst_step,
                              float* dst) {
    const float* rows[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) rows[i] = from.data + (i < count ? i : count - 1) * from.step;
    std::int64_t p = 0;
    if constexpr (V::kDepth > 4) {
      constexpr std::int64_t kRowsAhead = 32;
      for (; p + V::kDepth <= k; p += V::kDepth) {
        for (int i = 0; i < V::kLanes; ++i) __builtin_prefetch(rows[i] + p + kRowsAhead * from.step);
        V::transpose(rows, p, dst + p * dst_step, dst_step);
      }
    }
    for (; p + 4 <= k; p += 4) V::transpose4(rows, p, dst + p * dst_step, dst_step);
    for (; p < k; ++p) {
      for (int i = 0; i < V::kLanes; ++i) dst[p * dst_step + i] = rows[i][p];
    }
  }

  static double multiply_add_chains(std::int64_t rounds) {
    constexpr int kChains = 14;
    // Operands the compiler cannot see through, else it finds the chains alike and keeps one.
    float factor = 0.5F, term = 0.5F, start[kChains] = {};
    asm volatile("" : "+m"(factor), "+m"(term), "+m"(start));
    const Type f = V::broadcast(&factor), t = V::broadcast(&term);
    Type sums[kChains];
    unrolled<kChains>([&]<int c>() __attribute__((always_inline)) { sums[c] = V::broadcast(start + c); });
    for (std::int64_t i = 0; i < rounds; ++i) {
      unrolled<kChains>([&]<int c>() __attribute__((always_inline)) { sums[c] = V::fma(sums[c], f, t); });
    }
    unrolled<kChains - 1>([&]<int c>() __attribute__((always_inline)) { sums[0] = V::add(sums[0], sums[c + 1]); });
    float sink[V::kLanes];
    V::store(sink, sums[0]);
    asm volatile("" : : "m"(sink));
    return 2.0 * kChains * V::kLanes * static_cast<double>(rounds);
  }

  static constexpr Kernel kernel(const char* name) {
    return {name, V::kRows, kPanel, V::kStepA, &multiply, &pack, &multiply_add_chains};
  }
};

}  // namespace trainer::ops::kernel
