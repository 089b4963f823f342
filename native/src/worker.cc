#include "worker.h"

#include <unistd.h>

#include <thread>
#include <utility>

namespace dilax {

Worker& Worker::get() {
  static std::mutex mutex;
  static Worker* worker = nullptr;  // never destroyed: a thread may still wait for it at exit
  static pid_t process = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (process != getpid()) {  // threads do not survive a fork
    worker = new Worker();
    process = getpid();
  }
  return *worker;
}

Worker::Worker() { std::thread(&Worker::loop, this).detach(); }

void Worker::run(const std::function<void()>& task) {
  std::lock_guard<std::mutex> turn(turn_);
  std::unique_lock<std::mutex> lock(mutex_);
  task_ = &task;
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

}  // namespace dilax
