// The host of tests/nvigi.rs: a framework, a log, and what every test does with the plug-in.
#pragma once

#include "shape.hpp"

#include <pipeshard_nvigi.h>

#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

static_assert(offsetof(pipeshard_nvigi_creation, simulated) == 32 && offsetof(pipeshard_nvigi_creation, flags) == 64, "");
static_assert(offsetof(pipeshard_nvigi_creation, reserved) == 72 && sizeof(pipeshard_nvigi_creation) == 80, "");
static_assert(offsetof(pipeshard_nvigi_interface, set_budget) == 32 && sizeof(pipeshard_nvigi_interface) == 88, "");

inline std::map<std::string, std::string> given;
inline std::string                         logged;
inline std::mutex                          log_lock;

#define FAIL(...)                                             \
    do {                                                      \
        std::fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);  \
        std::fprintf(stderr, __VA_ARGS__);                    \
        std::fprintf(stderr, "\n%s\n", logged.c_str());       \
        _exit(1);                                             \
    } while (0)
#define CHECK(condition) do { if (!(condition)) FAIL("%s", #condition); } while (0)
#define GETS(wanted, call)                                                                                      \
    do {                                                                                                        \
        uint32_t code_ = (call);                                                                                \
        if (code_ != (uint32_t) (wanted)) FAIL("%s: %#x in place of %#x", #call, code_, (uint32_t) (wanted));   \
    } while (0)
#define OK(call) GETS(0, call)
#define SAME(text, expected)                                                                                                     \
    do {                                                                                                                         \
        std::string is_ = (text), wanted_ = (expected);                                                                          \
        if (is_ != wanted_) FAIL("%s is\n  %s\nexpected\n  %s", #text, is_.c_str(), wanted_.c_str());                            \
    } while (0)

inline const std::string & argument(const char * name) {
    if (given.count(name) == 0) FAIL("the argument %s= is missing", name);
    return given[name];
}
inline size_t number(const char * name) { return std::strtoull(argument(name).c_str(), nullptr, 10); }

inline bool is_mapped() {
    FILE * maps = std::fopen("/proc/self/maps", "r");
    char   line[4096];
    bool   found = false;
    while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) found |= std::strstr(line, "nvigi.plugin") != nullptr;
    if (maps != nullptr) std::fclose(maps);
    return found;
}
inline int threads() {
    int    count  = 0;
    FILE * status = std::fopen("/proc/self/status", "r");
    char   line[256];
    while (std::fgets(line, sizeof line, status) != nullptr) std::sscanf(line, "Threads: %d", &count);
    std::fclose(status);
    return count;
}

// ------------------------------------------------------------------------------------------------------------------- core

inline std::map<std::string, void *> interfaces;
inline int                            borrowed; // interfaces of the core that are in use

inline std::string key(const Uid & uid) { return std::string(reinterpret_cast<const char *>(&uid), sizeof uid); }

inline void logva(uint32_t, int, const char *, int, const char *, int type, const char * tag, const char * format, ...) {
    char    text[8192];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    std::lock_guard<std::mutex> guard(log_lock);
    logged += std::string(type == 2 ? "error " : type == 1 ? "warning " : "") + tag + ": " + text + "\n";
}
inline uint32_t log_level() { return 2; }
inline bool said(const char * text) {
    std::lock_guard<std::mutex> guard(log_lock);
    return logged.find(text) != std::string::npos;
}

inline Log           the_log    = made<Log>();
inline MemoryManager the_memory = made<MemoryManager>();

inline bool add_interface(PluginId id, void * interface, uint32_t flags) {
    CHECK(id.id == ours().id && id.crc24 == ours().crc24 && flags == 0);
    interfaces[key(static_cast<Base *>(interface)->uid)] = interface;
    return true;
}
inline void * get_interface(PluginId id, const Uid * uid, uint32_t version, const char * path) {
    CHECK(id.id == core().id && id.crc24 == core().crc24 && path == nullptr);
    if (*uid == Log::uid() && version <= 2) { borrowed++; return &the_log; }
    if (*uid == MemoryManager::uid() && version <= 1) { borrowed++; return &the_memory; }
    return nullptr;
}
inline bool release_interface(PluginId, const Uid *) { borrowed--; return true; }
inline size_t get_num_interfaces(PluginId) { return interfaces.size(); }
inline CoreText get_model_directory(PluginId) { return { nullptr, 0 }; }
inline CoreText get_dependencies() { return { nullptr, 0 }; }
inline PluginId get_plugin_id(const char *) { return ours(); }

inline Framework framework() {
    the_log.logva = logva;
    the_log.level = log_level;
    the_memory.allocate   = [](size_t size) { return std::calloc(1, size); };
    the_memory.deallocate = std::free;
    Framework made_ = made<Framework>();
    made_.add_interface = add_interface;
    made_.get_interface = get_interface;
    made_.release_interface = release_interface;
    made_.get_num_interfaces = get_num_interfaces;
    made_.get_model_directory = get_model_directory;
    made_.get_dependencies = get_dependencies;
    made_.get_plugin_id = get_plugin_id;
    return made_;
}

// ---------------------------------------------------------------------------------------------------------------- plug-in

struct Plugin {
    void * library = nullptr;
    uint32_t (*get_info)(const Framework *, const PluginInfo **);
    uint32_t (*reg)(const Framework *);
    uint32_t (*dereg)();
    Inference *                 gpt     = nullptr;
    Polled *                    polled  = nullptr;
    SessionState *              state   = nullptr;
    pipeshard_nvigi_interface * control = nullptr;

    void load() {
        library = dlopen(argument("library").c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) FAIL("%s", dlerror());
        auto get = reinterpret_cast<void * (*)(const char *)>(dlsym(library, "nvigiPluginGetFunction"));
        CHECK(get != nullptr && get("nvigiSomethingElse") == nullptr && get(nullptr) == nullptr);
        get_info = reinterpret_cast<decltype(get_info)>(get("nvigiPluginGetInfo"));
        reg      = reinterpret_cast<decltype(reg)>(get("nvigiPluginRegister"));
        dereg    = reinterpret_cast<decltype(dereg)>(get("nvigiPluginDeregister"));
        CHECK(get_info && reg && dereg);
    }
    template <typename T> T * find(const Uid & uid) {
        CHECK(interfaces.count(key(uid)) == 1);
        return static_cast<T *>(interfaces[key(uid)]);
    }
    void enter(const Framework & core) {
        OK(reg(&core));
        gpt    = find<Inference>(Inference::uid());
        polled = find<Polled>(Polled::uid());
        state  = find<SessionState>(SessionState::uid());
        control = find<pipeshard_nvigi_interface>({ 0x11b8b0a7, 0xfc1d, 0x4bd9, { 0xb7, 0xfd, 0x66, 0xba, 0xdb, 0x79, 0x95, 0x05 } });
        CHECK(gpt->base.version == 1 && polled->base.version == 1 && state->base.version == 1);
    }
    void leave() {
        OK(dereg());
        CHECK(borrowed == 0);
        CHECK(dlclose(library) == 0);
        interfaces.clear();
    }
};

// -------------------------------------------------------------------------------------------------------------- arguments

// What createInstance gets: the parts may be changed before they are chained.
struct Creation {
    Common                   common = made<Common>();
    Gpt                      gpt    = made<Gpt>();
    pipeshard_nvigi_creation own    = { PIPESHARD_NVIGI_CREATION_BASE, nullptr, nullptr, nullptr, nullptr, 0, 0, 0 };
    explicit Creation(size_t budget_mb) {
        common.threads = 1;
        common.budget  = budget_mb;
        common.guid    = argument("guid").c_str();
        common.models  = argument("models").c_str();
        gpt.tokens  = 200;
        gpt.context = 512;
        gpt.seed    = -1;
        gpt.batch = 2048; gpt.ubatch = 512; gpt.type_k = 1; gpt.type_v = 1;
        own.simulated = "vram=1G";
    }
    const void * chain() {
        common.base.next = &gpt;
        gpt.base.next    = &own;
        own.base.next    = nullptr;
        return &common;
    }
    Instance * create(Plugin & plugin) {
        Instance * instance = nullptr;
        OK(plugin.gpt->create(chain(), &instance));
        CHECK(instance != nullptr && instance->base.uid == Instance::uid() && instance->base.version == 3);
        CHECK(instance->feature(instance->data).crc24 == ours().crc24);
        return instance;
    }
};

inline Runtime greedy(int32_t tokens) {
    Runtime how = made<Runtime>();
    how.seed = ~0u; how.tokens = tokens; how.batch = 512; how.draft = 16; how.chunks = -1; how.parallel = 1; how.sequences = 1;
    how.temperature = 0; how.top_p = 0.7f; how.interactive = true; how.rate = -1; how.jinja = true; how.seconds = 60;
    return how;
}

inline Runtime raw(int32_t tokens) {
    Runtime how = greedy(tokens);
    how.templated   = true;
    how.interactive = false;
    return how;
}

inline int tokens() { return static_cast<int>(number("tokens")); }

inline pipeshard_limits limits_of(Plugin & plugin, Instance * instance) {
    pipeshard_limits now = PIPESHARD_INIT(pipeshard_limits);
    OK(plugin.control->get_limits(instance, &now));
    return now;
}

struct Said {
    const char * key;
    std::string  text;
};

// Texts in slots.
struct Inputs {
    std::vector<CpuData>  memory;
    std::vector<DataText> texts;
    std::vector<Slot>     slots;
    Slots                 array = made<Slots>();
    Inputs(const Inputs &) = delete;
    Inputs(std::initializer_list<Said> said) : said_(said) {
        size_t count = said_.size();
        memory.assign(count, made<CpuData>());
        texts.assign(count, made<DataText>());
        slots.assign(count, made<Slot>());
        for (size_t i = 0; i < count; i++) {
            memory[i].buffer = said_[i].text.c_str();
            // with the zero and without it: both are met
            memory[i].bytes = said_[i].text.size() + i % 2;
            texts[i].utf8   = &memory[i];
            slots[i].key    = said_[i].key;
            slots[i].data   = &texts[i];
        }
        array.count = count;
        array.items = slots.data();
    }
  private:
    std::vector<Said> said_;
};

inline const char * text_of(const Slots * outputs) {
    CHECK(outputs != nullptr && outputs->base.uid == Slots::uid() && outputs->count == 1);
    const Slot & slot = outputs->items[0];
    CHECK(std::strcmp(slot.key, "text") == 0 && slot.data->base.uid == DataText::uid() && slot.data->utf8->base.uid == CpuData::uid());
    auto text = static_cast<const char *>(slot.data->utf8->buffer);
    CHECK(std::strlen(text) + 1 == slot.data->utf8->bytes);
    return text;
}

// What came of an evaluation. Those of asynchronous ones stay for ever: the callback has them still when it has told of the end.
struct Answer {
    std::string             text;
    std::vector<uint32_t>   states;
    std::mutex              lock;
    std::condition_variable changed;
    uint32_t                returns = 0;     // what the callback answers to the piece number `at`
    size_t                  at      = 1;
    bool                    cancels = false; // cancelAsyncEvaluation is called from the callback instead
    bool                    lets_go = false; // of the context, at the end: it is overwritten
    int terminal() {
        int count = 0;
        for (uint32_t state : states) count += state != PENDING;
        return count;
    }
    // Waits for pieces, or the end.
    void wait(bool for_end) {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [&] { return for_end ? terminal() > 0 : !states.empty(); });
    }
};

