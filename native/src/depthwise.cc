#include "depthwise.h"

#include <omp.h>

#include <algorithm>
#include <numeric>

#include "worker.h"

namespace dilax {
namespace {

using Term = Depthwise::Term;
using Terms = Depthwise::Terms;
using Sizes = Depthwise::Sizes;

// These functions are compiled for several instruction sets; the newest that the processor has is chosen when the library is loaded.
#if __GNUC__ >= 12
#define DILAX_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DILAX_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define DILAX_INLINE __attribute__((always_inline))

// With fewer channels, vectors of them would be mostly empty.
constexpr int64_t kLeastChannels = 8;
// A part of a map has at most so many places along the last axis, and at least so many where there are several parts for each thread.
constexpr int64_t kMostPlaces = 512, kLeastPlaces = 32, kPartsPerThread = 4;

// Channels that are computed together, anywhere in memory.
template <int64_t kLanes>
struct Lanes;
template <>
struct Lanes<8> {
  typedef float Vector __attribute__((vector_size(32), aligned(sizeof(float)), may_alias));
};
template <>
struct Lanes<4> {
  typedef float Vector __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));
};
template <>
struct Lanes<1> {
  typedef float Vector;
};

int64_t product(const Sizes& sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// What one thread computes at a time: of one example, places along the last axis, at (i, j) along the others.
struct Part {
  int64_t example, i, j, begin, end;
};

// Sums of products over some channels, which stay in registers.
template <int64_t kLanes, int64_t kVectors>
struct Sums {
  using Vector = typename Lanes<kLanes>::Vector;
  static constexpr int64_t kChannels = kVectors * kLanes;
  Vector sums[kVectors] = {};
  DILAX_INLINE void add_product(const float* a, const float* b) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) sums[v] += at(a, v) * at(b, v);
  }
  DILAX_INLINE void store(float* result) const {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) at(result, v) = sums[v];
  }
  DILAX_INLINE void add_to(float* result) const {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) at(result, v) += sums[v];
  }
  static DILAX_INLINE const Vector& at(const float* row, int64_t v) { return reinterpret_cast<const Vector*>(row)[v]; }
  static DILAX_INLINE Vector& at(float* row, int64_t v) { return reinterpret_cast<Vector*>(row)[v]; }
};

// Calls a function for each block of channels, with its first channel and sums of zero.
template <typename Function>
inline DILAX_INLINE void for_channels(int64_t channels, const Function& function) {
  int64_t c = 0;
  const auto apply = [&](auto sums) DILAX_INLINE {
    for (; c + sums.kChannels <= channels; c += sums.kChannels) function(c, sums);
  };
  apply(Sums<8, 8>());
  apply(Sums<8, 4>());
  apply(Sums<8, 1>());
  apply(Sums<4, 1>());
  apply(Sums<1, 1>());
}

// Computes a part of the output, or of the input gradient. `kOf` is the member of a term that belongs to the operand.
template <int64_t Term::*kOf>
inline DILAX_INLINE void compute(const Depthwise& problem, const Part& part, const float* operand, const float* kernel, float* row) {
  const Terms &first = problem.terms[0][part.i], &second = problem.terms[1][part.j];
  const Term &outer = problem.step[0], &middle = problem.step[1], &inner = problem.step[2];
  for (int64_t k = part.begin; k < part.end; ++k) {
    const Terms& last = problem.terms[2][k];
    for_channels(problem.channels, [&, k](int64_t c, auto sums) DILAX_INLINE {
      for (int64_t n = 0; n < first.count; ++n) {
        for (int64_t m = 0; m < second.count; ++m) {
          const float* a = operand + first.first.*kOf + n * outer.*kOf + second.first.*kOf + m * middle.*kOf + last.first.*kOf + c;
          const float* b = kernel + first.first.tap + n * outer.tap + second.first.tap + m * middle.tap + last.first.tap + c;
          for (int64_t l = 0; l < last.count; ++l) sums.add_product(a + l * inner.*kOf, b + l * inner.tap);
        }
      }
      sums.store(row + k * problem.channels + c);
    });
  }
}

DILAX_VECTORISED void compute_output(const Depthwise& problem, const Part& part, const float* x, const float* kernel, float* row) {
  compute<&Term::input>(problem, part, x, kernel, row);
}

DILAX_VECTORISED void compute_input(const Depthwise& problem, const Part& part, const float* y, const float* kernel, float* row) {
  compute<&Term::output>(problem, part, y, kernel, row);
}

