// What Python and XLA call.
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "convolution.h"
#include "xla/ffi/api/ffi.h"

#define DILAX_EXPORT extern "C" __attribute__((visibility("default")))

namespace dilax {
namespace {

namespace ffi = xla::ffi;

// As many problems are kept as a program with many layers has; after that, all are made anew.
constexpr size_t kKept = 4096;

int available_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

dnnl::memory::data_type dtype_of(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32: return dnnl::memory::data_type::f32;
    case ffi::DataType::BF16: return dnnl::memory::data_type::bf16;
    default: throw std::invalid_argument("unsupported dtype");
  }
}

// What computes a problem. It is kept, and still lives while it runs if it is no longer kept.
std::shared_ptr<const Implementation> prepared(const Numbers& numbers, dnnl::memory::data_type dtype, int threads) {
  static auto* mutex = new std::mutex();
  static auto* cache = new std::map<std::pair<int, Numbers>, std::shared_ptr<const Implementation>>();
  const std::pair<int, Numbers> key{static_cast<int>(dtype), numbers};
  {
    std::lock_guard<std::mutex> lock(*mutex);
    if (const auto found = cache->find(key); found != cache->end()) return found->second;
  }
  std::shared_ptr<const Implementation> made = implementation_for(Problem(numbers, dtype), threads);
  std::lock_guard<std::mutex> lock(*mutex);
  if (cache->size() >= kKept) cache->clear();
  return (*cache)[key] = std::move(made);
}

ffi::Error convolve(
    ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result, ffi::Span<const int64_t> sizes) {
  try {
    const Numbers numbers(sizes.begin(), sizes.end());
    const auto dtype = dtype_of(first.element_type());
    if (second.element_type() != first.element_type() || result->element_type() != first.element_type())
      return ffi::Error::InvalidArgument("the arrays have different dtypes");
    const auto expected = Problem(numbers, dtype).elements();
    const int64_t given[] = {int64_t(first.element_count()), int64_t(second.element_count()), int64_t(result->element_count())};
    if (!std::equal(expected.begin(), expected.end(), given)) return ffi::Error::InvalidArgument("the arrays do not have the stated sizes");
    // XLA has a thread per core, or per virtual device if there are more of these. Operations are prepared for one number of threads.
    static const int threads = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), available_cores()));
    const auto schedule = [&](std::function<void()> task) { pool.Schedule(std::move(task)); };
    prepared(numbers, dtype, threads)->run(first.untyped_data(), second.untyped_data(), result->untyped_data(), {threads, schedule});
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("dilax-onednn: ") + error.what());
  }
}

}  // namespace
}  // namespace dilax

DILAX_EXPORT XLA_FFI_Error* dilax_onednn_convolve(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dilax_onednn_convolve, dilax::convolve,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Ret<xla::ffi::AnyBuffer>()
        .Attr<xla::ffi::Span<const int64_t>>("sizes"));

// Writes the name of the implementation for a problem, or why there is none; returns whether there is one.
DILAX_EXPORT int dilax_onednn_supports(const char* dtype, const int64_t* sizes, int64_t count, char* text, int64_t length) {
  const auto write = [&](const std::string& words) { std::snprintf(text, length, "%s", words.c_str()); };
  try {
    const std::map<std::string, dnnl::memory::data_type> dtypes = {
        {"float32", dnnl::memory::data_type::f32}, {"bfloat16", dnnl::memory::data_type::bf16}};
    const dilax::Problem problem(dilax::Numbers(sizes, sizes + count), dtypes.at(dtype));
    write(dilax::implementation_for(problem, dilax::available_cores())->name());
    return 1;
  } catch (const std::exception& error) {
    write(error.what());
    return 0;
  }
}

// The newest instruction set that oneDNN uses.
DILAX_EXPORT const char* dilax_onednn_instruction_set() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41: return "SSE4.1";
    case dnnl::cpu_isa::avx: return "AVX";
    case dnnl::cpu_isa::avx2: return "AVX2";
    case dnnl::cpu_isa::avx2_vnni: return "AVX2 with VNNI";
    case dnnl::cpu_isa::avx2_vnni_2: return "AVX2 with VNNI 2";
    case dnnl::cpu_isa::avx512_core: return "AVX-512";
    case dnnl::cpu_isa::avx512_core_vnni: return "AVX-512 with VNNI";
    case dnnl::cpu_isa::avx512_core_bf16: return "AVX-512 with bfloat16";
    case dnnl::cpu_isa::avx512_core_fp16: return "AVX-512 with bfloat16 and float16";
    case dnnl::cpu_isa::avx512_core_amx: return "AVX-512 with AMX";
    case dnnl::cpu_isa::avx512_core_amx_fp16: return "AVX-512 with AMX and float16";
    default: return "an instruction set of its choice";
  }
}
