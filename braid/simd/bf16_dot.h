#pragma once

namespace braid::simd {

/// True where the processor has the AVX-512 dot product of bfloat16 pairs (AVX512_BF16) and
/// Highway's dispatch runs AVX-512, so that a test that restricts the targets restricts the kernels
/// beside it too.
bool has_bf16_dot();

/// True where products of bfloat16 use that instruction: where it exists and runs at the rate of
/// float32 multiply-adds, with twice the work in each. AMD's cores do that; Intel's start one in
/// two cycles where they start two multiply-adds in each, so there bfloat16 is widened to float32.
/// The answer depends on the kind of processor alone, since the two differ in the last bits.
bool uses_bf16_dot();

/// The instruction is used wherever it exists, or nowhere, whatever the processor, until the end of
/// the scope. Not thread-safe.
class Bf16DotForTest {
 public:
  explicit Bf16DotForTest(bool use);
  ~Bf16DotForTest();
  Bf16DotForTest(const Bf16DotForTest&) = delete;
  Bf16DotForTest& operator=(const Bf16DotForTest&) = delete;
};

}  // namespace braid::simd