// Adds to the kernel gradient what a part of y, the gradient of the output, gives.
DILAX_VECTORISED void add_to_kernel(const Depthwise& problem, const Part& part, const float* x, const float* row, float* gradient) {
  const Terms &first = problem.terms[0][part.i], &second = problem.terms[1][part.j];
  const Term &outer = problem.step[0], &middle = problem.step[1], &inner = problem.step[2];
  const int64_t begin = part.begin * inner.output, end = part.end * inner.output;
  for (int64_t n = 0; n < first.count; ++n) {
    for (int64_t m = 0; m < second.count; ++m) {
      const float* input = x + first.first.input + n * outer.input + second.first.input + m * middle.input;
      float* taps = gradient + first.first.tap + n * outer.tap + second.first.tap + m * middle.tap;
      for (const Terms& last : problem.terms[2]) {
        // Of the terms of this tap, those in the part.
        const int64_t skipped = std::max<int64_t>(0, begin - last.first.output) / inner.output;
        const int64_t stop = std::min(last.count, (end - last.first.output) / inner.output);
        const float *a = input + last.first.input, *b = row + last.first.output;
        if (skipped < stop) {
          for_channels(problem.channels, [&](int64_t c, auto sums) DILAX_INLINE {
            for (int64_t l = skipped; l < stop; ++l) sums.add_product(a + l * inner.input + c, b + l * inner.output + c);
            sums.add_to(taps + c);
          });
        }
        taps += problem.channels;
      }
    }
  }
}

// Calls a function for each part of a map (batch, *sizes, channels), shared by the threads of the caller, with the part and its row.
template <typename Pointer, typename Function>
void for_parts(const Depthwise& problem, const Sizes& sizes, Pointer map, const Function& function) {
  const int64_t rows = sizes[0] * sizes[1], all = problem.batch * rows;
  const int64_t share = all * sizes[2] / (kPartsPerThread * omp_get_num_threads());
  const int64_t places = std::clamp(share, kLeastPlaces, kMostPlaces), parts = (sizes[2] + places - 1) / places;
#pragma omp for schedule(static)
  for (int64_t number = 0; number < all * parts; ++number) {
    const int64_t row = number / parts, begin = number % parts * places;
    const Part part{row / rows, row % rows / sizes[1], row % sizes[1], begin, std::min(begin + places, sizes[2])};
    function(part, map + row * sizes[2] * problem.channels);
  }
}

}  // namespace

bool Depthwise::supports(const Problem& problem) {
  return problem.dtype == dnnl::memory::data_type::f32 && problem.rank() <= kAxes && problem.groups >= kLeastChannels &&
         problem.groups == problem.c_in && problem.c_in == problem.c_out;
}

Depthwise::Depthwise(const Problem& problem) : operation(problem.operation), batch(problem.batch), channels(problem.c_in) {
  name_ = "direct:dw";
  const size_t missing = kAxes - problem.rank();
  Term size{channels, channels, channels};
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
        Terms& here = terms[axis][by_input ? i : by_tap ? t : o];
        if (!here.count++) here.first = {i * size.input, t * size.tap, o * size.output};
      }
    }
    // The next term at the same place of the input is that of the next output that reads it, by an earlier tap.
    const int64_t common = std::gcd(stride, dilation);
    step[axis] = by_input ? Term{0, -stride / common * size.tap, dilation / common * size.output}
                 : by_tap ? Term{stride * size.input, 0, size.output}
                          : Term{dilation * size.input, size.tap, 0};
    size = {size.input * input[axis], size.tap * taps[axis], size.output * output[axis]};
  }
}

void Depthwise::run(void* first, void* second, void* result, Scratch& scratch, dnnl::stream&) const {
  const auto *a = static_cast<const float*>(first), *b = static_cast<const float*>(second);
  auto* sum = static_cast<float*>(result);
  const int64_t x_size = product(input) * channels, y_size = product(output) * channels, kernel_size = product(taps) * channels;
  keep_helpers_away();
  if (operation == Operation::kOutput) {
#pragma omp parallel
    for_parts(*this, output, sum, [&](const Part& part, float* row) { compute_output(*this, part, a + part.example * x_size, b, row); });
  } else if (operation == Operation::kInputGradient) {
#pragma omp parallel
    for_parts(*this, input, sum, [&](const Part& part, float* row) { compute_input(*this, part, a + part.example * y_size, b, row); });
  } else {
    auto* sums = reinterpret_cast<float*>(scratch.reserve(omp_get_max_threads() * kernel_size * sizeof(float)));
#pragma omp parallel
    {
      float* own = sums + omp_get_thread_num() * kernel_size;
      std::fill(own, own + kernel_size, 0.0f);
      for_parts(*this, output, b, [&](const Part& part, const float* row) {
        add_to_kernel(*this, part, a + part.example * x_size, row, own);
      });
      // In the order of the threads, so that a result does not depend on which of them ends first.
#pragma omp for schedule(static)
      for (int64_t n = 0; n < kernel_size; ++n) {
        float total = 0;
        for (int thread = 0; thread < omp_get_num_threads(); ++thread) total += sums[thread * kernel_size + n];
        sum[n] = total;
      }
    }
  }
}

}  // namespace dilax
