// The tiers below the pool: segments in host memory, then in files.
//
// A segment never changes once it is written, and lies in one place until it is read back: in host
// memory while there is room, else in a file of its own (spill_file.h). Files are written and read by
// two threads; which segment comes back next is drawn as soon as the one before it has, so that it is
// read while the device works. Whoever is faster than the disk waits for it: memory is bounded.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "buffer/backend.h"
#include "buffer/slots.h"
#include "buffer/spill_file.h"

namespace tb {

struct TierOptions {
    std::int64_t host_bytes = 0;  // of host memory for segments
    std::int64_t disk_bytes = 0;  // of files: half for segments, half for what a saved state still needs
    std::string directory;        // of the files
};

class Tiers {
  public:
    // On their way to and from the disk; part of host_bytes.
    static constexpr std::int64_t kMoving = 3;
    // Of a segment with so many bytes of rows: its memory, and its file.
    static std::size_t segment_bytes(std::size_t rows) { return kHeader + (rows + kPage - 1) / kPage * kPage; }

    // `rows`: bytes of a segment's rows. Throws std::invalid_argument when a bound is too small.
    Tiers(Backend& backend, std::size_t rows, const TierOptions& options, std::uint64_t seed);
    ~Tiers();

    std::int64_t places() const { return host_places_ + disk_places_; }  // segments they hold at most
    std::int64_t size() const { return static_cast<std::int64_t>(segments_.size()) + (next_ ? 1 : 0); }
    std::int64_t host_bytes() const;

    // Memory for one more segment's rows, from kHeader on; `add` once it is filled. Throws SpillError
    // when an earlier segment could not be written to its file (it is still in memory).
    HostMemory& room();
    void add();

    // The segment to come back: whole, and verified. Throws SpillError, naming its file, if it is not.
    // `drop` once it is in the pool.
    HostMemory& next();
    void drop();

    struct Entry {
        std::uint64_t serial;
        std::uint32_t crc;
        bool on_disk;
    };
    struct State {
        Random::State random{};
        std::uint64_t serial = 0;      // of the next segment
        std::vector<Entry> segments;   // in the order that draws depend on; the next one last
        bool has_next = false;
    };
    State state();
    void saved();
    void forget();  // no saved state will be restored
    void restore(const State& state);
    HostMemory& in_memory(std::int64_t i);    // the i-th segment that is not on disk
    HostMemory& restore_room(std::int64_t i);  // the same, after `restore`, to be filled
    void restored();

  private:
    struct Segment {
        std::uint64_t serial = 0;
        std::uint32_t crc = 0;
        bool on_disk = false;           // its file is whole
        HostMemory* memory = nullptr;   // its rows, if they are in memory
    };
    struct Writing {
        std::uint64_t serial;
        HostMemory* memory;
        std::future<std::uint32_t> crc;
    };

    void check_process() const;
    HostMemory* host_place();
    HostMemory* outgoing();
    bool is_outgoing(const HostMemory* memory) const;
    Segment* find(std::uint64_t serial);
    void write(Segment& segment);
    void settle(bool wait);  // takes note of writes that are done
    void choose();
    void discard(std::uint64_t serial);
    std::vector<Segment*> memory_segments();

    Backend& backend_;
    const std::size_t bytes_;  // of a segment's memory and file
    std::int64_t host_places_ = 0, disk_places_ = 0;
    std::unique_ptr<SpillFiles> files_;  // null without a disk
    std::vector<std::unique_ptr<HostMemory>> host_, outgoing_;
    std::unique_ptr<HostMemory> incoming_;
    std::vector<HostMemory*> free_host_, free_outgoing_;
    HostMemory* room_ = nullptr;
    std::vector<Segment> segments_;
    std::optional<Segment> next_;
    std::shared_future<void> reading_;  // valid while next_ comes from its file
    std::deque<Writing> writing_;
    std::string failed_;  // why a segment could not be written
    std::set<std::uint64_t> live_files_, kept_, pending_;
    Random random_;
    std::uint64_t serial_ = 0;
    long process_;
};

}  // namespace tb
