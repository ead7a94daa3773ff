#include "braid/nn/mixers/shared_block.h"

#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/view/view.h"

namespace braid {

SharedBlock::SharedBlock(const SublayerConfig& config, SpecOptions& options)
    : core_(config, options, {.width = 2 * config.width, .scale_per_dim = 0.5}) {
  const int64_t D = config.width, q = core_.q_width(), kv = core_.kv_width();
  hidden_ = options.integer("hidden", 4 * D);
  rank_ = options.integer("rank", 0, 0, D);
  attn_rank_ = options.integer("attn_rank", 0, 0, D);
  const bool bias = options.flag("bias", false);
  if (options.has("share") && config.shared != nullptr) {
    const std::string id = std::to_string(options.integer("share", 0, 0));
    std::shared_ptr<void>& slot = (*config.shared)["shared_block:" + id];
    first_place_ = slot == nullptr;
    if (first_place_) slot = std::make_shared<Weights>();
    block_ = std::static_pointer_cast<Weights>(slot);
    if (!first_place_ && !(block_->spec == options.spec())) {
      options.refuse("share", "the options of the first sublayer that shares it");
    }
  } else {
    options.integer("share", 0, 0);
    block_ = std::make_shared<Weights>();
  }
  if (first_place_) {
    block_->spec = options.spec();
    block_->input_norm = Norm("input_norm", 2 * D, NormKind::kRms, config.norm_eps);
    block_->ffn_norm = Norm("ffn_norm", D, NormKind::kRms, config.norm_eps);
    block_->qkv_proj = Linear("qkv_proj", 2 * D, core_.qkv_width(), false, projection_init(2 * D));
    block_->o_proj = Linear("o_proj", q, D, false, projection_init(q));
    block_->gate_up = Linear("gate_up", D, 2 * hidden_, bias, projection_init(D));
    block_->down = Linear("down", hidden_, D, bias, projection_init(hidden_));
  }
  if (attn_rank_ > 0) {
    const int64_t r = attn_rank_;
    qkv_adapter_in_ = Linear("qkv_adapter.in", 2 * D, 3 * r, false, projection_init(2 * D));
    adapter_out_[0] = Linear("q_adapter.out", r, q, false, projection_init(r));
    adapter_out_[1] = Linear("k_adapter.out", r, kv, false, projection_init(r));
    adapter_out_[2] = Linear("v_adapter.out", r, kv, false, projection_init(r));
  }
  if (rank_ > 0) {
    ffn_adapter_in_ = Linear("ffn_adapter.in", D, rank_, false, projection_init(D));
    ffn_adapter_out_ = Linear("ffn_adapter.out", rank_, 2 * hidden_, false, projection_init(rank_));
  }
  linear_ = Linear("linear", D, D, false, projection_init(D));
}

std::vector<Tensor> SharedBlock::project(Context& ctx, const Tensor& u) const {
  std::vector<Tensor> qkv = core_.split(ctx, block_->qkv_proj.forward(ctx, u));
  if (attn_rank_ == 0) return qkv;
  const int64_t ranks[] = {attn_rank_, attn_rank_, attn_rank_};
  const auto low = split_columns(ctx, qkv_adapter_in_.forward(ctx, u), ranks);
  for (size_t i = 0; i < 3; ++i) qkv[i] = add(ctx, qkv[i], adapter_out_[i].forward(ctx, low[i]));
  return qkv;
}

Tensor SharedBlock::feed_forward(Context& ctx, const Tensor& a) const {
  Tensor gate_up = block_->gate_up.forward(ctx, a);
  if (rank_ > 0) {
    gate_up = add(ctx, gate_up, ffn_adapter_out_.forward(ctx, ffn_adapter_in_.forward(ctx, a)));
  }
  const int64_t widths[] = {hidden_, hidden_};
  const auto halves = split_columns(ctx, gate_up, widths);
  return block_->down.forward(ctx, multiply(ctx, gelu(ctx, halves[0]), halves[1]));
}

Tensor SharedBlock::forward(Context& ctx, const Tensor& x, Stream& stream,
                            const LayerState* state) const {
  const Tensor parts[] = {x, stream.value(Stream::kEmbedding)};
  const Tensor u = block_->input_norm.forward(ctx, concat_columns(ctx, parts));  // (N, 2D)
  const std::vector<Tensor> qkv = project(ctx, u);
  const Tensor a =
      block_->o_proj.forward(ctx, core_.forward(ctx, qkv[0], qkv[1], qkv[2], stream, state));
  return linear_.forward(ctx, feed_forward(ctx, block_->ffn_norm.forward(ctx, a)));
}

std::vector<Parameter*> SharedBlock::parameters() {
  std::vector<Parameter*> out;
  if (first_place_) {
    block_->input_norm.collect(out);
    block_->qkv_proj.collect(out);
    block_->o_proj.collect(out);
    block_->ffn_norm.collect(out);
    block_->gate_up.collect(out);
    block_->down.collect(out);
  }
  if (attn_rank_ > 0) {
    qkv_adapter_in_.collect(out);
    for (Linear& adapter : adapter_out_) adapter.collect(out);
  }
  if (rank_ > 0) {
    ffn_adapter_in_.collect(out);
    ffn_adapter_out_.collect(out);
  }
  linear_.collect(out);
  return out;
}

double SharedBlock::matmul_flops() const {
  double flops = block_->qkv_proj.matmul_flops() + block_->o_proj.matmul_flops() +
                 block_->gate_up.matmul_flops() + block_->down.matmul_flops() +
                 linear_.matmul_flops();
  if (attn_rank_ > 0) {
    flops += qkv_adapter_in_.matmul_flops();
    for (const Linear& adapter : adapter_out_) flops += adapter.matmul_flops();
  }
  if (rank_ > 0) flops += ffn_adapter_in_.matmul_flops() + ffn_adapter_out_.matmul_flops();
  return flops;
}

}  // namespace braid
