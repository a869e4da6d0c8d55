// Threads that work on one job together, in step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

INLINE void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int SPINS = 1 << 12;       // at a barrier, before the processor is offered to others
constexpr int IDLE_SPINS = 1 << 8;  // between jobs, before a worker sleeps: whoever sends a step's tokens wants its processor

class Pool {
public:
    const int size;

    explicit Pool(int threads) : size(std::max(1, threads)) {
        try {
            for (int id = 1; id < size; id++) workers_.emplace_back([this, id] { serve(id); });
        } catch (...) {  // the system gives no more threads: those that there are must not outlive us
            end();
            throw;
        }
    }

    ~Pool() { end(); }

    // Whether the threads are there: a process that was forked from theirs has none of them, and would wait for ever.
    bool ours() const { return getpid() == home_; }

    // Runs job(id) on every thread, the caller being 0; returns when all are done. One caller at a time. A job must not throw:
    // the others would wait for it at the next barrier.
    void run(const std::function<void(int)>& job) {
        next_.store(0, std::memory_order_relaxed);
        if (size == 1) return job(0);
        job_ = &job;
        left_.store(size - 1, std::memory_order_relaxed);
        announce();
        job(0);
        for (int spins = 0; left_.load(std::memory_order_acquire);) rest(spins);
    }

    // Within a job: waits for all threads. What `claim` gives begins anew behind it.
    void barrier() {
        if (size == 1) {
            next_.store(0, std::memory_order_relaxed);
            return;
        }
        uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;) rest(spins);
    }

    // Within a job, between two barriers: calls work(i) for each i < total once, on whichever thread is free.
    template <class Work>
    INLINE void share(int total, Work&& work) {
        // Runs that get shorter, so that all are done at about the same time.
        auto grain = [&] { return std::max(1, (total - next_.load(std::memory_order_relaxed)) / (4 * size)); };
        for (int first, run; (first = next_.fetch_add(run = grain(), std::memory_order_relaxed)) < total;)
            for (int i = first; i < std::min(first + run, total); i++) work(i);
    }

private:
    const pid_t home_ = getpid();
    std::vector<std::thread> workers_;
    const std::function<void(int)>* job_ = nullptr;
    std::mutex lock_;
    std::condition_variable called_;
    int asleep_ = 0;
    std::atomic<bool> over_{false};
    alignas(64) std::atomic<uint32_t> jobs_{0};
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> next_{0};

    void end() {
        over_ = true;
        announce();
        for (auto& worker : workers_) worker.join();
    }

    static void rest(int& spins) {
        relax();
        if (++spins % SPINS == 0) std::this_thread::yield();
    }

    void announce() {
        bool sleepers;
        {
            std::lock_guard<std::mutex> hold(lock_);
            jobs_.fetch_add(1, std::memory_order_release);
            sleepers = asleep_ > 0;
        }
        if (sleepers) called_.notify_all();
    }

    void serve(int id) {
        uint32_t seen = 0;
        while (true) {
            for (int spins = 0; spins < IDLE_SPINS && jobs_.load(std::memory_order_acquire) == seen; spins++) relax();
            if (jobs_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> hold(lock_);
                asleep_++;
                called_.wait(hold, [&] { return jobs_.load(std::memory_order_acquire) != seen; });
                asleep_--;
            }
            seen++;
            if (over_) return;
            (*job_)(id);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }
};
