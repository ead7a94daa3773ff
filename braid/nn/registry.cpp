// The one table of sublayers. To add one: its pair of files in mixers/ or ffns/, one line here.

#include <algorithm>

#include "braid/core/error.h"
#include "braid/nn/ffns/mlp.h"
#include "braid/nn/ffns/moe.h"
#include "braid/nn/ffns/rwkv7_cmix.h"
#include "braid/nn/ffns/swiglu.h"
#include "braid/nn/mixers/attention.h"
#include "braid/nn/mixers/gated_delta.h"
#include "braid/nn/mixers/hyena.h"
#include "braid/nn/mixers/lact.h"
#include "braid/nn/mixers/lightning.h"
#include "braid/nn/mixers/linear_attn.h"
#include "braid/nn/mixers/linformer.h"
#include "braid/nn/mixers/mamba1.h"
#include "braid/nn/mixers/mamba2.h"
#include "braid/nn/mixers/mla.h"
#include "braid/nn/mixers/retnet.h"
#include "braid/nn/mixers/rwkv7.h"
#include "braid/nn/mixers/s4d.h"
#include "braid/nn/mixers/shared_block.h"
#include "braid/nn/mixers/short_conv_mixer.h"
#include "braid/nn/mixers/ttt.h"
#include "braid/nn/multipliers.h"
#include "braid/nn/sublayer.h"

