#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "braid/model/config.h"
#include "braid/model/json.h"
#include "braid/model/safetensors.h"

namespace braid {

/// Of every `block` rows of a tensor those from `first` on, `count` of them, block after block: how
/// projections are undone whose parts alternate head by head. block 0: all rows as they are.
struct RowRuns {
  int64_t block = 0, first = 0, count = 0;
};

/// One tensor of a checkpoint that becomes (some rows of) a parameter.
struct WeightPart {
  std::string name;
  int64_t rows = 0;        // how many the family expects; 0: those the parameter leaves
  std::string fused = {};  // where there is no `name`: the tensor of whose rows it is `fused_row`
  int64_t fused_row = 0;
  int64_t fused_rows = 0;   // how many that tensor has; 0: more than `fused_row`
  bool squeeze = false;     // (C, 1, W) in the file, (C, W) here
  bool flat = false;        // extents of 1 do not count: (1, 1, C) or (C) in the file, (C) here
  bool transposed = false;  // (K, N) in the file, (N, K) here
  RowRuns runs = {};
  bool add_one = false;  // the file has w of 1 + w; the sum is float32
};

/// Native parameter name <- tensors of the checkpoint, concatenated along rows.
using WeightMap = std::map<std::string, std::vector<WeightPart>, std::less<>>;

/// A published family: how its config.json becomes a ModelConfig and how its tensors are called.
struct Family {
  std::string_view model_type;
  ModelConfig (*config)(const JsonObject& json);
  WeightMap (*weights)(const ModelConfig& config);
  /// Tensors that a checkpoint may carry and that say nothing the config does not.
  bool (*ignorable)(std::string_view name);
  /// The config that tensors without a config.json imply by their names and shapes; nothing where
  /// they are not this family's. Null where the family needs one.
  std::optional<ModelConfig> (*infer)(const SafetensorsFile& file) = nullptr;
  /// Tensors of parts that this config does not count and a stack does not compute (layers that
  /// predict further tokens in training). Null where there are none.
  bool (*beyond)(std::string_view name, const ModelConfig& config) = nullptr;
};

extern const Family kMambaFamily, kFalconMambaFamily, kStateSpacesFamily;
extern const Family kLlamaFamily, kMistralFamily, kMamba2Family, kBambaFamily, kFalconH1Family,
    kZamba2Family;
extern const Family kRwkv7Family, kRwkvLmFamily, kTttFamily;
extern const Family kMixtralFamily, kQwen3Family, kQwen3MoeFamily, kJambaFamily,
    kGraniteMoeHybridFamily;
extern const Family kMiniMaxFamily, kNemotronHFamily, kQwen3NextFamily;
extern const Family kDeepseekV3Family;

/// All of them, in one table.
std::span<const Family* const> families();
/// What the first family that knows these tensors makes of them.
std::optional<ModelConfig> infer_config(const SafetensorsFile& file);
/// Nullptr for a family there is none of (and for "braid", which needs no table).
const Family* find_family(std::string_view model_type);
/// model_type, or where it is absent what the other keys say: state-spaces/mamba writes none.
std::string model_type_of(const JsonObject& json);

// What families share.

/// Limits of sizes in configs: far above any model, and their products fit 63 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocab = int64_t{1} << 26;
constexpr int64_t kMaxLayers = 2048;
constexpr int64_t kMaxPositions = SpecOptions::kMaxInteger;

/// Builds the spec of a sublayer as if it had been written.
class SpecBuilder {
 public:
  explicit SpecBuilder(std::string name) { spec_.name = std::move(name); }
  SpecBuilder& value(int64_t value);
  SpecBuilder& set(std::string key, int64_t value);
  SpecBuilder& set_number(std::string key, double value);
  SpecBuilder& set_text(std::string key, std::string value);
  SpecBuilder& set_numbers(std::string key, std::span<const double> values);
  SublayerSpec build() { return std::move(spec_); }

