// Loops over maps of float32 or bfloat16 with the widest vectors of the processor.

#pragma once

#include <bit>
#include <cstdint>

// A function for each kind of vectors, chosen when the library is loaded: different
// machines may read it from one disk.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define JAXATTN_VECTORS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define JAXATTN_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define JAXATTN_VECTORS
#endif

struct BFloat16 {
  uint16_t bits;
};

inline float Load(float v) { return v; }
inline float Load(BFloat16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }

inline void Store(float v, float& to) { to = v; }
inline void Store(float v, BFloat16& to) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // ties to even
  to.bits = v != v ? 0x7fc0 : nearest;
}
