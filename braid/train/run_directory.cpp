#include "braid/train/run_directory.h"

#include <utility>
#include <vector>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/model/config.h"
#include "braid/model/safetensors.h"

namespace braid {

RunDirectory::RunDirectory(std::filesystem::path folder, RunDirectoryOptions options)
    : folder_(std::move(folder)),
      options_(std::move(options)),
      checkpoints_(folder_ / "checkpoints", options_.keep) {
  check(options_.dtype == DType::kF32 || options_.dtype == DType::kBF16,
        "train: weights saved as {}, want f32 or bf16", to_string(options_.dtype));
}

void RunDirectory::create() const {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  check(!error, ErrorKind::kIo, "cannot create {}: {}", folder_.string(), error.message());
  for (const char* name : {"tokenizer.json", "config.json", "model.safetensors"}) {
    remove_stale_temporaries(folder_ / name);
  }
}

void RunDirectory::export_model(Context& ctx, const Stack& stack) const {
  if (!options_.tokenizer_json.empty()) {
    write_text(folder_ / "tokenizer.json", options_.tokenizer_json);
  }
  ModelConfig config = stack.config();
  config.dtype = options_.dtype;
  write_text(folder_ / "config.json", print_config(config));

  std::vector<SafetensorsDeclaration> declarations;
  for (const auto& [name, parameter] : stack.parameters()) {
    // Only matrices are rounded: decays and norms in bf16 would change long-range behaviour.
    declarations.push_back({name, parameter->shape, dtype_of(*parameter, options_.dtype)});
  }
  SafetensorsWriter writer(folder_ / "model.safetensors", std::move(declarations),
                           {{"format", "pt"}});
  for (const auto& [name, parameter] : stack.parameters()) {
    writer.write(ctx.to_host(parameter->value));
  }
  writer.commit();
}

}  // namespace braid
