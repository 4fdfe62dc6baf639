// Files of data sets: read whole, unpacked when gzip, and told about in sentences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/core/error.hpp"
#include "trainer/storage/dataset.hpp"

namespace trainer::storage {

/// "data file 'PATH': WHAT"
Error data_error(const std::string& path, const std::string& what);

/// The bytes of the file, unpacked when they begin with gzip's magic number. Throws Error(Data).
std::vector<std::uint8_t> read_data_file(const std::string& path);

/// Throws Error(Data) unless a model with these inputs and outputs takes features and gives one class a sample, or real
/// targets when `classes` is false. `what` names the kind of data.
void check_feature_model(const ModelInput& model, const std::string& path, const std::string& what, bool classes);

std::unique_ptr<Dataset> load_text(const config::TextData& data, const ModelInput& model);
std::unique_ptr<Dataset> load_csv(const config::CsvData& data, const ModelInput& model);
std::unique_ptr<Dataset> load_idx(const config::IdxData& data, const ModelInput& model);
std::unique_ptr<Dataset> make_synthetic(const config::SyntheticData& data, const ModelInput& model, std::uint64_t seed);

}  // namespace trainer::storage
