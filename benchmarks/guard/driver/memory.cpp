// What the kernels ask of libc, as loops that are counted as they are: libc's own are other instructions
// on every processor.
#include <cstddef>

extern "C" {

void* memset(void* to, int value, std::size_t n) {
    char* out = static_cast<char*>(to);
    for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<char>(value);
    return to;
}

void* memcpy(void* __restrict to, const void* __restrict from, std::size_t n) {
    char* __restrict out = static_cast<char*>(to);
    const char* __restrict in = static_cast<const char*>(from);
    for (std::size_t i = 0; i < n; ++i) out[i] = in[i];
    return to;
}

void* memmove(void* to, const void* from, std::size_t n) {
    char* out = static_cast<char*>(to);
    const char* in = static_cast<const char*>(from);
    if (out < in) {
        for (std::size_t i = 0; i < n; ++i) out[i] = in[i];
    } else {
        for (std::size_t i = n; i > 0; --i) out[i - 1] = in[i - 1];
    }
    return to;
}

}
