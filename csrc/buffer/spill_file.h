// Segments as files: written whole or not at all, verified when they are read.
//
// A file is one page with magic, serial number, length and checksums, and the rows after it, padded
// to whole pages. It is written past the page cache (O_DIRECT) where the file system allows that.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "buffer/backend.h"

namespace tb {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHeader = kPage;  // a segment's memory starts with room for it

// A segment that could not be written, or must not be read. The message names the file.
class SpillError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// CRC-32C (Castagnoli; RFC 3720, B.4).
std::uint32_t crc32c(const void* data, std::size_t bytes);

// Jobs one after the other, on a thread that starts with the first.
class Worker {
  public:
    Worker() = default;
    ~Worker();  // after all jobs
    void run(std::function<void()> job);

  private:
    void loop();

    std::mutex lock_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> jobs_;
    bool stopping_ = false;
    std::unique_ptr<std::thread> thread_;
};

// A forked process must not destroy it: neither its threads nor its files are there.
class SpillFiles {
  public:
    // Takes the directory for this object alone; throws SpillError if it cannot be had.
    SpillFiles(const std::string& directory, std::size_t bytes);
    ~SpillFiles();

    // `memory`: kHeader bytes, then the rows; `bytes` in all. It must stay as it is until the future
    // is ready. The result is the checksum of the rows.
    std::future<std::uint32_t> write(std::uint64_t serial, HostMemory& memory);
    std::shared_future<void> read(std::uint64_t serial, std::uint32_t crc, HostMemory& memory);

    void remove(std::uint64_t serial);
    // Removes all segments but these; throws SpillError for one of them that is missing or too short.
    void keep_only(const std::vector<std::uint64_t>& serials);
    void sync();  // the names of files outlive a power cut after it

  private:
    std::string path(std::uint64_t serial) const;
    std::string lock_name() const;

    const std::string directory_;
    const std::size_t bytes_;
    int lock_ = -1;
    std::string taken_;
    Worker writer_, reader_;
};

}  // namespace tb
