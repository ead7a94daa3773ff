#include "braid/nn/multipliers.h"

#include "braid/ops/elementwise/elementwise.h"

namespace braid {
namespace {

// Passes on all of Sublayer's interface.
class Multiplied final : public Sublayer {
 public:
  Multiplied(std::unique_ptr<Sublayer> inner, float in, float out)
      : inner_(std::move(inner)), in_(in), out_(out) {}

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override {
    const Tensor y = inner_->forward(ctx, in_ == 1 ? x : scale(ctx, x, in_), stream, state);
    return out_ == 1 ? y : scale(ctx, y, out_);
  }
  StateSpec state_spec() const override { return inner_->state_spec(); }
  std::vector<Parameter*> parameters() override { return inner_->parameters(); }
  double matmul_flops() const override { return inner_->matmul_flops(); }
  void after_step(Context& ctx, const ExpertLoads& loads) override {
    inner_->after_step(ctx, loads);
  }

 private:
  std::unique_ptr<Sublayer> inner_;
  float in_, out_;
};

}  // namespace

std::unique_ptr<Sublayer> with_multipliers(std::unique_ptr<Sublayer> inner, SpecOptions& options) {
  const auto in = static_cast<float>(options.number("in_scale", 1, -1e6, 1e6));
  const auto out = static_cast<float>(options.number("out_scale", 1, -1e6, 1e6));
  if (in == 1 && out == 1) return inner;
  return std::make_unique<Multiplied>(std::move(inner), in, out);
}

ResidualSource read_residual(SpecOptions& options) {
  return {.normed = options.text("residual", "stream", {"stream", "normed"}) == "normed",
          .scale = static_cast<float>(options.number("residual_scale", 1, -1e6, 1e6))};
}

}  // namespace braid
