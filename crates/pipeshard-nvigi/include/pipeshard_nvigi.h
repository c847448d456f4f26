/* pipeshard_nvigi.h - what nvigi.plugin.gpt.ggml.pipeshard adds to the interfaces of NVIDIA's In-Game Inferencing SDK.
 *
 * The plug-in is used through NVIGI's own headers: InferenceInterface, IPolledInferenceInterface, IGPTSessionState. This header has
 * one struct to chain to the creation parameters, and one interface. Both begin as every struct of NVIGI does, so that they can be
 * chained, and asked for, like those. C99 or C++.
 *
 * Written after the headers of NVIGI-Core and NVIGI-Plugins (see THIRD-PARTY-NOTICES):
 * SPDX-FileCopyrightText: Copyright (c) 2024-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
 * SPDX-License-Identifier: MIT
 */
#ifndef PIPESHARD_NVIGI_H
#define PIPESHARD_NVIGI_H

#include "pipeshard.h"

#include <stddef.h>
#include <stdint.h>

/* The plug-in: {9B8E3A7F-DAD2-4DF4-A9E1-817BD748A053} 0x5661fd, for nvigiLoadInterface. */

/* The 32 bytes that NVIGI's structs begin with. */
typedef struct {
    const void * next;
    uint32_t     id0;
    uint16_t     id1;
    uint16_t     id2;
    uint8_t      id3[8];
    uint32_t     version;
    uint32_t     padding;
} pipeshard_nvigi_base;

/* Chain it to CommonCreationParameters. {F917BC7F-0397-466A-8C66-E91E25F09C50}, version 1. Zero is always the default. */
#define PIPESHARD_NVIGI_CREATION_BASE \
    { NULL, 0xf917bc7fu, 0x0397, 0x466a, { 0x8c, 0x66, 0xe9, 0x1e, 0x25, 0xf0, 0x9c, 0x50 }, 1, 0 }

#define PIPESHARD_NVIGI_NO_PAGE_LOCK 1u /* as PIPESHARD_DEVICE_NO_PAGE_LOCK */
#define PIPESHARD_NVIGI_STREAM       2u /* evaluate() calls back with each piece, as evaluateAsync() does */

typedef struct {
    pipeshard_nvigi_base base;
    const char *         simulated; /* a simulated GPU in place of a real one, such as "vram=8G"; "": one with defaults. For tests */
    const char *         device;    /* a GPU as pipeshard_devices names it, such as "CUDA0"; NULL: the first, or CudaParameters.device */
    const char *         cache_dir; /* measured profiles and plans are kept there; NULL: nothing is written */
    const char *         profile;   /* a file that `pipeshard profile` wrote; NULL: this machine is measured */
    uint32_t             flags;     /* PIPESHARD_NVIGI_ */
    uint32_t             ubatch;    /* tokens per pass; 0: what suits the budget */
    uint64_t             reserved;
} pipeshard_nvigi_creation;

/* The interface. {11B8B0A7-FC1D-4BD9-B7FD-66BADB799505}, version 1. `instance` is NVIGI's InferenceInstance. Functions that return
 * uint32_t have NVIGI's results: 0, or a code << 24. All of them may be called on any thread. */
typedef struct {
    pipeshard_nvigi_base base;

    /* The budget of all instances together, in bytes, while they are used: as pipeshard_set_budget. `now` may be NULL. */
    uint32_t (*set_budget)(const void * instance, uint64_t budget, uint32_t deadline_ms, pipeshard_limits * now);
    /* As pipeshard_get_limits: budget, smallest budget that works, what is held. Begin `limits` with PIPESHARD_INIT. */
    uint32_t (*get_limits)(const void * instance, pipeshard_limits * limits);
    /* As pipeshard_sleep and pipeshard_wake. */
    uint32_t (*sleep)(const void * instance);
    uint32_t (*wake)(const void * instance);
    /* The smallest budget, in bytes, that the latest refusal by a budget named (12 << 24); 0: there was none. */
    uint64_t (*last_minimum)(void);
    /* The text of the latest failure of any function, which the log has as well. Returns the bytes that all of it needs. */
    size_t (*last_error)(char * text, size_t size);
    /* As pipeshard_report. Returns the bytes that all of it needs; 0 where it fails. */
    size_t (*report)(const void * instance, char * text, size_t size);
} pipeshard_nvigi_interface;

#endif /* PIPESHARD_NVIGI_H */
