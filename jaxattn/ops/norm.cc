// Batch normalisation in training, with a sum and an activation behind it, and its
// gradient, as XLA FFI handlers for CPUs. Two passes over a map each, where the
// operations one by one take twice as many. Maps [..., C] are float32 or bfloat16,
// everything of a channel is float32.
//
//   z = (x - shift) * factor + offset [+ residual],  y = activation(z)
//   factor = scale / sqrt(var + epsilon),  offset = bias - mean * factor
//
// The mean of a channel is shift + mean: of the two float32 the second is what rounding
// has left of the first. Sums over a map are float64, so that they are exact for a mean
// of 1000 deviations, too.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// An activation: values are clipped to [lower, upper], and of a gradient the share `edge`
// comes back where one is at a bound. What is not a number stays so.
struct Activation {
  float lower, upper, edge;

  float operator()(float z) const {
    z = lower > z ? lower : z;
    return upper < z ? upper : z;
  }
  float Slope(float z) const {
    const float inside = (z == lower) | (z == upper) ? edge : 1.0f;
    return (z < lower) | (z > upper) ? 0.0f : inside;
  }
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// None, ReLU and ReLU6, whose gradient at its bounds is that of JAX's clipping.
constexpr Activation kActivations[] = {
    {-kInfinity, kInfinity, 1}, {0, kInfinity, 0}, {0, 6, 0.5}};

// Inner loops -------------------------------------------------------------------------

// All of them go over `rows` rows of `size` values, each with its channel's numbers. A
// result may lie where an operand does: every value is read before it is written.

// Adds up the values and their squares.
template <typename T>
JAXATTN_VECTORS void AddMoments(const T* x, int64_t rows, int64_t size, double* sum,
                                double* square) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4, x += 4 * size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const double a = Load(x[i]), b = Load(x[i + size]);
      const double c = Load(x[i + 2 * size]), d = Load(x[i + 3 * size]);
      sum[i] += (a + b) + (c + d);
      square[i] += (a * a + b * b) + (c * c + d * d);
    }
  }
  for (; row < rows; ++row, x += size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const double a = Load(x[i]);
      sum[i] += a;
      square[i] += a * a;
    }
  }
}

// What makes z of x, for each value of a row.
struct Affine {
  const float *shift, *factor, *offset;

  float Centre(float x, int64_t i) const { return x - shift[i]; }
  float Apply(float centred, int64_t i) const {
    return centred * factor[i] + offset[i];
  }
};

template <typename T, bool R>
JAXATTN_VECTORS void Apply(Activation activation, Affine affine, const T* x,
                           const T* residual, int64_t rows, int64_t size, T* y) {
  for (int64_t row = 0; row < rows; ++row, x += size, y += size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      float z = affine.Apply(affine.Centre(Load(x[i]), i), i);
      if (R) z += Load(residual[i]);
      Store(activation(z), y[i]);
    }
    if (R) residual += size;
  }
}

// Adds up dz and dz * (x - shift), and writes dz, the gradient of the residual, if any.
template <typename T, bool R>
JAXATTN_VECTORS void AddGradients(Activation activation, Affine affine, const T* x,
                                  const T* residual, const T* dy, int64_t rows,
                                  int64_t size, T* dz, double* sum, double* product) {
  const auto at = [&](int64_t i, int64_t j, float& total, float& products) {
    const float centred = affine.Centre(Load(x[j]), i);
    float z = affine.Apply(centred, i);
    if (R) z += Load(residual[j]);
    const float g = Load(dy[j]) * activation.Slope(z);
    if (R) Store(g, dz[j]);
    total += g;
    products += g * centred;
  };
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4, x += 4 * size, dy += 4 * size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      float total = 0, products = 0;
      at(i, i, total, products);
      at(i, i + size, total, products);
      at(i, i + 2 * size, total, products);
      at(i, i + 3 * size, total, products);
      sum[i] += total;
      product[i] += products;
    }
    if (R) residual += 4 * size, dz += 4 * size;
  }
  for (; row < rows; ++row, x += size, dy += size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      float total = 0, products = 0;
      at(i, i, total, products);
      sum[i] += total;
      product[i] += products;
    }
    if (R) residual += size, dz += size;
  }
}

// dx = factor * dz + slope * (x - shift) + constant, of dy or, with no activation, dz.
template <typename T>
JAXATTN_VECTORS void ApplyGradient(Activation activation, Affine affine, const T* x,
                                   const T* dy, int64_t rows, int64_t size,
                                   const float* slope, const float* constant, T* dx) {
  for (int64_t row = 0; row < rows; ++row, x += size, dy += size, dx += size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float centred = affine.Centre(Load(x[i]), i);
      const float g = Load(dy[i]) * activation.Slope(affine.Apply(centred, i));
      Store(affine.factor[i] * g + (slope[i] * centred + constant[i]), dx[i]);
    }
  }
}

// Maps --------------------------------------------------------------------------------

// A map as rows of `joined` positions, so that rows of few channels, too, are long
// enough for vectors, and as parts of rows that are computed at the same time.
struct Layout {
  int64_t positions, channels, joined, size, rows, parts;

