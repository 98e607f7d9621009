// A device type CUDA in the host's memory: PyTorch's guard, hooks and allocator for it, and tensors over given storage.
// Which operators it has, device.py says: all of them, run by PyTorch's kernels for the CPU on the same memory.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {
using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

constexpr DeviceIndex num_devices = 2;
thread_local DeviceIndex current = 0;

DeviceIndex exchange(DeviceIndex index) {
    const auto before = current;
    if (index >= 0) current = index;
    return before;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return c10::kCUDA; }
    Device exchangeDevice(Device d) const override { return Device(c10::kCUDA, exchange(d.index())); }
    Device getDevice() const override { return Device(c10::kCUDA, current); }
    void setDevice(Device d) const override { exchange(d.index()); }
    void uncheckedSetDevice(Device d) const noexcept override { exchange(d.index()); }
    Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
    Stream getNewStream(Device d, int) const override { return Stream(Stream::DEFAULT, d); }
    Stream getDefaultStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
    Stream exchangeStream(Stream s) const override { return s; }
    DeviceIndex deviceCount() const noexcept override { return num_devices; }
    void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, const DeviceIndex) const noexcept override {}
    bool queryStream(const Stream&) const override { return true; }
    void synchronizeStream(const Stream&) const override {}
    void synchronizeEvent(void*) const override {}
    void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// PyTorch looks it up by this name.
struct CUDAHooks final : at::CUDAHooksInterface {
    explicit CUDAHooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    DeviceIndex deviceCount() const override { return num_devices; }
    DeviceIndex getCurrentDevice() const override { return current; }
    DeviceIndex current_device() const override { return current; }
    DeviceIndex exchangeDevice(DeviceIndex d) const override { return exchange(d); }
    DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return exchange(d); }
    bool isPinnedPtr(const void*) const override { return false; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);

// New memory is NaN in every floating type, so that what is read before it is written shows.
struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        void* p = nullptr;
        if (bytes) {
            p = aligned_alloc(512, (bytes + 511) / 512 * 512);
            memset(p, 0xff, bytes);
        }
        return {p, p, &std::free, Device(c10::kCUDA, current)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
    void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};
Allocator allocator;
const int registered = (c10::SetAllocator(c10::kCUDA, &allocator), 0);

at::Tensor over(const c10::Storage& storage, const at::Tensor& like, c10::DispatchKey key) {
    auto made = at::detail::make_tensor_base<c10::TensorImpl>(
        c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    return at::Tensor(made);
}

// The same memory as a tensor of the other device, which keeps it alive.
at::Tensor aliased(const at::Tensor& t, Device device) {
    auto kept = t.storage();
    c10::DataPtr data(
        kept.mutable_data(), new c10::Storage(kept), [](void* p) { delete static_cast<c10::Storage*>(p); }, device);
    auto* owner = device.is_cuda() ? static_cast<c10::Allocator*>(&allocator) : c10::GetAllocator(c10::kCPU);
    c10::Storage storage(c10::Storage::use_byte_size_t(), kept.nbytes(), std::move(data), owner, true);
    return over(storage, t, device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
}
at::Tensor to_host(const at::Tensor& t) { return aliased(t, Device(c10::kCPU)); }
at::Tensor to_device(const at::Tensor& t, int64_t index) { return aliased(t, Device(c10::kCUDA, index)); }
// What the host made of the memory of `base`, as a view of `base`.
at::Tensor view_of(const at::Tensor& base, const at::Tensor& made) {
    return over(base.storage(), made, c10::DispatchKey::CUDA);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, at::ScalarType dtype, int64_t index) {
    const auto before = exchange(index);
    const auto keys = c10::DispatchKeySet(c10::DispatchKey::CUDA);
    auto made = at::detail::empty_strided_generic(size, stride, &allocator, keys, dtype);
    exchange(before);
    return at::Tensor(made);
}

// The storage of `t` at another size; what it held before is overwritten, as FSDP2 frees memory in this way.
void resize_storage(const at::Tensor& t, int64_t bytes) {
    auto* storage = t.storage().unsafeGetStorageImpl();
    const size_t old = storage->nbytes(), kept = std::min(old, size_t(bytes));
    const auto before = exchange(t.device().index());
    auto data = allocator.allocate(bytes);
    exchange(before);
    if (kept) memcpy(data.get(), storage->data(), kept);
    if (old) memset(storage->mutable_data(), 0xff, old);
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(bytes);
}
const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
    const size_t bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.itemsize();
    if (bytes > self.storage().nbytes()) resize_storage(self, bytes);
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    return self;
}
at::Tensor& set_part(at::Tensor& self, at::Storage s, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
    self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(s));
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
    return self;
}
at::Tensor& set_whole(at::Tensor& self, at::Storage s) {
    const int64_t numel = s.nbytes() / self.itemsize(), one = 1;
    return set_part(self, std::move(s), 0, c10::IntArrayRef(&numel, 1), c10::IntArrayRef(&one, 1));
}
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("resize_", resize_);
    m.impl("set_.source_Storage", set_whole);
    m.impl("set_.source_Storage_storage_offset", set_part);
}

int64_t current_device() { return current; }
int64_t exchange_device(int64_t index) { return exchange(index); }
TORCH_LIBRARY(cuda_stand_in, m) {
    m.def("current_device() -> int", current_device);
    m.def("exchange_device(int index) -> int", exchange_device);
    m.def("resize_storage(Tensor t, int bytes) -> ()", resize_storage);
    m.def("to_host(Tensor t) -> Tensor", to_host);
    m.def("to_device(Tensor t, int index) -> Tensor", to_device);
    m.def("view_of(Tensor base, Tensor made) -> Tensor", view_of);
    m.def("empty_strided(int[] size, int[] stride, ScalarType dtype, int index) -> Tensor", empty_strided);
}
}  // namespace
