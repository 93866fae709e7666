/* A stand-in for NVML, with the signatures of nvml.h. It answers what a test has set, and counts what a caller owes. */
#include <stdio.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, DEVICES = 8 };
enum { TEXT_GIVEN, TEXT_NOT_UTF8, TEXT_WITHOUT_END, TEXT_EMPTY, TEXT_OF_ALL_ALIKE };

typedef int nvmlReturn_t;
typedef struct device { int number; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;

/* Set by tests. The arrays are of one value for each device. */
volatile int stand_in_init, stand_in_count = 2, stand_in_uuid, stand_in_name;
volatile int stand_in_handle[DEVICES], stand_in_memory[DEVICES], stand_in_text[DEVICES];
/* Inits without their shutdown. */
volatile int stand_in_open;

static struct device devices[DEVICES];

nvmlReturn_t nvmlInit_v2(void) {
  if (!stand_in_init) stand_in_open++;
  return stand_in_init;
}
nvmlReturn_t nvmlShutdown(void) { return stand_in_open-- > 0 ? OK : UNINITIALIZED; }

const char *nvmlErrorString(nvmlReturn_t result) {
  switch (result) {
    case INVALID_ARGUMENT: return "an argument is wrong";
    case 9: return "the driver is not loaded";
    case 999: return NULL;
    default: return "as described";
  }
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
  if (stand_in_open < 1) return UNINITIALIZED;
  *count = (unsigned int)stand_in_count;
  return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
  if (stand_in_open < 1) return UNINITIALIZED;
  if (index >= DEVICES) return INVALID_ARGUMENT;
  if (stand_in_handle[index]) return stand_in_handle[index];
  devices[index].number = (int)index;
  *device = &devices[index];
  return OK;
}

static nvmlReturn_t answer(nvmlDevice_t device, char *text, unsigned int length, int form, const char *format) {
  if (stand_in_open < 1) return UNINITIALIZED;
  if (stand_in_text[device->number]) return stand_in_text[device->number];
  char whole[96];
  int number = form == TEXT_OF_ALL_ALIKE ? 0 : device->number;
  size_t needed = (size_t)snprintf(whole, sizeof whole, format, number) + 1;
  if (needed > length) return INSUFFICIENT_SIZE;
  switch (form) {
    case TEXT_NOT_UTF8: memcpy(text, "H\xff\xfe!", 5); break;
    case TEXT_WITHOUT_END: memset(text, 'x', length); break;
    case TEXT_EMPTY: text[0] = 0; break;
    default: memcpy(text, whole, needed);
  }
  return OK;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
  return answer(device, uuid, length, stand_in_uuid, "GPU-%08x-0000-4000-8000-0123456789ab");
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
  return answer(device, name, length, stand_in_name, "Stand-in %d");
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
  if (stand_in_open < 1) return UNINITIALIZED;
  if (stand_in_memory[device->number]) return stand_in_memory[device->number];
  memory->total = (unsigned long long)(80 + device->number) << 30;
  memory->free = 1;
  memory->used = 2;
  return OK;
}
