// Goal: hyena is the function its authors published, with its gradients. Method: tests/golden/ops
// holds inputs, weights, outputs and all gradients of <y, dy> of their layer in float32.

#include <gtest/gtest.h>

#include <string>

#include "braid/model/safetensors.h"
#include "braid/model/stack_spec.h"
#include "braid/nn/sublayer.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// A layer with the weights of a case, ready for training.
struct Golden {
  Golden(Context& ctx, const std::string& name, const std::string& spec, int64_t width)
      : file(SafetensorsFile::open(test::golden("ops") / name / "case.safetensors")),
        layer(make_sublayer(parse_stack(spec).at(0).branches.at(0), {.width = width})) {
    uint64_t id = 0;
    for (Parameter* p : layer->parameters()) {
      p->value.set_grad_id(++id);
      load_parameter(ctx, *p, {ctx.to_host(file.tensor("w." + p->name)).reshape(p->shape)},
                     {.trainable = true});
      sinks[id] = ctx.zeros(p->shape);
    }
  }
  // (1, T, D) as (T, D)
  Tensor rows(Context& ctx, const std::string& name) const {
    const Tensor x = ctx.to_host(file.tensor(name));
    return x.reshape({x.dim(1), x.dim(2)});
  }

  SafetensorsFile file;
  std::unique_ptr<Sublayer> layer;
  Tape::Sinks sinks;
};

// The reference rounds as often as we do, so two tolerances of sums over tokens and channels.
void expect_parity(const std::string& name, const std::string& spec, int64_t width) {
  Context ctx({.threads = 2, .poison = true});
  Golden golden(ctx, name, spec, width);
  Tensor x = golden.rows(ctx, "x");
  const SequenceBatch batch = SequenceBatch::single(x.rows());
  const double tol = 2 * test::tolerance(DType::kF32, x.rows() + width);
  Tape tape(&golden.sinks);
  tape.watch(x);
  Context taped = ctx.with_tape(&tape);
  Stream stream(batch);
  const Tensor y = golden.layer->forward(taped, x, stream, nullptr);
  test::expect_close(y, golden.rows(ctx, "y"), tol, "y");
  tape.backward(ctx, {y}, {golden.rows(ctx, "dy")});
  test::expect_close(tape.grad(x), golden.rows(ctx, "dx"), tol, "dx");
  for (Parameter* p : golden.layer->parameters()) {
    const std::string gradient = "dw." + p->name;
    test::expect_close(golden.sinks.at(p->value.grad_id()),
                       ctx.to_host(golden.file.tensor(gradient)).reshape(p->shape), tol,
                       gradient.c_str());
  }
}

TEST(Hyena, OrderTwo) {
  expect_parity("hyena_order2", "hyena:max=64,filter_order=16,emb=5,w=10", 48);
}
TEST(Hyena, OrderThree) {
  expect_parity("hyena_order3", "hyena:order=3,max=48,filter_order=16,emb=5,w=10", 32);
}

}  // namespace
}  // namespace braid
