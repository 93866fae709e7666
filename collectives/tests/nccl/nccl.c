/* A stand-in for libnccl, compiled against its header: it checks and records what it is called with, and a test says
 * what it answers. A world of one rank really computes, on host memory. */
#include <nccl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Set by tests, before or between calls. */
volatile int stand_in_polls;       /* polls that are answered "in progress" after each call; -1: all */
volatile int stand_in_async_error; /* what a poll is answered once nothing is in progress */
volatile int stand_in_refuses_init;
volatile int stand_in_version = NCCL_VERSION_CODE;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char record[1 << 16];
static __thread int group_depth;

struct ncclComm {
  int rank, world, polls, freed;
  ncclComm_t *child_place, child;
};

static void say(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&lock);
  size_t used = strlen(record);
  vsnprintf(record + used, sizeof record - used, format, arguments);
  pthread_mutex_unlock(&lock);
  va_end(arguments);
}

const char *stand_in_record(void) { return record; }

static const char *type_name(ncclDataType_t type) {
  switch (type) {
    case ncclInt8: return "i8";
    case ncclUint8: return "u8";
    case ncclInt32: return "i32";
    case ncclInt64: return "i64";
    case ncclFloat16: return "f16";
    case ncclFloat32: return "f32";
    case ncclFloat64: return "f64";
    case ncclBfloat16: return "bf16";
    default: return "?";
  }
}

static size_t type_size(ncclDataType_t type) {
  switch (type) {
    case ncclInt64: case ncclFloat64: return 8;
    case ncclInt32: case ncclFloat32: return 4;
    case ncclFloat16: case ncclBfloat16: return 2;
    default: return 1;
  }
}

static const char *op_name(ncclRedOp_t op) {
  switch (op) {
    case ncclSum: return "sum";
    case ncclProd: return "product";
    case ncclMax: return "max";
    case ncclMin: return "min";
    case ncclAvg: return "mean";
    default: return "?";
  }
}

/* A call that came while the last one was in progress, or after the end, is the caller's fault. */
static ncclResult_t began(ncclComm_t comm) {
  if (comm->freed) { say("USED AFTER FREE\n"); return ncclInternalError; }
  if (comm->polls != 0) { say("CALLED WHILE IN PROGRESS\n"); return ncclInvalidUsage; }
  comm->polls = stand_in_polls;
  return comm->polls ? ncclInProgress : ncclSuccess;
}

ncclResult_t ncclGetVersion(int *version) { *version = stand_in_version; return ncclSuccess; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  for (int i = 0; i < NCCL_UNIQUE_ID_BYTES; i++) id->internal[i] = (char)(i ^ 0x5a);
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) { return result == ncclSystemError ? "system error" : "some error"; }
const char *ncclGetLastError(ncclComm_t comm) { (void)comm; return "the cable is unplugged"; }

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int world, ncclUniqueId id, int rank, ncclConfig_t *config) {
  /* As the real one does where CUDA refuses. */
  if (stand_in_refuses_init) { group_depth++; return ncclUnhandledCudaError; }
  ncclConfig_t wanted = NCCL_CONFIG_INITIALIZER;
  wanted.blocking = 0;
  wanted.version = config->version;
  if (config->size != sizeof *config || config->version < NCCL_VERSION(2, 28, 0)
      || memcmp(&wanted, config, sizeof wanted) != 0) {
    say("WRONG CONFIGURATION\n");
    return ncclInvalidArgument;
  }
  for (int i = 0; i < NCCL_UNIQUE_ID_BYTES; i++) {
    if (id.internal[i] != (char)(i ^ 0x5a)) { say("WRONG ID\n"); return ncclInvalidArgument; }
  }
  say("init rank %d of %d\n", rank, world);
  *comm = calloc(1, sizeof **comm);
  (*comm)->rank = rank;
  (*comm)->world = world;
  return began(*comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
  if (comm->freed) { say("ASKED AFTER FREE\n"); return ncclInternalError; }
  if (comm->polls > 0 && --comm->polls == 0 && comm->child_place) {
    *comm->child_place = comm->child;
    comm->child_place = NULL;
  }
  *error = comm->polls ? ncclInProgress : (ncclResult_t)stand_in_async_error;
  return ncclSuccess;
}

static ncclResult_t end(ncclComm_t comm, const char *name) {
  say("%s rank %d\n", name, comm->rank);
  if (comm->freed) say("FREED TWICE\n");
  comm->freed = 1; /* The memory stays, so that a late use is noticed and not a crash. */
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) { say("finalize rank %d\n", comm->rank); return began(comm); }
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return end(comm, "destroy"); }
ncclResult_t ncclCommAbort(ncclComm_t comm) { return end(comm, "abort"); }

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *child, ncclConfig_t *config) {
  say("split color %d key %d%s\n", color, key, config ? " CONFIGURED" : "");
  ncclResult_t result = began(comm);
  if (color != NCCL_SPLIT_NOCOLOR) {
    comm->child = calloc(1, sizeof *comm);
    comm->child->world = 1;
    comm->child_place = child;
    if (result == ncclSuccess) { *child = comm->child; comm->child_place = NULL; }
  }
  return result;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) { *count = comm->world; return ncclSuccess; }
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) { *rank = comm->rank; return ncclSuccess; }

