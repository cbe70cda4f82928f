// A team that shares numbered tasks, with a barrier after each job.
//
// One 64-bit word holds (job, task count, next task): a worker that wakes late finds the next job's
// word or no task, so nobody waits for a worker that took no task. On a busy machine that matters.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace vlarft::imagine {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(task, thread) for every task in [0, tasks), thread in [0, size()); returns when all
  // are done. An exception of a task is rethrown here. One caller at a time.
  template <class Work>
  void run(int64_t tasks, const Work& work) {
    if (tasks == 1 || workers_.empty()) {
      for (int64_t task = 0; task < tasks; ++task) work(task, 0);
      return;
    }
    run(tasks, &work, [](const void* context, int64_t task, int thread) {
      (*static_cast<const Work*>(context))(task, thread);
    });
  }

 private:
  using Call = void (*)(const void*, int64_t, int);

  void run(int64_t tasks, const void* context, Call call);
  bool take(int thread, uint64_t word);
  void serve(int thread);

  std::vector<std::thread> workers_;
  std::atomic<uint64_t> word_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  const void* context_ = nullptr;
  Call call_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace vlarft::imagine
