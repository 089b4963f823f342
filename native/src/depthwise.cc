#include "depthwise.h"

#include <omp.h>

#include <algorithm>

#include "worker.h"

namespace dilax {
namespace {

using Term = Depthwise::Term;
using Sizes = Depthwise::Sizes;

// The compiler makes these functions for each instruction set, and the processor takes the newest.
#if __GNUC__ >= 12
#define DILAX_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DILAX_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define DILAX_INLINE __attribute__((always_inline))

int64_t product(const Sizes& sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// Of a row along the last axis, at (i, j) along the others, the channels that one thread computes.
struct Part {
  int64_t i, j, first_channel, end_channel;
};
// Where there are fewer rows than threads, as of a sequence, these share the channels of a row.
constexpr int64_t kShare = 64;

// Eight channels, anywhere in memory; on processors without AVX, two vectors.
typedef float Vector __attribute__((vector_size(32), aligned(sizeof(float)), may_alias));
constexpr int64_t kLanes = sizeof(Vector) / sizeof(float);

// Sums of products over some channels, which stay in registers.
template <int64_t kVectors>
struct Sums {
  static constexpr int64_t kChannels = kVectors * kLanes;
  Vector sums[kVectors] = {};
  DILAX_INLINE void add_product(const float* a, const float* b) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) sums[v] += at(a, v) * at(b, v);
  }
  DILAX_INLINE void add_to(float* result) const {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) at(result, v) += sums[v];
  }
  static DILAX_INLINE const Vector& at(const float* row, int64_t v) { return reinterpret_cast<const Vector*>(row)[v]; }
  static DILAX_INLINE Vector& at(float* row, int64_t v) { return reinterpret_cast<Vector*>(row)[v]; }
};

// The same for one channel.
template <>
struct Sums<0> {
  static constexpr int64_t kChannels = 1;
  float sum = 0;
  DILAX_INLINE void add_product(const float* a, const float* b) { sum += *a * *b; }
  DILAX_INLINE void add_to(float* result) const { *result += sum; }
};

// Calls a function for the channels of a part, with the first one of some and zero sums for these.
template <typename Function>
inline DILAX_INLINE void for_channels(const Part& part, const Function& function) {
  int64_t c = part.first_channel;
  const auto apply = [&](auto sums) DILAX_INLINE {
    for (; c + sums.kChannels <= part.end_channel; c += sums.kChannels) function(c, sums);
  };
  apply(Sums<8>());
  apply(Sums<4>());
  apply(Sums<1>());
  apply(Sums<0>());
}

// Computes a part of the output, or of the input gradient, of one example. `kOf` is the member of a term that belongs to the operand.
template <int64_t Term::*kOf>
inline DILAX_INLINE void compute_row(const Depthwise& problem, const Part& part, const float* operand, const float* kernel, float* row) {
  for (const auto& last : problem.terms[2]) {
    std::fill(row + part.first_channel, row + part.end_channel, 0.0f);
    for_channels(part, [&](int64_t c, auto sums) DILAX_INLINE {
      for (const Term& first : problem.terms[0][part.i]) {
        for (const Term& second : problem.terms[1][part.j]) {
          const float *a = operand + first.*kOf + second.*kOf + c, *b = kernel + first.tap + second.tap + c;
          for (const Term& term : last) sums.add_product(a + term.*kOf, b + term.tap);
        }
      }
      sums.add_to(row + c);
    });
    row += problem.channels;
  }
}

DILAX_VECTORISED void compute_output_row(const Depthwise& problem, const Part& part, const float* x, const float* kernel, float* row) {
  compute_row<&Term::input>(problem, part, x, kernel, row);
}

DILAX_VECTORISED void compute_input_row(const Depthwise& problem, const Part& part, const float* y, const float* kernel, float* row) {
  compute_row<&Term::output>(problem, part, y, kernel, row);
}

// Adds to the kernel gradient what a part of y, the gradient of the output, of one example gives.
DILAX_VECTORISED void add_kernel_row(const Depthwise& problem, const Part& part, const float* x, const float* row, float* gradient) {
  for (const Term& first : problem.terms[0][part.i]) {
    for (const Term& second : problem.terms[1][part.j]) {
      float* taps = gradient + first.tap + second.tap;
      for (const auto& last : problem.terms[2]) {
        for_channels(part, [&](int64_t c, auto sums) DILAX_INLINE {
          const float *a = x + first.input + second.input + c, *b = row + c;
          for (const Term& term : last) sums.add_product(a + term.input, b + term.output);
          sums.add_to(taps + c);
        });
        taps += problem.channels;
      }
    }
  }
}

