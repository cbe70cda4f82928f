#include "imagine/thread_pool.h"

#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vlarft::imagine {
namespace {

// Fields of the word, low to high: next task, task count, job number (wraps, which is harmless).
constexpr int kTaskBits = 20;
constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;
constexpr int64_t kMaxTasks = static_cast<int64_t>(kTaskMask);

uint64_t next_of(uint64_t word) { return word & kTaskMask; }
uint64_t count_of(uint64_t word) { return (word >> kTaskBits) & kTaskMask; }

// About 50 us: longer than the gap between two products, shorter than a person's patience.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { serve(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  word_.fetch_add(uint64_t{1} << (2 * kTaskBits));
  word_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Takes one task of the job in `word`; false when that job has none left.
bool ThreadPool::take(int thread, uint64_t word) {
  do {
    if (next_of(word) >= count_of(word)) return false;
  } while (!word_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel));
  // The job cannot end before this task does, so its fields stay.
  try {
    call_(context_, static_cast<int64_t>(next_of(word)), thread);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::serve(int thread) {
  for (;;) {
    // The word first: the destructor sets stop_ before it changes the word, so whoever sees the
    // last word sees stop_, and whoever saw the word before it does not sleep.
    uint64_t word = word_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    if (take(thread, word)) continue;
    int spins = 0;
    while (word_.load(std::memory_order_acquire) == word && spins < kSpins) {
      pause();
      ++spins;
    }
    if (spins < kSpins) continue;
    sleeping_.fetch_add(1);
    word_.wait(word);
    sleeping_.fetch_sub(1);
  }
}

void ThreadPool::run(int64_t tasks, const void* context, Call call) {
  // More tasks than the field holds are run in several jobs.
  struct Shifted {
    const void* context;
    Call call;
    int64_t first;
  };
  if (tasks > kMaxTasks) {
    for (int64_t first = 0; first < tasks; first += kMaxTasks) {
      const Shifted shifted{context, call, first};
      const int64_t part = tasks - first < kMaxTasks ? tasks - first : kMaxTasks;
      run(part, &shifted, [](const void* c, int64_t task, int thread) {
        const auto* s = static_cast<const Shifted*>(c);
        s->call(s->context, s->first + task, thread);
      });
    }
    return;
  }
  if (tasks <= 0) return;
  context_ = context;
  call_ = call;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (word_.load(std::memory_order_relaxed) >> (2 * kTaskBits)) + 1;
  word_.store((job << (2 * kTaskBits)) | (static_cast<uint64_t>(tasks) << kTaskBits));
  if (sleeping_.load() > 0) word_.notify_all();
  while (take(0, word_.load(std::memory_order_acquire))) {
  }
  int spins = 0;
  while (done_.load(std::memory_order_acquire) < tasks) {
    pause();
    // A task's thread may have lost its core to another process: let it have ours.
    if (++spins > kSpins) std::this_thread::yield();
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace vlarft::imagine
