#include "convolution.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <new>
#include <numeric>
#include <stdexcept>
#include <unordered_map>

#include "depthwise.h"
#include "worker.h"

namespace dilax {
namespace {

using dnnl::memory;

// Of memory that is not in use, no more than this is kept.
constexpr size_t kKept = size_t{64} << 20;
constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Memory that grows to what the largest operation needs; unlike malloc, it is not mapped anew for each call.
class Scratch {
 public:
  char* reserve(size_t bytes) {
    if (bytes > bytes_) {
      release(0);  // before more is taken
      memory_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, aligned(bytes))));
      if (!memory_) throw std::bad_alloc();
      bytes_ = aligned(bytes);
    }
    return memory_.get();
  }
  // Frees it if it has more bytes than `kept`.
  void release(size_t kept) {
    if (bytes_ <= kept) return;
    memory_.reset();
    bytes_ = 0;
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t bytes_ = 0;
};

int64_t product(const Numbers& numbers) { return std::accumulate(numbers.begin(), numbers.end(), int64_t{1}, std::multiplies<int64_t>()); }

// A channels-last array (batch, *space, channels), whose axes oneDNN names in the order (batch, channels, *space).
memory::desc channels_last(memory::data_type dtype, int64_t batch, int64_t channels, const Numbers& space) {
  memory::dims sizes{batch, channels}, strides{0, 1};
  sizes.insert(sizes.end(), space.begin(), space.end());
  strides.resize(sizes.size());
  int64_t stride = channels;
  for (size_t axis = space.size(); axis-- > 0; stride *= space[axis]) strides[axis + 2] = stride;
  strides[0] = stride;
  return memory::desc(sizes, dtype, strides);
}

// A kernel (*taps, c_in / groups, c_out), whose axes oneDNN names in the order ([groups,] c_out / groups, c_in / groups, *taps).
memory::desc kernel_of(const Problem& problem) {
  const int64_t c_in = problem.c_in / problem.groups, c_out = problem.c_out / problem.groups;
  memory::dims sizes{c_out, c_in}, strides{1, problem.c_out};
  if (problem.groups > 1) {
    sizes.insert(sizes.begin(), problem.groups);
    strides.insert(strides.begin(), c_out);
  }
  const size_t first = sizes.size();
  sizes.insert(sizes.end(), problem.kernel_size.begin(), problem.kernel_size.end());
  strides.resize(sizes.size());
  int64_t stride = c_in * problem.c_out;
  for (size_t axis = problem.rank(); axis-- > 0; stride *= problem.kernel_size[axis]) strides[first + axis] = stride;
  return memory::desc(sizes, problem.dtype, strides);
}

}  // namespace

dnnl::engine& engine() {
  static auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);  // never destroyed: a thread may still use it at exit
  return *engine;
}

Problem::Problem(const Numbers& numbers, memory::data_type dtype) : dtype(dtype) {
  constexpr size_t kShared = 5, kPerAxis = 7;
  if (numbers.size() < kShared + kPerAxis || (numbers.size() - kShared) % kPerAxis) throw std::invalid_argument("wrong number of sizes");
  operation = static_cast<Operation>(numbers[0]);
  batch = numbers[1], c_in = numbers[2], c_out = numbers[3], groups = numbers[4];
  const size_t rank = (numbers.size() - kShared) / kPerAxis;
  auto next = numbers.begin() + kShared;
  for (auto* part : {&input_size, &kernel_size, &output_size, &stride, &dilation, &padding_lo, &padding_hi}) {
    part->assign(next, next + rank);
    next += rank;
  }
  const auto positive = [](int64_t number) { return number > 0; };
  if (!std::all_of(numbers.begin() + 1, numbers.begin() + kShared + 5 * rank, positive)) throw std::invalid_argument("a size is not positive");
  if (c_in % groups || c_out % groups) throw std::invalid_argument("the groups do not divide the channels");
}

std::vector<int64_t> Problem::elements() const {
  const int64_t x = batch * product(input_size) * c_in, y = batch * product(output_size) * c_out;
  const int64_t kernel = product(kernel_size) * (c_in / groups) * c_out;
  switch (operation) {
    case Operation::kOutput: return {x, kernel, y};
    case Operation::kInputGradient: return {y, kernel, x};
    default: return {x, y, kernel};
  }
}

