#include "buffer/spill_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif
#ifndef O_DIRECT
#define O_DIRECT 0
#endif

namespace tb {
namespace {

constexpr char kMagic[8] = {'t', 'b', 's', 'p', 'i', 'l', 'l', '1'};

struct Header {
    char magic[8];
    std::uint64_t serial, bytes;  // of the rows
    std::uint32_t crc, header_crc;  // of the rows; of what stands before it here
};

std::uint32_t header_crc(const Header& header) { return crc32c(&header, offsetof(Header, header_crc)); }

std::uint32_t crc_portable(std::uint32_t crc, const unsigned char* data, std::size_t bytes) {
    static const std::array<std::uint32_t, 256> table = [] {
        std::array<std::uint32_t, 256> made{};
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            made[byte] = byte;
            for (int bit = 0; bit < 8; ++bit)
                made[byte] = (made[byte] >> 1) ^ (0x82f63b78u & (0u - (made[byte] & 1u)));
        }
        return made;
    }();
    for (std::size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ table[(crc ^ data[i]) & 0xffu];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc_sse42(std::uint32_t crc, const unsigned char* data,
                                                          std::size_t bytes) {
    std::uint64_t wide = crc;
    for (; bytes >= 8; bytes -= 8, data += 8) {
        std::uint64_t word;
        std::memcpy(&word, data, sizeof word);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = static_cast<std::uint32_t>(wide);
    for (; bytes > 0; --bytes, ++data) crc = _mm_crc32_u8(crc, *data);
    return crc;
}
#endif

std::string reason() { return std::strerror(errno); }

// Directories that this process has locked.
std::set<std::string>& taken() {
    static std::set<std::string> directories;
    return directories;
}

std::mutex& taken_lock() {
    static std::mutex lock;
    return lock;
}

// A file descriptor that closes itself.
class File {
  public:
    File(const std::string& path, int flags) {
        // Past the page cache, where the file system can: what is spilled is not read again soon.
        fd_ = open(path.c_str(), flags | O_DIRECT | O_CLOEXEC, 0666);
        if (fd_ < 0 && errno == EINVAL) fd_ = open(path.c_str(), flags | O_CLOEXEC, 0666);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
        if (fd_ >= 0) close(fd_);
    }
    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

  private:
    int fd_;
};

bool write_all(int fd, const char* data, std::size_t bytes) {
    for (std::size_t done = 0; done < bytes;) {
        const ssize_t n = pwrite(fd, data + done, bytes - done, static_cast<off_t>(done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += static_cast<std::size_t>(n);
    }
    return true;
}

// How many bytes could be read; -1 with errno set when the system says no.
ssize_t read_all(int fd, char* data, std::size_t bytes) {
    std::size_t done = 0;
    while (done < bytes) {
        const ssize_t n = pread(fd, data + done, bytes - done, static_cast<off_t>(done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += static_cast<std::size_t>(n);
    }
    return static_cast<ssize_t>(done);
}

std::uint32_t write_file(const std::string& path, std::uint64_t serial, char* memory, std::size_t bytes) {
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.serial = serial;
    header.bytes = bytes - kHeader;
    header.crc = crc32c(memory + kHeader, bytes - kHeader);
    header.header_crc = header_crc(header);
    std::memset(memory, 0, kHeader);
    std::memcpy(memory, &header, sizeof header);

    const std::string temporary = path + ".tmp";
    bool written = false;
    std::string why;
    {
        const File file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
        written = file && write_all(file.get(), memory, bytes) && fdatasync(file.get()) == 0;
        if (!written) why = reason();
    }
    if (written && std::rename(temporary.c_str(), path.c_str()) != 0) {
        written = false;
        why = reason();
    }
    if (!written) {
        unlink(temporary.c_str());
        throw SpillError(path + ": not written (" + why + ")");
    }
    return header.crc;
}

void read_file(const std::string& path, std::uint64_t serial, std::uint32_t crc, char* memory,
               std::size_t bytes) {
    const File file(path, O_RDONLY);
    if (!file) throw SpillError(path + ": not readable (" + reason() + ")");
    const ssize_t got = read_all(file.get(), memory, bytes);
    if (got < 0) throw SpillError(path + ": not readable (" + reason() + ")");
    if (static_cast<std::size_t>(got) != bytes)
        throw SpillError(path + ": truncated (" + std::to_string(got) + " bytes, expected " +
                         std::to_string(bytes) + ")");
    Header header;
    std::memcpy(&header, memory, sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.header_crc != header_crc(header) ||
        header.bytes != bytes - kHeader || header.crc != crc32c(memory + kHeader, bytes - kHeader))
        throw SpillError(path + ": corrupt (its checksum does not fit its bytes)");
    if (header.serial != serial || header.crc != crc)
        throw SpillError(path + ": another segment than the one that was written there");
}

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
#if defined(__x86_64__)
    static const bool fast = __builtin_cpu_supports("sse4.2");
    if (fast) return ~crc_sse42(~0u, p, bytes);
#endif
    return ~crc_portable(~0u, p, bytes);
}

// ---------------------------------------------------------------- Worker

Worker::~Worker() {
    if (!thread_) return;
    {
        const std::lock_guard<std::mutex> held(lock_);
        stopping_ = true;
    }
    wake_.notify_one();
    thread_->join();
}

void Worker::run(std::function<void()> job) {
    const std::lock_guard<std::mutex> held(lock_);
    jobs_.push_back(std::move(job));
    if (!thread_) {
        thread_ = std::make_unique<std::thread>([this] { loop(); });
    }
    wake_.notify_one();
}

void Worker::loop() {
    for (;;) {
        std::function<void()> job;
        {
            std::unique_lock<std::mutex> held(lock_);
            wake_.wait(held, [this] { return stopping_ || !jobs_.empty(); });
            if (jobs_.empty()) return;
            job = std::move(jobs_.front());
            jobs_.pop_front();
        }
        job();
    }
}

// ---------------------------------------------------------------- SpillFiles

SpillFiles::SpillFiles(const std::string& directory, std::size_t bytes) : directory_(directory), bytes_(bytes) {
    // Two locks: the system's, which a killed process lets go of and a forked one does not inherit,
    // holds against other processes, and `taken` against this one.
    const auto refused = [&] { return SpillError(directory + ": in use by another buffer, whose files lie there"); };
    const std::lock_guard<std::mutex> held(taken_lock());
    (void)mkdir(directory.c_str(), 0777);  // what is wrong with it shows next
    char resolved[PATH_MAX];
    if (!realpath(directory.c_str(), resolved)) throw SpillError(directory + ": not readable (" + reason() + ")");
    taken_ = resolved;
    if (taken().count(taken_)) throw refused();
    struct stat found {};
    while (found.st_nlink == 0) {  // else its last owner has just removed what is locked here
        if (lock_ >= 0) close(lock_);
        lock_ = open(lock_name().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (lock_ < 0) throw SpillError(lock_name() + ": not writable (" + reason() + ")");
        struct flock all {};
        all.l_type = F_WRLCK;
        if (fcntl(lock_, F_SETLK, &all) != 0) {
            const bool busy = errno == EACCES || errno == EAGAIN;
            const std::string why = reason();
            close(lock_);
            if (busy) throw refused();
            throw SpillError(lock_name() + ": not lockable (" + why + ")");
        }
        if (fstat(lock_, &found) != 0) break;
    }
    taken().insert(taken_);
}

SpillFiles::~SpillFiles() {
    const std::lock_guard<std::mutex> held(taken_lock());
    unlink(lock_name().c_str());
    rmdir(directory_.c_str());  // if nothing is left in it
    close(lock_);               // which lets go of the lock
    taken().erase(taken_);
}

std::string SpillFiles::lock_name() const { return directory_ + "/lock"; }

std::string SpillFiles::path(std::uint64_t serial) const {
    char name[40];
    std::snprintf(name, sizeof name, "/segment-%010" PRIu64 ".spill", serial);
    return directory_ + name;
}

std::future<std::uint32_t> SpillFiles::write(std::uint64_t serial, HostMemory& memory) {
    auto job = std::make_shared<std::packaged_task<std::uint32_t()>>([this, serial, &memory] {
        memory.wait();
        return write_file(path(serial), serial, memory.data(), bytes_);
    });
    writer_.run([job] { (*job)(); });
    return job->get_future();
}

std::shared_future<void> SpillFiles::read(std::uint64_t serial, std::uint32_t crc, HostMemory& memory) {
    auto job = std::make_shared<std::packaged_task<void()>>([this, serial, crc, &memory] {
        memory.wait();
        read_file(path(serial), serial, crc, memory.data(), bytes_);
    });
    reader_.run([job] { (*job)(); });
    return job->get_future().share();
}

void SpillFiles::remove(std::uint64_t serial) { unlink(path(serial).c_str()); }

void SpillFiles::keep_only(const std::vector<std::uint64_t>& serials) {
    for (const std::uint64_t serial : serials) {
        struct stat found;
        if (stat(path(serial).c_str(), &found) != 0)
            throw SpillError(path(serial) + ": not readable (" + reason() + ")");
        if (static_cast<std::size_t>(found.st_size) != bytes_)
            throw SpillError(path(serial) + ": truncated (" + std::to_string(found.st_size) + " bytes, expected " +
                             std::to_string(bytes_) + ")");
    }
    DIR* listing = opendir(directory_.c_str());
    if (!listing) throw SpillError(directory_ + ": not readable (" + reason() + ")");
    while (const dirent* entry = readdir(listing)) {
        const std::string name = entry->d_name;
        if (name.compare(0, 8, "segment-") != 0) continue;
        const auto mine = [&](std::uint64_t serial) { return path(serial) == directory_ + "/" + name; };
        if (std::none_of(serials.begin(), serials.end(), mine)) unlink((directory_ + "/" + name).c_str());
    }
    closedir(listing);
}

void SpillFiles::sync() {
    const int fd = open(directory_.c_str(), O_RDONLY | O_CLOEXEC);
    const bool synced = fd >= 0 && fsync(fd) == 0;
    const std::string why = synced ? "" : reason();
    if (fd >= 0) close(fd);
    if (!synced) throw SpillError(directory_ + ": not written (" + why + ")");
}

}  // namespace tb
