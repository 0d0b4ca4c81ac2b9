// A streaming buffer: tokens in, well-mixed batches out, more of them than the device's memory holds.
//
// Tokens lie in a pool of slots on the device (slots.h). When one does not fit, a segment, which is a
// random draw from the pool, goes to a tier below it (tiers.h): host memory, then disk. Taking batches
// makes room, and segments drawn at random among those below come back into it. So the pool stays full
// while anything lies below it. For every segment's worth of tokens taken one comes back; where batches
// are too small to make room for it, another goes down first. So all tokens keep circulating.
//
// Which tokens go where depends on the seed and on the sizes of puts and takes, never on timing.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer/backend.h"
#include "buffer/slots.h"
#include "buffer/tiers.h"

namespace tb {

struct PoolOptions {
    std::int64_t capacity;  // tokens of the pool
    std::uint64_t seed;
    bool one_order;  // one order of tokens for all hook points, or one each
    TierOptions tiers;
};

// Stored bytes of a token at all hook points.
std::int64_t token_bytes(const std::vector<HookRows>& hooks);

class Pool {
  public:
    // Throws std::invalid_argument, and SpillError when the directory cannot be used.
    Pool(std::vector<HookRows> hooks, const PoolOptions& options, std::unique_ptr<Backend> backend);

    // n tokens, all hook points. Nothing is stored when a row is not finite (see Backend::put).
    std::vector<BadRows> put(const std::vector<Incoming>& incoming, std::int64_t n, const Caller& caller);
    void take(std::int64_t n, const std::vector<void*>& out, const Caller& caller);
    // The first n tokens of the pool, as the order that draws depend on has them; they stay.
    void peek(std::int64_t n, const std::vector<void*>& out, const Caller& caller);

    std::int64_t tokens_in() const;
    std::int64_t tokens_out() const;
    std::int64_t pooled() const;          // tokens in the pool
    std::int64_t limit() const;           // tokens that pool and tiers hold at most
    std::int64_t most() const;            // tokens of one put or take at most
    std::int64_t segment_tokens() const { return segment_tokens_; }  // 0 without tiers
    static std::int64_t segment_size(std::int64_t token_bytes, std::int64_t capacity);
    std::int64_t tier_bytes() const;      // of memory that the tiers use at most, host and device
    std::vector<std::int64_t> occupied(std::size_t hook) const;  // slots in use, in the draws' order
    std::vector<std::int64_t> bad_rows();

    struct State {
        std::int64_t tokens_in = 0, tokens_out = 0;
        std::int64_t due = 0;
        std::vector<Random::State> random;  // of every order
        Tiers::State tiers;
    };
    // Waits for what is on its way to the disk. Files that this state names stay until a later state
    // is `saved`.
    State state();
    void saved();
    void forget();  // no saved state will be restored
    // Rows of hook points are read and written by whoever owns the pool's memory: those of slots
    // `occupied` belong to a state, in this order; `restore` expects them in slots 0, 1, ...
    // Segments of host memory follow, one `segment` call each.
    void restore(const State& state);
    // Copies one hook point's rows of the i-th segment that is not on disk, out of it or into it.
    void segment(std::int64_t i, std::size_t hook, void* rows, bool into);
    // After a restore, when all segments have their rows.
    void restored();

  private:
    SlotLists lists(std::int64_t n, const std::function<const std::int64_t*(Slots&)>& pick);
    SlotLists offered(std::int64_t n);
    SlotLists drawn(std::int64_t n);
    void commit(std::int64_t n);
    void spill(const Caller& caller);
    void bring_back(const Caller& caller);
    void circulate(const Caller& caller);
    std::int64_t stored() const { return tokens_in_ - tokens_out_; }

    std::vector<HookRows> hooks_;
    std::vector<std::size_t> offsets_;  // of each hook point in a segment
    std::unique_ptr<Backend> backend_;
    std::vector<Slots> slots_;  // one, or one a hook point
    std::int64_t segment_tokens_ = 0;
    std::unique_ptr<Tiers> tiers_;  // null without tiers
    std::int64_t tokens_in_ = 0, tokens_out_ = 0;
    std::int64_t due_ = 0;  // tokens taken since a segment came back
    mutable std::mutex lock_;
};

}  // namespace tb
