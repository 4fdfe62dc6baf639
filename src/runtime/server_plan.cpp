#include "trainer/runtime/server_plan.hpp"

#include <algorithm>

#include "trainer/core/error.hpp"
#include "trainer/optim/optimizer.hpp"
#include "trainer/runtime/parameters.hpp"

namespace trainer::runtime {

namespace {

Range overlap(Range a, Range b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

void add_parts(const RunPlan& plan, std::int64_t tensor, bool divided, ServerPlan& servers) {
  const plan::LocalGraph local = plan::shard(plan.graph, plan.mesh.tensor, tensor);
  for (std::size_t p = 0; p < plan.graph.parameters.size(); ++p) {
    const plan::LocalParameter& held = local.parameters[p];
    const std::int64_t elements = held.elements();
    if (held.sharded != divided || elements == 0) continue;
    ServedPart part;
    part.id = ParameterId(static_cast<std::int64_t>(p));
    part.tensor = tensor;
    part.divided = divided;
    part.decay = plan.graph.parameters[p].decay;
    part.boxes = held.boxes;
    part.flat = {servers.elements, servers.elements + elements};
    servers.elements = part.flat.end;
    servers.parts.push_back(std::move(part));
  }
}

// As HeldParameter::share has them: each box's rows divided among the replicas.
void add_pieces(const RunPlan& plan, std::int64_t index, ServerPlan& servers) {
  const ServedPart& part = servers.parts[static_cast<std::size_t>(index)];
  std::int64_t at = part.flat.begin;
  for (const Box& box : part.boxes) {
    const std::int64_t rows = box.extent.dims() == 0 ? 1 : box.extent[0];
    if (rows == 0) continue;
    const std::int64_t row = box.elements() / rows;
    for (std::int64_t d = 0; d < plan.mesh.data; ++d) {
      const std::int64_t size = split_range(rows, plan.mesh.data, d).size() * row;
      if (size == 0) continue;
      servers.pieces.push_back({index, d, {at, at + size}});
      servers.block.push_back(servers.block.back() + optim::norm_scratch(size));
      at += size;
    }
  }
}

// The begin of a block that is nearest to `wanted`.
std::int64_t nearest_cut(const ServerPlan& servers, std::int64_t wanted) {
  const auto piece = std::find_if(servers.pieces.begin(), servers.pieces.end(),
                                  [wanted](const NormPiece& p) { return wanted < p.flat.end; });
  if (piece == servers.pieces.end()) return servers.elements;
  const std::int64_t into = wanted - piece->flat.begin;
  const std::int64_t before = into - into % optim::kNormBlockElements;
  const std::int64_t after = std::min(piece->flat.size(), before + optim::kNormBlockElements);
  return piece->flat.begin + (into - before <= after - into ? before : after);
}

}  // namespace

ServerPlan make_server_plan(const RunPlan& plan) {
  ServerPlan servers;
  servers.block.push_back(0);
  add_parts(plan, 0, /*divided=*/false, servers);
  for (std::int64_t t = 0; t < plan.mesh.tensor; ++t) add_parts(plan, t, /*divided=*/true, servers);
  for (std::size_t i = 0; i < servers.parts.size(); ++i) add_pieces(plan, static_cast<std::int64_t>(i), servers);
  const std::int64_t count = plan.servers();
  std::int64_t begin = 0;
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t wanted = split_range(servers.elements, count, s).end;
    const std::int64_t end = s + 1 == count ? servers.elements : std::max(begin, nearest_cut(servers, wanted));
    servers.servers.push_back({begin, end});
    begin = end;
  }
  return servers;
}

namespace {

// Boxes that cover elements [begin, end) of a box, row-major: part of a row of the first dim, whole rows, part of one.
void cut_box(const Box& box, std::int64_t begin, std::int64_t end, int dim, std::int64_t flat,
             std::vector<FlatBox>& boxes) {
  if (begin >= end) return;
  if (begin == 0 && end == box.elements()) {
    boxes.push_back({box, flat});
    return;
  }
  // Within one index of the dims before `dim`, of extent 1 here.
  const std::int64_t row = box.elements() / box.extent[dim];
  const std::int64_t first = begin / row;
  const auto rows = [&](std::int64_t from, std::int64_t count) {
    Box part = box;
    part.start[dim] += from;
    part.extent[dim] = count;
    return part;
  };
  if (begin % row != 0) {
    const std::int64_t stop = std::min(end, (first + 1) * row);
    cut_box(rows(first, 1), begin - first * row, stop - first * row, dim + 1, flat, boxes);
    flat += stop - begin;
    begin = stop;
  }
  const std::int64_t whole_from = begin / row;
  const std::int64_t whole_to = end / row;
  if (whole_to > whole_from && begin < end) {
    boxes.push_back({rows(whole_from, whole_to - whole_from), flat});
    flat += (whole_to - whole_from) * row;
    begin = whole_to * row;
  }
  if (begin < end) cut_box(rows(whole_to, 1), 0, end - whole_to * row, dim + 1, flat, boxes);
}

}  // namespace

std::vector<FlatBox> boxes_of(const ServedPart& part, Range flat) {
  std::vector<FlatBox> boxes;
  std::int64_t at = part.flat.begin;
  for (const Box& box : part.boxes) {
    const Range here = overlap(flat, {at, at + box.elements()});
    cut_box(box, here.begin - at, here.end - at, 0, here.begin, boxes);
    at += box.elements();
  }
  return boxes;
}

Range blocks_of(const ServerPlan& plan, Range flat) {
  const auto number = [&plan](std::int64_t element) {
    const auto piece = std::find_if(plan.pieces.begin(), plan.pieces.end(),
                                    [element](const NormPiece& p) { return element < p.flat.end; });
    const auto index = static_cast<std::size_t>(piece - plan.pieces.begin());
    if (piece == plan.pieces.end()) return plan.block.back();
    return plan.block[index] + (element - piece->flat.begin) / optim::kNormBlockElements;
  };
  return {number(flat.begin), number(flat.end)};
}

Range block_range(const ServerPlan& plan, std::int64_t block) {
  const auto next = std::upper_bound(plan.block.begin(), plan.block.end(), block);
  const auto index = static_cast<std::size_t>(next - plan.block.begin()) - 1;
  const Range piece = plan.pieces[index].flat;
  const std::int64_t begin = piece.begin + (block - plan.block[index]) * optim::kNormBlockElements;
  return {begin, std::min(piece.end, begin + optim::kNormBlockElements)};
}

GradientPlaces gradient_places(const RunPlan& plan, const ServerPlan& servers, int server) {
  GradientPlaces places;
  const Range range = servers.range(server);
  places.elements = range.size();
  // Elsewhere each replica adds the uses of its own gradient, which is an update by itself.
  if (plan.config.parallel.server.consistency != config::Consistency::Bsp) return places;
  for (std::size_t i = 0; i < servers.parts.size(); ++i) {
    const Range here = overlap(servers.parts[i].flat, range);
    const auto uses = static_cast<std::int64_t>(plan.uses(servers.parts[i].id).size());
    for (std::int64_t use = 1; use < uses && here.size() > 0; ++use) {
      places.tied.push_back({static_cast<std::int64_t>(i), use, here, places.elements});
      places.elements += here.size();
    }
  }
  return places;
}

namespace {

// Takes runs that follow each other on the server into messages.
class MessageCutter {
 public:
  explicit MessageCutter(std::vector<ServerMessage>& messages) : messages_(messages) {}

