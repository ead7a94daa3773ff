// Goal: every entry of the registry computes one function, whatever the form, the cut, the batch,
// the number of threads or the way its state went. Method: the laws of laws.h over the registry;
// then each law once more over a sublayer with a planted fault, which it must catch.

#include <gtest/gtest.h>

#include <algorithm>

#include "braid/model/stack_spec.h"
#include "tests/property/laws.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid::test {
namespace {

class Laws : public ::testing::TestWithParam<SublayerEntry> {
 protected:
  Subject subject(DType state_dtype = DType::kF32, bool trainable = false) {
    return make_subject(ctx_, std::string(GetParam().example), state_dtype, trainable);
  }
  const Traits& traits() const {
    return find_sublayer(parse_stack(GetParam().example).at(0).branches.at(0).name)->traits;
  }
  Context ctx_;
};

TEST_P(Laws, FormsAgree) { EXPECT_EQ(forms_agree(ctx_, subject()), ""); }
TEST_P(Laws, CausalAsItSays) {
  const std::string broken = causal(ctx_, subject());
  EXPECT_EQ(broken.empty(), traits().causal) << broken;
}
TEST_P(Laws, AloneAsInABatch) { EXPECT_EQ(alone_as_in_a_batch(ctx_, subject()), ""); }
TEST_P(Laws, AnyThreadCount) { EXPECT_EQ(any_thread_count(subject()), ""); }
TEST_P(Laws, ReadsNoStaleMemory) { EXPECT_EQ(reads_no_stale_memory(subject()), ""); }
TEST_P(Laws, GradientsMatchDifferences) {
  EXPECT_EQ(gradients_match_differences(ctx_, subject(DType::kF32, true)), "");
}
TEST_P(Laws, GradientsThroughTheState) {
  Subject s = subject(DType::kF32, true);
  const StateSpec slots = s.layer->state_spec();
  if (slots.empty()) return;
  const std::string name = parse_stack(GetParam().example).back().branches.at(0).name;
  if (find_sublayer(name)->traits.state_gradients) {
    EXPECT_EQ(state_gradients_match_differences(ctx_, s), "");
    EXPECT_EQ(gradients_flow_through_pieces(ctx_, s), "");
    return;
  }
  SlotTensors state;
  expect_refused(
      [&] {
        s.run_tensors(ctx_, randn({3, 64}, 1), SequenceBatch::single(3), state);
      },
      "want a sublayer that differentiates its state");
  const bool exempt = std::ranges::any_of(
      slots, [](const SlotSpec& slot) { return slot.kind != SlotKind::kFixed; });
  if (!exempt) GTEST_SKIP() << name << " does not differentiate its state";
}
TEST_P(Laws, RecomputeChangesNothing) {
  EXPECT_EQ(recompute_changes_nothing(ctx_, subject(DType::kF32, true)), "");
}

// Of what carries a state.
class StreamLaws : public Laws {};

TEST_P(StreamLaws, EveryCut) { EXPECT_EQ(every_cut(ctx_, subject(), 70), ""); }
TEST_P(StreamLaws, EveryCutWithBf16State) {
  EXPECT_EQ(every_cut(ctx_, subject(DType::kBF16), 70), "");
}
TEST_P(StreamLaws, TokenByToken) { EXPECT_EQ(token_by_token(ctx_, subject(), 150), ""); }
TEST_P(StreamLaws, TokenByTokenPastTheRing) { EXPECT_EQ(token_by_token(ctx_, subject(), 600), ""); }
TEST_P(StreamLaws, StateSurvivesStorage) {
  EXPECT_EQ(survives_storage(ctx_, subject()), "");
  EXPECT_EQ(survives_storage(ctx_, subject(DType::kBF16)), "");
}
TEST_P(StreamLaws, ForksAreIndependent) { EXPECT_EQ(forks_are_independent(ctx_, subject()), ""); }
TEST_P(StreamLaws, ReturnsToAMark) { EXPECT_EQ(returns_to_a_mark(ctx_, subject()), ""); }

std::vector<SublayerEntry> entries(bool streams) {
  std::vector<SublayerEntry> some;
  for (const SublayerEntry& entry : sublayer_registry()) {
    if (entry.traits.streams == streams) some.push_back(entry);
  }
  return some;
}
std::string name_of(const ::testing::TestParamInfo<SublayerEntry>& entry) {
  return std::string(entry.param.name);
}

INSTANTIATE_TEST_SUITE_P(Registry, Laws, ::testing::ValuesIn(sublayer_registry()), name_of);
INSTANTIATE_TEST_SUITE_P(Registry, StreamLaws, ::testing::ValuesIn(entries(true)), name_of);

TEST(WhatDoesNotStream, RefusesAState) {
  for (const SublayerEntry& entry : entries(false)) {
    Context ctx;
    const Subject subject = make_subject(ctx, std::string(entry.example));
    State state = subject.make_state(ctx);
    expect_refused(
        [&] {
          subject.run_pieces(ctx, randn({3, 64}, 1), {3}, state);
        },
        "want no state");
  }
}

// Options that change what an entry computes.
constexpr SublayerEntry kVariants[] = {
    {"attn_scales",
     nullptr,
     {.state_grows = true},
     "attn:heads=4,kv=2,scale=0.15,in_scale=1.1,out_scale=-0.9",
     ""},
    {"attn_qk_norm", nullptr, {.state_grows = true}, "attn:heads=4,kv=2,qk_norm=1,bias=1", ""},
    {"mamba2_scales",
     nullptr,
     {},
     "mamba2:state=16,head=16,groups=2,norm=0,scales=0.5/0.6/0.7/0.8/1.3,in_scale=1.25,out_bias=1",
     ""},
    {"linear_attn_favor",
     nullptr,
     {.state_gradients = true},
     "linear_attn:heads=8,feature=favor,dim=4,features=24",
     ""},
    {"lightning_variant",
     nullptr,
     {.state_gradients = true},
     "lightning:heads=4,eps=0.001,lrpe=1,value_silu=1,gate=sigmoid,norm_weight=1",
     ""},
    {"linear_attn_identity",
     nullptr,
     {.state_gradients = true},
     "linear_attn:heads=2,feature=identity,dim=24,gate=1",
     ""},
    {"hyena_order_three",
     nullptr,
     {.state_grows = true},
     "hyena:order=3,max=800,filter_order=8,emb=5,w=4,inner=1,shift=0.05,short=4",
     ""},
    {"mla_one_query_matrix",
     nullptr,
     {.state_grows = true},
     "mla:heads=3,kv_rank=16,nope=8,rope_dim=16,value=8,interleaved=0,bias=1,rope=yarn,factor=4,"
     "original=32,mscale=0.7,mscale_all_dim=0.9",
     ""},
    {"linformer_shared",
     nullptr,
     {.state_grows = true},
     "linformer_causal:block=8,rank=3,heads=2,share=1,rope=none",
     ""},
    {"rwkv7_later", nullptr, {.state_gradients = true}, "rwkv7 rwkv7:head=32,w=4,a=4,v=4,g=4", ""},
    {"attn_gate",
     nullptr,
     {.state_grows = true},
     "attn:heads=4,kv=2,gate=1,partial=0.25,bias=1,qk_norm=1",
     ""},
    {"mlp_bias", nullptr, {.mixer = false}, "mlp:hidden=40,bias=1", ""},
    {"mlp_gelu", nullptr, {.mixer = false}, "mlp:hidden=40,act=gelu", ""},
    {"mlp_silu", nullptr, {.mixer = false}, "mlp:act=silu", ""},
    {"ttt_linear_steps",
     nullptr,
     {.state_gradients = true},
     "ttt_linear:heads=2,steps=2,mini_batch=6,share_qk=0,gate=0,theta=0,init=0.2",
     ""},
    {"ttt_mlp_plain",
     nullptr,
     {.state_gradients = true},
     "ttt_mlp:heads=4,hidden=24,mini_batch=5,norm=0,inner_residual=0,conv=3,steps=2,init=0.2",
     ""},
    {"moe_sigmoid_groups",
     nullptr,
     {.mixer = false},
     "moe:16/4,hidden=16,router=sigmoid,scale=2.5,groups=4,keep=2,select_bias=1,shared=2",
     ""},
    {"moe_selected",
     nullptr,
     {.mixer = false},
     "moe:6/3,hidden=24,act=relu2,router=selected,shared_hidden=40,shared_gate=1,out_scale=0.5",
     ""},
    {"moe_switch", nullptr, {.mixer = false}, "moe:4/1,act=silu,hidden=48,capacity=1.25", ""},
    {"moe_all", nullptr, {.mixer = false}, "moe:3/3,act=gelu,hidden=40,norm=0,scale=2", ""},
    {"moe_one", nullptr, {.mixer = false}, "moe:1/1,act=gelu,hidden=40,norm=1", ""},
    {"lact_plain",
     nullptr,
     {.state_gradients = true},
     "lact:heads=4,hidden=24,chunk=10,silu=0,theta=0,lr=0.01",
     ""},
    {"moe_reroute",
     nullptr,
     {.mixer = false},
     "moe:8/2,hidden=32,reroute=0.004,context=12,window=20",
     ""},
    {"moe_reroute_groups",
     nullptr,
     {.mixer = false},
     "moe:12/3,hidden=16,router=sigmoid,groups=4,keep=2,select_bias=1,shared=1,reroute=0.02,"
     "context=5",
     ""},
    {"swiglu_scales", nullptr, {.mixer = false}, "swiglu:hidden=96,gate_scale=1.2", ""},
};

INSTANTIATE_TEST_SUITE_P(Variants, Laws, ::testing::ValuesIn(kVariants), name_of);
INSTANTIATE_TEST_SUITE_P(Variants, StreamLaws, ::testing::ValuesIn(kVariants), name_of);

// A sublayer that is right but for one fault.
enum class Fault {
  kChunkedForm,
  kRecurrentForm,
  kParallelForm,
  kForgetsState,
  kLooksAhead,
  kHidesState,
  kSeesTheBatch,
  kCountsThreads,
  kLosesGradient,
  kLosesStateGradient
};

class Faulty final : public Sublayer {
 public:
  Faulty(std::unique_ptr<Sublayer> inner, Fault fault) : inner_(std::move(inner)), fault_(fault) {}

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override {
    if (fault_ == Fault::kForgetsState && state != nullptr && stream.batch().starts[0] > 0) {
      return inner_->forward(ctx, x, stream, nullptr);
    }
    if (fault_ == Fault::kLosesStateGradient && state != nullptr && state->has_tensors()) {
      return forward_detached(ctx, x, stream, *state);
    }
    Tensor y = inner_->forward(ctx, x, stream, state);
    Tensor moved = ctx.to_host(y);
    moved.set_grad_id(fault_ == Fault::kLosesGradient ? 0 : y.grad_id());
    const int64_t N = y.rows(), D = y.dim(1);
    float& last = moved.f32()[(N - 1) * D];
    const float off = 1e-3f * (1.0f + std::abs(last));
    const Form form = ctx.form();
    if (fault_ == Fault::kChunkedForm && form == Form::kChunked) last += off;
    if (fault_ == Fault::kRecurrentForm && form == Form::kRecurrent) last += off;
    if (fault_ == Fault::kParallelForm && form == Form::kParallel) last += off;
    if (fault_ == Fault::kCountsThreads && ctx.threads().size() > 2) last += off;
    if (fault_ == Fault::kHidesState) last += off * static_cast<float>(++calls_);
    if (fault_ == Fault::kSeesTheBatch && stream.batch().sequences() > 1) last += off;
    if (fault_ == Fault::kLooksAhead && N > 1) {
      for (int64_t i = 0; i + 1 < N; ++i) moved.f32()[i * D] += 1e-6f * x.f32()[(i + 1) * D];
    }
    return moved;
  }
  StateSpec state_spec() const override { return inner_->state_spec(); }
  std::vector<Parameter*> parameters() override { return inner_->parameters(); }

