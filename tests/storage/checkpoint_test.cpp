// Checkpoints: any layout reads any other's, every damage is found and named.
#include "trainer/storage/checkpoint.hpp"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>

#include "checkpoint_support.hpp"
#include "support/memory_file_system.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::storage;
using namespace trainer::test;

namespace {

/// The message of the Error(Storage) that `body` throws; "" when it throws none.
template <class Body>
std::string failure(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Storage);
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string reseal(std::string text) {
  const std::size_t tail = std::string(",\n\"manifest_xxh3\": \"0123456789abcdef\"}\n").size();
  text.resize(text.size() - tail);
  return text + fmt::format(",\n\"manifest_xxh3\": \"{:016x}\"}}\n", XXH3_64bits(text.data(), text.size()));
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("a checkpoint of any layout is read in any other") {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    std::mt19937_64 random(seed);
    Tensors tensors;
    for (int t = 0; t < 5; ++t) {
      Shape shape;
      for (std::uint64_t d = random() % 5; d > 0; --d) shape.push_back(static_cast<std::int64_t>(1 + random() % 9));
      const DType type =
          std::vector{DType::F32, DType::BF16, DType::F64, DType::I32, DType::I64, DType::U8}[random() % 6];
      tensors["tensor." + std::to_string(t)] = random_tensor(type, shape, random);
    }
    MemoryFileSystem fs;
    const std::string path = save(fs, "runs/x", 7, tensors, static_cast<int>(1 + random() % 4), seed);
    CHECK(path == "runs/x/step-00000007");
    const auto reader = open_checkpoint(fs, path);
    for (int again = 0; again < 2; ++again) {  // the second time every piece is checked already
      for (const auto& [name, tensor] : tensors) {
        for (const Box& box : random_cut(tensor.shape, 6, random))
          CHECK(read(*reader, name, tensor, box) == bytes_of(tensor, box));
      }
    }
    CHECK(holds(*reader, tensors));
    CHECK_NOTHROW(reader->verify());
  }
}

TEST_CASE("the record and the list of tensors come back") {
  MemoryFileSystem fs;
  const Tensors tensors = some_tensors(1);
  save(fs, "runs", 123456789, tensors, 2, 1);
  const auto reader = open_checkpoint(fs, "runs/step-123456789");
  CHECK(reader->record().step == 123456789);
  CHECK(reader->record().config == record_of(1).config);
  CHECK(reader->record().vocabulary == record_of(1).vocabulary);
  CHECK(reader->record().build == record_of(1).build);
  REQUIRE(reader->tensors().size() == tensors.size());
  auto expected = tensors.begin();
  for (const TensorEntry& entry : reader->tensors()) {
    CHECK(entry.name == expected->first);
    CHECK(entry.type == expected->second.type);
    CHECK(entry.shape == expected->second.shape);
    ++expected;
  }
  CHECK(checkpoint_steps(fs, "runs") == std::vector<std::int64_t>{123456789});
}

TEST_CASE("every shard is a safetensors file") {
  MemoryFileSystem fs;
  const std::string path = save(fs, "runs", 1, some_tensors(3), 3, 3);
  for (const std::string& name : fs.list(path)) {
    if (name == "manifest.json") continue;
    const std::string text = fs.read_text(path + "/" + name, 1 << 20);
    std::uint64_t length = 0;
    std::memcpy(&length, text.data(), 8);
    CHECK(length % 8 == 0);
    REQUIRE(length + 8 <= text.size());
    CHECK(text[8] == '{');
    const auto header = nlohmann::ordered_json::parse(text.substr(8, length));
    std::uint64_t end = 0;
    std::string last_key;
    for (const auto& [key, entry] : header.items()) {
      if (key == "__metadata__") {
        CHECK(entry.at("format") == "pt");
        continue;
      }
      CHECK(contains(key, "@"));
      CHECK(entry.at("data_offsets")[0] == end);
      end = entry.at("data_offsets")[1];
    }
    CHECK(end == text.size() - 8 - length);
  }
}

TEST_CASE("the same pieces make the same bytes") {
  MemoryFileSystem one, two;
  const std::string path = save(one, "runs", 1, some_tensors(3), 2, 5);
  save(two, "runs", 1, some_tensors(3), 2, 5);
  for (const std::string& name : one.list(path)) {
    CHECK(one.read_text(path + "/" + name, 1 << 20) == two.read_text(path + "/" + name, 1 << 20));
  }
}

TEST_CASE("every flipped bit and every cut of every file is found, named, and passed over") {
  const Tensors older = some_tensors(1), newer = some_tensors(2);
  MemoryFileSystem fs;
  save(fs, "runs", 10, older, 2, 1);
  const std::string path = save(fs, "runs", 20, newer, 2, 2);
  std::mt19937_64 random(4);
  for (const std::string& name : fs.list(path)) {
    const std::string file = path + "/" + name;
    const std::string whole_text = fs.read_text(file, 1 << 20);
    const auto expect_damage = [&](const std::string& text) {
      fs.write_text(file, text);
      std::vector<std::string> passed_over;
      CHECK(find_checkpoint(fs, "runs", passed_over)->record().step == 10);
      REQUIRE(passed_over.size() == 1);
      CHECK_MESSAGE(contains(passed_over[0], name), passed_over[0]);
      CHECK(failure([&] { open_checkpoint(fs, path)->verify(); }) == passed_over[0]);
    };
    for (std::size_t at = 0; at < whole_text.size(); at += 1 + random() % 7) {
      std::string text = whole_text;
      text[at] = static_cast<char>(text[at] ^ (1 << random() % 8));
      expect_damage(text);
    }
    for (std::size_t size = 0; size < whole_text.size(); size += 1 + random() % 19)
      expect_damage(whole_text.substr(0, size));
    expect_damage(whole_text + "x");
    fs.write_text(file, whole_text);
    std::vector<std::string> passed_over;
    CHECK(find_checkpoint(fs, "runs", passed_over)->record().step == 20);
    CHECK(passed_over.empty());
  }
}

TEST_CASE("reading a damaged tensor fails, the others are still readable") {
  MemoryFileSystem fs;
  std::mt19937_64 random(1);
  Tensors tensors;
  tensors["a"] = random_tensor(DType::F32, {8}, random);
  tensors["b"] = random_tensor(DType::F32, {8}, random);
  const std::string path = save(fs, "runs", 1, tensors, 1, 1);
  const std::string file = path + "/shard-00000.safetensors";
  std::string text = fs.read_text(file, 1 << 20);
  text.back() = static_cast<char>(text.back() ^ 1);  // the end of b
  fs.write_text(file, text);
  const auto reader = open_checkpoint(fs, path);
  CHECK(read(*reader, "a", tensors["a"], whole({8})) == tensors["a"].bytes);
  const std::string message = failure([&] { read(*reader, "b", tensors["b"], whole({8})); });
  CHECK(contains(message, "shard-00000.safetensors"));
  CHECK(contains(message, "'b'"));
  CHECK(contains(message, "checksum"));
}

TEST_CASE("missing shards, tensors and boxes outside of a tensor are told") {
  MemoryFileSystem fs;
  const Tensors tensors = some_tensors(1);
  const std::string path = save(fs, "runs", 1, tensors, 2, 1);
  const auto reader = open_checkpoint(fs, path);
  float room[100];
  CHECK(contains(failure([&] { reader->read("biass", whole({9}), room); }), "nearest is 'bias'"));
  CHECK(contains(failure([&] { reader->read("bias", whole({10}), room); }), "[9]"));
  CHECK(contains(failure([&] { reader->read("bias", whole({3, 3}), room); }), "[9]"));
  fs.remove_all(path + "/shard-00001.safetensors");
  CHECK(contains(failure([&] { open_checkpoint(fs, path)->verify(); }), "shard-00001.safetensors' is missing"));
}

TEST_CASE("boxes that leave a hole, overlap or differ are no checkpoint") {
  MemoryFileSystem fs;
  float memory[64] = {};
  const auto write = [&](const std::vector<Piece>& pieces) {
    fs.make_directories("runs/.partial-00000001");
    return failure([&] { commit(fs, "runs", record_of(1), {write_shard(fs, "runs/.partial-00000001", 0, pieces)}); });
  };
  const auto piece = [&](Box box, Shape global = {4, 4}) { return Piece{"w", DType::F32, global, box, memory}; };
  CHECK(contains(write({piece({{0, 0}, {2, 4}})}), "8 of the 16 elements"));
  CHECK(contains(write({piece({{0, 0}, {2, 4}}), piece({{1, 0}, {3, 4}})}), "overlap"));
  CHECK(contains(write({piece({{0, 0}, {4, 4}}), piece({{0, 0}, {4, 4}})}), "overlap"));
  CHECK(contains(write({piece({{0, 0}, {2, 4}}), piece({{2, 0}, {2, 4}}, {4, 5})}), "in another"));
  CHECK(contains(write({piece({{}, {}}, {}), piece({{}, {}}, {})}), "twice"));
  CHECK(checkpoint_steps(fs, "runs").empty());
  CHECK(write({piece({{0, 0}, {2, 4}}), piece({{2, 0}, {2, 1}}), piece({{2, 1}, {2, 3}})}) == "");
  // A box outside of its tensor is our own fault.
  CHECK_THROWS_WITH_AS(write_shard(fs, "runs", 0, {piece({{2, 0}, {3, 4}})}),
                       "internal error: the piece [3, 4] at [2, 0] of 'w' [4, 4] to save (please report this)", Error);
}

TEST_CASE("a manifest with a right checksum and wrong content is refused") {
  MemoryFileSystem fs;
  std::mt19937_64 random(1);
  Tensors tensors;
  tensors["w"] = random_tensor(DType::F32, {4, 6}, random);
  const std::string path = save(fs, "runs", 1, tensors, 1, 1);
  const std::string file = path + "/manifest.json";
  const std::string good = fs.read_text(file, 1 << 20);
  CHECK(reseal(good) == good);
  const auto message = [&](const std::string& from, const std::string& to) {
    fs.write_text(file, reseal(replaced(good, from, to)));
    return failure([&] { open_checkpoint(fs, path)->verify(); });
  };
  CHECK(contains(message("\"version\": 1", "\"version\": 2"), "version 2"));
  CHECK(contains(message("\"version\": 1", "\"version\": 1.5"), "version"));
  CHECK(contains(message("\"step\": 1", "\"step\": -1"), "step"));
  CHECK(contains(message("\"step\": 1", "\"step\": 1, \"step\": 2"), "twice"));
  CHECK(contains(message("\"step\": 1", "\"x\": " + std::string(80, '[') + std::string(80, ']') + ", \"step\": 1"),
                 "deeper"));
  CHECK(contains(message("\"dtype\": \"F32\"", "\"dtype\": \"F31\""), "F31"));
  CHECK(contains(message("\"shape\": [4,6]", "\"shape\": [4,4611686018427387904]"), "overflow"));
  CHECK(contains(message("\"shape\": [4,6]", "\"shape\": [1,1,1,1,1,4,6]"), "shape"));
  CHECK(contains(message("\"shape\": [4,6]", "\"shape\": [4,\"6\"]"), "shape"));
  CHECK(contains(message("\"shape\": [4,6]", "\"shape\": [1,6]"), "tensor 'w'"));
  CHECK(contains(message("\"start\": [0,0]", "\"start\": [9223372036854775807,0]"), "overflow"));
  CHECK(contains(message("\"start\": [0,0]", "\"start\": [0,1]"), "w"));
  CHECK(contains(message("\"bytes\": ", "\"bytes\": 1"), "file"));
  CHECK(contains(message("\"header_bytes\": ", "\"header_bytes\": 1"), "begin"));
  CHECK(contains(message("\"file\": \"shard", "\"file\": \"../shard"), "plain"));
  CHECK(contains(message("trainer-checkpoint", "something"), "not a checkpoint"));
  CHECK(contains(message("\"build\"", "\"guild\""), "'build' is missing"));
  CHECK(contains(message("\"build\": \"test build\"", "\"build\": 3"), "'build' is number"));
  fs.write_text(file, good);
  CHECK(holds(*open_checkpoint(fs, path), tensors));
}

TEST_CASE("only the newest whole checkpoints are kept") {
  MemoryFileSystem fs;
  const Tensors tensors = some_tensors(1);
  for (const std::int64_t step : {10, 20, 30, 40, 50}) save(fs, "runs", step, tensors, 1, 1);
  fs.make_directories("runs/.partial-00000060");
  fs.write_text("runs/metrics.jsonl", "{}");
  const std::string damaged = "runs/step-00000040/manifest.json";
  fs.write_text(damaged, "{" + fs.read_text(damaged, 1 << 20));
  clean_up(fs, "runs", 2);  // 40 is damaged: it does not count, and is younger than the last that is kept
  CHECK(fs.list("runs") ==
        std::vector<std::string>{"metrics.jsonl", "step-00000030", "step-00000040", "step-00000050"});
  CHECK(checkpoint_steps(fs, "runs") == std::vector<std::int64_t>{50, 40, 30});
  clean_up(fs, "runs", 1);
  CHECK(fs.list("runs") == std::vector<std::string>{"metrics.jsonl", "step-00000050"});
  clean_up(fs, "nowhere", 1);
}

TEST_CASE("nothing of a run that is replaced can be taken for a checkpoint") {
  MemoryFileSystem fs;
  for (const std::int64_t step : {10, 20}) save(fs, "runs", step, some_tensors(1), 1, 1);
  fs.make_directories("runs/.partial-00000030");
  fs.make_directories("runs/step-00000040");
  fs.write_text("runs/metrics.jsonl", "{}");
  remove_checkpoints(fs, "runs");
  CHECK(fs.list("runs") == std::vector<std::string>{"metrics.jsonl"});
  remove_checkpoints(fs, "nowhere");
}

TEST_CASE("what is no checkpoint is said to be none") {
  MemoryFileSystem fs;
  std::vector<std::string> passed_over;
  CHECK(contains(failure([&] { find_checkpoint(fs, "runs", passed_over); }), "there is no 'runs'"));
  fs.make_directories("runs/step-00000010");
  CHECK(contains(failure([&] { find_checkpoint(fs, "runs", passed_over); }), "manifest.json"));
  CHECK(contains(failure([&] { open_checkpoint(fs, "runs/step-00000010"); }), "no whole checkpoint"));
  CHECK(passed_over.empty());
  save(fs, "other", 3, some_tensors(1), 1, 1);
  CHECK(find_checkpoint(fs, "other/step-00000003", passed_over)->record().step == 3);
  fs.write_text("other/step-00000003/manifest.json", "");
  CHECK(contains(failure([&] { find_checkpoint(fs, "other", passed_over); }), "all 1 are damaged"));
  CHECK(passed_over.size() == 1);
}
