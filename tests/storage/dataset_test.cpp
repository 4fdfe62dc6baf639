// Data sets: what a sample is, and what is said about files that do not fit.
#include "trainer/storage/dataset.hpp"

#include <doctest/doctest.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "support/temporary_directory.hpp"
#include "trainer/core/error.hpp"

using namespace trainer;
using namespace trainer::storage;
using trainer::test::TemporaryDirectory;

namespace {

/// The message of the Error(Data) that loading throws; "" when it throws none.
std::string failure(const config::Data& data, const ModelInput& model) {
  try {
    load_dataset(data, model, 1);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Data);
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void check_says(const std::string& said, const std::string& part) {
  CAPTURE(said);
  CAPTURE(part);
  CHECK(contains(said, part));
}

ModelInput token_model(std::int64_t positions, std::int64_t vocabulary) {
  ModelInput model;
  model.tokens = true;
  model.positions = positions;
  model.vocabulary = vocabulary;
  model.outputs = vocabulary;
  return model;
}

ModelInput feature_model(std::int64_t features, std::int64_t outputs, bool classes = true) {
  ModelInput model;
  model.features = features;
  model.outputs = outputs;
  model.classes = classes;
  return model;
}

config::Data text_data(const std::string& path, config::Tokenizer tokenizer = config::Tokenizer::Byte) {
  return {config::TextData{path, tokenizer}, 0.0};
}

config::Data csv_data(const std::string& path, const std::string& target,
                      config::TaskKind task = config::TaskKind::Classification, char delimiter = ',') {
  return {config::CsvData{path, target, task, delimiter}, 0.0};
}

config::Data idx_data(const std::string& images, const std::string& labels) {
  return {config::IdxData{images, labels}, 0.0};
}

struct TokenSample {
  std::vector<std::int32_t> tokens, labels;
};

TokenSample token_sample(const Dataset& set, std::int64_t sample) {
  TokenSample found;
  found.tokens.resize(static_cast<std::size_t>(set.kind().positions));
  found.labels.resize(found.tokens.size());
  set.read(sample, {found.tokens.data(), nullptr, found.labels.data(), nullptr});
  return found;
}

struct FeatureSample {
  std::vector<float> features, values;
  std::int32_t label = -1;
};

FeatureSample feature_sample(const Dataset& set, std::int64_t sample) {
  FeatureSample found;
  found.features.resize(static_cast<std::size_t>(set.kind().features));
  found.values.resize(static_cast<std::size_t>(set.kind().target_features));
  set.read(sample, {nullptr, found.features.data(), &found.label, found.values.data()});
  return found;
}

std::string gzip(const std::string& text) {
  z_stream z{};
  REQUIRE(deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string packed(text.size() + 100, '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(packed.data());
  z.avail_out = static_cast<uInt>(packed.size());
  REQUIRE(deflate(&z, Z_FINISH) == Z_STREAM_END);
  packed.resize(z.total_out);
  deflateEnd(&z);
  return packed;
}

std::string idx_file(unsigned char type, const std::vector<std::uint32_t>& sizes, const std::string& values) {
  std::string text{'\0', '\0', static_cast<char>(type), static_cast<char>(sizes.size())};
  for (const std::uint32_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(size >> shift & 0xff);
  }
  return text + values;
}

}  // namespace

TEST_CASE("byte text: windows of positions + 1 tokens at multiples of positions") {
  const TemporaryDirectory room;
  const auto set = load_dataset(text_data(room.file("x", "abcdefgh")), token_model(3, 300), 1);
  CHECK(set->kind().tokens);
  CHECK(set->kind().positions == 3);
  CHECK(set->kind().classes == 256);
  REQUIRE(set->size() == 2);  // abc→d, def→g; gh is too short
  CHECK(token_sample(*set, 0).tokens == std::vector<std::int32_t>{'a', 'b', 'c'});
  CHECK(token_sample(*set, 0).labels == std::vector<std::int32_t>{'b', 'c', 'd'});
  CHECK(token_sample(*set, 1).tokens == std::vector<std::int32_t>{'d', 'e', 'f'});
  CHECK(token_sample(*set, 1).labels == std::vector<std::int32_t>{'e', 'f', 'g'});
  CHECK(set->bytes() >= 8);
  CHECK(set->bytes() < 100);
  CHECK(set->vocabulary() == "");
  CHECK(set->encode("\xff"
                    "a") == std::vector<std::int32_t>{255, 'a'});
  CHECK(set->decode(255) == "\xff");
  CHECK(set->decode(299) == "\xEF\xBF\xBD");
  CHECK(load_dataset(text_data(room.file("y", "abcd")), token_model(3, 256), 1)->size() == 1);
  CHECK(load_dataset(text_data(room.file("z", gzip("abcdefgh"))), token_model(3, 256), 1)->size() == 2);
}

TEST_CASE("char text: code points in ascending order, of any length, found again without the data") {
  const TemporaryDirectory room;
  const std::string text =
      "b\xC3\xA9"
      "a\xE2\x82\xAC\xF0\x9F\x98\x80"
      "b";  // b é a € 😀 b
  const auto set = load_dataset(text_data(room.file("x", text), config::Tokenizer::Char), token_model(5, 5), 1);
  CHECK(set->kind().classes == 5);
  REQUIRE(set->size() == 1);
  CHECK(token_sample(*set, 0).tokens == std::vector<std::int32_t>{1, 2, 0, 3, 4});
  CHECK(token_sample(*set, 0).labels == std::vector<std::int32_t>{2, 0, 3, 4, 1});
  CHECK(set->vocabulary() == "ab\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  const auto alone = tokenizer_only(config::Tokenizer::Char, set->vocabulary());
  CHECK(alone->vocabulary() == set->vocabulary());
  CHECK(alone->size() == 0);
  CHECK(alone->encode(text) == std::vector<std::int32_t>{1, 2, 0, 3, 4, 1});
  std::string decoded;
  for (const std::int32_t token : alone->encode(text)) decoded += alone->decode(token);
  CHECK(decoded == text);
  CHECK_THROWS_WITH_AS(
      alone->encode("a\xC3\xB6"),
      "the character '\xC3\xB6' (U+00F6) at byte 1 of the text is not among the 5 characters that the model was "
      "trained on",
      Error);
  CHECK_THROWS_AS(alone->encode("\xff"), Error);
  CHECK_THROWS_AS(tokenizer_only(config::Tokenizer::Char, "ba"), Error);
  CHECK_THROWS_AS(tokenizer_only(config::Tokenizer::Char, ""), Error);
  CHECK(tokenizer_only(config::Tokenizer::Byte, "")->encode("a") == std::vector<std::int32_t>{'a'});
}

TEST_CASE("more than 256 characters take wider tokens") {
  const TemporaryDirectory room;
  std::string text;
  for (int point = 0x4E00; point < 0x4E00 + 400; ++point) {
    text += {static_cast<char>(0xE0 | point >> 12), static_cast<char>(0x80 | (point >> 6 & 0x3F)),
             static_cast<char>(0x80 | (point & 0x3F))};
  }
  const auto set = load_dataset(text_data(room.file("x", text), config::Tokenizer::Char), token_model(399, 400), 1);
  const TokenSample sample = token_sample(*set, 0);
  for (std::size_t i = 0; i < 399; ++i)
    CHECK((sample.tokens[i] == static_cast<int>(i) && sample.labels[i] == static_cast<int>(i) + 1));
  CHECK(set->bytes() == 800);
}

TEST_CASE("text that does not fit is told") {
  const TemporaryDirectory room;
  const auto bad = [&](const std::string& text) {
    return failure(text_data(room.file("bad.txt", text), config::Tokenizer::Char), token_model(1, 300));
  };
  // Stray continuation, cut sequences, overlong forms, a surrogate, past U+10FFFF.
  for (const char* bytes : {"\x80", "\xC3",
                            "\xC3"
                            "a",
                            "\xE2\x82", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
                            "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    check_says(bad(std::string("ab") + bytes), "offset 2");
  }
  check_says(bad(""), "empty");
  check_says(failure(text_data(room.file("x", "abcdef")), token_model(6, 256)),
             "6 tokens, but a sample of 6 positions needs 7");
  check_says(failure(text_data(room.file("x", "abcdef")), token_model(2, 255)),
             "256 tokens, but the model's vocabulary has 255");
  check_says(failure(text_data(room.file("x", "abc"), config::Tokenizer::Char), token_model(2, 2)),
             "3 tokens, but the model's vocabulary has 2");
  check_says(failure(text_data(room.file("x", "abc")), feature_model(3, 3)), "embedding");
  ModelInput real_targets = token_model(2, 256);
  real_targets.classes = false;
  check_says(failure(text_data(room.file("x", "abc")), real_targets), "cross_entropy");
  check_says(failure(text_data(room / "corpus.txt"), token_model(2, 256)),
             "no such file (working directory '" + std::filesystem::current_path().string());
  room.file("corpus_en.txt", "abc");
  check_says(failure(text_data(room / "corpus_em.txt"), token_model(2, 256)), "there is '" + room / "corpus_en.txt'");
  check_says(failure(text_data(room.path()), token_model(2, 256)), "Is a directory");
}

TEST_CASE("CSV: quotes, CRLF, blank lines, spaces, any place of the target") {
  const TemporaryDirectory room;
  const std::string text =
      "\xEF\xBB\xBF"
      "x,\"the \"\"y\"\"\",label\r\n1,2.5,0\r\n\r\n \"+3\" ,-1e-3,2\r\n\"4\",\"\n5\",1";
  check_says(failure(csv_data(room.file("x", text), "label"), feature_model(2, 3)),
             "line 4, column 'x': '\"+3\"' is not a number");
  const std::string good =
      "\xEF\xBB\xBF"
      "x,\"the \"\"y\"\"\",label\r\n1,2.5,0\r\n\r\n +3 ,-1e-3,2\r\n\"4\",\"5\",1";
  const auto set = load_dataset(csv_data(room.file("x", good), "label"), feature_model(2, 3), 1);
  REQUIRE(set->size() == 3);
  CHECK(set->kind().features == 2);
  CHECK(set->kind().classes == 3);
  CHECK(set->kind().target_features == 0);
  CHECK(feature_sample(*set, 0).features == std::vector<float>{1.0f, 2.5f});
  CHECK(feature_sample(*set, 1).features == std::vector<float>{3.0f, -1e-3f});
  CHECK(feature_sample(*set, 2).features == std::vector<float>{4.0f, 5.0f});
  CHECK(feature_sample(*set, 0).label == 0);
  CHECK(feature_sample(*set, 1).label == 2);
  CHECK(feature_sample(*set, 2).label == 1);
  CHECK(set->bytes() == 3 * (2 * 4 + 4));
  const auto first =
      load_dataset(csv_data(room.file("y", "t;a;b\n7;1;2\n8;3;4\n"), "t", config::TaskKind::Regression, ';'),
                   feature_model(2, 1, false), 1);
  CHECK(first->kind().classes == 0);
  CHECK(first->kind().target_features == 1);
  CHECK(feature_sample(*first, 1).features == std::vector<float>{3.0f, 4.0f});
  CHECK(feature_sample(*first, 1).values == std::vector<float>{8.0f});
}

TEST_CASE("CSV: labels that are names are numbered in sorted order") {
  const TemporaryDirectory room;
  const std::string text = "a,kind\n1,virginica\n2,setosa\n3,\"versi, color\"\n4,setosa\n";
  const auto set = load_dataset(csv_data(room.file("x", text), "kind"), feature_model(1, 3), 1);
  std::vector<std::int32_t> labels;
  for (std::int64_t i = 0; i < 4; ++i) labels.push_back(feature_sample(*set, i).label);
  CHECK(labels == std::vector<std::int32_t>{2, 0, 1, 0});
  CHECK(set->decode(1) == "versi, color");
  CHECK(set->decode(3) == "");
  const auto floats =
      load_dataset(csv_data(room.file("y", "a,t\n1,0.0\n1,10.0\n1,2.0\n"), "t"), feature_model(1, 11), 1);
  CHECK(feature_sample(*floats, 1).label == 10);
  CHECK(floats->decode(10) == "10");
}

TEST_CASE("CSV that does not fit is told with line and column") {
  const TemporaryDirectory room;
  const auto says = [&](const std::string& text, const std::string& part) {
    check_says(failure(csv_data(room.file("x.csv", text), "t"), feature_model(2, 3)), part);
  };
  says("a,b,t\n1,2,0\n1,2\n", "line 3: 2 fields, but the header has 3 columns");
  says("a,b,t\n1,2,0,\n", "line 2: 4 fields");
  says("a,b,t\n1,x,0\n", "line 2, column 'b': 'x' is not a number");
  says("a,b,t\n1,1.5.2,0\n", "'1.5.2' is not a number");
  says("a,b,t\n1,0x10,0\n", "'0x10' is not a number");
  says("a,b,t\n1,,0\n", "line 2, column 'b': the field is empty");
  says("a,b,t\n1,2,\n", "line 2, column 't': the field is empty");
  says("a,b,t\n1,nan,0\n", "line 2, column 'b': 'nan' is not a finite");
  says("a,b,t\n1,-inf,0\n", "not a finite");
  says("a,b,t\n1,1e39,0\n", "not a finite");
  says("a,b,t\n1,1e999,0\n", "not a finite");
  says("a,b,t\n1,2,0\n1,2,3\n", "line 3, column 't': the class 3 does not fit the model's 3 outputs");
  says("a,b,t\n1,2,-1\n", "the class -1");
  says("a,b,t\n1,2,p\n1,2,q\n1,2,r\n1,2,s\n", "4 different labels, but the model has 3 outputs (line 2: 'p'");
  says("a,b,target\n1,2,0\n", "the target column 't' is not in the header");
  says("a;b;t\n1;2;0\n", "the columns are 'a;b;t' (delimiter ',')");
  says("a,b,t\n", "no row below");
  says("\n\r\n", "only blank lines");
  says("", "empty");
  says("a,b,c,t\n1,2,3,0\n", "3 columns beside the target 't', but the model's input_size is 2");
  says("a,a,t\n1,2,0\n", "two columns are named 'a'");
  says(",b,t\n1,2,0\n", "column 1 of the header has no name");
  says("a,b,t\n1,\"2,0\n3,4,1\n", "line 2: the quote that opens");
  says("a,b,t\n1,\"2\"3,0\n", "line 2: after the closing quote");
  says("a,b,t\n1,\"\n\n2\",0\n1,x,0\n", "line 2, column 'b'");
  check_says(failure(csv_data(room.file("y", "a,b,tarjet\n1,2,0\n"), "target"), feature_model(2, 3)),
             "the nearest is 'tarjet'");
  check_says(failure(csv_data(room / "none.csv", "t"), feature_model(2, 3)), "no such file");
  const auto regression = csv_data(room.file("z", "a,b,t\n1,2,x\n"), "t", config::TaskKind::Regression);
  check_says(failure(regression, feature_model(2, 1, false)), "'x' is not a number; for names of classes");
  check_says(failure(regression, feature_model(2, 2, false)), "1 number a row, but the model has 2 outputs");
  check_says(failure(regression, feature_model(2, 1)), "loss");
  check_says(failure(csv_data(room / "z", "t"), feature_model(2, 1, false)), "cross_entropy");
  check_says(failure(csv_data(room / "z", "t"), token_model(2, 10)), "embedding");
}

TEST_CASE("CSV: tiny numbers become zero, the largest stay") {
  const TemporaryDirectory room;
  const auto set =
      load_dataset(csv_data(room.file("x", "a,b,t\n1e-999,3.4028234e38,0\n"), "t"), feature_model(2, 1), 1);
  CHECK(feature_sample(*set, 0).features == std::vector<float>{0.0f, 3.4028234e38f});
}

TEST_CASE("IDX: bytes scaled to [0, 1], wider types as they are, gzip or not") {
  const TemporaryDirectory room;
  const std::string labels = room.file("l", idx_file(0x08, {2}, {'\x01', '\x04'}));
  const std::string pixels{'\x00', '\xff', '\x33', '\x01', '\x02', '\x80'};
  const std::string images = idx_file(0x08, {2, 1, 3}, pixels);
  for (const std::string& path : {room.file("i", images), room.file("i.gz", gzip(images)),
                                  room.file("two.gz", gzip(images.substr(0, 9)) + gzip(images.substr(9)))}) {
    const auto set = load_dataset(idx_data(path, labels), feature_model(3, 5), 1);
    REQUIRE(set->size() == 2);
    CHECK(set->kind().features == 3);
    CHECK(set->kind().classes == 5);
    CHECK(feature_sample(*set, 0).features == std::vector<float>{0.0f, 1.0f, 51 / 255.0f});
    CHECK(feature_sample(*set, 1).features == std::vector<float>{1 / 255.0f, 2 / 255.0f, 128 / 255.0f});
    CHECK(feature_sample(*set, 1).label == 4);
    CHECK(set->bytes() < 100);  // bytes stay bytes
  }
  const std::string shorts = room.file("s", idx_file(0x0B, {2, 1}, {'\x01', '\x00', '\xff', '\xfe'}));
  CHECK(feature_sample(*load_dataset(idx_data(shorts, labels), feature_model(1, 5), 1), 0).features[0] == 256.0f);
  CHECK(feature_sample(*load_dataset(idx_data(shorts, labels), feature_model(1, 5), 1), 1).features[0] == -2.0f);
  const std::string floats =
      room.file("f", idx_file(0x0D, {2, 1}, {'\x3f', '\xc0', '\x00', '\x00', '\xbf', '\x80', '\x00', '\x00'}));
  CHECK(feature_sample(*load_dataset(idx_data(floats, labels), feature_model(1, 5), 1), 0).features[0] == 1.5f);
  CHECK(feature_sample(*load_dataset(idx_data(floats, labels), feature_model(1, 5), 1), 1).features[0] == -1.0f);
}

TEST_CASE("IDX that does not fit is told") {
  const TemporaryDirectory room;
  const std::string images = idx_file(0x08, {2, 1, 3}, "abcdef"), labels = idx_file(0x08, {2}, {'\x01', '\x04'});
  const auto says = [&](const std::string& image_text, const std::string& label_text, const std::string& part) {
    check_says(failure(idx_data(room.file("images", image_text), room.file("labels", label_text)), feature_model(3, 5)),
               part);
  };
  says(images, labels, "");
  CHECK(failure(idx_data(room / "images", room / "labels"), feature_model(3, 5)) == "");
  says(images.substr(0, images.size() - 1), labels, "so 6 bytes of data, but there are 5; the file is cut off");
  says(images + "x", labels, "there are 7");
  says(images.substr(0, 10), labels, "header of 3 dims needs 16 bytes");
  says("ab", labels, "not an IDX file");
  says("hello world", labels, "not an IDX file");
  says(idx_file(0x0A, {2, 1, 3}, "abcdef"), labels, "not an IDX file");
  says(idx_file(0x0E, std::vector<std::uint32_t>(5, 0xffffffffu), ""), labels, "overflow");
  says(idx_file(0x08, {0, 3}, ""), labels, "empty");
  says("", labels, "empty");
  says(images, idx_file(0x08, {3}, {'\x01', '\x04', '\x02'}), "3 labels, but 2 images");
  says(images, idx_file(0x08, {2}, {'\x01', '\x05'}), "label 1 (counted from 0) is 5, but the model has 5 outputs");
  says(images, idx_file(0x09, {2}, {'\x01', '\xff'}), "is -1");
  says(images, idx_file(0x0D, {2}, "abcdefgh"), "integers");
  says(labels, images, "exchanged");
  says(images, images, "exchanged");
  says(idx_file(0x0D, {2, 3}, std::string(20, '\0') + "\x7f\x80" + std::string(2, '\0')), labels,
       "value 5 is not a finite");
  check_says(failure(idx_data(room.file("images", images), room.file("labels", labels)), feature_model(4, 5)),
             "an image has 1x3 = 3 values, but the model's input_size is 4");
  check_says(failure(idx_data(room / "images", room / "none"), feature_model(3, 5)), "no such file");
  check_says(failure(idx_data(room / "images", room / "labels"), feature_model(3, 5, false)), "cross_entropy");
  const std::string packed = gzip(images);
  for (std::size_t size = 2; size < packed.size(); ++size) says(packed.substr(0, size), labels, "gzip data ends early");
  // Past gzip's own header every bit is under its checks, but for the unused ones of the last byte before the trailer.
  for (std::size_t at = 10; at < packed.size(); ++at) {
    if (at == packed.size() - 9) continue;
    std::string text = packed;
    text[at] = static_cast<char>(text[at] ^ 0x10);
    says(text, labels, "gzip");
  }
  says(packed + "garbage", labels, "gzip");
}

TEST_CASE("MNIST loads") {
  const char* const root = std::getenv("TRAINER_TEST_DATA");
  const std::string folder = std::string(root == nullptr ? "" : root) + "/mnist/";
  if (root == nullptr || !std::filesystem::exists(folder)) {
    MESSAGE("skipped: no folder mnist in TRAINER_TEST_DATA");
    return;
  }
  const auto set = load_dataset(idx_data(folder + "t10k-images-idx3-ubyte.gz", folder + "t10k-labels-idx1-ubyte.gz"),
                                feature_model(784, 10), 1);
  CHECK(set->size() == 10000);
  CHECK(set->kind().classes == 10);
  CHECK(feature_sample(*set, 0).label == 7);
  CHECK(set->bytes() < 784 * 10000 + 100000);
  float largest = 0, smallest = 1;
  for (const float value : feature_sample(*set, 9999).features) {
    largest = std::max(largest, value);
    smallest = std::min(smallest, value);
  }
  CHECK(smallest == 0.0f);
  CHECK(largest > 0.9f);
  CHECK(largest <= 1.0f);
}

TEST_CASE("synthetic samples are a function of seed and sample, in range") {
  const config::Data data{config::SyntheticData{10}, 0.0};
  const auto tokens = load_dataset(data, token_model(50, 7), 3), again = load_dataset(data, token_model(50, 7), 3);
  const auto other = load_dataset(data, token_model(50, 7), 4);
  CHECK(tokens->size() == 10);
  CHECK(token_sample(*tokens, 5).tokens == token_sample(*again, 5).tokens);
  CHECK(token_sample(*tokens, 5).tokens != token_sample(*tokens, 6).tokens);
  CHECK(token_sample(*tokens, 5).tokens != token_sample(*other, 5).tokens);
  const TokenSample sample = token_sample(*tokens, 5);
  std::set<std::int32_t> seen(sample.tokens.begin(), sample.tokens.end());
  CHECK(*seen.begin() >= 0);
  CHECK(*seen.rbegin() <= 6);
  CHECK(seen.size() > 4);
  for (std::size_t i = 1; i < 50; ++i) CHECK(sample.tokens[i] == sample.labels[i - 1]);
  const auto features = load_dataset(data, feature_model(5, 3), 3);
  CHECK(feature_sample(*features, 2).features == feature_sample(*features, 2).features);
  CHECK(feature_sample(*features, 2).features != feature_sample(*features, 3).features);
  for (std::int64_t i = 0; i < 10; ++i) {
    for (const float value : feature_sample(*features, i).features) CHECK(std::abs(value) <= 1.7320509f);
    CHECK((feature_sample(*features, i).label >= 0 && feature_sample(*features, i).label < 3));
  }
  const auto real = load_dataset(data, feature_model(5, 3, false), 3);
  CHECK(feature_sample(*real, 0).values.size() == 3);
  CHECK(feature_sample(*real, 0).values != feature_sample(*real, 1).values);
}

TEST_CASE("the last samples are held out, at least one") {
  const auto check = [](std::int64_t samples, double fraction, std::int64_t held_out) {
    const Split found = split(samples, fraction);
    CHECK(found.held_out == held_out);
    CHECK(found.training == samples - held_out);
  };
  check(100, 0.0, 0);
  check(100, 0.05, 5);
  check(100, 0.29, 29);  // 28.999999999999996 in floating point
  check(199, 0.5, 99);
  check(3, 0.01, 1);
  CHECK_THROWS_AS(split(1, 0.5), Error);
  CHECK(split(1, 0.0).training == 1);
}

TEST_CASE("every epoch is another permutation, a function of the seed") {
  for (const std::int64_t n : {1, 2, 3, 10, 257}) {
    const SampleOrder order(42, n), same(42, n), other(43, n);
    std::vector<std::vector<std::int64_t>> epochs;
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<std::int64_t> samples;
      for (std::int64_t i = 0; i < n; ++i) {
        samples.push_back(order(epoch * n + i));
        CHECK(samples.back() == same(epoch * n + i));
      }
      epochs.push_back(samples);
      std::sort(samples.begin(), samples.end());
      for (std::int64_t i = 0; i < n; ++i) CHECK(samples[static_cast<std::size_t>(i)] == i);
    }
    if (n < 10) continue;
    CHECK(epochs[0] != epochs[1]);
    CHECK(epochs[1] != epochs[2]);
    std::vector<std::int64_t> others;
    for (std::int64_t i = 0; i < n; ++i) others.push_back(other(i));
    CHECK(epochs[0] != others);
  }
}
