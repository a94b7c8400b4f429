// The three convolutions of training (forward, input gradient, kernel gradient) by
// oneDNN, as XLA FFI handlers for CPUs. Maps [N, H, W, C], kernels [KH, KW, C / groups,
// O], all three of a call float32 or all bfloat16. Sums are float32 in either: those of
// a kernel gradient over all chunks, rounded once at the end.
//
// A call is split along N into chunks, which XLA's own threads compute with oneDNN on
// one thread each: XLA runs independent operations at the same time, and a second pool
// of threads would compete with its own.

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "onednn.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;

namespace {

using Map = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;
using Dims = ffi::Span<const int64_t>;

enum Kind : int64_t { kForward, kInputGradient, kKernelGradient };

// All that a primitive depends on.
struct Shape {
  Kind kind;
  memory::data_type type;
  int64_t n, h, w, c, kh, kw, o, out_h, out_w, stride, padding, dilation, groups;

  auto operator<=>(const Shape&) const = default;
};

memory::desc InDesc(const Shape& s) {
  return {{s.n, s.c, s.h, s.w}, s.type, memory::format_tag::nhwc};
}

memory::desc OutDesc(const Shape& s) {
  return {{s.n, s.o, s.out_h, s.out_w}, s.type, memory::format_tag::nhwc};
}

memory::dims KernelDims(const Shape& s) {
  if (s.groups == 1) return {s.o, s.c, s.kh, s.kw};
  return {s.groups, s.o / s.groups, s.c / s.groups, s.kh, s.kw};
}

// The kernel as XLA holds it.
memory::desc PlainKernelDesc(const Shape& s) {
  const int64_t in = s.c / s.groups;
  memory::dims strides = {1, s.o, s.kw * in * s.o, in * s.o};
  if (s.groups > 1) strides.insert(strides.begin(), s.o / s.groups);
  return {KernelDims(s), s.type, strides};
}

// A primitive, and the layout in which it wants or gives the kernel.
struct Primitive {
  dnnl::primitive run;
  memory::desc kernel;
  dnnl::reorder reorder;  // forward and input gradient: into `kernel`; else out of it
  memory::desc scratchpad;
};

Primitive MakePrimitive(const Shape& s) {
  using dnnl::algorithm;
  using dnnl::prop_kind;
  const memory::desc x = InDesc(s), y = OutDesc(s);
  const memory::desc kernel(KernelDims(s), s.type, memory::format_tag::any);
  const memory::desc sums(KernelDims(s), memory::data_type::f32,
                          memory::format_tag::any);
  const memory::dims strides = {s.stride, s.stride}, padding = {s.padding, s.padding};
  const memory::dims dilation = {s.dilation - 1, s.dilation - 1};
  const auto direct = algorithm::convolution_direct;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::convolution_forward::primitive_desc forward(
      Cpu(), prop_kind::forward_training, direct, x, kernel, y, strides, dilation,
      padding, padding, attr);
#else
  const dnnl::convolution_forward::primitive_desc forward(
      {prop_kind::forward_training, direct, x, kernel, y, strides, dilation, padding,
       padding},
      attr, Cpu());
#endif
  const auto into = [&](const memory::desc& wanted) {
    return dnnl::reorder({Cpu(), PlainKernelDesc(s), Cpu(), wanted});
  };
  switch (s.kind) {
    case kForward:
      return {dnnl::convolution_forward(forward), forward.weights_desc(),
              into(forward.weights_desc()), forward.scratchpad_desc()};
    case kInputGradient: {
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::convolution_backward_data::primitive_desc desc(
          Cpu(), direct, x, kernel, y, strides, dilation, padding, padding, forward,
          attr);
#else
      const dnnl::convolution_backward_data::primitive_desc desc(
          {direct, x, kernel, y, strides, dilation, padding, padding}, attr, Cpu(),
          forward);
#endif
      return {dnnl::convolution_backward_data(desc), desc.weights_desc(),
              into(desc.weights_desc()), desc.scratchpad_desc()};
    }
    default: {
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::convolution_backward_weights::primitive_desc desc(
          Cpu(), direct, x, sums, y, strides, dilation, padding, padding, forward,
          attr);
#else
      const dnnl::convolution_backward_weights::primitive_desc desc(
          {direct, x, sums, y, strides, dilation, padding, padding}, attr, Cpu(),
          forward);
#endif
      const memory::desc given = desc.diff_weights_desc();
      return {dnnl::convolution_backward_weights(desc), given,
              dnnl::reorder({Cpu(), given, Cpu(), PlainKernelDesc(s)}),
              desc.scratchpad_desc()};
    }
  }
}

Shape MakeShape(Kind kind, memory::data_type type, const Dims& x, const Dims& kernel,
                const Dims& y, int64_t stride, int64_t padding, int64_t dilation,
                int64_t groups) {
  return {kind, type, x[0], x[1], x[2], x[3], kernel[0], kernel[1], kernel[3], y[1],
          y[2], stride, padding, dilation, groups};
}

// A call, split along N into chunks of `size` images, the last of what is left.
struct Batch {
  Shape shape;
  void *x, *y;  // or their gradients
  int64_t size, count;

