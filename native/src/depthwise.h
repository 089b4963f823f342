// Depthwise convolutions and their gradients, which oneDNN computes no faster, and most gradients more slowly.
#pragma once

#include <array>
#include <vector>

#include "convolution.h"

namespace dilax {

// A depthwise convolution with one output per channel, or one of its gradients, over at most three axes, in float32 or bfloat16, and summed
// in float32. Nothing is padded or copied: for each place of the result, the terms of its sum are known beforehand.
class Depthwise : public Implementation {
 public:
  static constexpr size_t kAxes = 3;
  using Sizes = std::array<int64_t, kAxes>;
  // One product of a sum: the offsets, along one axis, of its factors and of its place, in the input, the kernel and the output.
  struct Term {
    int64_t input, tap, output;
  };
  // Terms at equal distances.
  struct Terms {
    Term first{};
    int64_t count = 0;
  };

  // Whether it computes a problem, and is fast.
  static bool supports(const Problem& problem);
  explicit Depthwise(const Problem& problem);
  void run(void* first, void* second, void* result, const Threads& threads) const override;

  Operation operation;
  dnnl::memory::data_type dtype;
  int64_t batch, channels;
  Sizes input, taps, output;  // the leading ones are 1 if there are fewer axes
  // Along each axis, the terms at each place of the result: of the input for its gradient, otherwise of the output. Those of the last axis
  // of a kernel gradient are at each tap.
  std::array<std::vector<Terms>, kAxes> terms;
  std::array<Term, kAxes> step;  // from one term to the next
  // Unused for kernel gradients. `alike[k]`: how many places of the last axis, from k on and `period` apart, have the same taps. Their
  // other factors are `advance` elements apart.
  int64_t period = 1, advance = 0;
  std::vector<int64_t> alike;

 private:
  template <typename Element>
  void compute(const Element* a, const Element* b, Element* result, const Threads& threads) const;
};

}  // namespace dilax
