/* One rank of Open MPI under `muster bench`. It waits for commands on a pipe of its own, so that it uses no processor
 * while another library is measured, and is started by mpirun once. See src/commands/bench/contestant.rs. */
#include <fcntl.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data.h"

#define CHECK(call) do { if ((call) != MPI_SUCCESS) die(#call); } while (0)

static int rank, world;
static FILE *commands, *answers;
static char *input, *output;

static void die(const char *why) {
  if (answers != NULL) fprintf(answers, "error %s\n", why), fflush(answers);
  fprintf(stderr, "mpi rank %d: %s\n", rank, why);
  MPI_Abort(MPI_COMM_WORLD, 1);
  exit(1);
}

static long long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static FILE *open_pipe(const char *folder, const char *end, const char *mode) {
  char path[4096];
  snprintf(path, sizeof path, "%s/mpi-%d.%s", folder, rank, end);
  FILE *pipe = fopen(path, mode);
  if (pipe == NULL) die("cannot open its pipe");
  return pipe;
}

/* The value of a setting as the library has it now, after it has looked at what this machine allows. */
static void setting(const char *name, char *value, size_t size) {
  int index, elements, provided;
  MPI_T_cvar_handle handle;
  snprintf(value, size, "unknown");
  if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS) return;
  if (MPI_T_cvar_get_index(name, &index) != MPI_SUCCESS) return;
  if (MPI_T_cvar_handle_alloc(index, NULL, &handle, &elements) != MPI_SUCCESS) return;
  int code = -1;
  MPI_T_enum enumeration = MPI_T_ENUM_NULL;
  char text[64];
  int length = sizeof text, verbosity, binding, scope, description_length = 0;
  MPI_Datatype type;
  if (MPI_T_cvar_get_info(index, text, &length, &verbosity, &type, &enumeration, NULL, &description_length, &binding,
                          &scope) == MPI_SUCCESS &&
      enumeration != MPI_T_ENUM_NULL && MPI_T_cvar_read(handle, &code) == MPI_SUCCESS) {
    int items = 0, item;
    MPI_T_enum_get_info(enumeration, &items, NULL, &(int){0});
    for (int i = 0; i < items; i++) {
      char label[64];
      int size_of_label = sizeof label;
      if (MPI_T_enum_get_item(enumeration, i, &item, label, &size_of_label) == MPI_SUCCESS && item == code)
        snprintf(value, size, "%s", label);
    }
  }
  MPI_T_cvar_handle_free(&handle);
}

static void operate(const char *operation, MPI_Datatype type, MPI_Op op, size_t count) {
  int n = (int)count, part = (int)(count / world), root = 0, next = (rank + 1) % world, last = (rank + world - 1) % world;
  if (strcmp(operation, "all_reduce") == 0) CHECK(MPI_Allreduce(MPI_IN_PLACE, input, n, type, op, MPI_COMM_WORLD));
  else if (strcmp(operation, "reduce_scatter") == 0) CHECK(MPI_Reduce_scatter_block(input, output, part, type, op, MPI_COMM_WORLD));
  else if (strcmp(operation, "all_gather") == 0) CHECK(MPI_Allgather(input, part, type, output, part, type, MPI_COMM_WORLD));
  else if (strcmp(operation, "broadcast") == 0) CHECK(MPI_Bcast(input, n, type, root, MPI_COMM_WORLD));
  else if (strcmp(operation, "reduce") == 0) CHECK(MPI_Reduce(rank == root ? MPI_IN_PLACE : input, input, n, type, op, root, MPI_COMM_WORLD));
  else if (strcmp(operation, "gather") == 0) CHECK(MPI_Gather(input, part, type, output, part, type, root, MPI_COMM_WORLD));
  else if (strcmp(operation, "scatter") == 0) CHECK(MPI_Scatter(input, part, type, output, part, type, root, MPI_COMM_WORLD));
  else if (strcmp(operation, "all_to_all") == 0) CHECK(MPI_Alltoall(input, part, type, output, part, type, MPI_COMM_WORLD));
  else if (strcmp(operation, "send_recv") == 0) CHECK(MPI_Sendrecv(input, n, type, next, 0, output, n, type, last, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE));
  else if (strcmp(operation, "barrier") == 0) CHECK(MPI_Barrier(MPI_COMM_WORLD));
  else die("unknown operation");
}

/* Elements that are not as they should be after an operation. */
static size_t wrong(const char *operation, int dtype, int content, size_t count, uint64_t seed) {
  size_t part = count / world, bytes = part * data_size(dtype), total = 0;
  if (strcmp(operation, "all_reduce") == 0) return data_wrong_reduced(input, dtype, content, 0, count, seed, world);
  if (strcmp(operation, "reduce_scatter") == 0) return data_wrong_reduced(output, dtype, content, rank * part, part, seed, world);
  if (strcmp(operation, "broadcast") == 0) return data_wrong_copied(input, dtype, 0, count, seed, 0);
  if (strcmp(operation, "reduce") == 0) return rank == 0 ? data_wrong_reduced(input, dtype, content, 0, count, seed, world) : 0;
  if (strcmp(operation, "scatter") == 0) return data_wrong_copied(output, dtype, rank * part, part, seed, 0);
  if (strcmp(operation, "send_recv") == 0) return data_wrong_copied(output, dtype, 0, count, seed, (rank + world - 1) % world);
  if (strcmp(operation, "barrier") == 0 || (strcmp(operation, "gather") == 0 && rank != 0)) return 0;
  for (int from = 0; from < world; from++) {
    size_t first = strcmp(operation, "all_to_all") == 0 ? rank * part : 0;
    total += data_wrong_copied(output + from * bytes, dtype, first, part, seed, from);
  }
  return total;
}