Convolution::Convolution(const Problem& problem) : operation_(problem.operation) {
  x_ = channels_last(problem.dtype, problem.batch, problem.c_in, problem.input_size);
  y_ = channels_last(problem.dtype, problem.batch, problem.c_out, problem.output_size);
  kernel_ = kernel_of(problem);
  const memory::desc any(kernel_.get_dims(), problem.dtype, memory::format_tag::any);
  memory::dims gaps = problem.dilation;  // oneDNN counts the samples between the taps
  for (auto& gap : gaps) --gap;
  const auto direct = dnnl::algorithm::convolution_direct;
  const auto &stride = problem.stride, &lo = problem.padding_lo, &hi = problem.padding_hi;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto kind = operation_ == Operation::kOutput ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
  const dnnl::convolution_forward::primitive_desc forward(engine(), kind, direct, x_, any, y_, stride, gaps, lo, hi, attributes);
  if (operation_ == Operation::kOutput) {
    take(forward, forward.weights_desc());
    primitive_ = dnnl::convolution_forward(forward);
  } else if (operation_ == Operation::kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        engine(), direct, x_, any, y_, stride, gaps, lo, hi, forward, attributes);
    take(backward, backward.weights_desc());
    primitive_ = dnnl::convolution_backward_data(backward);
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        engine(), direct, x_, any, y_, stride, gaps, lo, hi, forward, attributes);
    take(backward, backward.diff_weights_desc());
    primitive_ = dnnl::convolution_backward_weights(backward);
  }
}

template <typename Descriptor>
void Convolution::take(const Descriptor& descriptor, const memory::desc& kernel) {
  name_ = descriptor.impl_info_str();
  scratchpad_ = descriptor.scratchpad_desc();
  blocked_kernel_ = kernel;
  if (blocked_kernel_ == kernel_) return;
  const bool back = operation_ == Operation::kKernelGradient;
  const auto &from = back ? blocked_kernel_ : kernel_, &to = back ? kernel_ : blocked_kernel_;
  reorder_ = dnnl::reorder(dnnl::reorder::primitive_desc(engine(), from, engine(), to));
}

void Convolution::run(void* first, void* second, void* result, const Threads& threads) const {
  Worker::get().run(threads.count, [&] { execute(first, second, result); });
}

void Convolution::execute(void* first, void* second, void* result) const {
  static auto* scratch = new Scratch();
  static auto* stream = new dnnl::stream(engine());
  struct Release {
    ~Release() { scratch->release(kKept); }
  } release;  // also if something is thrown
  const bool reorders = static_cast<bool>(reorder_);
  const size_t blocked = reorders ? aligned(blocked_kernel_.get_size()) : 0;
  char* memory_of_ours = scratch->reserve(blocked + aligned(scratchpad_.get_size()) + kAlignment);
  const memory scratchpad(scratchpad_, engine(), memory_of_ours + blocked);
  memory kernel(kernel_, engine(), operation_ == Operation::kKernelGradient ? result : second);
  memory weights = reorders ? memory(blocked_kernel_, engine(), memory_of_ours) : kernel;
  const auto run = [&](const dnnl::primitive& primitive, const std::unordered_map<int, memory>& arguments) {
    keep_helpers_away();
    primitive.execute(*stream, arguments);
  };
  auto map = [&](const memory::desc& desc, void* data) { return memory(desc, engine(), data); };
  switch (operation_) {
    case Operation::kOutput:
    case Operation::kInputGradient: {
      if (reorders) run(reorder_, {{DNNL_ARG_FROM, kernel}, {DNNL_ARG_TO, weights}});
      const bool output = operation_ == Operation::kOutput;
      run(
          primitive_, {{output ? DNNL_ARG_SRC : DNNL_ARG_DIFF_DST, map(output ? x_ : y_, first)},
                   {DNNL_ARG_WEIGHTS, weights},
                   {output ? DNNL_ARG_DST : DNNL_ARG_DIFF_SRC, map(output ? y_ : x_, result)},
                   {DNNL_ARG_SCRATCHPAD, scratchpad}});
      break;
    }
    case Operation::kKernelGradient:
      run(
          primitive_, {{DNNL_ARG_SRC, map(x_, first)}, {DNNL_ARG_DIFF_DST, map(y_, second)}, {DNNL_ARG_DIFF_WEIGHTS, weights},
                   {DNNL_ARG_SCRATCHPAD, scratchpad}});
      if (reorders) run(reorder_, {{DNNL_ARG_FROM, weights}, {DNNL_ARG_TO, kernel}});
  }
  stream->wait();
}

std::unique_ptr<Implementation> implementation_for(const Problem& problem, int threads) {
  if (Depthwise::supports(problem)) return std::make_unique<Depthwise>(problem);
  std::unique_ptr<Implementation> made;
  with_threads(threads, [&] { made = std::make_unique<Convolution>(problem); });  // it is made for the threads that it will have
  return made;
}

}  // namespace dilax