  Layout(int64_t elements, int64_t channels, int64_t threads)
      : positions(elements / channels), channels(channels) {
    const int64_t whole = 16 / std::gcd(channels, int64_t{16});
    joined = whole * ((255 + channels * whole) / (channels * whole));
    size = joined * channels;
    rows = positions / joined;
    parts = std::clamp(elements / 65536, int64_t{1}, 4 * threads);
    parts = std::clamp(rows, int64_t{1}, parts);
  }

  // Calls `run(part, first element, rows, size)` for every part, and for the positions
  // that are left over.
  template <typename Run>
  void ForEachPart(ffi::ThreadPool& pool, const Run& run) const {
    ForEach(pool, parts, [&](int64_t part) {
      const int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
      if (end > first) run(part, first * size, end - first, size);
      const int64_t rest = (positions - rows * joined) * channels;
      if (part == parts - 1 && rest) run(part, end * size, int64_t{1}, rest);
    });
  }

  // A channel's number for each value of a row.
  template <typename F>
  std::vector<float> Repeated(const F& of_channel) const {
    std::vector<float> row(size);
    for (int64_t c = 0; c < channels; ++c) row[c] = of_channel(c);
    for (int64_t i = channels; i < size; ++i) row[i] = row[i - channels];
    return row;
  }
};

// Two sums over a map for every channel.
struct Sums {
  const Layout& layout;
  std::vector<double> first, second;  // of each part, for each value of a row

  explicit Sums(const Layout& layout)
      : layout(layout), first(layout.parts * layout.size),
        second(layout.parts * layout.size) {}

  double* First(int64_t part) { return first.data() + part * layout.size; }
  double* Second(int64_t part) { return second.data() + part * layout.size; }

  // Leaves a channel's sums in its place.
  void Finish() {
    for (std::vector<double>* sums : {&first, &second}) {
      for (size_t i = layout.channels; i < sums->size(); ++i) {
        (*sums)[i % layout.channels] += (*sums)[i];
      }
    }
  }
};

struct Channels {
  const float *scale, *bias, *shift, *mean, *var;
  float epsilon;

  double InverseDeviation(int64_t c) const { return 1 / std::sqrt(var[c] + epsilon); }
  double Factor(int64_t c) const { return scale[c] * InverseDeviation(c); }
};

// The memory of an `Affine`.
struct AffineRow {
  std::vector<float> shift, factor, offset;

  AffineRow(const Layout& layout, const Channels& channels)
      : shift(layout.Repeated([&](int64_t c) { return channels.shift[c]; })),
        factor(layout.Repeated([&](int64_t c) { return channels.Factor(c); })),
        offset(layout.Repeated([&](int64_t c) {
          return channels.bias[c] - channels.mean[c] * channels.Factor(c);
        })) {}

  Affine Get() const { return {shift.data(), factor.data(), offset.data()}; }
};

template <typename T, bool R>
void Forward(const Layout& layout, ffi::ThreadPool& pool, Activation activation,
             const T* x, const T* residual, const Channels& channels, T* y,
             float* shift, float* mean, float* var) {
  Sums sums(layout);
  layout.ForEachPart(pool, [&](int64_t part, int64_t at, int64_t rows, int64_t size) {
    AddMoments(x + at, rows, size, sums.First(part), sums.Second(part));
  });
  sums.Finish();
  for (int64_t c = 0; c < layout.channels; ++c) {
    const double exact = sums.first[c] / layout.positions;
    shift[c] = exact;
    mean[c] = exact - shift[c];
    var[c] = std::max(sums.second[c] / layout.positions - exact * exact, 0.0);
  }
  const AffineRow row(layout, channels);
  layout.ForEachPart(pool, [&](int64_t, int64_t at, int64_t rows, int64_t size) {
    Apply<T, R>(activation, row.Get(), x + at, R ? residual + at : nullptr, rows, size,
                y + at);
  });
}

// What comes back of y, mean and var, and what goes back.
template <typename T>
struct Gradients {
  const T* dy;
  const float *dmean, *dvar;
  T *dx, *dresidual;
  float *dscale, *dbias;
};

template <typename T, bool R>
void Backward(const Layout& layout, ffi::ThreadPool& pool, Activation activation,
              const T* x, const T* residual, const Channels& channels,
              const Gradients<T>& to) {
  const AffineRow row(layout, channels);
  Sums sums(layout);
  layout.ForEachPart(pool, [&](int64_t part, int64_t at, int64_t rows, int64_t size) {
    AddGradients<T, R>(activation, row.Get(), x + at, R ? residual + at : nullptr,
                       to.dy + at, rows, size, R ? to.dresidual + at : nullptr,
                       sums.First(part), sums.Second(part));
  });
  sums.Finish();
  std::vector<double> slope(layout.channels), constant(layout.channels);
  for (int64_t c = 0; c < layout.channels; ++c) {
    const double inverse = channels.InverseDeviation(c), doffset = sums.first[c];
    const double dfactor = sums.second[c] - channels.mean[c] * doffset;
    const double dvar =
        to.dvar[c] - dfactor * channels.scale[c] * inverse * inverse * inverse / 2;
    // var = E[(x - shift)^2] - mean^2
    const double dmean = to.dmean[c] - channels.Factor(c) * doffset -
                         2 * channels.mean[c] * dvar;
    to.dscale[c] = dfactor * inverse;
    to.dbias[c] = doffset;
    slope[c] = 2 * dvar / layout.positions;
    constant[c] = dmean / layout.positions;
  }
  const auto slopes = layout.Repeated([&](int64_t c) { return slope[c]; });
  const auto constants = layout.Repeated([&](int64_t c) { return constant[c]; });
  const T* dz = R ? to.dresidual : to.dy;
  layout.ForEachPart(pool, [&](int64_t, int64_t at, int64_t rows, int64_t size) {
    ApplyGradient<T>(R ? kActivations[0] : activation, row.Get(), x + at, dz + at, rows,
                     size, slopes.data(), constants.data(), to.dx + at);
  });
}

