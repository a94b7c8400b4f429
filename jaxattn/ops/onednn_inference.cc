// The convolution of inference by oneDNN, as XLA FFI handlers for CPUs: with an offset
// for each channel, and if wanted another map added and the result clipped, in one pass.
// Maps [N, H, W, C] are float32 or bfloat16, offsets float32.
//
// The kernel is packed once, in the layout that oneDNN wants: it may take as long as the
// convolution of one image. A call is divided along N; of few images along the rows of
// the output, or along its channels if the kernel is what takes the time to read.

#include <omp.h>

#include <algorithm>
#include <compare>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "onednn.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;

namespace {

enum Activation : int64_t { kNone, kRelu, kRelu6 };

// All that a plan depends on. `parts` is how many threads there are.
struct Call {
  int64_t n, h, w, c, kh, kw, o, stride, padding, dilation, groups, parts;
  memory::data_type type;
  int64_t adds, activation;

  auto operator<=>(const Call&) const = default;

  int64_t Side(int64_t in, int64_t k) const {
    return (in + 2 * padding - dilation * (k - 1) - 1) / stride + 1;
  }
  int64_t out_h() const { return Side(h, kh); }
  int64_t out_w() const { return Side(w, kw); }
};

// A part of the output: images, rows and channels.
struct Part {
  int64_t n, count, row, rows, channel, channels;
};

struct Task {
  Part part;
  dnnl::convolution_forward run;
  memory::desc x, y, scratchpad;
  int64_t first_row;  // of x
};

struct Plan {
  std::vector<Task> tasks;
  memory::desc kernel;  // of a task
  int64_t packed;       // kernels: one, or one for each task
};

memory::desc MapDesc(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c) {
  return {{n, c, h, w}, call.type, memory::format_tag::nhwc};
}

memory::dims KernelDims(const Call& call, int64_t channels) {
  if (call.groups == 1) return {channels, call.c, call.kh, call.kw};
  return {call.groups, channels / call.groups, call.c / call.groups, call.kh, call.kw};
}

// Channels of the kernel as XLA holds it.
memory::desc PlainKernelDesc(const Call& call, int64_t channels) {
  const int64_t in = call.c / call.groups;
  memory::dims strides = {1, call.o, call.kw * in * call.o, in * call.o};
  if (call.groups > 1) strides.insert(strides.begin(), call.o / call.groups);
  return {KernelDims(call, channels), call.type, strides};
}

// Fewer multiplications take less time than to wake another thread.
constexpr int64_t kLeast = 4'000'000;

std::vector<Part> Divide(const Call& call) {
  const int64_t rows = call.out_h();
  const auto along = [](int64_t total, int64_t pieces, const auto& add) {
    const int64_t size = (total + pieces - 1) / pieces;
    for (int64_t i = 0; i < total; i += size) add(i, std::min(size, total - i));
  };
  std::vector<Part> parts;
  const int64_t reads = call.kh * call.kw * (call.c / call.groups) * call.o;
  const int64_t work = call.n * rows * call.out_w() * reads / kLeast;
  const int64_t threads = std::clamp<int64_t>(work, 1, call.parts);
  const int64_t maps = call.n * (call.h * call.w * call.c + rows * call.out_w() * call.o);
  const bool is_few = call.n < 2 * threads;
  if (threads == 1) {
    parts.push_back({0, call.n, 0, rows, 0, call.o});
  } else if (is_few && reads > maps && call.groups == 1 &&
             call.o % (64 * threads) == 0) {
    along(call.o, threads, [&](int64_t i, int64_t size) {
      parts.push_back({0, call.n, 0, rows, i, size});
    });
  } else if (call.n < threads && call.padding <= call.dilation * (call.kh - 1)) {
    // No row is made of padding alone.
    for (int64_t n = 0; n < call.n; ++n) {
      along(rows, std::min(threads, rows), [&](int64_t i, int64_t size) {
        parts.push_back({n, 1, i, size, 0, call.o});
      });
    }
  } else {
    along(call.n, 2 * threads, [&](int64_t i, int64_t size) {
      parts.push_back({i, size, 0, rows, 0, call.o});
    });
  }
  return parts;
}

Task MakeTask(const Call& call, const Part& part, memory::desc* kernel) {
  // Rows of x that those of y are made of; those before and behind are padding.
  const int64_t start = part.row * call.stride - call.padding;
  const bool is_whole = part.rows == call.out_h();
  const int64_t end = is_whole ? call.h + call.padding
                               : start + (part.rows - 1) * call.stride +
                                     call.dilation * (call.kh - 1) + 1;
  const int64_t first = std::max<int64_t>(start, 0), last = std::min(end, call.h);
  const memory::desc x = MapDesc(call, part.count, last - first, call.w, call.c);
  const memory::desc y =
      MapDesc(call, part.count, part.rows, call.out_w(), part.channels);
  const memory::desc offset({part.channels}, memory::data_type::f32,
                            memory::format_tag::x);
  const memory::dims strides = {call.stride, call.stride};
  const memory::dims dilation = {call.dilation - 1, call.dilation - 1};
  const memory::dims before = {first - start, call.padding};
  const memory::dims behind = {end - last, call.padding};
  dnnl::post_ops post;
  if (call.adds) post.append_binary(dnnl::algorithm::binary_add, y);
  const auto relu = dnnl::algorithm::eltwise_relu, clip = dnnl::algorithm::eltwise_clip;
#if DNNL_VERSION_MAJOR >= 3
  if (call.activation == kRelu) post.append_eltwise(relu, 0, 0);
  if (call.activation == kRelu6) post.append_eltwise(clip, 0, 6);
#else
  if (call.activation == kRelu) post.append_eltwise(1, relu, 0, 0);
  if (call.activation == kRelu6) post.append_eltwise(1, clip, 0, 6);
#endif
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attr.set_post_ops(post);
  const auto inference = dnnl::prop_kind::forward_inference;
  const auto direct = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::convolution_forward::primitive_desc desc(
      Cpu(), inference, direct, x, *kernel, offset, y, strides, dilation, before, behind,
      attr);
#else
  const dnnl::convolution_forward::primitive_desc desc(
      {inference, direct, x, *kernel, offset, y, strides, dilation, before, behind},
      attr, Cpu());
#endif
  *kernel = desc.weights_desc();
  return {part, dnnl::convolution_forward(desc), x, y, desc.scratchpad_desc(), first};
}

Plan MakePlan(const Call& call) {
  const std::vector<Part> parts = Divide(call);
  Plan plan;
  plan.packed = parts[0].channels < call.o ? parts.size() : 1;
  // Whichever layout the first wants, the others take.
  plan.kernel = {KernelDims(call, parts[0].channels), call.type, memory::format_tag::any};
  for (const Part& part : parts) {
    plan.tasks.push_back(MakeTask(call, part, &plan.kernel));
  }
  return plan;
}

// Copies channels of a map from one place to another, a position's at a time.
void CopyChannels(int64_t positions, const char* from, size_t from_step, char* to,
                  size_t to_step, size_t bytes) {
  for (int64_t i = 0; i < positions; ++i) {
    std::memcpy(to + i * to_step, from + i * from_step, bytes);
  }
}

struct Arrays {
  char *x, *kernel, *offset, *other, *y;
};

void RunTask(const Call& call, const Task& task, const Arrays& arrays,
             const memory& kernel) {
  omp_set_num_threads(1);
  static thread_local Workspace scratch, own_y, own_other;
  const Part& part = task.part;
  const size_t item = memory::data_type_size(call.type);
  const size_t channels = item * part.channels, pixel = item * call.o;
  const bool is_apart = part.channels < call.o;  // its channels are not side by side
  const int64_t positions = part.count * part.rows * call.out_w();
  const size_t place =
      ((part.n * call.out_h() + part.row) * call.out_w()) * pixel + item * part.channel;
  const auto map = [&](char* array, Workspace& own) {
    return is_apart ? own.Get(positions * channels) : array + place;
  };
  char* y = map(arrays.y, own_y);
  const int64_t x = (part.n * call.h + task.first_row) * call.w * call.c;
  std::unordered_map<int, memory> args = {
      {DNNL_ARG_SRC, memory(task.x, Cpu(), arrays.x + item * x)},
      {DNNL_ARG_WEIGHTS, kernel},
      {DNNL_ARG_BIAS, memory({{part.channels}, memory::data_type::f32,
                              memory::format_tag::x},
                             Cpu(), arrays.offset + sizeof(float) * part.channel)},
      {DNNL_ARG_DST, memory(task.y, Cpu(), y)},
      {DNNL_ARG_SCRATCHPAD, memory(task.scratchpad, Cpu(),
                                   scratch.Get(task.scratchpad.get_size()))}};
  if (call.adds) {
    char* other = map(arrays.other, own_other);
    if (is_apart) {
      CopyChannels(positions, arrays.other + place, pixel, other, channels, channels);
    }
    args.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                 memory(task.y, Cpu(), other));
  }
  dnnl::stream stream(Cpu());
  task.run.execute(stream, args);
  stream.wait();
  if (is_apart) {
    CopyChannels(positions, y, channels, arrays.y + place, pixel, channels);
  }
}

