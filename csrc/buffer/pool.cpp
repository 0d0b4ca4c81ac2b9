#include "buffer/pool.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace tb {
namespace {

// Of a segment: large enough for a disk at its full rate, a small part of any pool worth spilling.
constexpr std::int64_t kSegmentBytes = std::int64_t{32} << 20;
constexpr std::int64_t kSegmentsOfPool = 8;  // at least so many fit the pool

}  // namespace

std::int64_t token_bytes(const std::vector<HookRows>& hooks) {
    std::int64_t bytes = 0;
    for (const HookRows& hook : hooks) bytes += row_bytes(hook.kind, hook.d);
    return bytes;
}

Pool::Pool(std::vector<HookRows> hooks, const PoolOptions& options, std::unique_ptr<Backend> backend)
    : hooks_(std::move(hooks)), backend_(std::move(backend)) {
    for (std::size_t i = 0; i < (options.one_order ? 1 : hooks_.size()); ++i)
        slots_.emplace_back(options.capacity, options.seed + i);
    if (options.tiers.host_bytes <= 0 && options.tiers.disk_bytes <= 0) return;
    segment_tokens_ = segment_size(token_bytes(hooks_), options.capacity);
    std::size_t offset = kHeader;
    for (const HookRows& hook : hooks_) {
        offsets_.push_back(offset);
        offset += static_cast<std::size_t>(segment_tokens_ * row_bytes(hook.kind, hook.d));
    }
    // Another stream of random numbers than any order's.
    tiers_ = std::make_unique<Tiers>(*backend_, offset - kHeader, options.tiers, ~options.seed);
}

std::int64_t Pool::segment_size(std::int64_t token_bytes, std::int64_t capacity) {
    return std::max<std::int64_t>(1, std::min(kSegmentBytes / token_bytes, capacity / kSegmentsOfPool));
}

SlotLists Pool::lists(std::int64_t n, const std::function<const std::int64_t*(Slots&)>& pick) {
    SlotLists found{{}, n};
    for (Slots& slots : slots_) found.of_hook.push_back(pick(slots));
    found.of_hook.resize(hooks_.size(), found.of_hook.front());
    return found;
}

SlotLists Pool::offered(std::int64_t n) {
    return lists(n, [n](const Slots& slots) { return slots.offer(n); });
}

SlotLists Pool::drawn(std::int64_t n) {
    return lists(n, [n](Slots& slots) { return slots.take(n); });
}

void Pool::commit(std::int64_t n) {
    for (Slots& slots : slots_) slots.commit(n);
}

std::vector<BadRows> Pool::put(const std::vector<Incoming>& incoming, std::int64_t n, const Caller& caller) {
    const std::lock_guard<std::mutex> held(lock_);
    if (incoming.size() != hooks_.size()) throw std::invalid_argument("put: expected all hook points");
    if (n < 0 || n > limit() - stored() || n > most()) throw std::invalid_argument("put: more tokens than fit");
    while (slots_[0].space() < n) spill(caller);
    const std::vector<BadRows> bad = backend_->put(incoming, offered(n), caller);
    for (const BadRows& found : bad)
        if (found.count) return bad;
    commit(n);  // only now: a put that failed leaves nothing behind
    tokens_in_ += n;
    return bad;
}

void Pool::take(std::int64_t n, const std::vector<void*>& out, const Caller& caller) {
    const std::lock_guard<std::mutex> held(lock_);
    if (out.size() != hooks_.size()) throw std::invalid_argument("take: expected all hook points");
    if (n < 0 || n > stored() || n > most()) throw std::invalid_argument("take: more tokens than there are");
    circulate(caller);  // does nothing, but after one that failed
    backend_->take(drawn(n), out, caller);
    tokens_out_ += n;
    due_ += n;
    try {
        circulate(caller);
    } catch (const SpillError&) {
        // This batch is whole; the next call says what is wrong.
    }
}

void Pool::peek(std::int64_t n, const std::vector<void*>& out, const Caller& caller) {
    const std::lock_guard<std::mutex> held(lock_);
    if (n < 0 || n > slots_[0].size()) throw std::invalid_argument("peek: more tokens than the pool has");
    backend_->take(lists(n, [](const Slots& slots) { return slots.occupied(); }), out, caller);
}

