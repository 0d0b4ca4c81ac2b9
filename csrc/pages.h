// Large memory in huge pages, where the system gives them to those who ask.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tb {

// Rows read in any order of a gigabyte of small pages spend a fifth of their time on addresses. To be
// called before the memory is first touched; whoever does not give huge pages is not asked twice.
inline void prefer_huge_pages(void* data, std::size_t bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t kPage = 4096;
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace tb
