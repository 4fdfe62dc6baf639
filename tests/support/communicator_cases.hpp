// What every communicator must do, whatever carries the messages. Run on all ranks.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "trainer/comm/communicator.hpp"
#include "trainer/comm/shared_memory.hpp"
#include "trainer/core/error.hpp"

namespace trainer::test {

/// Rank `rank`'s addend: numbers of mixed sign and size, whose float sums depend on the order.
inline std::vector<float> addend(int rank, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(rank) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ (h >> 29)) * 0x94d049bb133111ebull;
    const auto mantissa = static_cast<std::int32_t>(h >> 32);
    values[i] = static_cast<float>(mantissa) * (1.0F / static_cast<float>(1 << (h >> 17 & 15)));
  }
  return values;
}

/// The definition: element by element, in ascending rank order.
inline std::vector<float> serial_sum(int ranks, std::int64_t count) {
  std::vector<float> total = addend(0, count);
  for (int r = 1; r < ranks; ++r) {
    const std::vector<float> more = addend(r, count);
    for (std::size_t i = 0; i < total.size(); ++i) total[i] += more[i];
  }
  return total;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline void check_all_reduce(comm::Communicator& comm, std::int64_t count, int repetitions = 2) {
  const std::vector<float> mine = addend(comm.rank(), count);
  const std::vector<float> expected = serial_sum(comm.size(), count);
  std::vector<float> data(mine.size());
  const auto all_reduce = comm.make_all_reduce(data.data(), count);
  CHECK(all_reduce->test());
  for (int i = 0; i < repetitions; ++i) {
    data = mine;
    all_reduce->start();
    comm::wait(*all_reduce, {"all-reduce", -1, count});
    CHECK_MESSAGE(same_bits(data, expected), count, " elements on rank ", comm.rank(), " of ", comm.size());
  }
}

inline void check_several_in_flight(comm::Communicator& comm) {
  const std::vector<std::int64_t> counts{3, 70000, 1024, 1025, 600001, 17};
  std::vector<std::vector<float>> data;
  std::vector<std::unique_ptr<comm::AllReduce>> all_reduces;
  for (const std::int64_t count : counts) {
    data.push_back(addend(comm.rank(), count));
    all_reduces.push_back(comm.make_all_reduce(data.back().data(), count));
  }
  // Started in the order made by even ranks, in the opposite order by odd ones.
  for (std::size_t i = 0; i < counts.size(); ++i) {
    all_reduces[comm.rank() % 2 == 0 ? i : counts.size() - 1 - i]->start();
  }
  const auto all = [&] {
    bool complete = true;
    for (auto& a : all_reduces) complete &= a->test();
    return complete;
  };
  comm::wait_until(std::ref(all), {"several all-reduces"});
  for (std::size_t i = 0; i < counts.size(); ++i) CHECK(same_bits(data[i], serial_sum(comm.size(), counts[i])));
}

/// All ranks send to all others on several tags; receives are awaited in another order than messages are sent.
inline void check_tags_out_of_order(comm::Communicator& comm) {
  constexpr int kTags = 5;
  constexpr std::size_t kLength = 100;
  const int ranks = comm.size();
  const int me = comm.rank();
  const auto value = [](int from, int to, int tag, int round) { return ((round * 100 + from) * 100 + to) * 100 + tag; };
  std::vector<std::vector<int>> sent;
  std::vector<std::vector<int>> received;
  std::vector<std::unique_ptr<comm::Transfer>> sends;
  std::vector<std::unique_ptr<comm::Transfer>> receives;
  for (int peer = 0; peer < ranks; ++peer) {
    for (int t = 0; peer != me && t < kTags; ++t) {
      const int tag = t == kTags - 1 ? comm.max_tag() - 1 : t * 7;
      sent.emplace_back(kLength);
      received.emplace_back(kLength);
      sends.push_back(comm.make_send(sent.back().data(), kLength * sizeof(int), peer, tag));
      receives.push_back(comm.make_receive(received.back().data(), kLength * sizeof(int), peer, tag));
    }
  }
  for (int round = 0; round < 3; ++round) {
    std::size_t i = 0;
    for (int peer = 0; peer < ranks; ++peer) {
      for (int t = 0; peer != me && t < kTags; ++t) sent[i++].assign(kLength, value(me, peer, t, round));
    }
    for (std::size_t k = sends.size(); k-- > 0;) sends[k]->start();
    for (auto& r : received) std::fill(r.begin(), r.end(), -1);
    for (auto& r : receives) r->start();
    for (auto& r : receives) comm::wait(*r, {"a message out of order"});
    for (auto& s : sends) comm::wait(*s, {"a message out of order"});
    i = 0;
    for (int peer = 0; peer < ranks; ++peer) {
      for (int t = 0; peer != me && t < kTags; ++t) {
        CHECK(received[i++] == std::vector<int>(kLength, value(peer, me, t, round)));
      }
    }
  }
}

/// Messages of one (peer, tag) overtake neither each other nor their receives, of any size, zero included.
inline void check_order_in_one_lane(comm::Communicator& comm) {
  const std::vector<std::size_t> sizes{1, 300000, 0, 7, 100000, 2};
  const int next = (comm.rank() + 1) % comm.size();
  const int previous = (comm.rank() + comm.size() - 1) % comm.size();
  if (comm.size() == 1) return;
  std::vector<std::vector<char>> out;
  std::vector<std::vector<char>> in;
  std::vector<std::unique_ptr<comm::Transfer>> transfers;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    out.emplace_back(sizes[i], static_cast<char>('a' + i));
    in.emplace_back(sizes[i], '?');
    transfers.push_back(comm.make_send(out[i].data(), sizes[i], next, 1));
    transfers.push_back(comm.make_receive(in[i].data(), sizes[i], previous, 1));
  }
  for (auto& t : transfers) t->start();
  for (auto& t : transfers) comm::wait(*t, {"a message in its order"});
  for (std::size_t i = 0; i < sizes.size(); ++i) CHECK(in[i] == out[i]);
}

