/* All that nccl.h takes from CUDA's runtime, whose own header needs more than the wheels bring. */
#include <stddef.h>
#define CUDART_VERSION 13000
typedef struct CUstream_st *cudaStream_t;
