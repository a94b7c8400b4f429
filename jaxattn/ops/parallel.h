// What the operations of this folder share: work on the threads of XLA's own pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

// Runs tasks 0..count-1 on the threads of the pool and this one. This thread does not
// wait for a task that no thread has begun, so calls inside the pool cannot deadlock.
inline void ForEach(xla::ffi::ThreadPool& pool, int64_t count,
                    const std::function<void(int64_t)>& task) {
  struct Shared {
    std::function<void(int64_t)> task;
    int64_t count;
    std::atomic<int64_t> next = 0, done = 0;
    std::mutex mutex;
    std::condition_variable all_done;

    void Work() {
      for (int64_t i; (i = next.fetch_add(1)) < count;) {
        task(i);
        if (done.fetch_add(1) + 1 == count) {
          std::lock_guard lock(mutex);
          all_done.notify_all();
        }
      }
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->task = task;
  shared->count = count;
  for (int64_t i = 1; i < std::min<int64_t>(count, pool.num_threads()); ++i) {
    pool.Schedule([shared] { shared->Work(); });
  }
  shared->Work();
  std::unique_lock lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done.load() == count; });
}