 private:
  SublayerSpec spec_;
};

/// vocab_size, hidden_size, bos_token_id, eos_token_id, dtype or torch_dtype; refuses
/// every quantization_config but fp8 in blocks. `tied` is the family's default.
ModelConfig common_config(const JsonObject& json, bool tied);
/// `key` must be "silu" where it is given.
void want_silu(const JsonObject& json, std::string_view key);

// The decoder layout of Llama and Mistral: two sublayers a layer, attention and SwiGLU.

/// Fills `config` from the keys that both have. `attention` carries what differs: its name, its
/// window, its biases.
void decoder_config(const JsonObject& json, SpecBuilder attention, ModelConfig* config);
WeightMap decoder_weights(const ModelConfig& config);
bool decoder_ignorable(std::string_view name);
bool nothing_ignorable(std::string_view name);

// Sublayers, from the keys that transformers' configs share.

/// What attention is where its keys are absent.
struct AttentionDefaults {
  double partial = 1;  // partial_rotary_factor
  double theta = 10000;
  int64_t head_dim = 0;   // 0: the width over the heads
  int64_t kv_heads = 0;   // 0: as the heads, which a null means as well
  bool positions = true;  // false: none, whatever the keys say
};
/// heads, kv, dim and the rotary options; reads config->width and max_context.
void attention_options(const JsonObject& json, const ModelConfig& config, SpecBuilder* attention,
                       const AttentionDefaults& defaults);
void attention_options(const JsonObject& json, const ModelConfig& config, SpecBuilder* attention,
                       double partial = 1);
/// Adds rope, theta and what the kind of scaling needs; reads `rope_parameters` as well as
/// `rope_theta` and `rope_scaling`.
void rope_options(const JsonObject& json, int64_t head_dim, int64_t max_positions,
                  SpecBuilder* attention, double partial = 1, double theta = 10000);
/// intermediate_size, mlp_bias.
SpecBuilder swiglu_options(const JsonObject& json);

/// How a family calls the keys of its Mamba-2 layers, and their defaults where families differ.
struct Mamba2Keys {
  std::string_view heads = "mamba_n_heads";
  std::string_view head = "mamba_d_head";  // may say "auto"
  std::string_view groups = "mamba_n_groups";
  std::string_view state = "mamba_d_state";
  std::string_view conv = "mamba_d_conv";
  std::string_view expand = "mamba_expand";  // empty: the heads alone say the inner width
  std::string_view limit = "time_step_limit";
  std::string_view inner = {};  // heads * head, where a key says so; else expand * hidden_size
  std::string_view bias = "mamba_proj_bias";
  std::string_view out_bias = {};  // of the output projection, where it has a key of its own
  std::string_view conv_bias = "mamba_conv_bias";
  int64_t default_head = 0;  // 0: what heads leave of the inner width
  int64_t default_heads = 128;
  int64_t default_groups = 1;
  int64_t default_state = 256;
  int64_t norm_groups = 0;  // 0: as the groups
};
SpecBuilder mamba2_options(const JsonObject& json, int64_t width, const Mamba2Keys& keys);

/// The list of `layers` kinds at `key`, each one of `kinds`. "linear_attention" counts as "mamba"
/// and "full_attention" as "attention": newer configs write them so.
std::vector<std::string> layer_kinds(const JsonObject& json, std::string_view key, int64_t layers,
                                     std::initializer_list<std::string_view> kinds);

/// How a family calls the keys of its mixtures of experts, and their defaults (0: the key must be
/// there). num_experts, num_local_experts and n_routed_experts all count as `experts`.
struct MoeKeys {
  std::string_view experts = "num_experts";
  std::string_view chosen = "num_experts_per_tok";
  std::string_view hidden = "moe_intermediate_size";
  int64_t default_experts = 0;
  int64_t default_chosen = 0;
  int64_t default_hidden = 0;
  int64_t layers = 0;  // 0: as num_hidden_layers says
};
/// `moe:E/k,hidden=F`; what else there is to say is the family's.
SpecBuilder moe_options(const JsonObject& json, const MoeKeys& keys);
/// Whether there are experts at all.
bool has_experts(const JsonObject& json, const MoeKeys& keys);

/// The feed-forward of each layer as Qwen's configs say it: experts in every
/// decoder_sparse_step-th, unless mlp_only_layers lists it or there are none. Either is asked for
/// only where a layer has it.
std::vector<SublayerSpec> sparse_or_dense(const JsonObject& json, const MoeKeys& keys,
                                          int64_t layers,
                                          const std::function<SublayerSpec()>& sparse,
                                          const std::function<SublayerSpec()>& dense);

/// The matrices of a feed-forward, behind its path. With no `gate`, `up` holds both, the gate's
/// rows first.
struct FfnNames {
  std::string_view gate = "gate_proj", up = "up_proj", down = "down_proj";
};
struct FfnShape {
  int64_t hidden = 0;
  bool gated = true, biased = true;
};
void map_ffn(const std::string& native, const std::string& file, const FfnNames& names,
             const FfnShape& shape, WeightMap* map);

/// The tensors of a mixture of experts, behind the path of its layer; empty: there is none.
struct MoeNames {
  std::string_view router = "mlp.gate.weight";
  std::string_view router_bias = {};          // the bias of the selection
  std::string_view experts = "mlp.experts.";  // an expert's number follows, then `ffn`
  FfnNames ffn = {};
  std::string_view fused_in = {}, fused_out = {};  // of all experts: (E, 2F or F, D), (E, D, F)
  std::string_view shared = {};                    // `ffn` follows
  std::string_view shared_gate = {};
};
/// `native` ends in "moe.". Reads E, hidden, act, shared and shared_hidden of `spec`.
void map_moe(const std::string& native, const std::string& file, const SublayerSpec& spec,
             const MoeNames& names, WeightMap* map);

/// What families call the parts of a layer of two sublayers, under model.layers.N.
struct LayerNames {
  std::string_view mixer_norm = "input_layernorm";
  std::string_view ffn_norm = "post_attention_layernorm";
  std::string_view ffn = "mlp";
  FfnNames ffn_parts = {};
  MoeNames moe = {};
  std::string_view final_norm = "model.norm.weight";
};
/// Tensors of such layers: attention is self_attn, Mamba of either kind is mamba; other mixers are
/// left to the family.
WeightMap layer_weights(const ModelConfig& config, const LayerNames& names);
/// q_proj, k_proj, v_proj, o_proj, q_norm and k_norm. With a gate q_proj holds, head by head, the
/// query and then the gate.
void map_attention(const std::string& native, const std::string& file, const SublayerSpec& spec,
                   WeightMap* map);
void map_mamba2(const std::string& native, const std::string& file, WeightMap* map);
void map_mamba1(const std::string& native, const std::string& file, WeightMap* map);
/// Tensors of a stack with one mixer a layer, as transformers' Mamba names them; `map` adds the
/// mixer's.
WeightMap backbone_weights(const ModelConfig& config, std::string_view mixer,
                           void (*map)(const std::string&, const std::string&, WeightMap*));
/// An integer, or ceil(width / 16) where the key is absent or says "auto".
int64_t rank_or_auto(const JsonObject& json, std::string_view key, int64_t width);

}  // namespace braid
