// Depthwise convolutions and their gradients, for which oneDNN often has its general implementation only.
#pragma once

#include <array>
#include <memory>

#include "convolution.h"

namespace dilax {

// A depthwise convolution with one output per channel, or one of its gradients, over at most three axes, in float32. Nothing is padded or
// copied: along each axis, the terms of every sum are listed beforehand.
class Depthwise : public Implementation {
 public:
  static constexpr size_t kAxes = 3;
  using Sizes = std::array<int64_t, kAxes>;
  // What is multiplied: where it begins in the input, in the kernel and in the output, of a place along one axis and 0 along the others.
  struct Term {
    int64_t input, tap, output;
  };

  static bool supports(const Problem& problem);
  explicit Depthwise(const Problem& problem);
  void run(void* first, void* second, void* result, Scratch& scratch, dnnl::stream& stream) const override;

  Operation operation;
  int64_t batch, channels;
  Sizes input, taps, output;  // the leading ones are 1 if there are fewer axes
  // Along each axis, the terms of the sum at each place of the result: of the input for its gradient, otherwise of the output. Those of
  // the last axis of a kernel gradient are at each tap.
  std::array<std::vector<std::vector<Term>>, kAxes> terms;
};

}  // namespace dilax
