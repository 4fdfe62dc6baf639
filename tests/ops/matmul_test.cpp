// Matrix multiply against naive loops: bit for bit where the contract promises bits, within a derived bound elsewhere.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "matmul_case.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::test;

namespace {

/// The contract, written out.
Floats chain_reference(const Case& x, bool accumulate, bool with_bias) {
  Floats c = x.c;
  const MatmulShape& s = x.shape;
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t j = 0; j < s.n; ++j) {
      float& element = c[static_cast<std::size_t>(i * s.ldc + j)];
      if (!accumulate && s.k == 0) element = 0;
      for (std::int64_t start = 0; start < s.k; start += kBlockK) {
        float block = 0;
        for (std::int64_t p = start; p < std::min(s.k, start + kBlockK); ++p) {
          block = std::fma(x.a_at(i, p), x.b_at(p, j), block);
        }
        element = start == 0 && !accumulate ? block : element + block;
      }
      if (with_bias) element += x.bias[static_cast<std::size_t>(j)];
    }
  }
  return c;
}

/// The largest |c − exact| over its bound. Exact: products of floats are exact in double, and their sum there is
/// precise to k·2⁻⁵³, which is nothing beside the bound. The bound: whatever the order of k products and of the
/// additions of an old C and a bias, each term passes at most k + 2 roundings, so |error| ≤ γ(k+2) · Σ|terms| with
/// γ(n) = n·u / (1 − n·u), u = 2⁻²⁴ (Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1). Where the
/// product is rounded before the addition, one more: γ(k+3).
double worst_over_bound(const Case& x, const Floats& c, bool accumulate, bool with_bias) {
  const MatmulShape& s = x.shape;
  const double roundings = static_cast<double>(s.k + 3) * 0x1p-24;
  const double gamma = roundings / (1 - roundings);
  double worst = 0;
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t j = 0; j < s.n; ++j) {
      double exact = 0, magnitude = 0;
      const auto add = [&](double term) {
        exact += term;
        magnitude += std::abs(term);
      };
      for (std::int64_t p = 0; p < s.k; ++p) add(static_cast<double>(x.a_at(i, p)) * x.b_at(p, j));
      const auto at = static_cast<std::size_t>(i * s.ldc + j);
      if (accumulate) add(x.c[at]);
      if (with_bias) add(x.bias[static_cast<std::size_t>(j)]);
      const double error = std::abs(c[at] - exact);
      if (error > 0) worst = std::max(worst, error / (gamma * magnitude));
    }
  }
  return worst;
}

/// Leaves the process-wide choices as they were.
struct Restore {
  ~Restore() {
    set_matmul_provider(MatmulProvider::Native);
    set_matmul_isa(available_isas().back());
  }
};

/// Every layout, accumulate and bias of one size on one instruction set and pool.
void check_chain(ThreadPool& pool, const MatmulShape& shape) {
  const Case x(shape);
  for (bool accumulate : {false, true}) {
    for (bool with_bias : {false, true}) {
      INFO(describe_matmul(), " ", name_of(shape), " threads ", pool.threads(), " accumulate ", accumulate, " bias ",
           with_bias);
      const Floats expected = chain_reference(x, accumulate, with_bias);
      REQUIRE(same_bits(run(pool, x, accumulate, with_bias), expected));
      if (!with_bias) REQUIRE(same_bits(run_block(x, accumulate), expected));
    }
  }
}

}  // namespace

TEST_CASE("native: bits are the chain's, for every instruction set, layout and small size") {
  const Restore restore;
  ThreadPool pool(2, false);
  for (Isa isa : available_isas()) {
    set_matmul_isa(isa);
    for (Layout layout : kLayouts) {
      // Every edge of every register tile: sizes 1 to 70 in m and n, each met with several of the other.
      for (std::int64_t i = 1; i <= 70; ++i) {
        check_chain(pool, shape_of(layout, i, (i * 37) % 70 + 1, (i * 11) % 23 + 1, i % 3));
        check_chain(pool, shape_of(layout, (i * 29) % 70 + 1, i, (i * 13) % 19 + 1, i % 2));
      }
    }
  }
}

TEST_CASE("native: bits are the chain's around the bounds of k-blocks") {
  const Restore restore;
  ThreadPool pool(3, false);
  for (Isa isa : available_isas()) {
    set_matmul_isa(isa);
    for (Layout layout : kLayouts) {
      for (std::int64_t k : {1, 2, 3, 4, 5, 383, 384, 385, 386, 767, 768, 769, 1153}) {
        check_chain(pool, shape_of(layout, 5, 35, k, k % 5));
      }
      check_chain(pool, shape_of(layout, 113, 41, 385, 3));
    }
  }
}