// Handlers ----------------------------------------------------------------------------

using Map = ffi::AnyBuffer;
using Channel = ffi::Buffer<ffi::F32, 1>;
using MapResult = ffi::Result<ffi::AnyBuffer>;
using ChannelResult = ffi::ResultBuffer<ffi::F32, 1>;

template <typename T>
T* Data(const Map& map) {
  return reinterpret_cast<T*>(map.untyped_data());
}

// Calls `run` with a value of the maps' type, and whether there is a residual.
template <typename Run>
ffi::Error Dispatch(const Map& x, bool residual, const Run& run) {
  const auto with_type = [&](auto type) {
    residual ? run(type, std::true_type()) : run(type, std::false_type());
    return ffi::Error::Success();
  };
  if (x.element_type() == ffi::F32) return with_type(float());
  if (x.element_type() == ffi::BF16) return with_type(BFloat16());
  return ffi::Error::InvalidArgument("norm: neither float32 nor bfloat16");
}

ffi::Error ForwardCall(ffi::ThreadPool pool, Map x, Channel scale, Channel bias,
                       ffi::RemainingArgs rest, MapResult y, ChannelResult shift,
                       ChannelResult mean, ChannelResult var, double epsilon,
                       int64_t activation) {
  const Layout layout(x.element_count(), scale.element_count(), pool.num_threads());
  const Channels channels = {scale.typed_data(), bias.typed_data(), shift->typed_data(),
                             mean->typed_data(), var->typed_data(),
                             static_cast<float>(epsilon)};
  return Dispatch(x, rest.size() > 0, [&](auto type, auto r) {
    using T = decltype(type);
    const T* residual = r ? Data<T>(*rest.get<Map>(0)) : nullptr;
    Forward<T, r>(layout, pool, kActivations[activation], Data<T>(x), residual, channels, Data<T>(*y),
                     shift->typed_data(), mean->typed_data(), var->typed_data());
  });
}

ffi::Error BackwardCall(ffi::ThreadPool pool, Map x, Channel scale, Channel bias,
                        Channel shift, Channel mean, Channel var, Map dy,
                        Channel dmean, Channel dvar, ffi::RemainingArgs rest,
                        MapResult dx, ChannelResult dscale, ChannelResult dbias,
                        ffi::RemainingRets drest, double epsilon, int64_t activation) {
  const Layout layout(x.element_count(), scale.element_count(), pool.num_threads());
  const Channels channels = {scale.typed_data(), bias.typed_data(), shift.typed_data(),
                             mean.typed_data(), var.typed_data(),
                             static_cast<float>(epsilon)};
  return Dispatch(x, rest.size() > 0, [&](auto type, auto r) {
    using T = decltype(type);
    const T* residual = r ? Data<T>(*rest.get<Map>(0)) : nullptr;
    T* dresidual = r ? Data<T>(**drest.get<Map>(0)) : nullptr;
    Backward<T, r>(
        layout, pool, kActivations[activation], Data<T>(x), residual, channels,
        {Data<T>(dy), dmean.typed_data(), dvar.typed_data(), Data<T>(*dx), dresidual,
         dscale->typed_data(), dbias->typed_data()});
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_norm, ForwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Map>()  // x
                                  .Arg<Channel>()
                                  .Arg<Channel>()
                                  .RemainingArgs()  // the residual
                                  .Ret<Map>()
                                  .Ret<Channel>()
                                  .Ret<Channel>()
                                  .Ret<Channel>()
                                  .Attr<double>("epsilon")
                                  .Attr<int64_t>("activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_norm_gradient, BackwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Map>()  // x
                                  .Arg<Channel>()
                                  .Arg<Channel>()
                                  .Arg<Channel>()
                                  .Arg<Channel>()
                                  .Arg<Channel>()
                                  .Arg<Map>()  // dy
                                  .Arg<Channel>()
                                  .Arg<Channel>()
                                  .RemainingArgs()  // the residual
                                  .Ret<Map>()
                                  .Ret<Channel>()
                                  .Ret<Channel>()
                                  .RemainingRets()  // its gradient
                                  .Attr<double>("epsilon")
                                  .Attr<int64_t>("activation"));
