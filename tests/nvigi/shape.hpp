// What a host of NVIDIA's In-Game Inferencing SDK and a plug-in agree on, declared once more and apart from the plug-in: if one of the
// two is wrong they do not understand each other. Written after the SDK's headers (see THIRD-PARTY-NOTICES):
// SPDX-FileCopyrightText: Copyright (c) 2024-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

struct Uid {
    uint32_t a;
    uint16_t b, c;
    uint8_t  d[8];
};

inline bool operator==(const Uid & x, const Uid & y) { return std::memcmp(&x, &y, sizeof x) == 0; }

struct alignas(8) PluginId {
    Uid      id;
    uint32_t crc24;
};
static_assert(sizeof(PluginId) == 24, "");

struct Base {
    const void * next;
    Uid          uid;
    uint32_t     version;
    uint32_t     padding;
};
static_assert(sizeof(Base) == 32 && offsetof(Base, uid) == 8 && offsetof(Base, version) == 24, "");

#define AT(type, field, offset) static_assert(offsetof(type, field) == (offset), #type "." #field)
#define SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type)

template <typename T> T made(uint32_t version = T::latest) {
    T value;
    std::memset(static_cast<void *>(&value), 0, sizeof value);
    value.base.uid     = T::uid();
    value.base.version = version;
    return value;
}

#define ID(last, ...)                        \
    static Uid uid() { return { __VA_ARGS__ }; } \
    static constexpr uint32_t latest = last;

struct Version { uint32_t major, minor, build, padding; };
struct Text { const char * data; size_t length; };

struct InterfaceInfo {
    Base base; Uid uid_; uint32_t version;
    ID(1, 0x1d599c9d, 0xcdfc, 0x4db9, { 0x97, 0xa5, 0x80, 0xf8, 0x17, 0x21, 0x1c, 0x1c })
};
SIZE(InterfaceInfo, 56);

struct PluginInfo {
    Base base; PluginId id; Version plugin, api, os, driver; uint32_t arch, vendor;
    Text description, author, build;
    struct { const InterfaceInfo * data; size_t length, capacity; } interfaces;
    uint64_t flags;
    ID(2, 0x53faf63e, 0x8b92, 0x477c, { 0x94, 0xb5, 0xb6, 0x0b, 0x4b, 0x9d, 0xbf, 0x48 })
};
AT(PluginInfo, arch, 120); AT(PluginInfo, interfaces, 176); SIZE(PluginInfo, 208);

// Core's text, which its users give back: a struct with a destructor, so it is returned through a hidden pointer.
struct CoreText {
    char * data;
    size_t length;
    ~CoreText() {}
};

struct Framework {
    Base base;
    bool (*add_interface)(PluginId, void *, uint32_t);
    void * (*get_interface)(PluginId, const Uid *, uint32_t, const char *);
    bool (*release_interface)(PluginId, const Uid *);
    size_t (*get_num_interfaces)(PluginId);
    CoreText (*get_model_directory)(PluginId);
    CoreText (*get_dependencies)();
    PluginId (*get_plugin_id)(const char *);
    ID(1, 0x0f688505, 0x89e4, 0x45ff, { 0x84, 0xe8, 0xd0, 0x83, 0x80, 0x59, 0x2b, 0xd0 })
};
SIZE(Framework, 88);

struct MemoryManager {
    Base base; void * (*allocate)(size_t); void (*deallocate)(void *);
    ID(1, 0x8a6572e0, 0xf713, 0x44c7, { 0xa2, 0xbf, 0x84, 0x93, 0xa9, 0x49, 0x9e, 0xb2 })
};

struct Log {
    Base base;
    void (*logva)(uint32_t, int, const char *, int, const char *, int, const char *, const char *, ...);
    void * unused;
    uint32_t (*level)();
    void * more[9];
    ID(2, 0x8ffd0ca2, 0x62a0, 0x4f4a, { 0x88, 0x40, 0xe2, 0x7e, 0x3f, 0xf4, 0xf7, 0x5f })
};
SIZE(Log, 128);

struct Instance;
struct Context;

