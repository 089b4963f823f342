#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace dilax {
namespace {

// How often the calling thread looks whether the others have ended, before it sleeps: for about 0.1 ms.
constexpr int kLooks = 2000;

// What the threads share. It outlives the call, since a thread that comes late still finds here that nothing is left.
struct Shared {
  const int64_t count;
  const std::function<void(int64_t)>& function;
  std::atomic<int64_t> next{0}, ended{0};
  std::mutex mutex;
  std::condition_variable changed;

  Shared(int64_t count, const std::function<void(int64_t)>& function) : count(count), function(function) {}

  void work() {
    for (int64_t number; (number = next++) < count;) {
      function(number);
      if (++ended == count) {
        std::lock_guard<std::mutex> lock(mutex);
        changed.notify_all();
      }
    }
  }

  void wait() {
    for (int look = 0; look < kLooks && ended < count; ++look) __builtin_ia32_pause();
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [this] { return ended == count; });
  }
};

}  // namespace

void parallel_for(const Threads& threads, int64_t count, const std::function<void(int64_t)>& function) {
  const auto shared = std::make_shared<Shared>(count, function);
  try {
    for (int64_t others = std::min(threads.count, count) - 1; others > 0; --others) threads.schedule([shared] { shared->work(); });
  } catch (...) {  // no memory for a task; the calling thread does what the others do not
  }
  shared->work();
  shared->wait();
}

}  // namespace dilax