TEST_CASE("native: instruction sets and thread counts agree bit for bit on larger shapes") {
  const Restore restore;
  ThreadPool one(1), two(2, false), three(3, false), four(4, false);
  const MatmulShape shapes[] = {shape_of(Layout::NT, 200, 300, 400, 5),   shape_of(Layout::NN, 97, 1111, 130),
                                shape_of(Layout::TN, 300, 500, 97, 1),    shape_of(Layout::NT, 97, 2100, 17),
                                shape_of(Layout::NN, 64, 64, 1024),       {Layout::NN, 130, 70, 500, 1024, 70, 71},
                                {Layout::TN, 130, 70, 500, 1024, 70, 71}, {Layout::NT, 60, 70, 500, 2048, 1024, 1024}};
  for (const MatmulShape& shape : shapes) {
    const Case x(shape);
    set_matmul_isa(available_isas().back());
    const Floats expected = run(one, x, true, true);
    REQUIRE(same_bits(expected, chain_reference(x, true, true)));
    for (Isa isa : available_isas()) {
      set_matmul_isa(isa);
      for (ThreadPool* pool : {&one, &two, &three, &four}) {
        INFO(describe_matmul(), " ", name_of(shape), " threads ", pool->threads());
        CHECK(same_bits(run(*pool, x, true, true), expected));
      }
    }
  }
}

TEST_CASE("native: a slice of rows or columns alone has the bits it has in the whole") {
  ThreadPool pool(2, false);
  for (Layout layout : kLayouts) {
    const MatmulShape shape = shape_of(layout, 150, 170, 500);
    const Case x(shape);
    const Floats whole = run(pool, x, false, false);
    for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, 1}, {3, 40}, {13, 150}, {149, 150}}) {
      const auto compare = [&](MatmulShape part, const float* a, const float* b, std::int64_t i, std::int64_t j) {
        Floats c(static_cast<std::size_t>(shape.m * shape.ldc));
        Buffer workspace(matmul_workspace_bytes(part, pool.threads()));
        matmul(pool, part, a, b, c.data(), false, nullptr, workspace.data());
        bool same = true;
        for (std::int64_t row = 0; row < part.m; ++row) {
          const auto at = static_cast<std::size_t>(row * shape.ldc);
          const auto in_whole = static_cast<std::size_t>((i + row) * shape.ldc + j);
          same = same && std::equal(&c[at], &c[at] + part.n, &whole[in_whole]);
        }
        INFO(name_of(part), " at ", i, ", ", j);
        CHECK(same);
      };
      MatmulShape rows = shape;
      rows.m = end - begin;
      compare(rows, x.a.data() + begin * (layout == Layout::TN ? 1 : shape.lda), x.b.data(), begin, 0);
      MatmulShape columns = shape;
      columns.n = end - begin;
      compare(columns, x.a.data(), x.b.data() + begin * (layout == Layout::NT ? shape.ldb : 1), 0, begin);
    }
  }
}

TEST_CASE("both providers stay within the rounding bound and inside C") {
  const Restore restore;
  ThreadPool one(1), three(3, false);
  for (MatmulProvider provider : {MatmulProvider::Native, MatmulProvider::OneDnn}) {
    set_matmul_provider(provider);
    for (Layout layout : kLayouts) {
      for (const MatmulShape& shape :
           {shape_of(layout, 1, 1, 1), shape_of(layout, 1, 40, 30), shape_of(layout, 17, 1, 9, 2),
            shape_of(layout, 37, 53, 400, 3), shape_of(layout, 300, 70, 65), shape_of(layout, 20, 600, 33, 1),
            shape_of(layout, 64, 64, 800)}) {
        const Case x(shape);
        for (bool accumulate : {false, true}) {
          for (bool with_bias : {false, true}) {
            INFO(describe_matmul(), " ", name_of(shape), " accumulate ", accumulate, " bias ", with_bias);
            const Floats c = run(one, x, accumulate, with_bias);
            CHECK(worst_over_bound(x, c, accumulate, with_bias) <= 1.0);
            CHECK(gaps_untouched(x, c));
            CHECK(same_bits(run(three, x, accumulate, with_bias), c));
            CHECK(same_bits(run(one, x, accumulate, with_bias), c));
          }
        }
      }
    }
  }
}