  void add(std::int64_t remote, std::int64_t local, std::int64_t elements) {
    if (elements == 0) return;
    const bool alone = elements >= kAloneElements;
    while (elements > 0) {
      const bool joins = !alone && open_ && messages_.back().remote + messages_.back().elements == remote &&
                         messages_.back().elements + elements <= kMessageElements;
      if (!joins) messages_.push_back({.remote = remote, .elements = 0, .runs = {}});
      ServerMessage& message = messages_.back();
      const std::int64_t count = std::min(elements, kMessageElements);
      message.runs.push_back({local, count});
      message.elements += count;
      remote += count;
      local += count;
      elements -= count;
    }
    open_ = !alone;
  }

 private:
  std::vector<ServerMessage>& messages_;
  bool open_ = false;
};

// The whole rows of a part's range that may travel by themselves: an embedding's use whose gradient is not added to
// others' before it is pushed. `into`: the range's first element in the part, which lies at `remote` and `local`.
std::optional<RowsArea> rows_of(const RunPlan& plan, const ServedPart& part, Range here, std::int64_t remote,
                                std::int64_t local) {
  const auto& uses = plan.uses(part.id);
  const bool bulk = plan.config.parallel.server.consistency == config::Consistency::Bsp;
  if (part.boxes.size() != 1 || part.boxes.front().extent.dims() != 2 || (uses.size() > 1 && !bulk)) return {};
  const model::Node& node = plan.graph.nodes[uses.front().node.index()];
  if (!std::holds_alternative<model::Embedding>(node.op)) return {};
  RowsArea area;
  area.width = part.boxes.front().extent[1];
  const std::int64_t into = here.begin - part.flat.begin;
  const std::int64_t first = (into + area.width - 1) / area.width;
  const std::int64_t tokens = plan.config.training.batch_size / plan.mesh.data * plan.graph.positions;
  area.rows = (into + here.size()) / area.width - first;
  area.most = std::min(tokens, area.rows / 2);
  if (area.most < 1) return {};
  area.remote = remote + first * area.width - into;
  area.local = local + first * area.width - into;
  return area;
}

}  // namespace

ServerStream make_stream(const RunPlan& plan, const ServerPlan& servers, int server, const plan::Coordinates& at) {
  const ParameterLayout layout = lay_out_parameters(plan, plan::shard(plan.graph, plan.mesh.tensor, at.tensor), at);
  const Range range = servers.range(server);
  const GradientPlaces places = gradient_places(plan, servers, server);
  ServerStream stream;
  std::vector<ServerMessage> by_rows;
  MessageCutter push(stream.push), push_rows(by_rows), pull(stream.pull);
  const auto held_of = [&layout](ParameterId id) {
    return std::find_if(layout.held.begin(), layout.held.end(), [id](const HeldParameter& h) { return h.id == id; });
  };
  // Where the gradient of a use lies here; −1: on another stage.
  const auto gradient_of = [&](const HeldParameter& held, std::int64_t wanted) -> std::int64_t {
    std::size_t mine = 0;
    for (std::int64_t use = 0;; ++use) {
      const bool here = plan.rank_of(plan.uses(held.id)[static_cast<std::size_t>(use)].stage) == at.pipeline;
      if (use == wanted) return here ? static_cast<std::int64_t>(held.gradients[mine]) : -1;
      if (here) ++mine;
    }
  };
  for (const ServedPart& part : servers.parts) {
    const Range here = overlap(part.flat, range);
    const auto held = held_of(part.id);
    if (here.size() == 0 || held == layout.held.end()) continue;
    const std::int64_t into = here.begin - part.flat.begin;
    if (part.tensor == at.tensor) {
      const std::int64_t gradient = gradient_of(*held, 0);
      if (gradient >= 0) {
        const std::int64_t remote = here.begin - range.begin, local = gradient + into;
        const auto area = stream.rows ? std::nullopt : rows_of(plan, part, here, remote, local);
        const std::int64_t head = area ? area->remote - remote : here.size();
        const std::int64_t body = area ? area->rows * area->width : 0;
        push.add(remote, local, head);
        push_rows.add(remote + head, local + head, body);
        push.add(remote + head + body, local + head + body, here.size() - head - body);
        if (area) stream.rows = area;
      }
    }
    if (part.tensor == at.tensor || !part.divided) {
      pull.add(here.begin - range.begin, static_cast<std::int64_t>(held->weight) + into, here.size());
    }
  }
  for (const TiedArea& area : places.tied) {
    const ServedPart& part = servers.parts[static_cast<std::size_t>(area.part)];
    const auto held = held_of(part.id);
    if (part.tensor != at.tensor || held == layout.held.end()) continue;
    const std::int64_t gradient = gradient_of(*held, area.use);
    if (gradient >= 0) push.add(area.begin, gradient + area.flat.begin - part.flat.begin, area.flat.size());
  }
  stream.first_of_rows = stream.push.size();
  stream.push.insert(stream.push.end(), by_rows.begin(), by_rows.end());
  return stream;
}

}  // namespace trainer::runtime
