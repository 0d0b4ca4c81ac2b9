#include "buffer/tiers.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace tb {
namespace {

bool ready(const std::future<std::uint32_t>& result) {
    return result.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::invalid_argument too_small(const std::string& name, std::int64_t value, std::int64_t least,
                                const std::string& what) {
    return std::invalid_argument(name + "=" + std::to_string(value) + ": expected at least " +
                                 std::to_string(least) + ", for " + what);
}

template <class Item>
Item* popped(std::vector<Item*>& items) {
    Item* item = items.back();
    items.pop_back();
    return item;
}

}  // namespace

Tiers::Tiers(Backend& backend, std::size_t rows, const TierOptions& options, std::uint64_t seed)
    : backend_(backend),
      bytes_(segment_bytes(rows)),
      random_(seed),
      process_(getpid()) {
    const auto each = static_cast<std::int64_t>(bytes_);
    host_places_ = options.host_bytes / each;
    if (options.disk_bytes > 0) {
        // Segments that a saved state still needs stay on disk until the next one: at most as many
        // as there are places.
        disk_places_ = options.disk_bytes / (2 * each);
        host_places_ -= kMoving;
        if (host_places_ < 0)
            throw too_small("host_bytes", options.host_bytes, kMoving * each,
                            "the three segments on their way to and from the disk");
    }
    // The pool keeps one of them free.
    if (places() < 2) {
        if (options.disk_bytes > 0) throw too_small("disk_bytes", options.disk_bytes, 4 * each, "four segments");
        throw too_small("host_bytes", options.host_bytes, 2 * each, "two segments");
    }
    if (options.disk_bytes > 0) files_ = std::make_unique<SpillFiles>(options.directory, bytes_);
}

Tiers::~Tiers() {
    if (!files_) return;
    if (process_ != getpid()) {
        (void)files_.release();  // see SpillFiles
        return;
    }
    if (reading_.valid()) reading_.wait();
    try {
        settle(true);
    } catch (const std::exception&) {
    }
    for (const std::uint64_t serial : live_files_)
        if (!kept_.count(serial)) files_->remove(serial);
}

std::int64_t Tiers::host_bytes() const {
    return (host_places_ + (files_ ? kMoving : 0)) * static_cast<std::int64_t>(bytes_);
}

void Tiers::check_process() const {
    if (process_ != getpid())
        throw SpillError("the buffer's tiers belong to the process that made them, not to a fork of it");
}

// ---------------------------------------------------------------- in

HostMemory* Tiers::host_place() {
    if (!free_host_.empty()) return popped(free_host_);
    if (static_cast<std::int64_t>(host_.size()) == host_places_) return nullptr;
    host_.push_back(backend_.host_memory(bytes_));  // memory is only taken once it is needed
    return host_.back().get();
}

HostMemory* Tiers::outgoing() {
    settle(false);
    if (free_outgoing_.empty() && static_cast<std::int64_t>(outgoing_.size()) < kMoving - 1) {
        outgoing_.push_back(backend_.host_memory(bytes_));
        return outgoing_.back().get();
    }
    while (free_outgoing_.empty() && failed_.empty()) {
        if (writing_.empty()) break;
        writing_.front().crc.wait();  // the disk is slower than what comes in
        settle(false);
    }
    if (!failed_.empty()) throw SpillError(failed_);
    // Only a restore with a smaller host_bytes than before comes here: else one of them is being
    // written whenever the other holds the next segment.
    if (free_outgoing_.empty())
        throw std::invalid_argument("restore: more segments in memory than host_bytes holds");
    return popped(free_outgoing_);
}

HostMemory& Tiers::room() {
    check_process();
    settle(false);
    if (!failed_.empty()) throw SpillError(failed_);
    if (!room_) room_ = host_place();
    if (!room_) {
        if (!files_ || size() >= places()) throw std::invalid_argument("the tiers are full");
        if (live_files_.empty()) files_->keep_only({});  // what lies there is of a run that was given up
        room_ = outgoing();
    }
    return *room_;
}

void Tiers::add() {
    Segment segment;
    segment.serial = serial_++;
    segment.memory = room_;
    room_ = nullptr;
    write(segment);
    segments_.push_back(segment);
    if (!next_) choose();
}

bool Tiers::is_outgoing(const HostMemory* memory) const {
    return std::any_of(outgoing_.begin(), outgoing_.end(), [&](const auto& m) { return m.get() == memory; });
}

// Starts to write a segment to its file, if its memory is only lent to it for that.
void Tiers::write(Segment& segment) {
    if (!is_outgoing(segment.memory)) return;
    live_files_.insert(segment.serial);
    writing_.push_back({segment.serial, segment.memory, files_->write(segment.serial, *segment.memory)});
}

Tiers::Segment* Tiers::find(std::uint64_t serial) {
    if (next_ && next_->serial == serial) return &*next_;
    for (Segment& segment : segments_)
        if (segment.serial == serial) return &segment;
    return nullptr;
}

void Tiers::settle(bool wait) {
    while (!writing_.empty() && (wait || ready(writing_.front().crc))) {
        Writing done = std::move(writing_.front());
        writing_.pop_front();
        Segment* segment = find(done.serial);  // null: it was read back before it was written
        try {
            const std::uint32_t crc = done.crc.get();
            if (segment) {
                segment->crc = crc;
                segment->on_disk = true;
                segment->memory = nullptr;
            }
        } catch (const SpillError& error) {
            failed_ = error.what();
            live_files_.erase(done.serial);
            if (segment) continue;  // it stays in this memory
        }
        if (segment && next_ && segment == &*next_) {
            segment->memory = done.memory;  // it will be read from there
            continue;
        }
        free_outgoing_.push_back(done.memory);
        if (!segment) discard(done.serial);
    }
}

// ---------------------------------------------------------------- out

// Draws the segment that comes back next, and starts to bring it near.
void Tiers::choose() {
    if (segments_.empty()) return;
    settle(false);
    std::swap(segments_[random_.below(segments_.size())], segments_.back());
    next_ = segments_.back();
    segments_.pop_back();
    if (next_->memory) {
        backend_.fetch(*next_->memory, kHeader);
        return;
    }
    if (!incoming_) incoming_ = backend_.host_memory(bytes_);
    reading_ = files_->read(next_->serial, next_->crc, *incoming_);
}

HostMemory& Tiers::next() {
    check_process();
    if (!next_) throw std::invalid_argument("there is no segment below the pool");
    if (next_->memory) return *next_->memory;
    reading_.get();
    return *incoming_;
}

void Tiers::drop() {
    const Segment done = *next_;
    next_.reset();
    reading_ = {};
    if (done.memory && is_outgoing(done.memory)) {
        const bool pending = std::any_of(writing_.begin(), writing_.end(),
                                         [&](const Writing& w) { return w.serial == done.serial; });
        // Else `settle` frees both once it is written.
        if (!pending) {
            free_outgoing_.push_back(done.memory);
            discard(done.serial);
        }
    } else if (done.memory) {
        free_host_.push_back(done.memory);
    } else {
        discard(done.serial);
    }
    choose();
}

void Tiers::discard(std::uint64_t serial) {
    if (kept_.count(serial) || pending_.count(serial)) return;
    if (live_files_.erase(serial)) files_->remove(serial);
}

// ---------------------------------------------------------------- saved and restored

Tiers::State Tiers::state() {
    check_process();
    settle(true);
    State state;
    state.random = random_.state();
    state.serial = serial_;
    state.has_next = next_.has_value();
    const std::set<std::uint64_t> before = std::move(pending_);  // of a state that was never saved
    pending_.clear();
    auto note = [&](const Segment& s) {
        state.segments.push_back({s.serial, s.crc, s.on_disk});
        if (s.on_disk) pending_.insert(s.serial);
    };
    for (const Segment& segment : segments_) note(segment);
    if (next_) note(*next_);
    for (const std::uint64_t serial : before)
        if (!find(serial)) discard(serial);
    if (files_ && !pending_.empty()) files_->sync();
    return state;
}

void Tiers::saved() {
    const std::set<std::uint64_t> before = std::move(kept_);
    kept_ = std::move(pending_);
    pending_.clear();
    for (const std::uint64_t serial : before)
        if (!find(serial)) discard(serial);
}

void Tiers::forget() {
    pending_.clear();
    saved();
}

void Tiers::restore(const State& state) {
    check_process();
    if (size() > 0 || serial_ > 0) throw std::invalid_argument("restore: expected tiers that are new");
    if (static_cast<std::int64_t>(state.segments.size()) > places())
        throw std::invalid_argument("restore: more segments than host_bytes and disk_bytes have places for");
    random_.set_state(state.random);
    serial_ = state.serial;
    std::vector<std::uint64_t> files;
    for (const Entry& entry : state.segments) {
        segments_.push_back({entry.serial, entry.crc, entry.on_disk, nullptr});
        if (entry.on_disk) files.push_back(entry.serial);
    }
    if (!files.empty() && !files_)
        throw std::invalid_argument("restore: some segments are on disk, and disk_bytes is 0");
    if (files_) files_->keep_only(files);
    live_files_ = kept_ = {files.begin(), files.end()};
    if (state.has_next) {
        next_ = segments_.back();
        segments_.pop_back();
    }
}

std::vector<Tiers::Segment*> Tiers::memory_segments() {
    std::vector<Segment*> found;
    for (Segment& segment : segments_)
        if (!segment.on_disk) found.push_back(&segment);
    if (next_ && !next_->on_disk) found.push_back(&*next_);
    return found;
}

HostMemory& Tiers::in_memory(std::int64_t i) {
    HostMemory& memory = *memory_segments().at(static_cast<std::size_t>(i))->memory;
    memory.wait();
    return memory;
}

HostMemory& Tiers::restore_room(std::int64_t i) {
    Segment& segment = *memory_segments().at(static_cast<std::size_t>(i));
    if (!segment.memory) segment.memory = host_place();
    if (!segment.memory && files_) segment.memory = outgoing();
    if (!segment.memory) throw std::invalid_argument("restore: more segments in memory than host_bytes holds");
    return *segment.memory;
}

void Tiers::restored() {
    for (Segment* segment : memory_segments()) write(*segment);
    if (!next_ || next_->memory) return;
    incoming_ = backend_.host_memory(bytes_);
    reading_ = files_->read(next_->serial, next_->crc, *incoming_);
}

}  // namespace tb
