// Work that the threads of XLA share.
#pragma once

#include <cstdint>
#include <functional>

namespace dilax {

// The threads on which an operation may run.
struct Threads {
  int64_t count;  // the calling one among them
  std::function<void(std::function<void()>)> schedule;  // hands a task to one of the others, which may run it at any time
};

// Calls a function with all numbers below `count`, on the calling thread and on those of the others that come in time. Returns when all
// calls have ended.
void parallel_for(const Threads& threads, int64_t count, const std::function<void(int64_t)>& function);

}  // namespace dilax
