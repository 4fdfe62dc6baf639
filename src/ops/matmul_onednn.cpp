// The oneDNN provider: C is cut into tiles that depend on the shape alone, each computed by a primitive on one thread.
// Builds with oneDNN 2.x and 3.x, whose ways to describe a matmul differ.
#include "matmul_onednn.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "trainer/core/error.hpp"
#include "trainer/core/tensor.hpp"

namespace trainer::ops {

namespace {

constexpr std::int64_t kTileRows = 256;
constexpr std::int64_t kTileColumns = 512;

/// oneDNN cuts its work by OpenMP's thread count, when a primitive is made and when it runs; here that count is one.
class SingleThreaded {
 public:
  SingleThreaded() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreaded() { omp_set_num_threads(before_); }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  int before_;
};

dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const MatmulShape& tile, bool accumulate) {
  using Memory = dnnl::memory;
  const auto matrix = [](std::int64_t rows, std::int64_t columns, std::int64_t step, bool transposed) {
    const Memory::dims strides = transposed ? Memory::dims{1, step} : Memory::dims{step, 1};
    return Memory::desc({rows, columns}, Memory::data_type::f32, strides);
  };
  const auto a = matrix(tile.m, tile.k, tile.lda, tile.layout == Layout::TN);
  const auto b = matrix(tile.k, tile.n, tile.ldb, tile.layout == Layout::NT);
  const auto c = matrix(tile.m, tile.n, tile.ldc, false);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops post;
    post.append_sum(1.0F);
    attributes.set_post_ops(post);
  }
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, a, b, c, attributes);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), attributes, engine);
#endif
}

/// A primitive for one tile shape, with the memory objects that each thread points at its tile.
class TilePrimitive {
 public:
  TilePrimitive(const dnnl::engine& engine, const MatmulShape& tile, bool accumulate)
      : engine_(engine), description_(describe(engine, tile, accumulate)), primitive_(description_) {}

  void provide_lanes(int threads) {
    while (static_cast<int>(lanes_.size()) < threads) lanes_.push_back(std::make_unique<Lane>(engine_, description_));
  }

  /// By the C interface: the C++ one builds a hash map a call.
  bool run(int thread, const float* a, const float* b, float* c) const {
    const Lane& lane = *lanes_[static_cast<std::size_t>(thread)];
    lane.a.set_data_handle(const_cast<float*>(a));
    lane.b.set_data_handle(const_cast<float*>(b));
    lane.c.set_data_handle(c);
    const std::array<dnnl_exec_arg_t, 4> arguments{{{DNNL_ARG_SRC, lane.a.get()},
                                                    {DNNL_ARG_WEIGHTS, lane.b.get()},
                                                    {DNNL_ARG_DST, lane.c.get()},
                                                    {DNNL_ARG_SCRATCHPAD, lane.scratchpad.get()}}};
    return dnnl_primitive_execute(primitive_.get(), lane.stream.get(), static_cast<int>(arguments.size()),
                                  arguments.data()) == dnnl_success;
  }

 private:
  struct Lane {
    Lane(const dnnl::engine& engine, const dnnl::matmul::primitive_desc& description)
        : stream(engine),
          scratch(description.scratchpad_desc().get_size()),
          a(description.src_desc(), engine, DNNL_MEMORY_NONE),
          b(description.weights_desc(), engine, DNNL_MEMORY_NONE),
          c(description.dst_desc(), engine, DNNL_MEMORY_NONE),
          scratchpad(description.scratchpad_desc(), engine, scratch.data()) {}
    dnnl::stream stream;
    Buffer scratch;
    dnnl::memory a, b, c, scratchpad;
  };