ffi::Error Pack(ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> packed, int64_t n,
                int64_t h, int64_t w, int64_t c, int64_t stride, int64_t padding,
                int64_t dilation, int64_t groups, int64_t parts, int64_t adds,
                int64_t activation) {
  return Guarded([&] {
    const auto k = kernel.dimensions();
    const memory::data_type type = Type(kernel.element_type());
    const Call call = {n, h, w, c, k[0], k[1], k[3], stride, padding, dilation, groups,
                       parts, type, adds, activation};
    const Plan& plan = Find(call, MakePlan);
    const size_t bytes = Aligned(plan.kernel.get_size());
    const size_t item = memory::data_type_size(type);
    omp_set_num_threads(1);
    dnnl::stream stream(Cpu());
    for (int64_t i = 0; i < plan.packed; ++i) {
      const Part& part = plan.tasks[i].part;
      char* from = static_cast<char*>(kernel.untyped_data()) + item * part.channel;
      char* to = static_cast<char*>(packed->untyped_data()) + i * bytes;
      const memory::desc plain = PlainKernelDesc(call, part.channels);
      memory source(plain, Cpu(), from), target(plan.kernel, Cpu(), to);
      dnnl::reorder(source, target).execute(stream, source, target);
    }
    stream.wait();
  });
}