/// A ring of messages goes round while an all-reduce is in flight.
inline void check_interleaved(comm::Communicator& comm) {
  constexpr std::int64_t kCount = 900000;
  std::vector<float> data = addend(comm.rank(), kCount);
  const auto all_reduce = comm.make_all_reduce(data.data(), kCount);
  const int next = (comm.rank() + 1) % comm.size();
  const int previous = (comm.rank() + comm.size() - 1) % comm.size();
  std::vector<double> out(5000);
  std::vector<double> in(5000);
  const std::size_t bytes = out.size() * sizeof(double);
  const auto send = comm.size() > 1 ? comm.make_send(out.data(), bytes, next, 0) : nullptr;
  const auto receive = comm.size() > 1 ? comm.make_receive(in.data(), bytes, previous, 0) : nullptr;
  all_reduce->start();
  for (int round = 0; send && round < 20; ++round) {
    out.assign(out.size(), comm.rank() * 1000 + round);
    receive->start();
    send->start();
    comm::wait(*receive, {"a message during an all-reduce"});
    all_reduce->test();
    comm::wait(*send, {"a message during an all-reduce"});
    CHECK(in == std::vector<double>(in.size(), previous * 1000 + round));
  }
  comm::wait(*all_reduce, {"all-reduce"});
  CHECK(same_bits(data, serial_sum(comm.size(), kCount)));
}

inline void check_small_collectives(comm::Communicator& comm) {
  const int ranks = comm.size();
  const int me = comm.rank();
  // In rank order: 2^53 + 1 + 1 ... loses every 1, another order would not.
  std::vector<double> values{me == 0 ? 0x1p53 : 1.0, me * 1.0};
  comm.sum(values);
  CHECK(values[0] == 0x1p53);
  CHECK(values[1] == ranks * (ranks - 1) / 2);
  values = {-1.0 * me, me * 2.0, me == ranks - 1 ? NAN : 0.0};
  comm.max(values);
  CHECK(values[0] == 0.0);
  CHECK(values[1] == 2.0 * (ranks - 1));
  CHECK(std::isnan(values[2]));
  comm.sum({});

  for (int root = 0; root < ranks; ++root) {
    std::vector<std::byte> bytes(1000, static_cast<std::byte>(me == root ? 100 + root : 0));
    comm.broadcast(bytes, root);
    CHECK(bytes == std::vector<std::byte>(1000, static_cast<std::byte>(100 + root)));
  }

  const auto name = [](int rank) {
    return std::string(static_cast<std::size_t>(rank * 37 % 5), static_cast<char>('a' + rank));
  };
  const std::vector<std::string> names = comm.gather_strings(name(me));
  REQUIRE(names.size() == static_cast<std::size_t>(ranks));
  for (int r = 0; r < ranks; ++r) CHECK(names[static_cast<std::size_t>(r)] == name(r));
  comm.barrier();
}