// Calls a function for each part of a map (batch, *sizes, channels), on all threads, with the example, the part, and where its row begins.
template <typename Function>
void for_parts(const Depthwise& problem, const Sizes& sizes, const Function& function) {
  const int64_t rows = sizes[0] * sizes[1], all = problem.batch * rows;
  const int64_t shares = all < omp_get_max_threads() ? (problem.channels + kShare - 1) / kShare : 1;
  const int64_t share = shares > 1 ? kShare : problem.channels;
#pragma omp parallel for schedule(static)
  for (int64_t at = 0; at < all * shares; ++at) {
    const int64_t row = at / shares, channel = at % shares * share;
    const Part part{row % rows / sizes[1], row % sizes[1], channel, std::min(channel + share, problem.channels)};
    function(row / rows, part, row * sizes[2] * problem.channels);
  }
}

}  // namespace

bool Depthwise::supports(const Problem& problem) {
  return problem.dtype == dnnl::memory::data_type::f32 && problem.rank() <= kAxes && problem.groups > 1 &&
         problem.groups == problem.c_in && problem.c_in == problem.c_out;
}

Depthwise::Depthwise(const Problem& problem) : operation(problem.operation), batch(problem.batch), channels(problem.c_in) {
  name_ = "direct:dw";
  const size_t missing = kAxes - problem.rank();
  Term steps{channels, channels, channels};
  for (size_t axis = kAxes; axis-- > 0;) {
    const auto at = [&](const Numbers& numbers, int64_t other) { return axis < missing ? other : numbers[axis - missing]; };
    input[axis] = at(problem.input_size, 1), taps[axis] = at(problem.kernel_size, 1), output[axis] = at(problem.output_size, 1);
    const int64_t stride = at(problem.stride, 1), dilation = at(problem.dilation, 1), padding = at(problem.padding_lo, 0);
    const bool by_input = operation == Operation::kInputGradient;
    const bool by_tap = operation == Operation::kKernelGradient && axis == kAxes - 1;
    terms[axis].resize(by_input ? input[axis] : by_tap ? taps[axis] : output[axis]);
    for (int64_t o = 0; o < output[axis]; ++o) {
      for (int64_t t = 0; t < taps[axis]; ++t) {
        const int64_t i = o * stride + t * dilation - padding;
        if (i < 0 || i >= input[axis]) continue;
        terms[axis][by_input ? i : by_tap ? t : o].push_back({i * steps.input, t * steps.tap, o * steps.output});
      }
    }
    steps = {steps.input * input[axis], steps.tap * taps[axis], steps.output * output[axis]};
  }
}

void Depthwise::run(void* first, void* second, void* result, Scratch& scratch, dnnl::stream&) const {
  const std::unique_ptr<Scratch, void (*)(Scratch*)> release(&scratch, [](Scratch* used) { used->release(); });
  const auto *a = static_cast<const float*>(first), *b = static_cast<const float*>(second);
  auto* sum = static_cast<float*>(result);
  const int64_t x_size = product(input) * channels, y_size = product(output) * channels, kernel_size = product(taps) * channels;
  keep_helpers_away();
  if (operation == Operation::kOutput) {
    for_parts(*this, output, [&](int64_t n, const Part& part, int64_t at) {
      compute_output_row(*this, part, a + n * x_size, b, sum + at);
    });
  } else if (operation == Operation::kInputGradient) {
    for_parts(*this, input, [&](int64_t n, const Part& part, int64_t at) {
      compute_input_row(*this, part, a + n * y_size, b, sum + at);
    });
  } else {
    const int64_t threads = omp_get_max_threads();
    auto* sums = reinterpret_cast<float*>(scratch.reserve(threads * kernel_size * sizeof(float)));
    std::fill(sums, sums + threads * kernel_size, 0.0f);
    for_parts(*this, output, [&](int64_t n, const Part& part, int64_t at) {
      add_kernel_row(*this, part, a + n * x_size, b + at, sums + omp_get_thread_num() * kernel_size);
    });
    // In the order of the threads, so that a result does not depend on which of them ends first.
    std::fill(sum, sum + kernel_size, 0.0f);
    for (int64_t thread = 0; thread < threads; ++thread)
      for (int64_t n = 0; n < kernel_size; ++n) sum[n] += sums[thread * kernel_size + n];
  }
}

}  // namespace dilax
