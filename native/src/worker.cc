#include "worker.h"

#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

namespace dilax {
namespace {

// At most this many threads that call have teams, as long as they live.
constexpr int kTeams = 3;
std::atomic<int> teams{0};

struct Team {
  bool counted;
  ~Team() {
    if (counted) --teams;
  }
};

// Whether the calling thread may have a team. One that may not is not asked again. Where threads are bound to cores, that would bind the
// calling one, too.
bool has_team() {
  if (omp_get_proc_bind() != omp_proc_bind_false) return false;
  thread_local const Team team{teams < kTeams && ++teams};
  return team.counted;
}

}  // namespace

Worker& Worker::get() {
  static auto* worker = new Worker();  // never destroyed: a thread may still wait for it at exit
  return *worker;
}

// Started by a thread of XLA, and so flushing tiny numbers to zero as these do.
Worker::Worker() { std::thread(&Worker::loop, this).detach(); }

void Worker::run(int threads, const std::function<void()>& task) {
  std::lock_guard<std::mutex> turn(turn_);
  if (threads == 1 || has_team()) return with_threads(threads, task);
  const std::function<void()> whole = [&] { with_threads(threads, task); };
  std::unique_lock<std::mutex> lock(mutex_);
  task_ = &whole;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !task_; });
  if (auto error = std::exchange(error_, nullptr)) std::rethrow_exception(error);
}

void Worker::loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return task_; });
    try {
      (*task_)();
    } catch (...) {
      error_ = std::current_exception();
    }
    task_ = nullptr;
    changed_.notify_all();
  }
}

void with_threads(int threads, const std::function<void()>& task) {
  struct Settings {
    int threads = omp_get_max_threads(), dynamic = omp_get_dynamic();
    ~Settings() { omp_set_num_threads(threads), omp_set_dynamic(dynamic); }
  } before;
  omp_set_dynamic(0);  // oneDNN waits for every thread that it was promised
  omp_set_num_threads(std::min(threads, omp_get_thread_limit()));
  task();
}

void keep_helpers_away() {
  thread_local std::vector<pid_t> helpers;
  thread_local int last = -1;
  const int core = sched_getcpu(), threads = omp_get_max_threads();
  if (core == last || core < 0 || threads < 2 || omp_get_proc_bind() != omp_proc_bind_false) return;
  cpu_set_t others;
  if (sched_getaffinity(0, sizeof(others), &others)) return;
  CPU_CLR(core, &others);
  if (!CPU_COUNT(&others)) return;
  bool moved = false;
  for (int attempt = 0; attempt < 2 && !moved; ++attempt) {
    if (helpers.empty()) {
      std::vector<pid_t> found(threads - 1);  // each thread has a `helpers` of its own
#pragma omp parallel num_threads(threads)
      if (const int number = omp_get_thread_num()) found[number - 1] = syscall(SYS_gettid);
      helpers = found;
    }
    moved = true;
    for (const pid_t helper : helpers) {
      const bool lives = helper && syscall(SYS_tgkill, getpid(), helper, 0) == 0;
      moved = moved && lives && sched_setaffinity(helper, sizeof(others), &others) == 0;
    }
    if (!moved) helpers.clear();  // OpenMP has other threads by now
  }
  if (moved) last = core;
}

}  // namespace dilax