namespace braid {
namespace {

template <class T, auto... extra>
std::unique_ptr<Sublayer> make(const SublayerConfig& config, SpecOptions& options) {
  return std::make_unique<T>(config, options, extra...);
}

constexpr SublayerEntry kRegistry[] = {
    {"attn",
     &make<AttentionMixer, false>,
     {.state_grows = true},
     "attn:heads=4,kv=2",
     "causal softmax attention, grouped keys, rotary positions"},
    {"swa",
     &make<AttentionMixer, true>,
     {},
     "swa:24,heads=4,kv=2",
     "the same over a sliding window of W tokens"},
    {"mla",
     &make<MlaMixer>,
     {.state_grows = true},
     "mla:heads=4,q_rank=24,kv_rank=40,nope=16,rope_dim=8,value=24",
     "multi-head latent attention: one small latent a token serves all heads"},
    {"mamba1",
     &make<Mamba1Mixer>,
     {.state_gradients = true},
     "mamba1:state=16,norms=weighted",
     "selective state space (S6), its step, B and C read from the token"},
    {"mamba2",
     &make<Mamba2Mixer>,
     {.state_gradients = true},
     "mamba2:state=16,head=16,groups=2",
     "selective state space (SSD) with a short convolution"},
    {"hyena",
     &make<HyenaMixer>,
     {.state_grows = true},
     "hyena:max=1024,filter_order=16",
     "gated convolutions as long as the sequence, with implicit filters"},
    {"s4d",
     &make<S4dMixer>,
     {.state_gradients = true},
     "s4d:state=9",
     "diagonal state space (S4D), the same for every token"},
    {"shared_block",
     &make<SharedBlock>,
     {.state_grows = true, .feeds_next = true},
     "shared_block:heads=4,hidden=96,rank=8,attn_rank=4",
     "Zamba's transformer block on [h | embedding], shared by places of a stack"},
    {"linear_attn",
     &make<LinearAttnMixer>,
     {.state_gradients = true},
     "linear_attn:heads=4",
     "linear attention with a feature map (elu1, relu, identity, favor)"},
    {"gated_delta",
     &make<GatedDeltaMixer>,
     {.state_gradients = true},
     "gated_delta:key_heads=2,dim=16,value=24",
     "Gated DeltaNet: a state that forgets and corrects what it holds under a key"},
    {"retnet",
     &make<RetnetMixer>,
     {.state_gradients = true},
     "retnet:heads=2,value=96,eps=0.001",
     "multi-scale retention: linear attention with a constant decay per head"},
    {"lightning",
     &make<LightningMixer>,
     {.state_gradients = true},
     "lightning:heads=4,eps=0.001",
     "lightning attention: linear, decays fixed by head and layer"},
    {"linformer",
     &make<LinformerMixer, false>,
     {.causal = false, .streams = false},
     "linformer:256,rank=16,heads=4,kv=2",
     "attention of an encoder to a few summaries of the whole sequence"},
    {"linformer_causal",
     &make<LinformerMixer, true>,
     {.state_grows = true},
     "linformer_causal:block=32,rank=4,heads=4,kv=2",
     "attention to the last two blocks and to summaries of all blocks before"},
    // init: with the authors' 0.02 what reaches the inner norm is smaller than a difference's step.
    {"ttt_linear",
     &make<TttMixer, TttMixer::Kind::kLinear>,
     {.state_gradients = true},
     "ttt_linear:heads=4,init=0.2",
     "test-time training: a linear model per head that learns what it reads"},
    {"ttt_mlp",
     &make<TttMixer, TttMixer::Kind::kMlp>,
     {.state_gradients = true},
     "ttt_mlp:heads=4,hidden=32,init=0.2",
     "the same with a two-layer MLP"},
    {"ttt",
     &make<TttMixer, TttMixer::Kind::kCorrection>,
     {.state_gradients = true},
     "ttt:64,mini_batch=16,heads=4,init=0.2",
     "the same over the last horizon / 2 to horizon tokens: the correction on top of a stack"},
    // Without muon, whose slope of up to 500 no difference follows: its gradients are the op's
    // test.
    {"lact",
     &make<LactMixer>,
     {.state_gradients = true},
     "lact:heads=2,chunk=24,momentum=1,lr=0.01",
     "large-chunk test-time training: a SwiGLU per head, one update a chunk"},
    {"short_conv",
     &make<ShortConvMixer>,
     {.state_gradients = true},
     "short_conv:conv=16",
     "a short causal convolution of each channel"},
    {"rwkv7",
     &make<Rwkv7Mixer>,
     {.state_gradients = true},
     "rwkv7:head=16,w=8,a=8,v=8,g=8",
     "RWKV-7 time mixing: decay by channel, unlearning by key"},
    {"rwkv7_cmix",
     &make<Rwkv7CmixFfn>,
     {.mixer = false, .state_gradients = true},
     "rwkv7_cmix:hidden=96",
     "RWKV-7 channel mixing: relu^2 over a token and the one before it"},
    {"swiglu",
     &make<SwigluFfn>,
     {.mixer = false},
     "swiglu:hidden=96",
     "gated feed-forward with SiLU"},
    {"mlp",
     &make<MlpFfn>,
     {.mixer = false},
     "mlp:hidden=96",
     "plain feed-forward with relu^2, relu, GELU or SiLU"},
    {"moe",
     &make<MoeFfn>,
     {.mixer = false, .state_gradients = true, .chooses = true},
     "moe:8/2,hidden=32",
     "mixture of experts: E feed-forwards, of which a token is read by k"},
};

}  // namespace

double Sublayer::matmul_flops() const { return 0; }

void Sublayer::after_step(Context&, const ExpertLoads&) {}

std::span<const SublayerEntry> sublayer_registry() { return kRegistry; }

const SublayerEntry* find_sublayer(std::string_view name) {
  for (const SublayerEntry& entry : kRegistry) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::unique_ptr<Sublayer> make_sublayer(const SublayerSpec& spec, const SublayerConfig& config) {
  const SublayerEntry* entry = find_sublayer(spec.name);
  if (entry == nullptr) {
    std::string known;
    for (const SublayerEntry& e : kRegistry) {
      known += (known.empty() ? "" : ", ") + std::string(e.name);
    }
    fail(ErrorKind::kUsage, "stack: column {}: there is no sublayer '{}', want one of {}",
         spec.column, spec.name, known);
  }
  SpecOptions options(spec);
  auto sublayer = with_multipliers(entry->make(config, options), options);
  read_residual(options);  // every sublayer may have it; the stack carries it out
  options.done();
  return sublayer;
}

void Stream::publish(std::string_view name, Tensor value) {
  published_.insert_or_assign(std::string(name), std::move(value));
}

const Tensor& Stream::value(std::string_view name) const {
  const auto it = published_.find(name);
  check(it != published_.end(), ErrorKind::kUsage,
        "stack: a sublayer reads '{}', which no sublayer before it leaves", name);
  return it->second;
}

const RopeAngles& Stream::angles(Context& ctx, const RopeOptions& options) {
  for (const auto& [known, angles] : angles_) {
    if (known == options) return angles;
  }
  angles_.emplace_back(options, rope_angles(ctx, options, *batch_, options_.rope_context));
  return angles_.back().second;
}

}  // namespace braid
