#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "braid/core/tensor.h"

namespace braid {

class Context;

/// One gradient per recorded input; an empty Tensor is a zero gradient.
using Grads = std::vector<Tensor>;
/// One incoming gradient per recorded output; an empty Tensor is a zero gradient.
using Vjp = std::function<Grads(Context&, const std::vector<Tensor>& dy)>;

/// The only autograd: a list of (inputs, outputs, vjp), played backwards once.
///
/// An op records itself when `ctx.tape()` is set, and gives its outputs an identity (`grad_id`).
/// Parameters carry identities of their own, below kFirstId, for the whole run; what they gather is
/// added to the tensor registered for them as a sink. Identities are unique per tape, and a nested
/// tape (recompute) continues the numbering of the outer one.
class Tape {
 public:
  static constexpr uint64_t kFirstId = uint64_t{1} << 32;
  using Sinks = std::unordered_map<uint64_t, Tensor>;  // parameter id -> float32 accumulator

  /// `sinks` may be null; it must outlive the tape.
  explicit Tape(Sinks* sinks = nullptr, uint64_t first_id = kFirstId)
      : sinks_(sinks), next_id_(first_id) {}

  /// Makes `x` a leaf whose gradient can be asked for. Keeps an identity it already has.
  void watch(Tensor& x);

  static bool tracks(const Tensor& x) { return x.grad_id() != 0; }

  /// Records nothing if no input is tracked. An op must hand in outputs it has just made.
  void record(std::vector<Tensor> inputs, std::vector<Tensor*> outputs, Vjp vjp);
  /// For the common op with one output.
  void record(std::vector<Tensor> inputs, Tensor& output,
              std::function<Grads(Context&, const Tensor& dy)> vjp);

  /// Plays the tape: `dys[i]` is the gradient of `outputs[i]`. Consumes the records as it goes, so
  /// that what they saved is released early. `ctx` must not carry a tape.
  void backward(Context& ctx, const std::vector<Tensor>& outputs, const std::vector<Tensor>& dys);

  /// After `backward`: the gradient of a watched leaf; empty where nothing reached it.
  Tensor grad(const Tensor& x) const;

  uint64_t next_id() const { return next_id_; }
  Sinks* sinks() const { return sinks_; }
  size_t size() const { return nodes_.size(); }

 private:
  struct Node {
    std::vector<uint64_t> inputs, outputs;
    Vjp vjp;
  };
  void accumulate(Context& ctx, uint64_t id, Tensor g);

  Sinks* sinks_;
  uint64_t next_id_;
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, Tensor> grads_;
};

/// Runs `body` without recording its inside, and runs it again in the backward pass: its saved
/// tensors cost nothing in between. `body` must be a pure function of its inputs and of parameters.
std::vector<Tensor> recompute(
    Context& ctx, std::vector<Tensor> inputs,
    std::function<std::vector<Tensor>(Context&, const std::vector<Tensor>&)> body);

}  // namespace braid
