// Where the maxima along the last axis of an array are, as an XLA FFI handler for CPUs.
// XLA's own reduction of values and places together takes 20 times as long.

#include <algorithm>
#include <bit>
#include <cstdint>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

float Value(float v) { return v; }
float Value(uint16_t v) { return std::bit_cast<float>(uint32_t{v} << 16); }  // bfloat16

// Writes the place of the first maximum of every row; what is not a number is more than
// any number.
template <typename T>
void FindMaxima(const T* x, int64_t rows, int64_t length, int32_t* place) {
  for (int64_t row = 0; row < rows; ++row, x += length) {
    float best = Value(x[0]);
    int32_t at = 0;
    for (int32_t i = 1; i < length; ++i) {
      const float v = Value(x[i]);
      const bool is_better = (v > best) | ((v != v) & (best == best));
      best = is_better ? v : best;
      at = is_better ? i : at;
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
