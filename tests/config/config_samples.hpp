// One valid configuration of each kind.
#pragma once

namespace samples {

inline constexpr const char* kGpt = R"({
  "model":     {"type": "gpt", "vocab_size": 256, "context_length": 256, "hidden_size": 384, "num_layers": 6, "num_heads": 6,
                "dropout": 0.0, "tie_embeddings": true},
  "data":      {"type": "text", "path": "corpus.txt", "tokenizer": "byte", "validation_fraction": 0.05},
  "training":  {"steps": 200, "batch_size": 32, "micro_batches": 8, "sequence_length": 128, "loss": "cross_entropy",
                "gradient_clip": 1.0, "precision": "float32", "seed": 1},
  "optimizer": {"type": "adamw", "learning_rate": 3e-4, "betas": [0.9, 0.95], "weight_decay": 0.1,
                "schedule": {"type": "cosine", "warmup_steps": 20, "final_ratio": 0.1}},
  "parallel":  {"data": 1, "pipeline": 2, "tensor": 2, "schedule": "1f1b", "partition": "flops"},
  "checkpoint":{"directory": "runs/gpt", "every_steps": 50, "keep": 2},
  "logging":   {"every_steps": 10}
})";

inline constexpr const char* kMlp = R"({
  "model": {"type": "mlp", "input_size": 784, "hidden_sizes": [32, 16], "output_size": 10, "activation": "tanh"},
  "data": {"type": "idx", "images": "images.gz", "labels": "labels.gz", "validation_fraction": 0.1},
  "training": {"epochs": 2.5, "batch_size": 64, "micro_batch_size": 8, "eval_every": 10, "time_limit": 60},
  "optimizer": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": true}
})";

inline constexpr const char* kSequential = R"({
  "model": {"type": "sequential", "input_size": 12, "layers": [
    {"type": "linear", "output_size": 8},
    {"type": "gelu"},
    {"type": "residual", "layers": [{"type": "linear", "output_size": 8}, {"type": "dropout", "probability": 0.25}]},
    {"type": "linear", "output_size": 3, "bias": false}]},
  "data": {"type": "synthetic", "samples": 100},
  "training": {"steps": 10, "micro_batches": 2, "micro_batch_size": 3},
  "parallel": {"partition": [2, 1, 1]}
})";

inline constexpr const char* kTokens = R"({
  "model": {"type": "sequential", "layers": [
    {"type": "embedding", "vocab_size": 300, "hidden_size": 16},
    {"type": "position_embedding", "context_length": 32},
    {"type": "residual", "layers": [{"type": "layer_norm", "eps": 1e-6},
                                    {"type": "causal_self_attention", "num_heads": 4, "dropout": 0.1}]},
    {"type": "relu"}, {"type": "sigmoid"}, {"type": "tanh"},
    {"type": "linear", "output_size": 300}]},
  "data": {"type": "text", "path": "a.txt"},
  "training": {"steps": 10, "batch_size": 4, "seed": 18446744073709551615}
})";

inline constexpr const char* kCsv = R"({
  "model": {"type": "mlp", "input_size": 4, "hidden_sizes": [], "output_size": 1},
  "data": {"type": "csv", "path": "t.csv", "target": "price", "task": "regression", "delimiter": ";"},
  "training": {"epochs": 3, "batch_size": 8}
})";

inline constexpr const char* kSmallest = R"({
  "model": {"type": "mlp", "input_size": 4, "hidden_sizes": [8], "output_size": 2},
  "data": {"type": "synthetic"},
  "training": {"steps": 5, "batch_size": 4}
})";

inline constexpr const char* kAll[] = {kGpt, kMlp, kSequential, kTokens, kCsv, kSmallest};

}  // namespace samples
