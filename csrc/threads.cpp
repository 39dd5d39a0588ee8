// A pool of threads that sleep on a condition variable.
#include "threads.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace crs {
namespace {

// One call of parallel_for.
struct Job {
  int64_t chunks;
  ChunkFunction run;
  void* context;
  std::atomic<int64_t> next{0};
  std::mutex lock;
  std::exception_ptr error;

  void work(int worker) {
    try {
      for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;)
        run(context, chunk, worker);
    } catch (...) {
      next.store(chunks, std::memory_order_relaxed);  // the others stop too
      const std::lock_guard<std::mutex> guard(lock);
      if (!error) error = std::current_exception();
    }
  }
};

class Pool {
 public:
  // False where another call has the threads.
  bool run(Job& job, int helpers) {
    const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      const std::lock_guard<std::mutex> guard(lock_);
      start(helpers);
      helpers = std::min(helpers, started_);
      job_ = &job;
      places_ = helpers;
      next_worker_ = 1;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work(0);
    std::unique_lock<std::mutex> guard(lock_);
    places_ = 0;  // whoever has not begun by now has nothing left to do
    done_.wait(guard, [this] { return working_ == 0; });
    return true;
  }

 private:
  void start(int threads) {
    if (started_ >= threads) return;
    sigset_t all, before;  // signals are for the threads of the program
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; started_ < threads; ++started_) std::thread(&Pool::serve, this).detach();
    } catch (const std::exception&) {  // the process may have no more threads, or no more memory
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    std::unique_lock<std::mutex> guard(lock_);
    for (;;) {
      wake_.wait(guard, [this] { return places_ > 0; });
      --places_;
      ++working_;
      Job* job = job_;
      const int worker = next_worker_++;
      guard.unlock();
      job->work(worker);
      guard.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;  // held during a call
  std::mutex lock_;  // guards what follows
  std::condition_variable wake_, done_;
  int started_ = 0;
  Job* job_ = nullptr;
  int places_ = 0;  // helpers that may still join the job
  int next_worker_ = 1;
  int working_ = 0;  // helpers in the job
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of them, so it
// makes a pool of its own when it needs one.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
  static const int hooked =
      pthread_atfork(nullptr, nullptr, [] { current.store(nullptr, std::memory_order_release); });
  static_cast<void>(hooked);
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool) return *pool;
  Pool* fresh = new Pool;
  if (current.compare_exchange_strong(pool, fresh)) return *fresh;
  delete fresh;
  return *pool;
}

}  // namespace

void parallel_for(int threads, int64_t chunks, ChunkFunction run, void* context) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads, chunks)) - 1;
  if (helpers > 0) {
    Job job{chunks, run, context, {}, {}, {}};
    if (pool().run(job, helpers)) {
      if (job.error) std::rethrow_exception(job.error);
      return;
    }
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) run(context, chunk, 0);
}

}  // namespace crs