inline void check_split(comm::Communicator& comm) {
  // Odd and even ranks apart, each in descending order.
  const auto part = comm.split(comm.rank() % 2, -comm.rank());
  const int members = (comm.size() + 1 - comm.rank() % 2) / 2;
  CHECK(part->size() == members);
  CHECK(part->rank() == members - 1 - comm.rank() / 2);
  double sum = comm.rank();
  part->sum({&sum, 1});
  double expected = 0;
  for (int r = comm.rank() % 2; r < comm.size(); r += 2) expected += r;
  CHECK(sum == expected);
  check_all_reduce(*part, 5000);
  check_order_in_one_lane(*part);

  // Messages of a part and of the whole do not meet, though tags and peers are the same.
  const auto twin = comm.split(0, comm.rank());
  CHECK(twin->rank() == comm.rank());
  if (comm.size() > 1) {
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    const std::vector<int> out{1, 2};
    std::vector<int> in(2);
    const auto receive_twin = twin->make_receive(&in[1], sizeof(int), previous, 0);
    const auto receive = comm.make_receive(&in[0], sizeof(int), previous, 0);
    const auto send = comm.make_send(&out[0], sizeof(int), next, 0);
    const auto send_twin = twin->make_send(&out[1], sizeof(int), next, 0);
    for (auto* t : {receive_twin.get(), receive.get(), send.get(), send_twin.get()}) t->start();
    for (auto* t : {receive_twin.get(), receive.get(), send.get(), send_twin.get()})
      comm::wait(*t, {"a message of a part"});
    CHECK(in == out);
  }
  const auto node = comm.split_node();
  CHECK(node->size() >= 1);
  CHECK(node->size() <= comm.size());
  check_small_collectives(*node);
}

/// Every rank writes its part, says so, and reads those of the ranks of its node, many times over: two buffers in turn,
/// so that nobody waits for readers.
inline void check_shared_memory(comm::Communicator& comm) {
  constexpr std::size_t kWords = 5000;
  constexpr std::uint64_t kRounds = 60;
  const int me = comm.rank();
  const auto words = [](int rank) { return kWords + static_cast<std::size_t>(rank) * 3; };
  const auto memory = comm.share(2 * words(me) * sizeof(std::uint64_t), 2);
  REQUIRE(memory != nullptr);
  const auto buffer = [&](int rank, std::uint64_t round) {
    return reinterpret_cast<std::uint64_t*>(memory->part(rank)) + (round % 2) * words(rank);
  };
  const auto value = [](int rank, std::uint64_t round, std::size_t i) {
    return (static_cast<std::uint64_t>(rank) * 1000 + round) * 100000 + i;
  };
  CHECK(reinterpret_cast<std::uintptr_t>(memory->part(me)) % 64 == 0);
  CHECK(std::all_of(memory->part(me), memory->part(me) + 2 * words(me) * sizeof(std::uint64_t),
                    [](std::byte b) { return b == std::byte{0}; }));
  std::size_t wrong = 0;
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    for (std::size_t i = 0; i < words(me); ++i) buffer(me, round)[i] = value(me, round, i);
    memory->post(1, round);
    for (int r = 0; r < comm.size(); ++r) {
      if (memory->part(r) == nullptr) continue;
      const auto there = [&] { return memory->reached(r, 1, round); };
      comm::wait_until(std::ref(there), {"a neighbour's part", r});
      for (std::size_t i = 0; i < words(r); ++i) wrong += buffer(r, round)[i] != value(r, round, i) ? 1 : 0;
    }
  }
  CHECK(wrong == 0);
  CHECK_FALSE(memory->reached(me, 0, 1));  // the other channel has not moved
  comm.barrier();
}

