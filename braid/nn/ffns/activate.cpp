#include "braid/nn/ffns/activate.h"

#include "braid/ops/activation/activation.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/swiglu/swiglu.h"

namespace braid {

ExpertActivation activation_of(std::string_view name) {
  return name == "swiglu"  ? ExpertActivation::kSwiglu
         : name == "relu2" ? ExpertActivation::kRelu2
         : name == "relu"  ? ExpertActivation::kRelu
         : name == "gelu"  ? ExpertActivation::kGelu
                           : ExpertActivation::kSilu;
}

Tensor activate(Context& ctx, const Tensor& h, ExpertActivation act) {
  switch (act) {
    case ExpertActivation::kSwiglu:
      return swiglu(ctx, h);
    case ExpertActivation::kGelu:
      return gelu(ctx, h, GeluForm::kErf);
    case ExpertActivation::kRelu2:
      return activation(ctx, h, Activation::kReluSquared);
    case ExpertActivation::kRelu:
      return activation(ctx, h, Activation::kRelu);
    case ExpertActivation::kSilu:
      break;
  }
  return activation(ctx, h, Activation::kSilu);
}

}  // namespace braid
