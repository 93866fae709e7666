/* A stand-in for the driver: two devices whose memory is the host's, and streams that are done at once unless a test
 * says otherwise. Compiled against the driver's header. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

volatile int stand_in_stream_busy;
volatile int stand_in_refuses;
static __thread CUcontext current;

CUresult cuInit(unsigned int flags) {
  if (stand_in_refuses) return CUDA_ERROR_NO_DEVICE;
  return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OTHER";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) { (void)error; *text = "as described"; return CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int *count) { *count = 2; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal + 10; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  snprintf(name, (size_t)length, "Stand-in %d", device - 10);
  return CUDA_SUCCESS;
}
#undef cuDeviceGetUuid
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { (void)uuid; (void)device; return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
  for (int i = 0; i < 16; i++) uuid->bytes[i] = (char)(i * 16 + device);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
  snprintf(id, (size_t)length, "0000:FF:%02X.0", device);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) { (void)device; *bytes = (size_t)80 << 30; return CUDA_SUCCESS; }
CUresult cuDeviceCanAccessPeer(int *can, CUdevice from, CUdevice to) { *can = from < to; return CUDA_SUCCESS; }
CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice from, CUdevice to) {
  if (attribute != CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK) return CUDA_ERROR_INVALID_VALUE;
  *value = from > to;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)(size_t)device;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { (void)device; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return CUDA_SUCCESS; }

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
  if (!current || flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_CONTEXT;
  *stream = (CUstream)malloc(1);
  return CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream stream) {
  (void)stream;
  return stand_in_stream_busy ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) { (void)stream; return CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream stream) { free(stream); return CUDA_SUCCESS; }

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
  (void)flags;
  *event = (CUevent)calloc(1, sizeof(struct timespec));
  return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  (void)stream;
  clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event);
  return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent event) { (void)event; return CUDA_SUCCESS; }
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  struct timespec *a = (struct timespec *)start, *b = (struct timespec *)end;
  *milliseconds = (float)(b->tv_sec - a->tv_sec) * 1e3f + (float)(b->tv_nsec - a->tv_nsec) / 1e6f;
  return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) { free(event); return CUDA_SUCCESS; }

CUresult cuMemAlloc(CUdeviceptr *pointer, size_t bytes) {
  if (!current || !bytes) return CUDA_ERROR_INVALID_VALUE;
  *pointer = (CUdeviceptr)malloc(bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr pointer) { free((void *)pointer); return CUDA_SUCCESS; }
CUresult cuMemcpyHtoD(CUdeviceptr target, const void *source, size_t bytes) {
  memcpy((void *)target, source, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH(void *target, CUdeviceptr source, size_t bytes) {
  memcpy(target, (const void *)source, bytes);
  return CUDA_SUCCESS;
}
