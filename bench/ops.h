#pragma once

#include "bench/op_bench.h"

namespace braid::bench {

// ops_rows.cpp: every row on its own.
void activation_cases(Context& ctx, const Emit& emit);
void elementwise_cases(Context& ctx, const Emit& emit);
void gated_rms_norm_cases(Context& ctx, const Emit& emit);
void gelu_cases(Context& ctx, const Emit& emit);
void l2_norm_cases(Context& ctx, const Emit& emit);
void latent_attention_cases(Context& ctx, const Emit& emit);
void layer_norm_cases(Context& ctx, const Emit& emit);
void rms_norm_cases(Context& ctx, const Emit& emit);
void scale_columns_cases(Context& ctx, const Emit& emit);
void sine_cases(Context& ctx, const Emit& emit);
void softplus_decay_cases(Context& ctx, const Emit& emit);
void swiglu_cases(Context& ctx, const Emit& emit);

// ops_attention.cpp: softmax attention and its relatives.
void attention_cases(Context& ctx, const Emit& emit);
void favor_features_cases(Context& ctx, const Emit& emit);
void gated_delta_rule_cases(Context& ctx, const Emit& emit);
void linear_attention_cases(Context& ctx, const Emit& emit);
void linformer_cases(Context& ctx, const Emit& emit);

// ops_sequence.cpp: along the sequence.
void long_conv_cases(Context& ctx, const Emit& emit);
void selective_scan_cases(Context& ctx, const Emit& emit);
void short_conv_cases(Context& ctx, const Emit& emit);
void ssd_cases(Context& ctx, const Emit& emit);

// ops_experts.cpp: mixtures of experts.
void route_cases(Context& ctx, const Emit& emit);

// ops_rwkv.cpp
void token_shift_cases(Context& ctx, const Emit& emit);
void wkv7_cases(Context& ctx, const Emit& emit);
void wkv7_inputs_cases(Context& ctx, const Emit& emit);
void wkv7_output_cases(Context& ctx, const Emit& emit);

// ops_ttt.cpp
void lact_cases(Context& ctx, const Emit& emit);
void ttt_cases(Context& ctx, const Emit& emit);

// ops_model.cpp: at the ends of a model, and its training.
void adamw_cases(Context& ctx, const Emit& emit);
void cross_entropy_cases(Context& ctx, const Emit& emit);
void embedding_cases(Context& ctx, const Emit& emit);
void lrpe_cases(Context& ctx, const Emit& emit);
void rope_cases(Context& ctx, const Emit& emit);
void view_cases(Context& ctx, const Emit& emit);

}  // namespace braid::bench
