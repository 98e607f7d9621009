// Copies from global to shared memory that go on while the thread computes (cp.async, sm_80 and newer): 4, 8 or 16 bytes
// each, closed into groups, and awaited by the thread that issued them. No header needed.
#ifndef CUDA_ON_CPU
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

template <int BYTES>
__device__ __forceinline__ void copy_asynchronously(void* shared, const void* global) {
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    if constexpr (BYTES == 16)  // past L1, which these rows would only churn
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` of this thread's groups are still on their way.
template <int PENDING>
__device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif
