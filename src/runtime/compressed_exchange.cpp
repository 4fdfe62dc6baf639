#include "trainer/runtime/compressed_exchange.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/core/error.hpp"

namespace trainer::runtime {

namespace {

using config::CompressionType;

constexpr auto kBlock = static_cast<std::size_t>(optim::kInt8Block);

// Transfers that are started and awaited together.
struct TransferList {
  std::vector<std::unique_ptr<comm::Transfer>> transfers;
  std::size_t done = 0;

  void start() {
    done = 0;
    for (auto& transfer : transfers) transfer->start();
  }
  bool test() {
    while (done < transfers.size() && transfers[done]->test()) ++done;
    return done == transfers.size();
  }
};

template <class T>
std::span<T> part(T* memory, std::size_t at, std::int64_t count) {
  return {memory + at, static_cast<std::size_t>(count)};
}

}  // namespace

// One bucket's exchange. `start` encodes; the first round brings the sums of what is sent as floats and the others'
// wires; the second, where there is one, brings 8-bit sums from those who made them, or the sum of Q.
class CompressedExchange::Bucket final : public comm::AllReduce {
 public:
  Bucket(CompressedExchange& exchange, Range gradients, int first_tag);

  void start() override;
  bool test() override;

  const CompressedBucketLayout& layout() const { return layout_; }
  float* errors() { return errors_.f32(); }
  float* factors() { return factors_.f32(); }
  const float* errors() const { return errors_.f32(); }
  const float* factors() const { return factors_.f32(); }

 private:
  enum class Round { Idle, First, Second };
  void make_wires(int first_tag);
  void make_int8_wires(int first_tag);
  void encode(const CompressedUse& use);
  void decode(const CompressedUse& use);
  void sum_int8();
  void make_factors();

  bool feeds_back() const { return compression_.error_feedback; }
  std::span<float> gradient(const CompressedUse& use) const {
    return part(exchange_.parameters_.gradients(), use.gradient, use.elements);
  }
  std::span<float> error(const CompressedUse& use) { return part(errors_.f32(), use.error, use.elements); }
  std::span<float> p(const CompressedUse& use) { return part(summed_.f32(), use.summed, use.power.p_elements()); }
  std::span<float> q(const CompressedUse& use) { return part(factors_.f32(), use.factor, use.power.q_elements()); }
  std::span<float> kept(const CompressedUse& use) { return part(summed_.f32(), use.summed, use.kept); }
  std::span<std::uint32_t> indices(const CompressedUse& use) {
    return part(reinterpret_cast<std::uint32_t*>(indices_.data()), use.index, use.kept);
  }
  // top_k's part of a wire: indices, then values.
  static std::span<std::uint32_t> wire_indices(std::byte* wire, const CompressedUse& use) {
    return part(reinterpret_cast<std::uint32_t*>(wire + use.wire), 0, use.kept);
  }
  static std::span<float> wire_values(std::byte* wire, const CompressedUse& use) {
    return part(reinterpret_cast<float*>(wire + use.wire), static_cast<std::size_t>(use.kept), use.kept);
  }

