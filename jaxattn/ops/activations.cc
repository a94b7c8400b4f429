// The ReLU and its gradient, where they are not part of another operation, as XLA FFI
// handlers for CPUs. Arrays are float32 or bfloat16; the result lies where the first
// operand does.

#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Map = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

template <typename T>
JAXATTN_VECTORS void Relu(const T* x, T* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float v = Load(x[i]);
    Store(0.0f > v ? 0.0f : v, y[i]);  // what is not a number stays so
  }
}

template <typename T>
JAXATTN_VECTORS void ReluGradient(const T* dy, const T* y, T* dx, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    Store(Load(y[i]) > 0.0f ? Load(dy[i]) : 0.0f, dx[i]);
  }
}

// Calls `run(type, first, size)` for parts of a map, with a value of its type.
template <typename Run>
ffi::Error ForEachPart(ffi::ThreadPool& pool, const Map& map, const Run& run) {
  const int64_t all = map.element_count();
  const int64_t parts = std::clamp(all / 65536, int64_t{1}, 4 * pool.num_threads());
  const auto with_type = [&](auto type) {
    ForEach(pool, parts, [&](int64_t i) {
      const int64_t first = all * i / parts;
      run(type, first, all * (i + 1) / parts - first);
    });
    return ffi::Error::Success();
  };
  if (map.element_type() == ffi::F32) return with_type(float());
  if (map.element_type() == ffi::BF16) return with_type(BFloat16());
  return ffi::Error::InvalidArgument("relu: neither float32 nor bfloat16");
}

template <typename T>
T* Data(const Map& map, T, int64_t first) {
  return reinterpret_cast<T*>(map.untyped_data()) + first;
}

ffi::Error ReluCall(ffi::ThreadPool pool, Map x, Result y) {
  return ForEachPart(pool, x, [&](auto type, int64_t first, int64_t size) {
    Relu(Data(x, type, first), Data(*y, type, first), size);
  });
}

ffi::Error ReluGradientCall(ffi::ThreadPool pool, Map dy, Map y, Result dx) {
  return ForEachPart(pool, dy, [&](auto type, int64_t first, int64_t size) {
    ReluGradient(Data(dy, type, first), Data(y, type, first), Data(*dx, type, first),
                 size);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxattn_relu, ReluCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Map>().Ret<Map>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxattn_relu_gradient, ReluGradientCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Map>().Arg<Map>().Ret<Map>());
