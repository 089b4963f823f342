#include "depthwise.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "threads.h"

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
// Places of the last axis that are computed together, where they have the same taps.
constexpr int64_t kPlaces = 6;
// A part of a map has at most kMostPlaces along the last axis, and at least kLeastPlaces where there are several parts for each thread.
constexpr int64_t kMostPlaces = 512, kLeastPlaces = 32, kPartsPerThread = 4;
// The parts are divided into kBlocks for each thread, which takes one after another; a kernel gradient has a sum for each block.
constexpr int64_t kBlocks = 8, kBlocksOfGradient = 2;
// Products that take about as long as it takes to wake another thread.
constexpr int64_t kLeastWork = 1 << 17;

// bfloat16 is the upper half of float32.
using BFloat16 = uint16_t;

// Vectors of kLanes numbers; those "anywhere" are in memory, at any address.
template <int64_t kLanes>
struct Vectors;
#define DILAX_VECTORS(lanes)                                                                      \
  template <>                                                                                     \
  struct Vectors<lanes> {                                                                         \
    typedef float Floats __attribute__((vector_size(4 * lanes)));                                 \
    typedef uint32_t Words __attribute__((vector_size(4 * lanes)));                               \
    typedef float FloatsAnywhere __attribute__((vector_size(4 * lanes), aligned(4), may_alias));  \
    typedef uint32_t WordsAnywhere __attribute__((vector_size(4 * lanes), aligned(2), may_alias)); \
  };
DILAX_VECTORS(16)
DILAX_VECTORS(8)
DILAX_VECTORS(4)
DILAX_VECTORS(2)
DILAX_VECTORS(1)

// Rounds float32, given as words, to the nearest bfloat16, of two equally near to the even one, in the upper half. NaN stays NaN: the lower
// half of one that comes from bfloat16 or from a processor is zero.
template <typename Words>
inline DILAX_INLINE Words rounded(const Words& bits) {
  return bits + 0x7fff + (bits >> 16 & 1);
}

// The values of some neighbouring channels, in float32.
template <typename Element, int64_t kChannels>
struct Values {
  using Floats = typename Vectors<kChannels>::Floats;
  using FloatsAnywhere = typename Vectors<kChannels>::FloatsAnywhere;
  Floats values = {};
  Values() = default;
  explicit DILAX_INLINE Values(const float* from) : values(*reinterpret_cast<const FloatsAnywhere*>(from)) {}
  DILAX_INLINE void add_product(const Values& a, const Values& b) { values += a.values * b.values; }
  DILAX_INLINE void store(float* to) const { *reinterpret_cast<FloatsAnywhere*>(to) = values; }
  DILAX_INLINE void add_to(float* sums) const { *reinterpret_cast<FloatsAnywhere*>(sums) += values; }
};

// A word holds two channels, the even one in its lower half.
template <int64_t kChannels>
struct Values<BFloat16, kChannels> {
  using Floats = typename Vectors<kChannels / 2>::Floats;
  using Words = typename Vectors<kChannels / 2>::Words;
  using WordsAnywhere = typename Vectors<kChannels / 2>::WordsAnywhere;
  Floats even = {}, odd = {};
  Values() = default;
  explicit DILAX_INLINE Values(const BFloat16* from) {
    const Words words = *reinterpret_cast<const WordsAnywhere*>(from);
    even = reinterpret_cast<Floats>(words << 16), odd = reinterpret_cast<Floats>(words & 0xffff0000);
  }
  DILAX_INLINE void add_product(const Values& a, const Values& b) { even += a.even * b.even, odd += a.odd * b.odd; }
  DILAX_INLINE void store(BFloat16* to) const {
    const Words lower = rounded(reinterpret_cast<Words>(even)) >> 16, upper = rounded(reinterpret_cast<Words>(odd)) & 0xffff0000;
    *reinterpret_cast<WordsAnywhere*>(to) = lower | upper;
  }
  DILAX_INLINE void add_to(float* sums) const {
    for (int64_t n = 0; n < kChannels / 2; ++n) sums[2 * n] += even[n], sums[2 * n + 1] += odd[n];
  }
};