  CompressedExchange& exchange_;
  const config::Compression& compression_;
  comm::Communicator& data_;
  const int replicas_;
  const CompressedBucketLayout layout_;
  Round round_ = Round::Idle;
  Buffer errors_, summed_, factors_, indices_;
  Buffer wire_, received_;            // of this rank; of the others, in turn
  Buffer chunk_, result_;             // int8: floats of the blocks that are summed here; all sums
  std::vector<std::byte*> wires_;     // [replica] all of what it says; int8: its blocks of the own chunk
  std::vector<const std::byte*> at_;  // [replica] one use's part of it
  std::unique_ptr<comm::AllReduce> sum_, factor_sum_;
  TransferList first_, second_;
  std::int64_t sent_bytes_ = 0;  // of one exchange
};

CompressedExchange::Bucket::Bucket(CompressedExchange& exchange, Range gradients, int first_tag)
    : exchange_(exchange),
      compression_(exchange.plan_.config.parallel.compression),
      data_(exchange.data_),
      replicas_(exchange.data_.size()),
      layout_(lay_out_compression(exchange.plan_, exchange.parameters_.layout(), exchange.at_, gradients)),
      errors_(layout_.error_elements * sizeof(float)),
      summed_(layout_.summed_elements * sizeof(float)),
      factors_(layout_.factor_elements * sizeof(float)),
      indices_(layout_.index_elements * sizeof(std::uint32_t)),
      wire_(layout_.wire_bytes),
      wires_(static_cast<std::size_t>(replicas_)),
      at_(static_cast<std::size_t>(replicas_)) {
  const auto summed = static_cast<std::int64_t>(layout_.summed_elements);
  const auto factors = static_cast<std::int64_t>(layout_.factor_elements);
  sum_ = data_.make_all_reduce(summed_.f32(), summed);
  factor_sum_ = data_.make_all_reduce(factors_.f32(), factors);
  for (const std::int64_t elements : {summed, factors}) {
    sent_bytes_ += comm::Communicator::all_reduce_sent_bytes(elements, replicas_, data_.rank());
  }
  if (compression_.type == CompressionType::Int8) {
    make_int8_wires(first_tag);
  } else {
    make_wires(first_tag);
  }
  for (const CompressedUse& use : layout_.uses) {
    if (use.power.rank > 0) {
      optim::first_factor(exchange_.plan_.config.training.seed, use.name, use.power, q(use));
    }
  }
}

// Everybody's whole wire to everybody.
void CompressedExchange::Bucket::make_wires(int first_tag) {
  const std::size_t bytes = layout_.wire_bytes;
  if (bytes == 0) return;
  received_ = Buffer(bytes * static_cast<std::size_t>(replicas_ - 1));
  std::byte* to = received_.data();
  for (int step = 1; step < replicas_; ++step, to += bytes) {
    const int target = (data_.rank() + step) % replicas_;
    const int source = (data_.rank() + replicas_ - step) % replicas_;
    first_.transfers.push_back(data_.make_receive(to, bytes, source, first_tag));
    first_.transfers.push_back(data_.make_send(wire_.data(), bytes, target, first_tag));
    wires_[static_cast<std::size_t>(source)] = to;
    sent_bytes_ += static_cast<std::int64_t>(bytes);
  }
  wires_[static_cast<std::size_t>(data_.rank())] = wire_.data();
}

// The blocks of each chunk to the replica that sums them, and its sums to everybody.
void CompressedExchange::Bucket::make_int8_wires(int first_tag) {
  const auto place = [&](int replica) {
    const Range chunk = int8_chunk(layout_.wire_bytes, replicas_, replica);
    return Range{chunk.begin * static_cast<std::int64_t>(optim::kInt8BlockBytes),
                 chunk.end * static_cast<std::int64_t>(optim::kInt8BlockBytes)};
  };
  const Range mine = place(data_.rank());
  const auto mine_bytes = static_cast<std::size_t>(mine.size());
  received_ = Buffer(mine_bytes * static_cast<std::size_t>(replicas_ - 1));
  chunk_ = Buffer(mine_bytes / optim::kInt8BlockBytes * kBlock * sizeof(float));
  result_ = Buffer(layout_.wire_bytes);
  std::byte* to = received_.data();
  for (int step = 1; step < replicas_; ++step, to += mine_bytes) {
    const int target = (data_.rank() + step) % replicas_;
    const int source = (data_.rank() + replicas_ - step) % replicas_;
    const Range theirs = place(target), sums = place(source);
    first_.transfers.push_back(data_.make_receive(to, mine_bytes, source, first_tag));
    first_.transfers.push_back(
        data_.make_send(wire_.data() + theirs.begin, static_cast<std::size_t>(theirs.size()), target, first_tag));
    second_.transfers.push_back(
        data_.make_receive(result_.data() + sums.begin, static_cast<std::size_t>(sums.size()), source, first_tag + 1));
    second_.transfers.push_back(data_.make_send(result_.data() + mine.begin, mine_bytes, target, first_tag + 1));
    wires_[static_cast<std::size_t>(source)] = to;
    sent_bytes_ += theirs.size() + mine.size();
  }
  wires_[static_cast<std::size_t>(data_.rank())] = wire_.data() + mine.begin;
}

void CompressedExchange::Bucket::encode(const CompressedUse& use) {
  const std::span<float> values = gradient(use);
  if (feeds_back()) optim::add_error(values, error(use));
  switch (compression_.type) {
    case CompressionType::None:
      break;
    case CompressionType::TopK: {
      const std::span<std::uint32_t> chosen = wire_indices(wire_.data(), use);
      optim::top_k(values, chosen);
      optim::gather(values, chosen, 1.0f, wire_values(wire_.data(), use));
      if (feeds_back()) optim::keep_rest(values, chosen, error(use));
      break;
    }
    case CompressionType::RandomK: {
      optim::random_k(exchange_.plan_.config.training.seed, use.name, exchange_.step_, use.elements, indices(use));
      // Without feedback the sum is right on average only where each element weighs as much as it was likely.
      const double scale = feeds_back() ? 1.0 : static_cast<double>(use.elements) / static_cast<double>(use.kept);
      optim::gather(values, indices(use), static_cast<float>(scale), kept(use));
      optim::spread_non_finite(values, kept(use));
      if (feeds_back()) optim::keep_rest(values, indices(use), error(use));
      break;
    }
    case CompressionType::Sign:
      optim::encode_signs(values, part(wire_.data(), use.wire, static_cast<std::int64_t>(use.wire_bytes)));
      break;
    case CompressionType::Int8:
      optim::encode_int8(values, part(wire_.data(), use.wire, static_cast<std::int64_t>(use.wire_bytes)));
      break;
    case CompressionType::PowerSgd:
      optim::project(use.power, values, q(use), p(use));
      break;
  }
}

void CompressedExchange::Bucket::start() {
  for (const CompressedUse& use : layout_.uses) encode(use);
  for (const WholeUse& use : layout_.whole) {
    std::copy_n(exchange_.parameters_.gradients() + use.gradient, use.elements, summed_.f32() + use.summed);
  }
  first_.start();
  sum_->start();
  round_ = Round::First;
  exchange_.sent_bytes_ += sent_bytes_;
}

bool CompressedExchange::Bucket::test() {
  if (round_ == Round::First) {
    const bool summed = sum_->test();
    if (!first_.test() || !summed) return false;
    if (compression_.type == CompressionType::Int8) sum_int8();
    if (compression_.type == CompressionType::PowerSgd) make_factors();
    second_.start();
    factor_sum_->start();
    round_ = Round::Second;
  }
  if (round_ == Round::Second) {
    const bool summed = factor_sum_->test();
    if (!second_.test() || !summed) return false;
    for (const CompressedUse& use : layout_.uses) decode(use);
    for (const WholeUse& use : layout_.whole) {
      std::copy_n(summed_.f32() + use.summed, use.elements, exchange_.parameters_.gradients() + use.gradient);
    }
    round_ = Round::Idle;
  }
  return true;
}

// Everybody's blocks of the own chunk, in rank order.
void CompressedExchange::Bucket::sum_int8() {
  const Range blocks = int8_chunk(layout_.wire_bytes, replicas_, data_.rank());
  const std::span<float> sum = part(chunk_.f32(), 0, blocks.size() * optim::kInt8Block);
  const auto bytes = static_cast<std::size_t>(blocks.size()) * optim::kInt8BlockBytes;
  for (std::size_t r = 0; r < wires_.size(); ++r) optim::decode_int8({wires_[r], bytes}, r > 0, sum);
  optim::encode_int8(sum, {result_.data() + static_cast<std::size_t>(blocks.begin) * optim::kInt8BlockBytes, bytes});
}

void CompressedExchange::Bucket::make_factors() {
  for (const CompressedUse& use : layout_.uses) {
    optim::orthonormalise(use.power, p(use));
    optim::project_back(use.power, gradient(use), p(use), q(use));
  }
}

void CompressedExchange::Bucket::decode(const CompressedUse& use) {
  const std::span<float> sum = gradient(use);
  switch (compression_.type) {
    case CompressionType::None:
      break;
    case CompressionType::TopK:
      std::fill(sum.begin(), sum.end(), 0.0f);
      // The first replica's values are put there, not added to 0, so that all of them give the bits of a plain sum.
      for (std::size_t r = 0; r < wires_.size(); ++r) {
        optim::scatter(wire_indices(wires_[r], use), wire_values(wires_[r], use), r > 0, sum);
      }
      break;
    case CompressionType::RandomK:
      std::fill(sum.begin(), sum.end(), 0.0f);
      optim::scatter(indices(use), kept(use), false, sum);
      break;
    case CompressionType::Sign:
      for (std::size_t r = 0; r < wires_.size(); ++r) at_[r] = wires_[r] + use.wire;
      optim::majority(at_, sum);
      break;
    case CompressionType::Int8:
      optim::decode_int8(part(result_.data(), use.wire, static_cast<std::int64_t>(use.wire_bytes)), false, sum);
      break;
    case CompressionType::PowerSgd: {
      const std::span<float> error_of = feeds_back() ? error(use) : std::span<float>{};
      std::copy_n(sum.begin(), error_of.size(), error_of.begin());
      optim::restore(use.power, p(use), q(use), sum);
      // The replicas' shares of the result are alike, and sum to it.
      optim::keep_difference(error_of, sum, 1.0f / static_cast<float>(replicas_), error_of);
      break;
    }
  }
}

CompressedExchange::CompressedExchange(const RunPlan& plan, const plan::Coordinates& at, Parameters& parameters,
                                       comm::Communicator& data)
    : plan_(plan),
      at_(at),
      local_(plan::shard(plan.graph, plan.mesh.tensor, at.tensor)),
      parameters_(parameters),
      data_(data) {}

CompressedExchange::~CompressedExchange() = default;

comm::AllReduce& CompressedExchange::make_bucket(Range gradients) {
  const int first_tag = 2 * static_cast<int>(buckets_.size());
  if (first_tag + 1 >= data_.max_tag()) internal_error("more compressed buckets than a communicator has tags for");
  buckets_.push_back(std::make_unique<Bucket>(*this, gradients, first_tag));
  return *buckets_.back();
}

std::string CompressedExchange::error_name(const CompressedUse& use, std::int64_t replica) const {
  return fmt::format("optimizer.compression_error.{}.{}.{}", replica, use.use,
                     plan_.graph.parameters[use.held->id.index()].name);
}

std::string CompressedExchange::factor_name(const CompressedUse& use) const {
  return fmt::format("optimizer.compression_factor.{}of{}.{}.{}", at_.tensor, plan_.mesh.tensor, use.use,
                     plan_.graph.parameters[use.held->id.index()].name);
}

namespace {

Shape factor_shape(const optim::PowerShape& power) { return Shape{power.rank, power.columns}; }

}  // namespace

std::vector<storage::Piece> CompressedExchange::pieces() const {
  std::vector<storage::Piece> pieces;
  for (const auto& bucket : buckets_) {
    for (const CompressedUse& use : bucket->layout().uses) {
      const bool speaks = at_.tensor == 0 || local_.parameters[use.held->id.index()].sharded;
      if (speaks && plan_.config.parallel.compression.error_feedback) {
        std::size_t at = use.error;
        for (const Box& box : use.held->boxes) {
          pieces.push_back({error_name(use, at_.data), DType::F32, plan_.graph.parameters[use.held->id.index()].shape,
                            box, bucket->errors() + at});
          at += static_cast<std::size_t>(box.elements());
        }
      }
      if (use.power.rank > 0 && at_.data == 0) {
        const Shape shape = factor_shape(use.power);
        pieces.push_back({factor_name(use), DType::F32, shape, whole(shape), bucket->factors() + use.factor});
      }
    }
  }
  return pieces;
}

void CompressedExchange::load_error(const storage::CheckpointReader& checkpoint, const CompressedUse& use, float* error,
                                    float* scratch) {
  std::fill_n(error, use.elements, 0.0f);
  for (std::int64_t r = 0; checkpoint.has(error_name(use, r)); ++r) {
    if (r % plan_.mesh.data != at_.data) continue;
    std::int64_t at = 0;
    for (const Box& box : use.held->boxes) {
      checkpoint.read(error_name(use, r), box, scratch + at);
      at += box.elements();
    }
    if (r == at_.data) {
      std::copy_n(scratch, use.elements, error);
    } else {
      optim::add_error({error, static_cast<std::size_t>(use.elements)},
                       {scratch, static_cast<std::size_t>(use.elements)});
    }
  }
}

void CompressedExchange::load(const storage::CheckpointReader& checkpoint) {
  for (const auto& bucket : buckets_) {
    for (const CompressedUse& use : bucket->layout().uses) {
      if (plan_.config.parallel.compression.error_feedback) {
        // Gradients of no step yet: their memory is free.
        load_error(checkpoint, use, bucket->errors() + use.error, parameters_.gradients() + use.gradient);
      }
      const std::string name = factor_name(use);
      const Shape shape = factor_shape(use.power);
      for (const storage::TensorEntry& tensor : checkpoint.tensors()) {
        if (use.power.rank == 0 || tensor.name != name || !(tensor.shape == shape)) continue;
        checkpoint.read(name, whole(shape), bucket->factors() + use.factor);
      }
    }
  }
}

}  // namespace trainer::runtime
