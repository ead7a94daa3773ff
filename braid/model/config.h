#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "braid/core/dtype.h"
#include "braid/model/fp8.h"
#include "braid/nn/modules.h"
#include "braid/nn/spec.h"

namespace braid {

/// Everything a stack is built from. A published architecture is such a value and no more.
struct ModelConfig {
  std::string model_type = "braid";  // the family whose names the weights carry
  int64_t vocab = 0;                 // V, rows of the embedding
  int64_t width = 0;                 // D
  std::vector<ParallelSpec> sublayers;
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-5;
  bool embedding_norm = false;  // the rows that enter the stack are normalised first
  bool tied = false;            // the head is the embedding
  double embedding_scale = 1;   // h = scale * embedding
  double logit_scale = 1;       // logits = scale * (h W^T)
  int64_t extra_layers = 0;     // behind the last, in the checkpoint alone: not computed
  int64_t max_context = 0;      // tokens the model was made for; 0: no such number
  DType dtype = DType::kF32;    // of the matrices: f32 or bf16
  bool dtype_given = false;     // by config.json; otherwise the tensors on disk decide
  ScaleBlock fp8_block;         // of matrices stored as fp8 with scales; empty: there are none
  std::optional<int64_t> bos;   // token that begins a text
  std::vector<int64_t> eos;     // tokens that end one
};

/// Reads DIR/config.json (and the token ids of DIR/generation_config.json): the families of
/// model_types(), with the rope keys of both generations, and Braid's own. `dir` may name the
/// config itself. Refuses, in one line with key, found and wanted, what it does not know or cannot
/// do. `known` are the names of sublayers a native stack may use; empty: all.
ModelConfig load_config(const std::filesystem::path& dir,
                        std::span<const std::string_view> known = {});
/// The same from a parsed config.json.
ModelConfig parse_config(const nlohmann::json& root, const std::string& source,
                         std::span<const std::string_view> known = {});
/// The native config.json of a model, whatever its family was: the parameters that go with it have
/// native names.
std::string print_config(const ModelConfig& config);

/// The families a checkpoint may have, "braid" included.
std::vector<std::string_view> model_types();

}  // namespace braid
