// The three convolutions of training (forward, input gradient, kernel gradient) by
// oneDNN, as XLA FFI handlers for CPUs. Float32; maps [N, H, W, C], kernels
// [KH, KW, C / groups, O].
//
// A call is split along N into chunks, which XLA's own threads compute with oneDNN on
// one thread each: XLA runs independent operations at the same time, and a second pool
// of threads would compete with its own.

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;

namespace {

using Map = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Dims = ffi::Span<const int64_t>;

enum Kind : int64_t { kForward, kInputGradient, kKernelGradient };

// All that a primitive depends on.
struct Shape {
  int64_t n, h, w, c, kh, kw, o, out_h, out_w, stride, padding, dilation, groups;

  auto operator<=>(const Shape&) const = default;
};

const dnnl::engine& Cpu() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

memory::desc MapDesc(int64_t n, int64_t h, int64_t w, int64_t c) {
  return {{n, c, h, w}, memory::data_type::f32, memory::format_tag::nhwc};
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
  return {KernelDims(s), memory::data_type::f32, strides};
}

// A primitive, and the layout in which it wants or gives the kernel.
struct Primitive {
  dnnl::primitive run;
  memory::desc kernel;
  dnnl::reorder reorder;  // forward and input gradient: into `kernel`; else out of it
  memory::desc scratchpad;
};

Primitive MakePrimitive(Kind kind, const Shape& s) {
  using dnnl::algorithm;
  using dnnl::prop_kind;
  const memory::desc x = MapDesc(s.n, s.h, s.w, s.c);
  const memory::desc y = MapDesc(s.n, s.out_h, s.out_w, s.o);
  const memory::desc kernel(KernelDims(s), memory::data_type::f32,
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
  switch (kind) {
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
          Cpu(), direct, x, kernel, y, strides, dilation, padding, padding, forward,
          attr);
#else
      const dnnl::convolution_backward_weights::primitive_desc desc(
          {direct, x, kernel, y, strides, dilation, padding, padding}, attr, Cpu(),
          forward);
#endif
      const memory::desc given = desc.diff_weights_desc();
      return {dnnl::convolution_backward_weights(desc), given,
              dnnl::reorder({Cpu(), given, Cpu(), PlainKernelDesc(s)}),
              desc.scratchpad_desc()};
    }
  }
}

// Making a primitive takes milliseconds: oneDNN writes machine code for it.
const Primitive& FindPrimitive(Kind kind, const Shape& shape) {
  static auto* mutex = new std::mutex;
  static auto* made = new std::map<std::pair<Kind, Shape>, std::unique_ptr<Primitive>>;
  std::lock_guard lock(*mutex);
  auto& entry = (*made)[{kind, shape}];
  if (!entry) entry = std::make_unique<Primitive>(MakePrimitive(kind, shape));
  return *entry;
}

// Memory of a thread, kept for its next call.
class Workspace {
 public:
  void* Get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 63) / 64 * 64;
      data_ = std::aligned_alloc(64, size_);
    }
    return data_;
  }
  ~Workspace() { std::free(data_); }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

Shape MakeShape(const Dims& x, const Dims& kernel, const Dims& y, int64_t stride,
                int64_t padding, int64_t dilation, int64_t groups) {
  return {x[0], x[1], x[2], x[3], kernel[0], kernel[1], kernel[3], y[1], y[2],
          stride, padding, dilation, groups};
}

float* Offset(const float* data, int64_t elements) {
  return const_cast<float*>(data) + elements;
}

// A call, split along N into chunks of `size` images, the last of what is left.
struct Batch {
  Kind kind;
  Shape shape;
  const float *x, *y;  // or their gradients
  int64_t size, count;

  Batch(Kind kind, const Shape& shape, const float* x, const float* y, int64_t parts)
      : kind(kind), shape(shape), x(x), y(y), size((shape.n + parts - 1) / parts),
        count((shape.n + size - 1) / size) {}

  const Primitive& Find(int64_t i) const {
    Shape part = shape;
    part.n = std::min(size, shape.n - i * size);
    return FindPrimitive(kind, part);
  }

  // Computes a chunk on this thread.
  void Run(int64_t i, const memory& kernel) const {
    omp_set_num_threads(1);
    static thread_local Workspace scratch;
    const Primitive& primitive = Find(i);
    const int64_t start = i * size, n = std::min(size, shape.n - start);
    const memory in(MapDesc(n, shape.h, shape.w, shape.c), Cpu(),
                    Offset(x, start * shape.h * shape.w * shape.c));
    const memory out(MapDesc(n, shape.out_h, shape.out_w, shape.o), Cpu(),
                     Offset(y, start * shape.out_h * shape.out_w * shape.o));
    const memory pad(primitive.scratchpad, Cpu(),
                     scratch.Get(primitive.scratchpad.get_size()));
    const bool forward = kind == kForward, data = kind == kInputGradient;
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
void MapToMap(Kind kind, const Shape& shape, const float* x, const float* kernel,
              const float* y, ffi::ThreadPool& pool) {
  const Batch batch(kind, shape, x, y, 2 * pool.num_threads());
  const Primitive& first = batch.Find(0);
  static thread_local Workspace kernels;
  const memory wanted(first.kernel, Cpu(), kernels.Get(first.kernel.get_size()));
  Reorder(first, {PlainKernelDesc(shape), Cpu(), Offset(kernel, 0)}, wanted);
  ForEach(pool, batch.count, [&](int64_t i) { batch.Run(i, wanted); });
}

void KernelGradient(const Shape& shape, const float* x, const float* y, float* result,
                    ffi::ThreadPool& pool) {
  const Batch batch(kKernelGradient, shape, x, y, pool.num_threads());
  const Primitive& first = batch.Find(0);
  const size_t bytes = (first.kernel.get_size() + 63) / 64 * 64;
  static thread_local Workspace sums;
  char* partial = static_cast<char*>(sums.Get(bytes * batch.count));
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

template <typename Call>
ffi::Error Guarded(const Call& call) {
  try {
    call();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
}

ffi::Error Forward(ffi::ThreadPool pool, Map x, Map kernel, Result y, int64_t stride,
                   int64_t padding, int64_t dilation, int64_t groups) {
  return Guarded([&] {
    const Shape shape = MakeShape(x.dimensions(), kernel.dimensions(), y->dimensions(),
                                  stride, padding, dilation, groups);
    MapToMap(kForward, shape, x.typed_data(), kernel.typed_data(), y->typed_data(),
             pool);
  });
}

ffi::Error InputGradient(ffi::ThreadPool pool, Map kernel, Map dy, Result dx,
                         int64_t stride, int64_t padding, int64_t dilation,
                         int64_t groups) {
  return Guarded([&] {
    const Shape shape = MakeShape(dx->dimensions(), kernel.dimensions(),
                                  dy.dimensions(), stride, padding, dilation, groups);
    MapToMap(kInputGradient, shape, dx->typed_data(), kernel.typed_data(),
             dy.typed_data(), pool);
  });
}

ffi::Error KernelGradientCall(ffi::ThreadPool pool, Map x, Map dy, Result dkernel,
                              int64_t stride, int64_t padding, int64_t dilation,
                              int64_t groups) {
  return Guarded([&] {
    const Shape shape = MakeShape(x.dimensions(), dkernel->dimensions(),
                                  dy.dimensions(), stride, padding, dilation, groups);
    KernelGradient(shape, x.typed_data(), dy.typed_data(), dkernel->typed_data(), pool);
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