template <>
struct Values<BFloat16, 1> : Values<float, 1> {
  using Word = Vectors<1>::Words;
  Values() = default;
  explicit DILAX_INLINE Values(const BFloat16* from) { values = reinterpret_cast<Floats>(Word{uint32_t{*from} << 16}); }
  DILAX_INLINE void store(BFloat16* to) const { *to = rounded(reinterpret_cast<Word>(values))[0] >> 16; }
};

int64_t product(const Sizes& sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// What is computed at a time: of one example, places along the last axis, at (i, j) along the others.
struct Part {
  int64_t example, i, j, begin, end;
  int64_t row;  // the number of (example, i, j)
};

// All parts of a map (batch, *sizes, channels), in order.
class Parts {
 public:
  Parts(int64_t batch, const Sizes& sizes, int64_t threads) : sizes_(sizes) {
    const int64_t rows = batch * sizes[0] * sizes[1], share = rows * sizes[2] / (kPartsPerThread * threads);
    places_ = std::clamp(share, kLeastPlaces, kMostPlaces);
    per_row_ = (sizes[2] + places_ - 1) / places_;
    count_ = rows * per_row_;
  }
  int64_t count() const { return count_; }
  Part operator[](int64_t number) const {
    const int64_t row = number / per_row_, begin = number % per_row_ * places_;
    const int64_t image = row / sizes_[1], j = row % sizes_[1];
    return {image / sizes_[0], image % sizes_[0], j, begin, std::min(begin + places_, sizes_[2]), row};
  }

 private:
  Sizes sizes_;
  int64_t places_, per_row_, count_;
};

// Sums of products over some channels at some places, which stay in registers.
template <typename Element, int64_t kEach, int64_t kVectors, int64_t kNumber>
struct Sums {
  static constexpr int64_t kChannels = kVectors * kEach;
  Values<Element, kEach> sums[kNumber][kVectors];
  // `advance` is the distance of the first factors of one place from those of the next; the second factors are the same at all places.
  DILAX_INLINE void add_products(const Element* a, int64_t advance, const Element* b) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
      const Values<Element, kEach> factor(b + v * kEach);
#pragma GCC unroll 8
      for (int64_t p = 0; p < kNumber; ++p) sums[p][v].add_product(Values<Element, kEach>(a + p * advance + v * kEach), factor);
    }
  }
  DILAX_INLINE void store(Element* result, int64_t advance) const {
#pragma GCC unroll 8
    for (int64_t p = 0; p < kNumber; ++p) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < kVectors; ++v) sums[p][v].store(result + p * advance + v * kEach);
    }
  }
  DILAX_INLINE void add_to(float* result) const {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) sums[0][v].add_to(result + v * kEach);
  }
};

// Calls a function for each block of channels, with its first channel and sums of zero, at one or several places.
template <typename Element, int64_t kNumber, typename Function>
inline DILAX_INLINE void for_channels(int64_t channels, const Function& function) {
  int64_t c = 0;
  const auto apply = [&](auto sums) DILAX_INLINE {
    for (; c + sums.kChannels <= channels; c += sums.kChannels) function(c, sums);
  };
  if constexpr (kNumber == 1) {  // registers for more sums
    apply(Sums<Element, 16, 4, kNumber>());
    apply(Sums<Element, 16, 2, kNumber>());
  }
  apply(Sums<Element, 16, 1, kNumber>());
  apply(Sums<Element, 8, 1, kNumber>());
  apply(Sums<Element, 4, 1, kNumber>());
  apply(Sums<Element, 1, 1, kNumber>());
}

