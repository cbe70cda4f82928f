#include "imagine/thread_pool.h"

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/tests/check.h"

using vlarft::imagine::ThreadPool;

namespace {

// Every task runs once, and all of them before run() returns, job after job.
void test_every_task_once() {
  ThreadPool pool(4);
  std::vector<int> seen(97);
  for (int job = 0; job < 2000; ++job) {
    const int tasks = job % 98;
    pool.run(tasks, [&](int64_t task, int thread) {
      CHECK(thread >= 0 && thread < 4);
      ++seen[static_cast<size_t>(task)];
    });
    for (size_t i = 0; i < seen.size(); ++i) {
      CHECK(seen[i] == (i < static_cast<size_t>(tasks) ? 1 : 0));
      seen[i] = 0;
    }
  }
}

void test_more_tasks_than_a_word_counts() {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  constexpr int64_t kTasks = (1 << 20) + 5;
  pool.run(kTasks, [&](int64_t task, int) { sum += task; });
  CHECK(sum == kTasks * (kTasks - 1) / 2);
}

void test_errors_reach_the_caller() {
  ThreadPool pool(2);
  const std::string message = message_of<std::runtime_error>([&] {
    pool.run(8, [](int64_t task, int) {
      if (task == 5) throw std::runtime_error("task 5");
    });
  });
  CHECK(message == "task 5");
  std::atomic<int> count{0};
  pool.run(8, [&](int64_t, int) { ++count; });
  CHECK(count == 8);
}

// A worker may be anywhere in its loop, asleep or not yet started, when the pool ends.
void test_pool_ends_at_any_moment() {
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 1000; ++round) {
    ThreadPool pool(3);
    for (int job = 0; job < round % 5; ++job) {
      pool.run(3, [&](int64_t task, int) { sum += task; });
    }
    // From ending at once to ending well after the workers went to sleep (about 50 us).
    for (int wait = 0; wait < (round % 7) * 30; ++wait) std::this_thread::yield();
  }
  CHECK(sum == 3 * 200 * (0 + 1 + 2 + 3 + 4));
}

}  // namespace

int main() {
  test_every_task_once();
  test_more_tasks_than_a_word_counts();
  test_errors_reach_the_caller();
  test_pool_ends_at_any_moment();
}
