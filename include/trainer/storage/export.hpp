// Weights for other tools. The bytes are a function of the weights alone.
#pragma once

#include <string>

#include "trainer/storage/checkpoint.hpp"

namespace trainer::storage {

/// One model.safetensors with the model's own parameter names, whole tensors, reference write order.
/// `out` is a directory, made anew; refuses one that exists unless `overwrite`. Written beside and renamed.
void export_safetensors(FileSystem& fs, const CheckpointReader& checkpoint, const std::string& out, bool overwrite);

/// A Hugging Face folder. GPT models become GPT2LMHeadModel (config.json, model.safetensors, generation_config.json);
/// others are refused with Error(Usage) saying what works.
void export_hugging_face(FileSystem& fs, const CheckpointReader& checkpoint, const std::string& out, bool overwrite);

}  // namespace trainer::storage