  Batch(const Shape& shape, void* x, void* y, int64_t parts)
      : shape(shape), x(x), y(y), size((shape.n + parts - 1) / parts),
        count((shape.n + size - 1) / size) {}

  Shape Part(int64_t i) const {
    Shape part = shape;
    part.n = std::min(size, shape.n - i * size);
    return part;
  }

  // Computes a chunk on this thread.
  void Run(int64_t i, const memory& kernel) const {
    omp_set_num_threads(1);
    static thread_local Workspace scratch;
    const Shape part = Part(i);
    const Primitive& primitive = Find(part, MakePrimitive);
    const auto chunk = [&](const memory::desc& desc, void* data) {
      const size_t image = desc.get_size() / part.n;
      return memory(desc, Cpu(), static_cast<char*>(data) + i * size * image);
    };
    const memory in = chunk(InDesc(part), x), out = chunk(OutDesc(part), y);
    const memory pad(primitive.scratchpad, Cpu(),
                     scratch.Get(primitive.scratchpad.get_size()));
    const bool forward = part.kind == kForward, data = part.kind == kInputGradient;
    dnnl::stream stream(Cpu());
    primitive.run.execute(
        stream, {{data ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, in},
                 {forward || data ? DNNL_ARG_WEIGHTS : DNNL_ARG_DIFF_WEIGHTS, kernel},
                 {forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, out},
                 {DNNL_ARG_SCRATCHPAD, pad}});
    stream.wait();
  }
};

void Reorder(const Primitive& primitive, memory from, memory to) {
  omp_set_num_threads(1);
  dnnl::stream stream(Cpu());
  primitive.reorder.execute(stream, from, to);
  stream.wait();
}

// Forward and input gradient: a map and the kernel to another map.
void MapToMap(const Shape& shape, void* x, void* kernel, void* y,
              ffi::ThreadPool& pool) {
  const Batch batch(shape, x, y, 2 * pool.num_threads());
  const Primitive& first = Find(batch.Part(0), MakePrimitive);
  static thread_local Workspace kernels;
  const memory wanted(first.kernel, Cpu(), kernels.Get(first.kernel.get_size()));
  Reorder(first, {PlainKernelDesc(shape), Cpu(), kernel}, wanted);
  ForEach(pool, batch.count, [&](int64_t i) { batch.Run(i, wanted); });
}

void KernelGradient(const Shape& shape, void* x, void* y, void* result,
                    ffi::ThreadPool& pool) {
  const Batch batch(shape, x, y, pool.num_threads());
  const Primitive& first = Find(batch.Part(0), MakePrimitive);
  const size_t bytes = (first.kernel.get_size() + 63) / 64 * 64;
  static thread_local Workspace sums;
  char* partial = sums.Get(bytes * batch.count);
  ForEach(pool, batch.count, [&](int64_t i) {
    batch.Run(i, {first.kernel, Cpu(), partial + i * bytes});
  });
  float* total = reinterpret_cast<float*>(partial);
  const int64_t elements = first.kernel.get_size() / sizeof(float);
  for (int64_t i = 1; i < batch.count; ++i) {
    const float* other = reinterpret_cast<float*>(partial + i * bytes);
    for (int64_t j = 0; j < elements; ++j) total[j] += other[j];
  }
  Reorder(first, {first.kernel, Cpu(), total}, {PlainKernelDesc(shape), Cpu(), result});
}

// Products --------------------------------------------------------------------------
//
// A convolution is a matrix product for each tap of the kernel, of the values that lie
// under it. In bfloat16 these are several times as fast as oneDNN's convolutions where
// maps are so narrow that a row of positions fills little of a tile, and as its kernel
// gradients where the sums of the kernel do not fit into a core's cache.

constexpr auto kBFloat16 = memory::data_type::bf16;
constexpr int64_t kBytes = 2;  // of a value

bool TakesProducts(const Shape& s, int64_t num_threads) {
  if (s.type != kBFloat16 || s.groups > 1) return false;
  if (s.kind == kKernelGradient) {
    return s.kh * s.kw * s.c * s.o * sizeof(float) >= (1 << 20);
  }
  const bool is_plain = s.kind == kForward || s.stride == 1;
  const int64_t channels = s.kind == kForward ? s.o : s.c;
  return is_plain && s.kw > 1 && s.out_w <= 4 && channels >= 64 * num_threads;
}

// A matrix in memory.
struct Matrix {
  int64_t rows, columns, row_stride, column_stride;

