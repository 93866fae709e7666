/* What each element of a buffer holds before an operation, and how many are wrong after it: the rivals' side of
 * src/commands/bench/data.rs, which says why the values are as they are. Keep the two equal. */
#ifndef MUSTER_BENCH_DATA_H
#define MUSTER_BENCH_DATA_H

#include <stddef.h>
#include <stdint.h>

/* Names as muster's command line has them. Zero: none such. */
int data_dtype(const char *name);
int data_content(const char *operation, const char *reduction);
size_t data_size(int dtype);

/* What rank `rank` gives, from its element `first`. */
void data_fill(void *to, int dtype, int content, size_t first, size_t count, uint64_t seed, uint64_t rank);
/* How many elements differ from what rank `rank` gave. */
size_t data_wrong_copied(const void *from, int dtype, size_t first, size_t count, uint64_t seed, uint64_t rank);
/* How many elements differ from what all ranks gave, combined. */
size_t data_wrong_reduced(const void *from, int dtype, int content, size_t first, size_t count, uint64_t seed,
                          uint64_t world);

#endif
