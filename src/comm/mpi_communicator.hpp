// A communicator of MPI ranks. Private to comm: it includes mpi.h.
#pragma once

#include <mpi.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trainer/comm/communicator.hpp"

namespace trainer::comm {

/// Throws Error(Internal) with MPI's own words when `code` is not MPI_SUCCESS.
void check_mpi(int code, const char* operation, int peer = -1);

class MpiCommunicator final : public Communicator {
 public:
  /// Takes ownership of `comm` and makes it return errors.
  explicit MpiCommunicator(MPI_Comm comm);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int max_tag() const override { return max_tag_; }
  std::unique_ptr<Transfer> make_send(const void* data, std::size_t bytes, int peer, int tag) override;
  std::unique_ptr<Transfer> make_receive(void* data, std::size_t bytes, int peer, int tag) override;

  void barrier() override;
  void sum(std::span<double> values) override;
  void max(std::span<double> values) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  std::vector<std::string> gather_strings(const std::string& mine) override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  std::unique_ptr<Communicator> split_node() override;
  std::unique_ptr<SharedMemory> share(std::size_t bytes, int channels) override;
  void progress() override;

 protected:
  std::unique_ptr<AllReduce> make_library_all_reduce(float* data, std::int64_t count) override;

 private:
  // Every rank's `values`, one after the other, in scratch_.
  void gather(std::span<const double> values, const char* what);
  void complete(MPI_Request& request, const char* what);

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int max_tag_ = 0;
  std::vector<double> scratch_;  // only grows
};

}  // namespace trainer::comm
