// Which parameters live on which server of a served run, and what a rank of the mesh and a server send each other: pure
// functions of the plan.
//
// The *flat order* is all counted parameters one behind the other, each as the tensor rank has it that speaks for it:
// first those of which every tensor rank holds the same whole, then those of tensor rank 0 that are divided, of 1, ….
// It does not depend on the stage cut. A server holds one range of it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/core/shape.hpp"
#include "trainer/plan/mesh.hpp"
#include "trainer/runtime/run_plan.hpp"

namespace trainer::runtime {

/// A parameter as one tensor rank holds it, at its place of the flat order.
struct ServedPart {
  ParameterId id;
  std::int64_t tensor = 0;  // the rank that speaks for it, whose gradients are sent
  bool divided = false;     // otherwise all tensor ranks hold the same whole, and all pull it
  bool decay = true;
  std::vector<Box> boxes;  // of the global tensor, one behind the other
  Range flat;
};

/// What one replica has a share of in norms (HeldParameter::share), block by block of 4096 elements from its begin.
struct NormPiece {
  std::int64_t part = 0;     // index
  std::int64_t replica = 0;  // the replica whose share it is
  Range flat;
};

struct ServerPlan {
  std::vector<ServedPart> parts;    // in flat order
  std::vector<NormPiece> pieces;    // in flat order; they cover it
  std::vector<std::int64_t> block;  // [piece] number of its first block, over all pieces; one more: all blocks
  std::vector<Range> servers;       // [server] its range; cut where blocks begin, as equal as that allows
  std::int64_t elements = 0;

  int count() const { return static_cast<int>(servers.size()); }
  Range range(int server) const { return servers[static_cast<std::size_t>(server)]; }
};

/// For plan.servers() servers.
ServerPlan make_server_plan(const RunPlan& plan);

/// Whole boxes of the global tensor that cover a range of a part: rows that are cut, and those between. Each begins at
/// element `begin` of the flat order.
struct FlatBox {
  Box box;
  std::int64_t begin = 0;
};
std::vector<FlatBox> boxes_of(const ServedPart& part, Range flat);

/// Numbers of the blocks that begin in a range; its ends are where blocks begin.
Range blocks_of(const ServerPlan& plan, Range flat);
/// The elements of a block.
Range block_range(const ServerPlan& plan, std::int64_t block);

/// bsp: gradients of the further uses of tied parameters have places of their own on a server, behind its range, as
/// replicas are added before uses. In ssp and async a replica adds its uses, and sends the sum.
struct TiedArea {
  std::int64_t part = 0;
  std::int64_t use = 0;    // from 1
  Range flat;              // of the part that the server holds
  std::int64_t begin = 0;  // place of its first element among the server's gradients; use 0 has that of the flat order
};
struct GradientPlaces {
  std::vector<TiedArea> tied;  // by part, then use
  std::int64_t elements = 0;
};
GradientPlaces gradient_places(const RunPlan& plan, const ServerPlan& servers, int server);

/// One message between a rank of the mesh and a server: contiguous on the server, made of runs on the other side.
struct ServerMessage {
  struct Run {
    std::int64_t local = 0;  // element offset in the rank's gradients() (push) or weights() (pull)
    std::int64_t elements = 0;
  };
  std::int64_t remote = 0;  // first element among the server's gradients, or its weights
  std::int64_t elements = 0;
  std::vector<Run> runs;
};
/// The gradient of an embedding's use, of whose rows a batch touches few: a push carries those that are not zero, with
/// their numbers, unless they are too many. Zero means all bits, so nothing is lost.
struct RowsArea {
  std::int64_t remote = 0;  // place of its first row among the server's gradients
  std::int64_t local = 0;   // and in the rank's gradients()
  std::int64_t rows = 0, width = 0;
  std::int64_t most = 0;  // rows that travel alone: half of all, and a row a token at most
  std::int64_t elements() const { return most * width; }
};
/// Everything that a rank and a server exchange, in this order, alike for all replicas.
struct ServerStream {
  std::vector<ServerMessage> push, pull;
  std::optional<RowsArea> rows;
  std::size_t first_of_rows = 0;  // push[first_of_rows …) are the area, where it travels whole
};
ServerStream make_stream(const RunPlan& plan, const ServerPlan& servers, int server, const plan::Coordinates& at);

/// No message is longer, and long runs are cut into such; shorter runs than kAloneElements travel together.
inline constexpr std::int64_t kMessageElements = std::int64_t{1} << 16;
inline constexpr std::int64_t kAloneElements = std::int64_t{1} << 14;
/// Rows travel packed, in messages of so many elements; the last one is sent whole too.
inline constexpr std::int64_t kRowsMessageElements = std::int64_t{1} << 12;

}  // namespace trainer::runtime
