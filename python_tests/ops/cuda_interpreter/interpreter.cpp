#include <ucontext.h>

#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"

interpreter::Index threadIdx, blockIdx, blockDim;

namespace interpreter {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Meeting waits = Meeting::kNone;
  uint64_t meetings = 0;  // of its warp that it has been to
  bool done = false;
};

struct Warp {
  unsigned arrived = 0;
  uint64_t values[2][kWarp];  // of this meeting and the one before, which some may still read
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<unsigned> ready;
std::vector<unsigned char> shared;
std::mt19937 dice(0);
ucontext_t scheduler;
const std::function<void()>* running;
unsigned alive, arrived, slow_warp;
uint64_t any[2], block_meetings;
bool diverged = false;

void enter() {
  (*running)();
  Fiber& self = *fibers[threadIdx.x];
  self.done = true;
  swapcontext(&self.context, &scheduler);
}

void wait() {
  Fiber& self = *fibers[threadIdx.x];
  const unsigned me = threadIdx.x;
  swapcontext(&self.context, &scheduler);
  threadIdx.x = me;
}

void wake(unsigned first, unsigned last, Meeting meeting) {
  for (unsigned t = first; t < last; ++t) {
    if (fibers[t]->done) continue;
    if (fibers[t]->waits != meeting) diverged = true;
    fibers[t]->waits = Meeting::kNone;
    ready.push_back(t);
  }
}

void wake_block_if_whole(Meeting meeting) {
  if (arrived < alive) return;
  arrived = 0;
  any[++block_meetings % 2] = 0;
  wake(0, blockDim.x, meeting);
}

// A place in `ready`: a random one, but the block's slow warp only goes where it must.
size_t next_ready() {
  for (int tries = 0; tries < 64; ++tries) {
    const size_t place = dice() % ready.size();
    if (ready[place] / kWarp != slow_warp) return place;
  }
  return dice() % ready.size();
}

void run_block() {
  alive = blockDim.x;
  arrived = 0;
  any[0] = any[1] = 0;
  block_meetings = 0;
  ready.clear();
  warps.assign((blockDim.x + kWarp - 1) / kWarp, Warp());
  slow_warp = dice() % warps.size();
  for (unsigned t = 0; t < blockDim.x; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.waits = Meeting::kNone;
    fiber.meetings = 0;
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, enter, 0);
    ready.push_back(t);
  }
  for (auto& byte : shared) byte = static_cast<unsigned char>(dice());
  while (!ready.empty()) {
    std::swap(ready[next_ready()], ready.back());
    const unsigned t = ready.back();
    ready.pop_back();
    threadIdx.x = t;
    swapcontext(&scheduler, &fibers[t]->context);
    if (!fibers[t]->done) continue;
    --alive;
    if (alive > 0 && arrived == alive) wake_block_if_whole(Meeting::kBlock);
  }
  if (alive > 0) diverged = true;  // they wait for threads that wait elsewhere, or are gone
}

}  // namespace

void launch(unsigned blocks, unsigned threads, size_t shared_bytes,
            const std::function<void()>& kernel) {
  shared.resize(shared_bytes);
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  running = &kernel;
  blockDim.x = threads;
  for (unsigned b = 0; b < blocks && !diverged; ++b) {
    blockIdx.x = b;
    run_block();
  }
}

void* dynamic_shared() { return shared.data(); }

const uint64_t* meet(Meeting meeting, uint64_t value) {
  Fiber& self = *fibers[threadIdx.x];
  self.waits = meeting;
  if (meeting == Meeting::kBlock || meeting == Meeting::kBlockOr) {
    uint64_t* mine = &any[block_meetings % 2];
    *mine |= value;
    ++arrived;
    wake_block_if_whole(meeting);
    wait();
    return mine;
  }
  const unsigned first = threadIdx.x / kWarp * kWarp;
  Warp& warp = warps[threadIdx.x / kWarp];
  uint64_t* values = warp.values[self.meetings++ % 2];
  values[threadIdx.x % kWarp] = value;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    wake(first, first + kWarp, meeting);
  }
  wait();
  return values;
}

void maybe_yield() {
  if (dice() % 8 != 0) return;
  ready.push_back(threadIdx.x);
  wait();
}

}  // namespace interpreter

cudaError_t cudaGetLastError() {
  const bool was = interpreter::diverged;
  interpreter::diverged = false;
  return was;
}

const char* cudaGetErrorString(cudaError_t) {
  return "threads waited at different barriers, or for threads that had ended";
}
