// The threads from which oneDNN is called.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>

namespace dilax {

// Runs what calls oneDNN, one task at a time.
//
// OpenMP gives each thread that calls it a team of as many threads as XLA has, and XLA calls from any of its threads, and from several at
// once if there are several virtual devices. The first few threads that call have teams of their own, since waking another thread takes as
// long as a small convolution; for all others, one thread of this class calls.
class Worker {
 public:
  // The worker of this process. XLA's own threads do not survive a fork either.
  static Worker& get();
  // Runs a task on a number of threads of OpenMP, and waits for it; throws what it throws.
  void run(int threads, const std::function<void()>& task);

 private:
  Worker();
  void loop();

  std::mutex turn_;  // of the callers
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* task_ = nullptr;
  std::exception_ptr error_;
};

// Runs a task on the calling thread, for which OpenMP then has a number of threads at most; leaves the thread's settings as they were.
void with_threads(int threads, const std::function<void()>& task);

// Keeps the other threads of the calling thread's team off the core on which it runs.
//
// Linux may wake a thread on the core of the one that wakes it, and leave both there for milliseconds while another core is idle: on a
// machine of two virtual cores, that doubled the time of most operations.
void keep_helpers_away();

}  // namespace dilax