struct Inference {
    Base base;
    uint32_t (*create)(const void *, Instance **);
    uint32_t (*destroy)(const Instance *);
    uint32_t (*capabilities)(const void **, const void *);
    ID(1, 0xf0038a35, 0xeec2, 0x4230, { 0x81, 0x1d, 0x58, 0xc9, 0x49, 0x86, 0x71, 0xbc })
};
SIZE(Inference, 56);

struct Descriptor { Base base; const char * key; Uid type; bool optional; uint32_t allocator; };
SIZE(Descriptor, 64);
struct Descriptors { Base base; size_t count; const Descriptor * items; };

struct Instance {
    Base base; void * data;
    PluginId (*feature)(void *);
    const Descriptors * (*inputs)(void *);
    const Descriptors * (*outputs)(void *);
    uint32_t (*evaluate)(Context *);
    uint32_t (*evaluate_async)(Context *);
    uint32_t (*cancel)(Context *);
    ID(3, 0xad9dc29c, 0x0a89, 0x4a4e, { 0xb9, 0x00, 0xa7, 0x18, 0x3b, 0x48, 0x33, 0x6e })
};
SIZE(Instance, 88);

struct CpuData {
    Base base; const void * buffer; size_t bytes;
    ID(1, 0xa8197fe3, 0xfc9b, 0x4730, { 0xbc, 0x85, 0xcb, 0x9f, 0x75, 0x5c, 0x11, 0x1c })
};
struct DataText {
    Base base; const CpuData * utf8;
    ID(1, 0x15f34b49, 0x63d3, 0x4ae2, { 0xaf, 0x75, 0x3d, 0xd3, 0x77, 0x72, 0xdc, 0xb9 })
};
struct Image {
    Base base; const CpuData * bytes; int h, w, c;
    ID(1, 0x05f87a5d, 0x6f13, 0x4ddf, { 0xb0, 0x11, 0x3b, 0x14, 0xcd, 0x35, 0xec, 0xc9 })
};
AT(Image, c, 48); SIZE(Image, 56);
struct Slot {
    Base base; const char * key; const DataText * data;
    ID(1, 0xa3560575, 0xf9f7, 0x4fbf, { 0xa3, 0x82, 0x22, 0xd6, 0x44, 0x8c, 0x9d, 0x52 })
};
SIZE(Slot, 48);
struct Slots {
    Base base; size_t count; const Slot * items;
    ID(1, 0x10fd9adb, 0x794e, 0x4873, { 0xac, 0xcd, 0xad, 0x8b, 0xd2, 0xac, 0x00, 0xbf })
};

using Callback = uint32_t (*)(const Context *, uint32_t, void *);
struct Context {
    Base base; Instance * instance; const Slots * inputs; Callback callback; const void * runtime; void * user; const Slots * outputs;
    ID(1, 0x75b12c0b, 0x5d88, 0x48b0, { 0x8e, 0x52, 0xd2, 0xe8, 0xb4, 0x68, 0x4e, 0xda })
};
SIZE(Context, 80);

struct Polled {
    Base base; uint32_t (*results)(Context *, bool, uint32_t *); uint32_t (*release)(Context *, uint32_t);
    ID(1, 0x203a2e67, 0x9ea2, 0x47fc, { 0xb9, 0x32, 0x7a, 0x39, 0x65, 0xe6, 0x08, 0xd4 })
};

struct Common {
    Base base; int32_t threads; size_t budget; const char * guid; const char * models; const char * more; const char * card;
    ID(2, 0xcc8cad78, 0x95f0, 0x41b0, { 0xad, 0x9c, 0x5d, 0x69, 0x95, 0x98, 0x8b, 0x23 })
};
AT(Common, budget, 40); AT(Common, card, 72); SIZE(Common, 80);

struct Capabilities {
    Base base; size_t count; const char ** guids; const char ** names; const size_t * budgets; uint32_t backends; const uint32_t * flags;
    ID(2, 0x1213844e, 0xe53b, 0x4c46, { 0xa3, 0x03, 0x74, 0x17, 0x89, 0x06, 0x0b, 0x3c })
};
SIZE(Capabilities, 80);