  auto operator<=>(const Matrix&) const = default;

  memory::desc Desc(memory::data_type type) const {
    return {{rows, columns}, type, {row_stride, column_stride}};
  }
};

// a b in bfloat16, or added to float32 sums.
struct Factors {
  Matrix a, b, result;
  bool is_added;

  auto operator<=>(const Factors&) const = default;
};

struct Product {
  dnnl::matmul run;
  memory::desc a, b, result, scratchpad;

  void Run(void* a_data, void* b_data, void* result_data) const {
    static thread_local Workspace scratch;
    const memory pad(scratchpad, Cpu(), scratch.Get(scratchpad.get_size()));
    dnnl::stream stream(Cpu());
    run.execute(stream, {{DNNL_ARG_SRC, memory(a, Cpu(), a_data)},
                         {DNNL_ARG_WEIGHTS, memory(b, Cpu(), b_data)},
                         {DNNL_ARG_DST, memory(result, Cpu(), result_data)},
                         {DNNL_ARG_SCRATCHPAD, pad}});
    stream.wait();
  }
};

Product MakeProduct(const Factors& factors) {
  const memory::desc a = factors.a.Desc(kBFloat16), b = factors.b.Desc(kBFloat16);
  const memory::desc result = factors.result.Desc(
      factors.is_added ? memory::data_type::f32 : kBFloat16);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (factors.is_added) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attr.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc desc(Cpu(), a, b, result, attr);
#else
  const dnnl::matmul::primitive_desc desc({a, b, result}, attr, Cpu());
#endif
  return {dnnl::matmul(desc), a, b, result, desc.scratchpad_desc()};
}

// A map and where taps of the kernel lie on it, for every position of another.
struct Gather {
  const char* map;
  int64_t n, h, w, channels, to_h, to_w, stride;

  int64_t positions() const { return n * to_h * to_w; }

