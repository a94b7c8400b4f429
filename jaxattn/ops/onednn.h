// What both files that call oneDNN share.

#pragma once

#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

// A file's own: names of a library are those of another that the process has loaded.
namespace {

const dnnl::engine& Cpu() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

dnnl::memory::data_type Type(xla::ffi::DataType type) {
  if (type == xla::ffi::F32) return dnnl::memory::data_type::f32;
  if (type == xla::ffi::BF16) return dnnl::memory::data_type::bf16;
  throw std::invalid_argument("neither float32 nor bfloat16");
}

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Memory of a thread, kept for its next call.
class Workspace {
 public:
  char* Get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = Aligned(bytes);
      data_ = static_cast<char*>(std::aligned_alloc(64, size_));
    }
    return data_;
  }
  ~Workspace() { std::free(data_); }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Making a primitive takes milliseconds: oneDNN writes machine code for it.
template <typename Key, typename Made>
const Made& Find(const Key& key, Made (*make)(const Key&)) {
  static auto* mutex = new std::mutex;
  static auto* made = new std::map<Key, std::unique_ptr<Made>>;
  std::lock_guard lock(*mutex);
  auto& entry = (*made)[key];
  if (!entry) entry = std::make_unique<Made>(make(key));
  return *entry;
}

template <typename Work>
xla::ffi::Error Guarded(const Work& work) {
  try {
    work();
    return xla::ffi::Error::Success();
  } catch (const std::exception& error) {
    return xla::ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
}

}  // namespace
