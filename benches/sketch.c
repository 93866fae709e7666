/* What an all-reduce of two ranks in shared memory costs in a bare loop: two threads bound to a core each, whose
 * buffers lie in one mapping, meet, add half of both buffers each, write it to both and meet again. Nothing else: no
 * comparing of calls, no record, no deadline, no other type, operation or world than float32, sum and 2.
 *
 *   cc -O3 -march=native -o sketch benches/sketch.c -lpthread && ./sketch
 *
 * Prints a JSON object a size and way: "plain" reads and writes, "claim" asks for the other's lines to write to before
 * it reads them, so that they cross once. Inputs are new in every iteration, and every result is checked. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { LINE = 16, AHEAD = 16 * LINE, BLOCK = 2 * LINE, MOST = 25000000, ITERATIONS = 4000 };
#define SECONDS_A_SIZE 2.0

static float *buffers[2];
static struct { _Alignas(128) atomic_uint_fast64_t meeting; } posts[2];
static double times[2][ITERATIONS];
static size_t count;
static int claims, iterations;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
}

static void meet(int rank, uint64_t *meeting) {
  atomic_store_explicit(&posts[rank].meeting, ++*meeting, memory_order_release);
  while (atomic_load_explicit(&posts[1 - rank].meeting, memory_order_acquire) < *meeting) {}
}

static void claim(const float *line) {
#if defined(__x86_64__)
  __asm__ volatile("prefetchw (%0)" ::"r"(line));
#else
  __builtin_prefetch(line, 1);
#endif
}

static void add(int rank) {
  float *restrict first = buffers[0], *restrict second = buffers[1];
  const float *theirs = buffers[1 - rank];
  size_t half = count / 2, start = rank * half, end = start + half;
  for (size_t at = start; claims && at < end && at < start + AHEAD; at += LINE) claim(theirs + at);
  for (size_t at = start; at < end; at += BLOCK) {
    for (size_t line = at + AHEAD; claims && line < end && line < at + AHEAD + BLOCK; line += LINE) claim(theirs + line);
    float sums[BLOCK];
    for (int index = 0; index < BLOCK; index++) sums[index] = first[at + index] + second[at + index];
    memcpy(first + at, sums, sizeof sums);
    memcpy(second + at, sums, sizeof sums);
  }
}

static void *run(void *argument) {
  int rank = (int)(intptr_t)argument;
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(rank, &own);
  if (pthread_setaffinity_np(pthread_self(), sizeof own, &own) != 0) {
    fprintf(stderr, "sketch: no core %d to bind a rank to\n", rank);
    exit(1);
  }
  uint64_t meeting = atomic_load(&posts[rank].meeting);
  for (int iteration = 0; iteration < iterations; iteration++) {
    for (size_t index = 0; index < count; index++) buffers[rank][index] = (float)((index * 7 + iteration + rank) & 1023);
    meet(rank, &meeting);
    double start = now();
    meet(rank, &meeting);
    add(rank);
    meet(rank, &meeting);
    times[rank][iteration] = now() - start;
    for (size_t index = 0; index < count; index++) {
      float expected = (float)((index * 7 + iteration) & 1023) + (float)((index * 7 + iteration + 1) & 1023);
      if (buffers[rank][index] != expected) {
        fprintf(stderr, "sketch: element %zu of rank %d is wrong\n", index, rank);
        exit(1);
      }
    }
    meet(rank, &meeting);
  }
  return NULL;
}

static int compare(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static void measure(size_t bytes, int way, int rounds) {
  count = bytes / sizeof(float), claims = way, iterations = rounds;
  pthread_t threads[2];
  for (int rank = 0; rank < 2; rank++) {
    if (pthread_create(&threads[rank], NULL, run, (void *)(intptr_t)rank) != 0) exit(1);
  }
  for (int rank = 0; rank < 2; rank++) pthread_join(threads[rank], NULL);
}

int main(void) {
  size_t sizes[] = {4 << 10, 64 << 10, 1 << 20, 16 << 20, 100000000};
  for (int rank = 0; rank < 2; rank++) {
    buffers[rank] = mmap(NULL, MOST * sizeof(float), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (buffers[rank] == MAP_FAILED) return 1;
    madvise(buffers[rank], MOST * sizeof(float), MADV_HUGEPAGE);
    memset(buffers[rank], 0, MOST * sizeof(float));
  }
  for (int size = 0; size < 5; size++) {
    for (int way = 0; way < 2; way++) {
      double start = now();
      measure(sizes[size], way, 20);
      int rounds = (int)(SECONDS_A_SIZE * 1e6 / ((now() - start) / 20));
      rounds = rounds < 40 ? 40 : rounds > ITERATIONS ? ITERATIONS : rounds;
      measure(sizes[size], way, rounds);
      for (int round = 0; round < rounds; round++) {
        if (times[1][round] > times[0][round]) times[0][round] = times[1][round];
      }
      qsort(times[0], rounds, sizeof times[0][0], compare);
      printf("{\"sketch\":\"%s\",\"size\":%zu,\"p10_us\":%.3f,\"p50_us\":%.3f,\"p99_us\":%.3f}\n", way ? "claim" : "plain",
             sizes[size], times[0][rounds / 10], times[0][rounds / 2], times[0][rounds * 99 / 100]);
      fflush(stdout);
    }
  }
  return 0;
}