/// Lanes both ways between neighbours at once: rings of two buffers, of several sizes, zero included.
inline void check_shared_lanes(comm::Communicator& comm) {
  constexpr int kLanes = 4;
  constexpr std::size_t kBytes = 30000;
  const int me = comm.rank();
  const std::size_t records = comm::SharedLanes::record_bytes(kLanes);
  const auto memory = comm.share(records + 2 * kLanes * kBytes, comm::SharedLanes::channels(kLanes));
  REQUIRE(memory != nullptr);
  comm::SharedLanes lanes(*memory, me, kLanes);
  struct Ring {
    std::vector<std::unique_ptr<comm::Transfer>> transfers;
    std::vector<std::byte*> data;
    int peer;
    int lane;
    std::size_t bytes;
  };
  std::vector<Ring> sends;
  std::vector<Ring> receives;
  std::vector<std::byte> received(2 * kLanes * kBytes);
  const auto bytes_of = [](int lane) { return lane == 1 ? 0 : kBytes / (1 + static_cast<std::size_t>(lane)); };
  // Lanes 0 and 1 go up, 2 and 3 down.
  for (int lane = 0; lane < kLanes; ++lane) {
    const int to = lane < 2 ? me + 1 : me - 1;
    const int from = lane < 2 ? me - 1 : me + 1;
    const auto there = [&](int peer) { return peer >= 0 && peer < comm.size() && lanes.reaches(peer); };
    Ring send{{}, {}, to, lane, bytes_of(lane)};
    Ring receive{{}, {}, from, lane, bytes_of(lane)};
    for (std::size_t entry = 0; entry < 2; ++entry) {
      const std::size_t at = (2 * static_cast<std::size_t>(lane) + entry) * kBytes;
      send.data.push_back(memory->part(me) + records + at);
      receive.data.push_back(received.data() + at);
      if (there(to)) send.transfers.push_back(lanes.make_send(send.data.back(), send.bytes, to, lane));
      if (there(from)) receive.transfers.push_back(lanes.make_receive(receive.data.back(), receive.bytes, from, lane));
    }
    if (there(to)) sends.push_back(std::move(send));
    if (there(from)) receives.push_back(std::move(receive));
  }
  const auto value = [](int from, int lane, int round) { return static_cast<std::byte>(from * 31 + lane * 7 + round); };
  std::size_t wrong = 0;
  for (int round = 0; round < 50; ++round) {
    const auto entry = static_cast<std::size_t>(round % 2);
    for (Ring& r : receives) r.transfers[entry]->start();
    for (Ring& s : sends) {
      comm::wait(*s.transfers[entry], {"a send before this one", s.peer});
      std::fill_n(s.data[entry], s.bytes, value(me, s.lane, round));
      s.transfers[entry]->start();
    }
    for (Ring& r : receives) {
      comm::wait(*r.transfers[entry], {"a message through shared memory", r.peer});
      const std::byte expected = value(r.peer, r.lane, round);
      for (std::size_t i = 0; i < r.bytes; ++i) wrong += r.data[entry][i] != expected ? 1 : 0;
    }
  }
  for (Ring& s : sends) {
    for (auto& t : s.transfers) comm::wait(*t, {"the last sends", s.peer});
  }
  CHECK(wrong == 0);
  if (!sends.empty()) CHECK_THROWS_AS(lanes.make_send(received.data(), 1, me, 0), Error);
  comm.barrier();
}

/// A sender that is ahead of its receiver waits for its two buffers, and overwrites neither before it was read.
inline void check_fast_sender(comm::Communicator& comm) {
  constexpr std::size_t kBytes = 200000;
  constexpr int kMessages = 30;
  const std::size_t records = comm::SharedLanes::record_bytes(1);
  const auto memory = comm.share(records + 2 * kBytes, comm::SharedLanes::channels(1));
  REQUIRE(memory != nullptr);
  comm::SharedLanes lanes(*memory, comm.rank(), 1);
  const auto value = [](int message) { return static_cast<std::byte>(message + 1); };
  if (comm.size() > 1 && comm.rank() == 0 && lanes.reaches(1)) {
    std::byte* const data = memory->part(0) + records;
    const std::unique_ptr<comm::Transfer> sends[2] = {lanes.make_send(data, kBytes, 1, 0),
                                                      lanes.make_send(data + kBytes, kBytes, 1, 0)};
    for (int m = 0; m < kMessages; ++m) {
      comm::wait(*sends[m % 2], {"a slow receiver", 1, m});
      std::fill_n(data + (m % 2 == 0 ? 0 : kBytes), kBytes, value(m));
      sends[m % 2]->start();
    }
    for (const auto& send : sends) comm::wait(*send, {"a slow receiver", 1, kMessages});
  } else if (comm.rank() == 1 && lanes.reaches(0)) {
    std::vector<std::byte> received(kBytes);
    const auto receive = lanes.make_receive(received.data(), kBytes, 0, 0);
    std::size_t wrong = 0;
    for (int m = 0; m < kMessages; ++m) {
      std::this_thread::sleep_for(std::chrono::microseconds(300));
      receive->start();
      comm::wait(*receive, {"a fast sender", 0, m});
      for (const std::byte b : received) wrong += b != value(m) ? 1 : 0;
    }
    CHECK(wrong == 0);
  }
  comm.barrier();
}

inline void check_communicator(comm::Communicator& comm, bool long_sizes) {
  for (const std::int64_t count : {0, 1, 2, 5, 1000, 1025, 100003}) check_all_reduce(comm, count);
  if (long_sizes) check_all_reduce(comm, 2500000, 1);
  check_several_in_flight(comm);
  check_tags_out_of_order(comm);
  check_order_in_one_lane(comm);
  check_interleaved(comm);
  check_small_collectives(comm);
  check_split(comm);
  check_shared_memory(comm);
  check_shared_lanes(comm);
  check_fast_sender(comm);
}

}  // namespace trainer::test