// Computes a part of the output, or of the input gradient. `kOf` is the member of a term that belongs to the operand.
template <int64_t Term::*kOf, typename Element>
inline DILAX_INLINE void compute_places(
    const Depthwise& problem, const Part& part, const Element* operand, const Element* kernel, Element* row) {
  const Terms &first = problem.terms[0][part.i], &second = problem.terms[1][part.j];
  const Term &outer = problem.step[0], &middle = problem.step[1], &inner = problem.step[2];
  const Element* const a = operand + first.first.*kOf + second.first.*kOf;
  const Element* const b = kernel + first.first.tap + second.first.tap;
  const auto at_places = [&](auto places, int64_t k) DILAX_INLINE {
    const Terms& last = problem.terms[2][k];
    for_channels<Element, places>(problem.channels, [&](int64_t c, auto sums) DILAX_INLINE {
      for (int64_t n = 0; n < first.count; ++n) {
        for (int64_t m = 0; m < second.count; ++m) {
          const Element* x = a + n * outer.*kOf + m * middle.*kOf + last.first.*kOf + c;
          const Element* w = b + n * outer.tap + m * middle.tap + last.first.tap + c;
          for (int64_t l = 0; l < last.count; ++l) sums.add_products(x + l * inner.*kOf, problem.advance, w + l * inner.tap);
        }
      }
      sums.store(row + k * problem.channels + c, problem.period * problem.channels);
    });
  };
  for (int64_t phase = 0; phase < std::min(problem.period, part.end - part.begin); ++phase) {
    for (int64_t k = part.begin + phase; k < part.end;) {
      const bool several = problem.alike[k] >= kPlaces && k + (kPlaces - 1) * problem.period < part.end;
      several ? at_places(std::integral_constant<int64_t, kPlaces>(), k) : at_places(std::integral_constant<int64_t, 1>(), k);
      k += (several ? kPlaces : 1) * problem.period;
    }
  }
}

// Adds to the kernel gradient what a part of y, the gradient of the output, gives.
template <typename Element>
inline DILAX_INLINE void add_to_taps(const Depthwise& problem, const Part& part, const Element* x, const Element* row, float* gradient) {
  const Terms &first = problem.terms[0][part.i], &second = problem.terms[1][part.j];
  const Term &outer = problem.step[0], &middle = problem.step[1], &inner = problem.step[2];
  const int64_t begin = part.begin * inner.output, end = part.end * inner.output;
  for (int64_t n = 0; n < first.count; ++n) {
    for (int64_t m = 0; m < second.count; ++m) {
      const Element* input = x + first.first.input + n * outer.input + second.first.input + m * middle.input;
      float* taps = gradient + first.first.tap + n * outer.tap + second.first.tap + m * middle.tap;
      for (const Terms& last : problem.terms[2]) {
        // Of the terms of this tap, those in the part.
        const int64_t skipped = std::max<int64_t>(0, begin - last.first.output) / inner.output;
        const int64_t stop = std::min(last.count, (end - last.first.output) / inner.output);
        const Element *a = input + last.first.input, *b = row + last.first.output;
        if (skipped < stop) {
          for_channels<Element, 1>(problem.channels, [&](int64_t c, auto sums) DILAX_INLINE {
            for (int64_t l = skipped; l < stop; ++l) sums.add_products(a + l * inner.input + c, 0, b + l * inner.output + c);
            sums.add_to(taps + c);
          });
        }
        taps += problem.channels;
      }
    }
  }
}

// What is compiled for several instruction sets, in one dtype. The first two compute a part of the output and of the input gradient; the
// third adds to the kernel gradient what a part of y, the gradient of the output, gives.
#define DILAX_FUNCTIONS(Element)                                                                           \
  DILAX_VECTORISED void compute_output(                                                                    \
      const Depthwise& problem, const Part& part, const Element* x, const Element* kernel, Element* row) { \
    compute_places<&Term::input>(problem, part, x, kernel, row);                                           \
  }                                                                                                        \
  DILAX_VECTORISED void compute_input(                                                                     \
      const Depthwise& problem, const Part& part, const Element* y, const Element* kernel, Element* row) { \
    compute_places<&Term::output>(problem, part, y, kernel, row);                                          \
  }                                                                                                        \
  DILAX_VECTORISED void add_to_kernel(                                                                     \
      const Depthwise& problem, const Part& part, const Element* x, const Element* row, float* gradient) { \
    add_to_taps(problem, part, x, row, gradient);                                                          \
  }