struct Gpt {
    Base base; int32_t tokens, context, seed; bool flash; int32_t batch, ubatch, type_k, type_v;
    size_t loras; const char ** names; const float * scales;
    ID(3, 0x506c5935, 0x67c6, 0x4136, { 0x95, 0x50, 0x36, 0xbb, 0xa8, 0x3c, 0x93, 0xbc })
};
AT(Gpt, flash, 44); AT(Gpt, type_v, 60); AT(Gpt, loras, 64); SIZE(Gpt, 88);

struct Runtime {
    Base base; uint32_t seed; int32_t tokens, batch, keep, draft, chunks, parallel, sequences; float temperature, top_p; bool interactive;
    const char * reverse; const char * prefix; const char * suffix;
    float frame_ms; int32_t rate;
    bool templated;
    size_t loras; const char ** names; const float * scales;
    bool jinja; const char * chat_template;
    float seconds;
    ID(6, 0xfeb5f4a9, 0x8a02, 0x4864, { 0x87, 0x57, 0x08, 0x1f, 0x42, 0x38, 0x11, 0x60 })
};
AT(Runtime, interactive, 72); AT(Runtime, frame_ms, 104); AT(Runtime, templated, 112); AT(Runtime, loras, 120); AT(Runtime, jinja, 144);
AT(Runtime, chat_template, 152); AT(Runtime, seconds, 160); SIZE(Runtime, 168);

struct Sampler {
    Base base; int32_t previous, probabilities, min_keep, top_k; float min_p, xtc_probability, xtc_threshold, tfs_z, typical, range, exponent;
    int32_t last; float repeat, frequency, presence; int32_t mirostat; float tau, eta; bool newline, ignore_eos;
    bool persistent; const char * grammar; const char * cache;
    ID(2, 0xfd183aa9, 0x6e50, 0x4021, { 0x9b, 0x0e, 0xa7, 0xae, 0xab, 0x6e, 0xef, 0x49 })
};
AT(Sampler, newline, 104); AT(Sampler, persistent, 106); AT(Sampler, grammar, 112); SIZE(Sampler, 128);

struct SessionState {
    Base base;
    size_t (*size)(const Instance *);
    size_t (*get)(const Instance *, uint8_t *, size_t, int *);
    bool (*set)(const Instance *, const uint8_t *, size_t, int);
    ID(1, 0x8e7f6d5c, 0x4b3a, 0x2918, { 0x07, 0x36, 0x45, 0x54, 0x63, 0x72, 0x81, 0x90 })
};

struct Cuda {
    Base base; int implementation, device; void * context; void * stream; void * functions[8];
    ID(2, 0xfab2bd3f, 0x8a3e, 0x41ab, { 0x88, 0xde, 0xd6, 0xcb, 0x2b, 0x65, 0xc5, 0x54 })
};
SIZE(Cuda, 120);

struct FileIo {
    Base base; void * user; void * functions[10];
    ID(1, 0xbabcd7bc, 0x4951, 0x4dcd, { 0xbf, 0x23, 0x18, 0xd5, 0xff, 0x61, 0x20, 0xdd })
};
SIZE(FileIo, 120);

enum : uint32_t { INVALID_PARAMETER = 4u << 24, INVALID_STATE = 8u << 24, NO_RESOURCES = 12u << 24, NOT_READY = 13u << 24,
                  NOT_IMPLEMENTED = 16u << 24, NOT_FOUND = 17u << 24, IO = 21u << 24, CANCELLED = 28u << 24 };
enum : uint32_t { STATE_INVALID = 0, DONE = 1u << 24, CANCEL = 2u << 24, PENDING = 3u << 24 };

inline PluginId ours() {
    return { { 0x9b8e3a7f, 0xdad2, 0x4df4, { 0xa9, 0xe1, 0x81, 0x7b, 0xd7, 0x48, 0xa0, 0x53 } }, 0x5661fd };
}
inline PluginId core() {
    return { { 0x42534bcf, 0x590c, 0x40a9, { 0x80, 0x83, 0x65, 0x3f, 0x97, 0x8c, 0xcd, 0x1b } }, 0x1a8307 };
}
