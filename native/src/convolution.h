// A convolution, or one of its gradients, and what computes it: a primitive of oneDNN, or the loop of depthwise.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "threads.h"

namespace dilax {

using Numbers = std::vector<int64_t>;

// The operation of which a result is computed from two operands.
enum class Operation : int64_t {
  kOutput = 0,          // (x, kernel) -> y
  kInputGradient = 1,   // (y, kernel) -> x
  kKernelGradient = 2,  // (x, y) -> kernel
};

// What is computed. Arrays are channels-last: x (batch, *space, c_in), kernel (*taps, c_in / groups, c_out), y (batch, *space, c_out).
struct Problem {
  Operation operation;
  dnnl::memory::data_type dtype;
  int64_t batch, c_in, c_out, groups;
  // One number per spatial axis.
  Numbers input_size, kernel_size, output_size, stride, dilation, padding_lo, padding_hi;

  // Reads what Python wrote: operation, batch, c_in, c_out, groups, and then the sizes per axis, in the order above.
  Problem(const Numbers& numbers, dnnl::memory::data_type dtype);
  size_t rank() const { return kernel_size.size(); }
  // The number of elements of the two operands and of the result.
  std::vector<int64_t> elements() const;
};

// Computes a problem.
class Implementation {
 public:
  virtual ~Implementation() = default;
  // The name that oneDNN gives its implementation, such as "jit:avx512_core", or one like it.
  const std::string& name() const { return name_; }
  // May be called by several threads at once.
  virtual void run(void* first, void* second, void* result, const Threads& threads) const = 0;

 protected:
  std::string name_;
};

// oneDNN's implementation, which runs on threads of OpenMP.
class Convolution : public Implementation {
 public:
  // Throws dnnl::error if oneDNN does not support the problem.
  explicit Convolution(const Problem& problem);
  void run(void* first, void* second, void* result, const Threads& threads) const override;

 private:
  // Called by one thread at a time.
  void execute(void* first, void* second, void* result) const;
  template <typename Descriptor>
  void take(const Descriptor& descriptor, const dnnl::memory::desc& kernel);

  Operation operation_;
  dnnl::memory::desc x_, y_;
  dnnl::memory::desc kernel_, blocked_kernel_;  // as JAX has it, and as the implementation wants it
  dnnl::memory::desc scratchpad_;
  dnnl::primitive primitive_, reorder_;
};

// Returns what computes a problem on a number of threads: `Depthwise` if that supports it, or else oneDNN.
std::unique_ptr<Implementation> implementation_for(const Problem& problem, int threads);

dnnl::engine& engine();

}  // namespace dilax