 private:
  Tensor forward_detached(Context& ctx, const Tensor& x, Stream& stream,
                          const LayerState& state) const {
    SlotTensors tensors;
    for (size_t j = 0; j < state_spec().size(); ++j) {
      tensors.initial.push_back(state.initial(j));
      tensors.initial.back().set_grad_id(0);
    }
    const LayerState detached(tensors, stream.batch());
    Tensor y = inner_->forward(ctx, x, stream, &detached);
    for (size_t j = 0; j < tensors.last.size(); ++j) state.set_last(j, tensors.last[j]);
    return y;
  }

  std::unique_ptr<Sublayer> inner_;
  Fault fault_;
  mutable int calls_ = 0;
};

Subject with(Fault fault, Context& ctx, bool trainable = false) {
  Subject subject = make_subject(ctx, "mamba2:state=16,head=16", DType::kF32, trainable);
  subject.layer = std::make_unique<Faulty>(std::move(subject.layer), fault);
  return subject;
}

TEST(PlantedFaults, EachIsCaught) {
  Context ctx;
  EXPECT_NE(forms_agree(ctx, with(Fault::kChunkedForm, ctx)), "");
  EXPECT_NE(forms_agree(ctx, with(Fault::kRecurrentForm, ctx)), "");
  EXPECT_NE(forms_agree(ctx, with(Fault::kParallelForm, ctx)), "");
  EXPECT_NE(every_cut(ctx, with(Fault::kForgetsState, ctx), 20), "");
  EXPECT_NE(token_by_token(ctx, with(Fault::kForgetsState, ctx), 20), "");
  EXPECT_NE(causal(ctx, with(Fault::kLooksAhead, ctx)), "");
  EXPECT_NE(alone_as_in_a_batch(ctx, with(Fault::kSeesTheBatch, ctx)), "");
  EXPECT_NE(any_thread_count(with(Fault::kCountsThreads, ctx)), "");
  EXPECT_NE(survives_storage(ctx, with(Fault::kHidesState, ctx)), "");
  EXPECT_NE(forks_are_independent(ctx, with(Fault::kHidesState, ctx)), "");
  EXPECT_NE(returns_to_a_mark(ctx, with(Fault::kHidesState, ctx)), "");
  EXPECT_NE(gradients_match_differences(ctx, with(Fault::kLosesGradient, ctx, true)), "");
  EXPECT_NE(state_gradients_match_differences(ctx, with(Fault::kLosesStateGradient, ctx, true)),
            "");
  EXPECT_NE(gradients_flow_through_pieces(ctx, with(Fault::kLosesStateGradient, ctx, true)), "");
}

}  // namespace
}  // namespace braid::test