/* How many elements this rank gives. */
static size_t given(const char *operation, size_t count) {
  return strcmp(operation, "all_gather") == 0 || strcmp(operation, "gather") == 0 ? count / world : count;
}

static MPI_Datatype mpi_type(const char *dtype) {
  if (strcmp(dtype, "f64") == 0) return MPI_DOUBLE;
  if (strcmp(dtype, "f32") == 0) return MPI_FLOAT;
  if (strcmp(dtype, "i8") == 0) return MPI_INT8_T;
  if (strcmp(dtype, "i32") == 0) return MPI_INT32_T;
  if (strcmp(dtype, "i64") == 0) return MPI_INT64_T;
  return MPI_UINT8_T;
}

static MPI_Op mpi_op(const char *reduction) {
  if (strcmp(reduction, "min") == 0) return MPI_MIN;
  if (strcmp(reduction, "max") == 0) return MPI_MAX;
  if (strcmp(reduction, "product") == 0) return MPI_PROD;
  return MPI_SUM;
}

static void run(const char *line) {
  char operation[32], dtype_name[8], reduction[16], buffer[16];
  size_t bytes, warmup, iterations;
  unsigned long long seed;
  if (sscanf(line, "run %31s %7s %15s %15s %zu %zu %zu %llu", operation, dtype_name, reduction, buffer, &bytes, &warmup,
             &iterations, &seed) != 8)
    die("a command that is not understood");
  int dtype = data_dtype(dtype_name), content = data_content(operation, reduction);
  if (dtype == 0 || content == 0) die("a type or reduction that this rival does not have");
  MPI_Datatype type = mpi_type(dtype_name);
  MPI_Op op = mpi_op(reduction);
  size_t count = bytes / data_size(dtype), bad = 0;
  long long *times = malloc((iterations + 1) * sizeof *times);
  if (times == NULL) die("out of memory");
  for (size_t i = 0; i < warmup + iterations; i++, seed++) {
    data_fill(input, dtype, content, 0, given(operation, count), seed, rank);
    CHECK(MPI_Barrier(MPI_COMM_WORLD));
    long long started = now();
    operate(operation, type, op, count);
    long long ended = now();
    /* Where ranks share a processor, one that checks its result would keep another from ending. */
    CHECK(MPI_Barrier(MPI_COMM_WORLD));
    bad += wrong(operation, dtype, content, count, seed);
    if (i >= warmup) times[i - warmup] = ended - started;
  }
  /* No answer wakes the coordinator while a rank is still timing. */
  CHECK(MPI_Barrier(MPI_COMM_WORLD));
  fprintf(answers, "times %zu", bad);
  for (size_t i = 0; i < iterations; i++) fprintf(answers, " %lld", times[i]);
  fprintf(answers, "\n");
  fflush(answers);
  free(times);
}

int main(int argc, char **argv) {
  const char *folder = getenv("MUSTER_BENCH_DIR"), *most = getenv("MUSTER_BENCH_BYTES");
  if (folder == NULL || most == NULL) {
    fprintf(stderr, "this program is started by `muster bench --compare mpi`\n");
    return 2;
  }
  CHECK(MPI_Init(&argc, &argv));
  CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  CHECK(MPI_Comm_size(MPI_COMM_WORLD, &world));
  commands = open_pipe(folder, "in", "r");
  answers = open_pipe(folder, "out", "w");
  size_t bytes = strtoull(most, NULL, 10) + 4096;
  if (posix_memalign((void **)&input, 4096, bytes) != 0 || posix_memalign((void **)&output, 4096, bytes) != 0)
    die("out of memory");
  char version[MPI_MAX_LIBRARY_VERSION_STRING], copies[64], *line = NULL;
  int length;
  MPI_Get_library_version(version, &length);
  version[strcspn(version, ",\n")] = '\0';
  setting("btl_vader_single_copy_mechanism", copies, sizeof copies);
  if (strcmp(copies, "unknown") == 0) fprintf(answers, "ready 2 %s, TCP loopback\n", version);
  else fprintf(answers, "ready 2 %s, copies in shared memory by %s\n", version, copies);
  fflush(answers);
  size_t room = 0;
  while (getline(&line, &room, commands) > 0) {
    if (strncmp(line, "run ", 4) != 0) break;
    run(line);
  }
  free(line);
  MPI_Finalize();
  return 0;
}
