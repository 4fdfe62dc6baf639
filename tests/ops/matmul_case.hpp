// Operands of a matrix multiply, and ways to run it, for its tests.
#pragma once

#include <fmt/format.h>

#include <cstring>
#include <string>
#include <vector>

#include "matmul_native.hpp"
#include "trainer/core/random.hpp"
#include "trainer/core/tensor.hpp"
#include "trainer/ops/matmul.hpp"

namespace trainer::test {

using namespace trainer::ops;

using Floats = std::vector<float>;

inline constexpr Layout kLayouts[] = {Layout::NN, Layout::NT, Layout::TN};
inline constexpr float kUntouched = 12345.0F;

inline Floats random_floats(std::int64_t n, const char* name) {
  const RandomStream stream(7, name);
  Floats values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = stream.uniform(i) * 2 - 1;
  return values;
}

/// Row strides as dense as the layout permits, plus `gap`.
inline MatmulShape shape_of(Layout layout, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t gap = 0) {
  return {layout, m, n, k, (layout == Layout::TN ? m : k) + gap, (layout == Layout::NT ? k : n) + gap, n + gap};
}

/// Operands and the C there was before, for a shape; C's gaps hold a value nobody may touch.
struct Case {
  explicit Case(const MatmulShape& s)
      : shape(s),
        a(random_floats((s.layout == Layout::TN ? s.k : s.m) * s.lda, "a")),
        b(random_floats((s.layout == Layout::NT ? s.n : s.k) * s.ldb, "b")),
        c(random_floats(s.m * s.ldc, "c")),
        bias(random_floats(s.n, "bias")) {
    for (std::int64_t i = 0; i < s.m; ++i) {
      for (std::int64_t j = s.n; j < s.ldc; ++j) c[static_cast<std::size_t>(i * s.ldc + j)] = kUntouched;
    }
  }

  float a_at(std::int64_t i, std::int64_t p) const {
    return a[static_cast<std::size_t>(shape.layout == Layout::TN ? p * shape.lda + i : i * shape.lda + p)];
  }
  float b_at(std::int64_t p, std::int64_t j) const {
    return b[static_cast<std::size_t>(shape.layout == Layout::NT ? j * shape.ldb + p : p * shape.ldb + j)];
  }

  MatmulShape shape;
  Floats a, b, c, bias;
};

inline Floats run(ThreadPool& pool, const Case& x, bool accumulate, bool with_bias) {
  Floats c = x.c;
  Buffer workspace(matmul_workspace_bytes(x.shape, pool.threads()));
  matmul(pool, x.shape, x.a.data(), x.b.data(), c.data(), accumulate, with_bias ? x.bias.data() : nullptr,
         workspace.data());
  return c;
}

inline Floats run_block(const Case& x, bool accumulate) {
  Floats c = x.c;
  Buffer workspace(matmul_block_workspace_bytes(x.shape));
  matmul_block(x.shape, x.a.data(), x.b.data(), c.data(), accumulate, workspace.data());
  return c;
}

inline bool same_bits(const Floats& x, const Floats& y) {
  return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
}

inline std::string name_of(const MatmulShape& s) {
  constexpr const char* kNames[] = {"NN", "NT", "TN"};
  return fmt::format("{} m {} n {} k {} strides {} {} {}", kNames[static_cast<int>(s.layout)], s.m, s.n, s.k, s.lda,
                     s.ldb, s.ldc);
}

inline bool gaps_untouched(const Case& x, const Floats& c) {
  for (std::int64_t i = 0; i < x.shape.m; ++i) {
    for (std::int64_t j = x.shape.n; j < x.shape.ldc; ++j) {
      if (c[static_cast<std::size_t>(i * x.shape.ldc + j)] != kUntouched) return false;
    }
  }
  return true;
}

inline std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::Portable, Isa::Avx2, Isa::Avx512}) {
    if (isa_available(isa)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace trainer::test