ffi::Error Convolve(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer packed,
                    ffi::Buffer<ffi::F32> offset, ffi::RemainingArgs others,
                    ffi::Result<ffi::AnyBuffer> y, int64_t kh, int64_t kw,
                    int64_t stride, int64_t padding, int64_t dilation, int64_t groups,
                    int64_t parts, int64_t activation) {
  return Guarded([&] {
    const auto in = x.dimensions();
    const bool adds = others.size() > 0;
    const Call call = {in[0], in[1], in[2], in[3], kh, kw, y->dimensions()[3], stride,
                       padding, dilation, groups, parts, Type(x.element_type()), adds,
                       activation};
    const Plan& plan = Find(call, MakePlan);
    const size_t bytes = Aligned(plan.kernel.get_size());
    const auto data = [](const auto& buffer) {
      return static_cast<char*>(buffer.untyped_data());
    };
    const Arrays arrays = {data(x), data(packed), data(offset),
                           adds ? data(others.get<ffi::AnyBuffer>(0).value()) : nullptr,
                           data(*y)};
    ForEach(pool, plan.tasks.size(), [&](int64_t i) {
      char* kernel = arrays.kernel + (plan.packed > 1 ? i * bytes : 0);
      RunTask(call, plan.tasks[i], arrays, memory(plan.kernel, Cpu(), kernel));
    });
  });
}

}  // namespace

// Returns the bytes of a packed kernel; 0 if there is none.
extern "C" int64_t jaxattn_packed_bytes(int64_t n, int64_t h, int64_t w, int64_t c,
                                        int64_t kh, int64_t kw, int64_t o,
                                        int64_t stride, int64_t padding,
                                        int64_t dilation, int64_t groups, int64_t parts,
                                        int64_t is_bfloat16, int64_t adds,
                                        int64_t activation) try {
  const auto type = is_bfloat16 ? memory::data_type::bf16 : memory::data_type::f32;
  const Plan& plan = Find(Call{n, h, w, c, kh, kw, o, stride, padding, dilation, groups,
                               parts, type, adds, activation}, MakePlan);
  return plan.packed * Aligned(plan.kernel.get_size());
} catch (const std::exception&) {
  return 0;
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_conv_pack, Pack,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("n")
                                  .Attr<int64_t>("h")
                                  .Attr<int64_t>("w")
                                  .Attr<int64_t>("c")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("padding")
                                  .Attr<int64_t>("dilation")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("parts")
                                  .Attr<int64_t>("adds")
                                  .Attr<int64_t>("activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_conv_packed, Convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("kh")
                                  .Attr<int64_t>("kw")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("padding")
                                  .Attr<int64_t>("dilation")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("parts")
                                  .Attr<int64_t>("activation"));
