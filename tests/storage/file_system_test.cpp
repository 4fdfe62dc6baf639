// The real file system: what it promises and how it complains.
#include "trainer/storage/file_system.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/temporary_directory.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::storage;
using trainer::test::TemporaryDirectory;

namespace {

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

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

/// 0 when another process gets the lock, 1 when it does not.
int lock_in_child(const std::string& directory) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(real_file_system().lock(directory) != nullptr ? 0 : 1);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("files are written, appended to, truncated, read and listed") {
  const TemporaryDirectory room;
  FileSystem& fs = real_file_system();
  const std::string folder = room / "a/b/c";
  fs.make_directories(folder);
  fs.make_directories(folder);
  CHECK(fs.exists(folder));
  const std::string file = folder + "/x";
  fs.write_text(file, "hello");
  const auto more = fs.append(file);
  more->write(bytes(" world"));
  more->sync();
  more->close();
  CHECK(fs.read_text(file, 11) == "hello world");
  CHECK(contains(failure([&] { fs.read_text(file, 10); }), "11 bytes, at most 10"));
  fs.truncate(file, 5);
  CHECK(fs.read_text(file, 100) == "hello");
  fs.write_text(file, "new");
  CHECK(fs.read_text(file, 100) == "new");
  const auto input = fs.open(file);
  CHECK(input->size() == 3);
  char two[2];
  input->read(1, std::as_writable_bytes(std::span(two)));
  CHECK(std::string(two, 2) == "ew");
  CHECK(contains(failure([&] { input->read(2, std::as_writable_bytes(std::span(two))); }), "ends after 3 bytes"));
  fs.rename(file, folder + "/y");
  fs.sync_directory(folder);
  fs.write_text(folder + "/.hidden", "");
  CHECK(fs.list(folder) == std::vector<std::string>{".hidden", "y"});
  CHECK(fs.list(room / "nothing").empty());
  CHECK(!fs.exists(file));
  fs.remove_all(room / "a");
  fs.remove_all(room / "a");
  CHECK(!fs.exists(room / "a"));
}

TEST_CASE("complaints name the path, the reason and a way out") {
  const TemporaryDirectory room;
  FileSystem& fs = real_file_system();
  const std::string file = room.file("file", "x");
  for (const std::string& message :
       {failure([&] { fs.make_directories(file + "/runs/gpt"); }), failure([&] { fs.create(file + "/x"); }),
        failure([&] { fs.list(file); }), failure([&] { fs.lock(file); }), failure([&] { fs.sync_directory(file); })}) {
    CHECK_MESSAGE(contains(message, file), message);
    CHECK_MESSAGE(contains(message, "Not a directory"), message);
    CHECK_MESSAGE(contains(message, "choose another path"), message);
  }
  CHECK(!fs.exists(file + "/x"));
  CHECK(contains(failure([&] { fs.open(room / "none"); }), "No such file"));
  CHECK(contains(failure([&] { fs.open(room.path()); }), "Is a directory"));
  CHECK(contains(failure([&] { fs.rename(room / "none", room / "other"); }), room / "other"));
  CHECK(contains(failure([&] { fs.truncate(room / "none", 1); }), room / "none"));
}

TEST_CASE("a full disk is an error of the write or the sync") {
  if (::access("/dev/full", W_OK) != 0) {
    MESSAGE("skipped: this system has no /dev/full");
    return;
  }
  const std::string message = failure([&] { real_file_system().append("/dev/full")->write(bytes("x")); });
  CHECK(contains(message, "/dev/full"));
  CHECK(contains(message, "No space left on device; free some space"));
}

TEST_CASE("one process at a time holds a directory's lock") {
  const TemporaryDirectory room;
  FileSystem& fs = real_file_system();
  const std::string runs = room / "runs/gpt";
  auto held = fs.lock(runs);  // makes the directory
  REQUIRE(held != nullptr);
  CHECK(fs.lock(runs) == nullptr);
  CHECK(lock_in_child(runs) == 1);
  CHECK(lock_in_child(room / "runs/other") == 0);
  held.reset();
  CHECK(lock_in_child(runs) == 0);
  CHECK(fs.lock(runs) != nullptr);
}