DILAX_FUNCTIONS(float)
DILAX_FUNCTIONS(BFloat16)

}  // namespace

bool Depthwise::supports(const Problem& problem) {
  const bool known = problem.dtype == dnnl::memory::data_type::f32 || problem.dtype == dnnl::memory::data_type::bf16;
  return known && problem.rank() <= kAxes && problem.groups >= kLeastChannels &&
         problem.groups == problem.c_in && problem.c_in == problem.c_out;
}

Depthwise::Depthwise(const Problem& problem)
    : operation(problem.operation), dtype(problem.dtype), batch(problem.batch), channels(problem.c_in) {
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
  if (operation == Operation::kKernelGradient) return;
  const bool forward = operation == Operation::kOutput;
  const auto offset = [&](const Terms& at) { return forward ? at.first.input : at.first.output; };
  const int64_t stride = problem.stride.back();
  period = forward ? 1 : stride, advance = channels * (forward ? stride : 1);
  const std::vector<Terms>& last = terms[kAxes - 1];
  alike.assign(last.size(), 1);
  for (int64_t k = last.size() - period; k-- > 0;) {
    const Terms &here = last[k], &next = last[k + period];
    const bool same = here.count == next.count && here.first.tap == next.first.tap && offset(next) - offset(here) == advance;
    if (same) alike[k] += alike[k + period];
  }
}

template <typename Element>
void Depthwise::compute(const Element* a, const Element* b, Element* result, const Threads& threads) const {
  const int64_t x_size = product(input) * channels, y_size = product(output) * channels, kernel_size = product(taps) * channels;
  const bool by_input = operation == Operation::kInputGradient, by_tap = operation == Operation::kKernelGradient;
  const Sizes& sizes = by_input ? input : output;
  const int64_t row_size = sizes[kAxes - 1] * channels;
  const int64_t used = std::min(threads.count, 1 + batch * product(output) * kernel_size / kLeastWork);
  const Parts parts(batch, sizes, used);
  const int64_t blocks = used == 1 ? 1 : std::min(parts.count(), used * (by_tap ? kBlocksOfGradient : kBlocks));
  std::vector<float> sums(by_tap ? blocks * kernel_size : 0);
  parallel_for({used, threads.schedule}, blocks, [&](int64_t block) {
    const int64_t end = (block + 1) * parts.count() / blocks;
    for (int64_t number = block * parts.count() / blocks; number < end; ++number) {
      const Part part = parts[number];
      if (by_tap) {
        add_to_kernel(*this, part, a + part.example * x_size, b + part.row * row_size, &sums[block * kernel_size]);
      } else if (by_input) {
        compute_input(*this, part, a + part.example * y_size, b, result + part.row * row_size);
      } else {
        compute_output(*this, part, a + part.example * x_size, b, result + part.row * row_size);
      }
    }
  });
  if (!by_tap) return;
  // In the order of the blocks, so that a result does not depend on which thread ends first.
  parallel_for({used, threads.schedule}, used, [&](int64_t share) {
    const int64_t begin = share * kernel_size / used, end = (share + 1) * kernel_size / used;
    for (int64_t block = 1; block < blocks; ++block) {
      for (int64_t n = begin; n < end; ++n) sums[n] += sums[block * kernel_size + n];
    }
    for (int64_t n = begin; n < end; ++n) {
      Values<Element, 1> value;
      value.values[0] = sums[n];
      value.store(result + n);
    }
  });
}

void Depthwise::run(void* first, void* second, void* result, const Threads& threads) const {
  const auto run_as = [&](auto element) {
    using Element = decltype(element);
    compute(static_cast<const Element*>(first), static_cast<const Element*>(second), static_cast<Element*>(result), threads);
  };
  dtype == dnnl::memory::data_type::f32 ? run_as(float()) : run_as(BFloat16());
}

}  // namespace dilax
