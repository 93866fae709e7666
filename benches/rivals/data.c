#include "data.h"

#include <string.h>

enum { F64 = 1, F32, I8, I32, I64, U8 };
enum { RAW = 1, SUM, MIN, MAX, PRODUCT };

#define BLOCK 1024

int data_dtype(const char *name) {
  static const char *const names[] = {"", "f64", "f32", "i8", "i32", "i64", "u8"};
  for (int dtype = F64; dtype <= U8; dtype++)
    if (strcmp(name, names[dtype]) == 0) return dtype;
  return 0;
}

int data_content(const char *operation, const char *reduction) {
  static const char *const names[] = {"", "", "sum", "min", "max", "product"};
  if (strstr(operation, "reduce") == NULL) return RAW;
  for (int content = SUM; content <= PRODUCT; content++)
    if (strcmp(reduction, names[content]) == 0) return content;
  return 0;
}

size_t data_size(int dtype) {
  static const size_t sizes[] = {0, 8, 4, 1, 4, 8, 1};
  return sizes[dtype];
}

static uint32_t key(uint64_t seed, uint64_t rank) {
  uint64_t z = seed * 0x9E3779B97F4A7C15u + rank * 0xD1B54A32D192ED03u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static inline uint32_t hash(uint32_t key, uint32_t index) {
  uint32_t x = key + index * 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x2C1B3C6Du;
  return x ^ (x >> 12);
}

#define WORD(x) ((uint64_t)(x) * 0x100000001u)
/* Values from a hash, to add or compare and to multiply: of floating point first, then of integers. */
#define FIXED(type, x) ((int16_t)((x) >> 16) / 256.0f)
#define FACTOR(type, x) ((x) >> 31 ? ((x) >> 30 & 1 ? 0.5f : 2.0f) : ((x) >> 30 & 1 ? -1.0f : 1.0f))
#define PART(type, x) ((type)WORD(x) >> 5)
#define WHOLE(type, x) WORD(x)

#define EACH for (size_t j = 0; j < n; j++)

/* `wrapping` is what sums and products are formed in, without overflow; `bits` is an integer as wide as the type. */
#define DEFINE(type, name, bits, wrapping, PLAIN, MULTIPLIER) \
  static void fill_##name(type *to, int content, uint32_t first, size_t n, uint32_t key) { \
    switch (content) { \
    case RAW: EACH { bits raw = (bits)WORD(hash(key, first + (uint32_t)j)); memcpy(&to[j], &raw, sizeof raw); } break; \
    case PRODUCT: EACH to[j] = (type)MULTIPLIER(type, hash(key, first + (uint32_t)j)); break; \
    default: EACH to[j] = (type)PLAIN(type, hash(key, first + (uint32_t)j)); \
    } \
  } \
  static void combine_##name(type *into, const type *from, int content, size_t n) { \
    switch (content) { \
    case MIN: EACH into[j] = from[j] < into[j] ? from[j] : into[j]; break; \
    case MAX: EACH into[j] = from[j] > into[j] ? from[j] : into[j]; break; \
    case PRODUCT: EACH into[j] = (type)((wrapping)into[j] * (wrapping)from[j]); break; \
    default: EACH into[j] = (type)((wrapping)into[j] + (wrapping)from[j]); \
    } \
  } \
  static size_t copied_##name(const type *from, uint32_t first, size_t count, uint32_t key) { \
    type want[BLOCK]; \
    size_t wrong = 0; \
    for (size_t start = 0; start < count; start += BLOCK) { \
      size_t n = count - start < BLOCK ? count - start : BLOCK; \
      fill_##name(want, RAW, first + (uint32_t)start, n, key); \
      EACH { bits a, b; memcpy(&a, &from[start + j], sizeof a); memcpy(&b, &want[j], sizeof b); wrong += a != b; } \
    } \
    return wrong; \
  } \
  static size_t reduced_##name(const type *from, int content, uint32_t first, size_t count, uint64_t seed, \
                               uint64_t world) { \
    type want[BLOCK], given[BLOCK]; \
    size_t wrong = 0; \
    for (size_t start = 0; start < count; start += BLOCK) { \
      size_t n = count - start < BLOCK ? count - start : BLOCK; \
      fill_##name(want, content, first + (uint32_t)start, n, key(seed, 0)); \
      for (uint64_t rank = 1; rank < world; rank++) { \
        fill_##name(given, content, first + (uint32_t)start, n, key(seed, rank)); \
        combine_##name(want, given, content, n); \
      } \
      EACH wrong += from[start + j] != want[j]; \
    } \
    return wrong; \
  }

DEFINE(double, f64, uint64_t, double, FIXED, FACTOR)
DEFINE(float, f32, uint32_t, float, FIXED, FACTOR)
DEFINE(int8_t, i8, uint8_t, uint32_t, PART, WHOLE)
DEFINE(int32_t, i32, uint32_t, uint32_t, PART, WHOLE)
DEFINE(int64_t, i64, uint64_t, uint64_t, PART, WHOLE)
DEFINE(uint8_t, u8, uint8_t, uint32_t, PART, WHOLE)

#define FOR_DTYPE(dtype, CALL) \
  switch (dtype) { \
  case F64: CALL(double, f64); break; \
  case F32: CALL(float, f32); break; \
  case I8: CALL(int8_t, i8); break; \
  case I32: CALL(int32_t, i32); break; \
  case I64: CALL(int64_t, i64); break; \
  case U8: CALL(uint8_t, u8); break; \
  }

void data_fill(void *to, int dtype, int content, size_t first, size_t count, uint64_t seed, uint64_t rank) {
#define CALL(type, name) fill_##name(to, content, (uint32_t)first, count, key(seed, rank))
  FOR_DTYPE(dtype, CALL)
#undef CALL
}

size_t data_wrong_copied(const void *from, int dtype, size_t first, size_t count, uint64_t seed, uint64_t rank) {
  size_t wrong = count;
#define CALL(type, name) wrong = copied_##name(from, (uint32_t)first, count, key(seed, rank))
  FOR_DTYPE(dtype, CALL)
#undef CALL
  return wrong;
}

size_t data_wrong_reduced(const void *from, int dtype, int content, size_t first, size_t count, uint64_t seed,
                          uint64_t world) {
  size_t wrong = count;
#define CALL(type, name) wrong = reduced_##name(from, content, (uint32_t)first, count, seed, world)
  FOR_DTYPE(dtype, CALL)
#undef CALL
  return wrong;
}