  // Copies `count` channels under the tap that is `down` and `right` of a position.
  void Run(int64_t down, int64_t right, int64_t first, int64_t count, void* to) const {
    const size_t bytes = kBytes * count;
    char* out = static_cast<char*>(to);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < to_h; ++j) {
        for (int64_t k = 0; k < to_w; ++k, out += bytes) {
          const int64_t y = j * stride + down, x = k * stride + right;
          if (y < 0 || y >= h || x < 0 || x >= w) {
            std::memset(out, 0, bytes);
          } else {
            const int64_t at = ((i * h + y) * w + x) * channels + first;
            std::memcpy(out, map + kBytes * at, bytes);
          }
        }
      }
    }
  }
};

// What a part of the channels is for a thread.
int64_t PartSize(int64_t channels, int64_t parts) {
  return std::max<int64_t>((channels + 32 * parts - 1) / (32 * parts) * 32, 64);
}

// Forward and input gradient: the channels of the result are divided into parts.
void MapToMapByProducts(const Shape& s, void* x, void* kernel, void* y,
                        ffi::ThreadPool& pool) {
  const bool forward = s.kind == kForward;
  const Gather from = forward ? Gather{static_cast<char*>(x), s.n, s.h, s.w, s.c,
                                       s.out_h, s.out_w, s.stride}
                              : Gather{static_cast<char*>(y), s.n, s.out_h, s.out_w,
                                       s.o, s.h, s.w, 1};
  char* to = static_cast<char*>(forward ? y : x);
  const int64_t channels = forward ? s.o : s.c, rows = from.positions();
  const int64_t size = PartSize(channels, pool.num_threads());
  const int64_t parts = (channels + size - 1) / size;
  // The input gradient is computed transposed, for its kernel is.
  const auto factors = [&](int64_t count) {
    return forward ? Factors{{rows, s.c, s.c, 1},
                             {s.c, count, s.o, 1},
                             {rows, count, count, 1},
                             true}
                   : Factors{{count, s.o, s.o, 1},
                             {s.o, rows, 1, s.o},
                             {count, rows, rows, 1},
                             true};
  };
  const auto run = [&](int64_t part) {
    omp_set_num_threads(1);
    static thread_local Workspace gathered, sums;
    const int64_t first = part * size, count = std::min(size, channels - first);
    const Product& product = Find(factors(count), MakeProduct);
    void* values = gathered.Get(kBytes * rows * from.channels);
    const size_t bytes = sizeof(float) * rows * count;
    void* total = std::memset(sums.Get(bytes), 0, bytes);
    for (int64_t i = 0; i < s.kh; ++i) {
      for (int64_t j = 0; j < s.kw; ++j) {
        const int64_t down = i * s.dilation - s.padding;
        const int64_t right = j * s.dilation - s.padding;
        from.Run(forward ? down : -down, forward ? right : -right, 0, from.channels,
                 values);
        const int64_t at = (i * s.kw + j) * s.c * s.o + first * (forward ? 1 : s.o);
        char* tap = static_cast<char*>(kernel) + kBytes * at;
        forward ? product.Run(values, tap, total) : product.Run(tap, values, total);
      }
    }
    const Matrix columns = forward ? Matrix{rows, count, channels, 1}
                                   : Matrix{count, rows, 1, channels};
    memory exact(product.result, Cpu(), total);
    memory rounded(columns.Desc(kBFloat16), Cpu(), to + kBytes * first);
    dnnl::stream stream(Cpu());
    dnnl::reorder(exact, rounded).execute(stream, exact, rounded);
    stream.wait();
  };
  // What cannot be made is an error here, and the end of the process in a thread.
  Find(factors(channels - (parts - 1) * size), MakeProduct);
  Find(factors(std::min(size, channels)), MakeProduct);
  ForEach(pool, parts, run);
}