TEST_CASE("oneDNN: several tiles, thread counts and callers, the same bits") {
  const Restore restore;
  set_matmul_provider(MatmulProvider::OneDnn);
  for (Layout layout : kLayouts) {
    const Case x(shape_of(layout, 530, 700, 40));
    ThreadPool one(1);
    const Floats expected = run(one, x, true, true);
    CHECK(worst_over_bound(x, expected, true, true) <= 1.0);
    std::vector<std::thread> callers;
    std::vector<char> same(3, 0);
    for (std::size_t caller = 0; caller < same.size(); ++caller) {
      callers.emplace_back([&, caller] {
        ThreadPool pool(static_cast<int>(caller) + 1, false);
        bool all = true;
        for (int repeat = 0; repeat < 3; ++repeat) all = all && same_bits(run(pool, x, true, true), expected);
        same[caller] = all ? 1 : 0;
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (char s : same) CHECK(s == 1);
  }
}

TEST_CASE("empty sizes: nothing is touched, and an empty sum is zero") {
  const Restore restore;
  ThreadPool pool(2, false);
  for (MatmulProvider provider : {MatmulProvider::Native, MatmulProvider::OneDnn}) {
    set_matmul_provider(provider);
    for (Layout layout : kLayouts) {
      check_chain(pool, shape_of(layout, 3, 4, 0, 1));
      for (const auto& [m, n] : {std::pair<std::int64_t, std::int64_t>{0, 4}, {4, 0}, {0, 0}}) {
        const Case x(shape_of(layout, m, n, 5, 2));
        CHECK(same_bits(run(pool, x, false, true), x.c));
      }
    }
  }
}

TEST_CASE("what is not a number or not finite goes through, and only to its row and column") {
  const Restore restore;
  ThreadPool pool(1);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (MatmulProvider provider : {MatmulProvider::Native, MatmulProvider::OneDnn}) {
    set_matmul_provider(provider);
    Case x(shape_of(Layout::NN, 20, 37, 50));
    x.a[3 * 50 + 7] = std::numeric_limits<float>::quiet_NaN();
    x.b[9 * 37 + 11] = kInfinity;
    const Floats c = run(pool, x, false, false);
    for (std::int64_t i = 0; i < 20; ++i) {
      for (std::int64_t j = 0; j < 37; ++j) {
        const float value = c[static_cast<std::size_t>(i * 37 + j)];
        if (i == 3) {
          CHECK(std::isnan(value));
        } else if (j == 11) {
          CHECK(std::abs(value) == kInfinity);
        } else {
          CHECK(std::isfinite(value));
        }
      }
    }
  }
}

TEST_CASE("a workspace for a shape serves every smaller one") {
  std::size_t before = 0;
  for (std::int64_t size : {1, 31, 33, 96, 97, 384, 385, 2048, 5000}) {
    const std::size_t bytes = matmul_workspace_bytes(shape_of(Layout::NN, size, size, size), 2);
    CHECK(bytes >= before);
    CHECK(bytes >= matmul_workspace_bytes(shape_of(Layout::TN, size, size - 1, size), 1));
    before = bytes;
  }
  // Exactly the booked bytes, whatever their alignment: an overrun would change the guard.
  const Case x(shape_of(Layout::NT, 120, 130, 400));
  const std::size_t bytes = matmul_workspace_bytes(x.shape, 2);
  std::vector<std::byte> guarded(bytes + 256, std::byte{0x5A});
  ThreadPool pool(2, false);
  Floats c = x.c;
  matmul(pool, x.shape, x.a.data(), x.b.data(), c.data(), false, nullptr, guarded.data() + 64 + 4);
  CHECK(same_bits(c, chain_reference(x, false, false)));
  for (std::size_t i = 0; i < 68; ++i) REQUIRE(guarded[i] == std::byte{0x5A});
  for (std::size_t i = 68 + bytes; i < guarded.size(); ++i) REQUIRE(guarded[i] == std::byte{0x5A});
}

TEST_CASE("strides that cannot hold a row are refused") {
  ThreadPool pool(1);
  MatmulShape shape = shape_of(Layout::NN, 4, 5, 6);
  shape.ldb = 4;
  CHECK_THROWS_AS(matmul(pool, shape, nullptr, nullptr, nullptr, false, nullptr, nullptr), Error);
}

TEST_CASE("the provider and the instruction set say their names") {
  const Restore restore;
  set_matmul_isa(Isa::Portable);
  CHECK(describe_matmul() == "native portable");
  set_matmul_provider(MatmulProvider::OneDnn);
  CHECK(matmul_provider() == MatmulProvider::OneDnn);
  CHECK(describe_matmul().starts_with("oneDNN "));
}

TEST_CASE("the measured peak is that of independent chains, not of the work a compiler left out") {
  const Restore restore;
  for (Isa isa : available_isas()) {
    set_matmul_isa(isa);
    const double peak = measure_peak_flops();
    // x86 cores of today start two multiply-adds a cycle and run below 6.5 GHz.
    const double lanes = isa == Isa::Avx512 ? 16 : 8;
    CHECK(peak > 1e6);
    CHECK(peak < 6.5e9 * 2 * lanes * 2);
  }
}

TEST_CASE("denormals flush on the thread that asked") {
  bool flushed = false;
  std::thread([&] {
    flush_denormals();
    volatile float smallest = std::numeric_limits<float>::min();
    const float half = smallest * 0.5F;
    volatile float denormal = std::numeric_limits<float>::denorm_min();
    flushed = half == 0.0F && denormal * 1e30F == 0.0F;
  }).join();
  CHECK(flushed);
}