  dnnl::engine engine_;
  dnnl::matmul::primitive_desc description_;
  dnnl::matmul primitive_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

/// Belongs to the thread that calls matmul; its pool's threads use the lanes only during that call. So two callers with
/// a pool each share nothing and need no lock.
class PrimitiveCache {
 public:
  const TilePrimitive& get(const MatmulShape& tile, bool accumulate, int threads) {
    const Key key{
        static_cast<std::int64_t>(tile.layout), tile.m, tile.n, tile.k, tile.lda, tile.ldb, tile.ldc, accumulate};
    auto found = primitives_.find(key);
    if (found == primitives_.end()) found = primitives_.try_emplace(key, engine_, tile, accumulate).first;
    found->second.provide_lanes(threads);
    return found->second;
  }

 private:
  using Key = std::array<std::int64_t, 8>;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::map<Key, TilePrimitive> primitives_;
};

const TilePrimitive& find_primitive(MatmulShape tile, std::int64_t m, std::int64_t n, bool accumulate, int threads) {
  static thread_local PrimitiveCache cache;
  tile.m = m;
  tile.n = n;
  return cache.get(tile, accumulate, threads);
}

void add_bias(float* c, std::int64_t ldc, std::int64_t rows, std::int64_t columns, const float* bias) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) c[i * ldc + j] += bias[j];
  }
}

/// The four sizes of tile a shape may need: whole, and cut at the last row or column of tiles.
struct Cut {
  std::int64_t rows, columns;        // of tiles
  std::int64_t height, last_height;  // of one tile
  std::int64_t width, last_width;

  Cut(std::int64_t m, std::int64_t n)
      : rows((m + kTileRows - 1) / kTileRows),
        columns((n + kTileColumns - 1) / kTileColumns),
        height(std::min(m, kTileRows)),
        last_height(m - (rows - 1) * kTileRows),
        width(std::min(n, kTileColumns)),
        last_width(n - (columns - 1) * kTileColumns) {}
};

}  // namespace

std::string describe_onednn() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

void onednn_matmul(ThreadPool& pool, const MatmulShape& shape, const float* a, const float* b, float* c,
                   bool accumulate, const float* bias) {
  const Cut cut(shape.m, shape.n);
  const TilePrimitive* primitives[2][2];
  try {
    const SingleThreaded guard;
    for (int last_row : {0, 1}) {
      for (int last_column : {0, 1}) {
        primitives[last_row][last_column] =
            &find_primitive(shape, last_row ? cut.last_height : cut.height, last_column ? cut.last_width : cut.width,
                            accumulate, pool.threads());
      }
    }
  } catch (const dnnl::error& error) {
    throw Error(ExitCode::Internal, fmt::format("{} cannot multiply matrices of m {}, n {}, k {}: {}; the native "
                                                "provider can",
                                                describe_onednn(), shape.m, shape.n, shape.k, error.what()));
  }

  const std::int64_t a_step = shape.layout == Layout::TN ? 1 : shape.lda;
  const std::int64_t b_step = shape.layout == Layout::NT ? shape.ldb : 1;
  std::atomic<bool> failed{false};
  pool.for_each(cut.rows * cut.columns, [&](std::int64_t tile, int thread) {
    const SingleThreaded guard;
    const std::int64_t row = tile % cut.rows, column = tile / cut.rows;
    const bool last_row = row == cut.rows - 1, last_column = column == cut.columns - 1;
    const std::int64_t i = row * kTileRows, j = column * kTileColumns;
    float* at = c + i * shape.ldc + j;
    if (!primitives[last_row][last_column]->run(thread, a + i * a_step, b + j * b_step, at)) failed = true;
    if (bias != nullptr) {
      add_bias(at, shape.ldc, last_row ? cut.last_height : cut.height, last_column ? cut.last_width : cut.width,
               bias + j);
    }
  });
  if (failed) {
    throw Error(ExitCode::Internal, fmt::format("{} failed in a matrix multiply of m {}, n {}, k {}", describe_onednn(),
                                                shape.m, shape.n, shape.k));
  }
}

}  // namespace trainer::ops
