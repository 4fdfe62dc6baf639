// A crash, a failing operation or a full disk at any moment of a save leaves the last whole checkpoint readable.
#include <doctest/doctest.h>

#include <optional>

#include "checkpoint_support.hpp"
#include "support/faulty_file_system.hpp"
#include "support/memory_file_system.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::storage;
using namespace trainer::test;

namespace {

const Tensors kOld = some_tensors(1);
const Tensors kNew = some_tensors(2);

/// One save as a run does it: write, commit, clean up. True when commit() returned before the machine was gone.
bool save_and_clean(FaultyFileSystem& fs, std::int64_t step, const Tensors& tensors, std::int64_t crash_at) {
  try {
    save(fs, "runs", step, tensors, 2, 9);
    const bool committed = fs.operations() <= crash_at;
    clean_up(fs, "runs", 1);
    return committed;
  } catch (const Error&) {
    // After a crash nothing is there any more, so anything may fail; nobody is left to see it.
    REQUIRE(fs.operations() > crash_at);
    return false;
  }
}

/// After a crash: one of the two checkpoints is found whole, the new one if its commit had returned.
void check_survivor(FileSystem& fs, std::int64_t old_step, std::int64_t new_step, bool committed) {
  std::vector<std::string> passed_over;
  const auto reader = find_checkpoint(fs, "runs", passed_over);
  const bool is_new = reader->record().step == new_step && holds(*reader, kNew);
  const bool is_old = reader->record().step == old_step && holds(*reader, kOld);
  CHECK((is_new || (is_old && !committed)));
  CHECK_MESSAGE(passed_over.empty(), passed_over.front());  // nothing half-made looks like a checkpoint
}

void crash_everywhere(std::int64_t old_step, std::int64_t new_step, bool lose_unsynced) {
  std::int64_t total = 1;
  for (std::int64_t crash_at = 0; crash_at <= total; ++crash_at) {
    for (std::uint64_t seed = 0; seed < (lose_unsynced ? 8u : 1u); ++seed) {
      MemoryFileSystem disk;
      save(disk, "runs", old_step, kOld, 2, 3);
      FaultyFileSystem fs(disk, {.crash_at = crash_at});
      const bool committed = save_and_clean(fs, new_step, kNew, crash_at);
      total = std::max(total, fs.operations());
      if (lose_unsynced) disk.lose_unsynced(seed * 1000 + static_cast<std::uint64_t>(crash_at));
      INFO("crash at operation " << crash_at << " of " << total << ", seed " << seed);
      check_survivor(disk, old_step, new_step, committed);
      // The next run tidies, saves again, and only its checkpoint is left.
      clean_up(disk, "runs", 1);
      check_survivor(disk, old_step, new_step, committed);
      save(disk, "runs", new_step, kNew, 2, 11);
      clean_up(disk, "runs", 1);
      check_survivor(disk, -1, new_step, true);
      CHECK(disk.list("runs").size() == 1);
    }
  }
  CHECK(total > 15);
}

}  // namespace

TEST_CASE("a crash at any operation of a save") { crash_everywhere(10, 20, false); }
TEST_CASE("a power cut at any operation of a save, which takes what was not synced") { crash_everywhere(10, 20, true); }
TEST_CASE("a crash while the same step is saved again") { crash_everywhere(20, 20, false); }
TEST_CASE("a power cut while the same step is saved again") { crash_everywhere(20, 20, true); }

TEST_CASE("any one operation that fails is an error, and the save can be tried again") {
  bool done = false;
  for (std::int64_t fail_at = 0; !done; ++fail_at) {
    MemoryFileSystem disk;
    save(disk, "runs", 10, kOld, 2, 3);
    FaultyFileSystem fs(disk, {.fail_at = fail_at});
    std::string message;
    try {
      save(fs, "runs", 20, kNew, 2, 9);
      done = fs.operations() <= fail_at;
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Storage);
      message = error.what();
    }
    INFO("operation " << fail_at << " failed: " << message);
    CHECK(done == message.empty());
    check_survivor(disk, 10, 20, false);
    save(disk, "runs", 20, kNew, 2, 9);
    check_survivor(disk, 10, 20, true);
  }
}

TEST_CASE("a disk that is full after any number of bytes") {
  bool done = false;
  for (std::int64_t bytes = 0; !done; bytes += 61) {
    MemoryFileSystem disk;
    save(disk, "runs", 10, kOld, 2, 3);
    FaultyFileSystem fs(disk, {.disk_bytes = bytes});
    std::string message;
    try {
      save(fs, "runs", 20, kNew, 2, 9);
      done = true;
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Storage);
      message = error.what();
    }
    CHECK(done == message.empty());
    check_survivor(disk, 10, 20, done);
    clean_up(disk, "runs", 2);
    CHECK(disk.list("runs").size() == (done ? 2 : 1));
  }
}

TEST_CASE("shards of an older, larger run do not stay in the folder") {
  MemoryFileSystem disk;
  disk.make_directories("runs/.partial-00000020");
  disk.write_text("runs/.partial-00000020/shard-00007.safetensors", "stale");
  const std::string path = save(disk, "runs", 20, kNew, 2, 9);
  CHECK(disk.list(path) ==
        std::vector<std::string>{"manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"});
}