// A random draw from the pool goes to the tiers.
void Pool::spill(const Caller& caller) {
    HostMemory& memory = tiers_->room();
    backend_->spill(drawn(segment_tokens_), memory, kHeader, caller);
    tiers_->add();
}

// The next segment below comes back; there is room for it.
void Pool::bring_back(const Caller& caller) {
    backend_->load(tiers_->next(), kHeader, offered(segment_tokens_), caller);
    commit(segment_tokens_);
    tiers_->drop();
    due_ = std::max<std::int64_t>(0, due_ - segment_tokens_);
}

void Pool::circulate(const Caller& caller) {
    if (!tiers_) return;
    while (tiers_->size() > 0 && slots_[0].space() >= segment_tokens_) bring_back(caller);
    while (tiers_->size() > 0 && due_ >= segment_tokens_) {
        tiers_->next();  // if it cannot be had, nothing moves
        spill(caller);
        bring_back(caller);
    }
    if (tiers_->size() == 0) due_ = 0;
}

// ---------------------------------------------------------------- counts

std::int64_t Pool::tokens_in() const {
    const std::lock_guard<std::mutex> held(lock_);
    return tokens_in_;
}

std::int64_t Pool::tokens_out() const {
    const std::lock_guard<std::mutex> held(lock_);
    return tokens_out_;
}

std::int64_t Pool::pooled() const {
    const std::lock_guard<std::mutex> held(lock_);
    return slots_[0].size();
}

std::int64_t Pool::limit() const {
    // One place stays free, so that a segment can go down before another comes back.
    return slots_[0].capacity() + (tiers_ ? (tiers_->places() - 1) * segment_tokens_ : 0);
}

// With tiers, a segment's worth less than the pool: the pool is that full while anything is below it.
std::int64_t Pool::most() const { return slots_[0].capacity() - segment_tokens_; }

std::int64_t Pool::tier_bytes() const {
    return tiers_ ? tiers_->host_bytes() + static_cast<std::int64_t>(backend_->staging_bytes()) : 0;
}

std::vector<std::int64_t> Pool::occupied(std::size_t hook) const {
    const std::lock_guard<std::mutex> held(lock_);
    const Slots& slots = slots_.at(slots_.size() == 1 ? 0 : hook);
    return {slots.occupied(), slots.occupied() + slots.size()};
}

std::vector<std::int64_t> Pool::bad_rows() {
    const std::lock_guard<std::mutex> held(lock_);
    return backend_->bad_rows();
}

// ---------------------------------------------------------------- saved and restored

Pool::State Pool::state() {
    const std::lock_guard<std::mutex> held(lock_);
    State state{tokens_in_, tokens_out_, due_, {}, {}};
    for (const Slots& slots : slots_) state.random.push_back(slots.random_state());
    if (tiers_) state.tiers = tiers_->state();
    return state;
}

void Pool::saved() {
    const std::lock_guard<std::mutex> held(lock_);
    if (tiers_) tiers_->saved();
}

void Pool::forget() {
    const std::lock_guard<std::mutex> held(lock_);
    if (tiers_) tiers_->forget();
}

void Pool::restore(const State& state) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto below = static_cast<std::int64_t>(state.tiers.segments.size()) * segment_tokens_;
    if (state.random.size() != slots_.size() || (!tiers_ && !state.tiers.segments.empty()))
        throw std::invalid_argument("restore: the state of another kind of buffer");
    if (tiers_) tiers_->restore(state.tiers);
    for (std::size_t i = 0; i < slots_.size(); ++i)
        slots_[i].restore(state.tokens_in - state.tokens_out - below, state.random[i]);
    tokens_in_ = state.tokens_in;
    tokens_out_ = state.tokens_out;
    due_ = state.due;
}

void Pool::segment(std::int64_t i, std::size_t hook, void* rows, bool into) {
    const std::lock_guard<std::mutex> held(lock_);
    HostMemory& memory = into ? tiers_->restore_room(i) : tiers_->in_memory(i);
    char* mine = memory.data() + offsets_.at(hook);
    const auto bytes = static_cast<std::size_t>(segment_tokens_ * row_bytes(hooks_[hook].kind, hooks_[hook].d));
    std::memcpy(into ? mine : rows, into ? rows : mine, bytes);
}

void Pool::restored() {
    const std::lock_guard<std::mutex> held(lock_);
    if (tiers_) tiers_->restored();
}

}  // namespace tb
