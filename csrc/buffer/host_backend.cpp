#include "buffer/host_backend.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "pages.h"

namespace tb {
namespace {

class Pages : public HostMemory {
  public:
    explicit Pages(std::size_t bytes) : data_(static_cast<char*>(std::aligned_alloc(4096, bytes))) {
        if (!data_) throw std::bad_alloc();
        prefer_huge_pages(data_, bytes);
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    ~Pages() override { std::free(data_); }
    char* data() override { return data_; }
    void wait() override {}

  private:
    char* data_;
};

void check_kinds(RowKind from, RowKind to) {
    const bool narrow = from == RowKind::f16 || to == RowKind::f16;
    if ((from != to && narrow) || from == RowKind::mx8)
        throw std::invalid_argument("put: rows of this kind are not converted here");
}

class HostBackend : public Backend {
  public:
    HostBackend(std::vector<HookRows> hooks, const Kernels& (*kernels)())
        : hooks_(std::move(hooks)), kernels_(kernels) {}

    std::unique_ptr<HostMemory> host_memory(std::size_t bytes) override { return std::make_unique<Pages>(bytes); }

    std::size_t staging_bytes() const override { return 0; }

    std::vector<BadRows> put(const std::vector<Incoming>& incoming, const SlotLists& slots,
                             const Caller& caller) override {
        std::vector<BadRows> bad(hooks_.size(), BadRows{0, -1});
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            const HookRows& hook = hooks_[i];
            check_kinds(incoming[i].kind, hook.kind);
            bad[i] = kernels_().put_rows({incoming[i].rows, incoming[i].kind, hook.rows, hook.kind,
                                          slots.of_hook[i], slots.n, hook.d, caller.threads});
            if (bad[i].count) break;
        }
        return bad;
    }

    void take(const SlotLists& slots, const std::vector<void*>& out, const Caller& caller) override {
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            const HookRows& hook = hooks_[i];
            kernels_().take_rows({hook.rows, hook.kind, slots.of_hook[i], slots.n, hook.d, out[i], caller.threads});
        }
    }

    void spill(const SlotLists& slots, HostMemory& memory, std::size_t offset, const Caller& caller) override {
        char* to = memory.data() + offset;
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            const std::int64_t bytes = row_bytes(hooks_[i].kind, hooks_[i].d);
            kernels_().gather_rows(hooks_[i].rows, slots.of_hook[i], slots.n, bytes, to, caller.threads);
            to += slots.n * bytes;
        }
    }

    void fetch(HostMemory&, std::size_t) override {}  // it is here

    void load(HostMemory& memory, std::size_t offset, const SlotLists& slots, const Caller& caller) override {
        const char* from = memory.data() + offset;
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            const std::int64_t bytes = row_bytes(hooks_[i].kind, hooks_[i].d);
            kernels_().scatter_rows(from, slots.of_hook[i], slots.n, bytes, hooks_[i].rows, caller.threads);
            from += slots.n * bytes;
        }
    }

    // `put` has told them already.
    std::vector<std::int64_t> bad_rows() override { return std::vector<std::int64_t>(hooks_.size()); }

  private:
    std::vector<HookRows> hooks_;
    const Kernels& (*kernels_)();
};

}  // namespace

std::unique_ptr<Backend> host_backend(std::vector<HookRows> hooks, const Kernels& (*kernels)()) {
    return std::make_unique<HostBackend>(std::move(hooks), kernels);
}

}  // namespace tb