// The channels of x are divided into parts, as many as with the taps give enough tasks.
void KernelGradientByProducts(const Shape& s, void* x, void* y, void* result,
                              ffi::ThreadPool& pool) {
  const Gather from = {static_cast<char*>(x), s.n, s.h, s.w, s.c, s.out_h, s.out_w,
                       s.stride};
  const int64_t rows = from.positions(), taps = s.kh * s.kw;
  const int64_t size = PartSize(s.c, (2 * pool.num_threads() + taps - 1) / taps + 1);
  const int64_t parts = (s.c + size - 1) / size;
  const auto factors = [&](int64_t count) {
    return Factors{
        {count, rows, 1, count}, {rows, s.o, s.o, 1}, {count, s.o, s.o, 1}, false};
  };
  const auto run = [&](int64_t task) {
    omp_set_num_threads(1);
    static thread_local Workspace gathered;
    const int64_t tap = task / parts, first = task % parts * size;
    const int64_t count = std::min(size, s.c - first);
    void* values = gathered.Get(kBytes * rows * count);
    from.Run(tap / s.kw * s.dilation - s.padding, tap % s.kw * s.dilation - s.padding,
             first, count, values);
    char* to = static_cast<char*>(result) + kBytes * (tap * s.c + first) * s.o;
    Find(factors(count), MakeProduct).Run(values, y, to);
  };
  Find(factors(s.c - (parts - 1) * size), MakeProduct);
  Find(factors(std::min(size, s.c)), MakeProduct);
  ForEach(pool, taps * parts, run);
}

ffi::Error Forward(ffi::ThreadPool pool, Map x, Map kernel, Result y, int64_t stride,
                   int64_t padding, int64_t dilation, int64_t groups) {
  return Guarded([&] {
    const Shape shape = MakeShape(kForward, Type(x.element_type()), x.dimensions(),
                                  kernel.dimensions(), y->dimensions(), stride, padding,
                                  dilation, groups);
    const auto run =
        TakesProducts(shape, pool.num_threads()) ? MapToMapByProducts : MapToMap;
    run(shape, x.untyped_data(), kernel.untyped_data(), y->untyped_data(), pool);
  });
}

ffi::Error InputGradient(ffi::ThreadPool pool, Map kernel, Map dy, Result dx,
                         int64_t stride, int64_t padding, int64_t dilation,
                         int64_t groups) {
  return Guarded([&] {
    const Shape shape = MakeShape(kInputGradient, Type(dy.element_type()),
                                  dx->dimensions(), kernel.dimensions(),
                                  dy.dimensions(), stride, padding, dilation, groups);
    const auto run =
        TakesProducts(shape, pool.num_threads()) ? MapToMapByProducts : MapToMap;
    run(shape, dx->untyped_data(), kernel.untyped_data(), dy.untyped_data(), pool);
  });
}

ffi::Error KernelGradientCall(ffi::ThreadPool pool, Map x, Map dy, Result dkernel,
                              int64_t stride, int64_t padding, int64_t dilation,
                              int64_t groups) {
  return Guarded([&] {
    const Shape shape = MakeShape(kKernelGradient, Type(x.element_type()),
                                  x.dimensions(), dkernel->dimensions(),
                                  dy.dimensions(), stride, padding, dilation, groups);
    const auto run = TakesProducts(shape, pool.num_threads())
                         ? KernelGradientByProducts
                         : KernelGradient;
    run(shape, x.untyped_data(), dy.untyped_data(), dkernel->untyped_data(), pool);
  });
}

}  // namespace

#define JAXATTN_HANDLER(symbol, function)                       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function,               \
                                ffi::Ffi::Bind()                \
                                    .Ctx<ffi::ThreadPool>()     \
                                    .Arg<Map>()                 \
                                    .Arg<Map>()                 \
                                    .Ret<Map>()                 \
                                    .Attr<int64_t>("stride")    \
                                    .Attr<int64_t>("padding")   \
                                    .Attr<int64_t>("dilation")  \
                                    .Attr<int64_t>("groups"))

JAXATTN_HANDLER(jaxattn_conv_forward, Forward);
JAXATTN_HANDLER(jaxattn_conv_input_gradient, InputGradient);
JAXATTN_HANDLER(jaxattn_conv_kernel_gradient, KernelGradientCall);
