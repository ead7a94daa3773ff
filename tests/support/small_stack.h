#pragma once

// A small corpus and a small stack of every kind of sublayer, shared by the tests of this layer.

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "braid/core/file.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "braid/train/dataset.h"

namespace braid::test {

/// A folder of its own that goes with the test.
class Folder {
 public:
  explicit Folder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / fmt::format("{}-{}", name, ::getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

constexpr int32_t kByteVocab = 257;

inline DocumentEncoder byte_encoder() {
  return {.encode =
              [](std::string_view text) {
                std::vector<int32_t> ids;
                for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
                return ids;
              },
          .fingerprint = 1,
          .vocab = kByteVocab,
          .start = 256,
          .end = 256};
}

/// About `bytes` of text that is neither constant nor noise, in documents of several lengths.
inline std::string corpus_text(size_t bytes) {
  constexpr const char* kWords[] = {"the ",  "braid ", "of ",   "a ",     "river ", "runs ",
                                    "over ", "under ", "stone", "light,", " and ",  "back.\n"};
  std::string text;
  uint64_t state = 7;
  while (text.size() < bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    text += kWords[(state >> 33) % std::size(kWords)];
    if ((state >> 40) % 41 == 0) text += "\n<|endoftext|>\n";
  }
  return text;
}

inline Dataset make_dataset(Context& ctx, const std::filesystem::path& folder, size_t bytes) {
  const auto path = folder / "text.txt";
  write_text(path, corpus_text(bytes));
  const std::filesystem::path files[] = {path};
  return Dataset::open(files, byte_encoder(), ctx.threads(), folder / "data");
}

inline std::unique_ptr<Stack> make_stack(Context& ctx, const std::string& spec, uint64_t seed = 3,
                                         bool recompute = false) {
  ModelConfig config;
  config.vocab = kByteVocab;
  config.width = 64;
  config.sublayers = parse_stack(spec);
  config.tied = true;
  auto stack = std::make_unique<Stack>(
      config, StackOptions{.trainable = true, .matrix_dtype = DType::kF32, .recompute = recompute});
  stack->initialize(ctx, Rng(seed));
  return stack;
}

inline constexpr const char* kHybrid =
    "mamba2:state=16,head=16 swiglu:hidden=96 swa:12,heads=4,kv=2 swiglu:hidden=96";

}  // namespace braid::test
