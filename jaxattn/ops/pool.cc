// Where the maxima along the last axis of an array are, as an XLA FFI handler for CPUs.
// XLA's own reduction of values and places together takes 20 times as long.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int32_t kLargest = std::numeric_limits<int32_t>::max();

float Value(float v) { return v; }
float Value(uint16_t v) { return std::bit_cast<float>(uint32_t{v} << 16); }  // bfloat16

// An integer that is larger for larger values, for which compilers use vectors. What is
// not a number is more than any number, and both zeros are equal.
template <typename T>
int32_t Order(T v) {
  const float value = Value(v) + 0.0f;
  const int32_t bits = std::bit_cast<int32_t>(value);
  return value != value ? kLargest : bits ^ ((bits >> 31) & kLargest);
}

// Writes the place of the first maximum of every row.
template <typename T>
void FindMaxima(const T* x, int64_t rows, int32_t length, int32_t* place) {
  for (int64_t row = 0; row < rows; ++row, x += length) {
    int32_t best = -kLargest - 1, at = length;
#pragma omp simd reduction(max : best)
    for (int32_t i = 0; i < length; ++i) best = std::max(best, Order(x[i]));
#pragma omp simd reduction(min : at)
    for (int32_t i = 0; i < length; ++i) {
      at = std::min(at, Order(x[i]) == best ? i : length);
    }
    place[row] = at;
  }
}

template <typename T>
void FindAllMaxima(ffi::ThreadPool& pool, const void* x, int64_t rows, int64_t length,
                   int32_t* place) {
  const int64_t parts = std::clamp<int64_t>(rows * length / 65536, 1, 64);
  ForEach(pool, parts, [&](int64_t part) {
    const int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
    FindMaxima(static_cast<const T*>(x) + first * length, end - first, length,
               place + first);
  });
}

ffi::Error FirstMaximum(ffi::ThreadPool pool, ffi::AnyBuffer x,
                        ffi::ResultBuffer<ffi::S32> place) {
  const int64_t rows = place->element_count(), length = x.dimensions().back();
  if (x.element_type() == ffi::F32) {
    FindAllMaxima<float>(pool, x.untyped_data(), rows, length, place->typed_data());
  } else if (x.element_type() == ffi::BF16) {
    FindAllMaxima<uint16_t>(pool, x.untyped_data(), rows, length, place->typed_data());
  } else {
    return ffi::Error::InvalidArgument("maxima: neither float32 nor bfloat16");
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_first_maximum, FirstMaximum,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
