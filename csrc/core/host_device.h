// Marks functions that serve the host and the device with one text.
#pragma once

#ifdef __CUDACC__
#define VLARFT_HOST_DEVICE __host__ __device__
#else
#define VLARFT_HOST_DEVICE
#endif