static ncclResult_t copy(const void *source, void *target, size_t bytes, ncclComm_t comm) {
  if (comm->world == 1 && source != target) memcpy(target, source, bytes);
  return group_depth ? ncclSuccess : began(comm);
}

ncclResult_t ncclAllReduce(const void *source, void *target, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  say("all_reduce %zu %s %s stream %zu\n", count, type_name(type), op_name(op), (size_t)stream);
  return copy(source, target, count * type_size(type), comm);
}
ncclResult_t ncclReduce(const void *source, void *target, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  say("reduce %zu %s %s root %d stream %zu\n", count, type_name(type), op_name(op), root, (size_t)stream);
  return copy(source, target, count * type_size(type), comm);
}
ncclResult_t ncclBroadcast(const void *source, void *target, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  say("broadcast %zu %s root %d stream %zu\n", count, type_name(type), root, (size_t)stream);
  return copy(source, target, count * type_size(type), comm);
}
ncclResult_t ncclReduceScatter(const void *source, void *target, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  say("reduce_scatter %zu %s %s stream %zu\n", count, type_name(type), op_name(op), (size_t)stream);
  return copy(source, target, count * type_size(type), comm);
}
ncclResult_t ncclAllGather(const void *source, void *target, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  say("all_gather %zu %s stream %zu\n", count, type_name(type), (size_t)stream);
  return copy(source, target, count * type_size(type), comm);
}
ncclResult_t ncclSend(const void *source, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  say("send %zu %s to %d stream %zu\n", count, type_name(type), peer, (size_t)stream);
  return copy(source, (void *)source, count * type_size(type), comm);
}
ncclResult_t ncclRecv(void *target, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  say("recv %zu %s from %d stream %zu\n", count, type_name(type), peer, (size_t)stream);
  return copy(target, target, count * type_size(type), comm);
}

ncclResult_t ncclGroupStart(void) { group_depth++; say("group start\n"); return ncclSuccess; }
ncclResult_t ncclGroupEnd(void) {
  if (group_depth == 0) return ncclInvalidUsage;
  group_depth--;
  say("group end\n");
  return ncclSuccess;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void *buffer, size_t size, void **handle) {
  (void)buffer;
  say("register %zu\n", size);
  *handle = (void *)77;
  return began(comm);
}
ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle) {
  say("deregister %zu\n", (size_t)handle);
  return began(comm);
}
ncclResult_t ncclMemAlloc(void **pointer, size_t size) { *pointer = malloc(size); return ncclSuccess; }
ncclResult_t ncclMemFree(void *pointer) { free(pointer); say("mem free\n"); return ncclSuccess; }