inline uint32_t collect(const Context * context, uint32_t state, void * user) {
    auto   answer = static_cast<Answer *>(user);
    size_t count;
    {
        std::lock_guard<std::mutex> guard(answer->lock);
        answer->text += text_of(context->outputs);
        answer->states.push_back(state);
        count = answer->states.size();
        if (answer->lets_go && state != PENDING) std::memset(const_cast<void *>(static_cast<const void *>(context)), 0xA5, sizeof *context);
        answer->changed.notify_all();
    }
    if (count != answer->at || state != PENDING) return state;
    if (answer->cancels) OK(context->instance->cancel(const_cast<Context *>(context)));
    return answer->returns ? answer->returns : state;
}

inline Context context_of(Instance * instance, Inputs & inputs, Runtime & how, Answer * answer) {
    Context context = made<Context>();
    context.instance = instance;
    context.inputs   = &inputs.array;
    context.runtime  = &how;
    context.callback = answer ? collect : nullptr;
    context.user     = answer;
    return context;
}

// The whole answer, by evaluate().
inline std::string evaluated(Instance * instance, Inputs & inputs, Runtime & how) {
    Answer  answer;
    Context context = context_of(instance, inputs, how, &answer);
    OK(instance->evaluate(&context));
    CHECK(answer.states.size() == 1 && answer.states[0] == DONE && context.outputs == nullptr);
    return answer.text;
}
