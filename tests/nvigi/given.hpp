// What hosts give besides texts: files that they read themselves, parameters as JSON, memory of the GPU, images.
#pragma once

#include "host.hpp"

#include <cstdio>
#include <cstdlib>

// A host that reads files: the name of one stands for a real one.
struct Reads {
    std::map<std::string, std::string> files;
    int                                opens = 0, closes = 0, reads = 0;
    size_t                             most   = 100000; // bytes that a read returns
    int                                fails_at = -1;

    static void * open(Reads * host, const char * name, const char * mode) {
        CHECK(mode[0] == 'r');
        if (host->files.count(name) == 0) return nullptr;
        host->opens++;
        return std::fopen(host->files[name].c_str(), "rb");
    }
    static void close(Reads * host, std::FILE * file) { host->closes++; std::fclose(file); }
    static size_t size(Reads *, std::FILE * file) {
        long at = std::ftell(file);
        std::fseek(file, 0, SEEK_END);
        long end = std::ftell(file);
        std::fseek(file, at, SEEK_SET);
        return static_cast<size_t>(end);
    }
    static int seek(Reads *, std::FILE * file, size_t offset, int whence) { return std::fseek(file, static_cast<long>(offset), whence); }
    static size_t read(Reads * host, std::FILE * file, void * into, size_t bytes) {
        if (host->reads++ == host->fails_at) return 0;
        return std::fread(into, 1, bytes < host->most ? bytes : host->most, file);
    }
    void fill(FileIo & io) {
        io.user         = this;
        io.functions[0] = reinterpret_cast<void *>(open);
        io.functions[1] = reinterpret_cast<void *>(close);
        io.functions[2] = reinterpret_cast<void *>(size);
        io.functions[4] = reinterpret_cast<void *>(seek);
        io.functions[5] = reinterpret_cast<void *>(read);
    }
};

// A host that has the GPU's memory; of the simulated GPU it is memory of the CPU.
struct Gives {
    std::map<void *, size_t> taken;
    size_t                   held = 0, calls = 0, reported = 0;
    bool                     refuses = false;
    std::mutex               lock;

    static int32_t take(void ** memory, size_t size, int device, bool managed, bool hip, Gives * host) {
        std::lock_guard<std::mutex> one(host->lock);
        CHECK(device == 0 && !managed && !hip);
        host->calls++;
        if (host->refuses) return 2;
        *memory = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
        host->taken[*memory] = size;
        host->held += size;
        return 0;
    }
    static int32_t give_back(void * memory, Gives * host) {
        std::lock_guard<std::mutex> one(host->lock);
        CHECK(host->taken.count(memory) == 1);
        host->held -= host->taken[memory];
        host->taken.erase(memory);
        std::free(memory);
        return 0;
    }
    static void took(void * memory, size_t size, Gives * host) {
        std::lock_guard<std::mutex> one(host->lock);
        CHECK(host->taken[memory] == size);
        host->reported++;
    }
};

inline void files(Plugin & plugin) {
    Inputs      prompt{ { "text", argument("prompt") } };
    Runtime     how  = raw(tokens());
    std::string card = "{\"name\": \"tiny\", \"model\": {\"local_files\": [\"archive/tiny.gguf\"]}, \"chat_template\": \"{{ messages[0]['content'] }}\"}";
    Reads       host;
    FileIo      io = made<FileIo>();
    host.fill(io);
    host.files["archive/tiny.gguf"] = argument("file");
    auto creation = [&](Creation & with) {
        const void * chain = with.chain();
        with.own.base.next = &io;
        with.common.card   = card.c_str();
        with.common.models = nullptr; // nothing is looked for
        return chain;
    };
    Creation   with(number("budget"));
    Instance * instance = nullptr;
    OK(plugin.gpt->create(creation(with), &instance));
    CHECK(host.opens > 0 && host.closes == host.opens && host.reads > 3);
    SAME(evaluated(instance, prompt, how), argument("expected"));
    OK(plugin.gpt->destroy(instance));
    const void * told = nullptr;
    OK(plugin.gpt->capabilities(&told, creation(with)));
    auto caps = static_cast<const Capabilities *>(told);
    CHECK(caps->count == 1 && argument("guid") == caps->guids[0] && caps->budgets[0] == 0);
    // one that fails in the middle, a file that is none, no card, a function that is missing
    auto refused = [&](uint32_t code) {
        Creation other(number("budget"));
        instance = reinterpret_cast<Instance *>(8);
        GETS(code, plugin.gpt->create(creation(other), &instance));
        CHECK(instance == nullptr && host.opens == host.closes);
    };
    host.reads    = 0;
    host.fails_at = 2;
    refused(IO);
    host.fails_at = -1;
    std::string good = card;
    card = "{\"local_files\": [\"other.gguf\"]}";
    refused(IO);
    card = "{}";
    refused(NOT_FOUND);
    card = good;
    io.functions[5] = nullptr;
    refused(INVALID_PARAMETER);
}

inline void requests(Plugin & plugin) {
    Creation    with(number("budget"));
    Instance *  instance = with.create(plugin);
    Runtime     warm     = raw(tokens());
    std::string text     = argument("prompt"), all = std::to_string(tokens()), half = std::to_string(tokens() / 2);
    warm.temperature = 1.5f;
    auto says = [&](const std::string & json) {
        Inputs inputs{ { "text", text }, { "json", json } };
        return evaluated(instance, inputs, warm);
    };
    SAME(says("{\"temperature\": 0, \"n_predict\": " + all + ", \"xyz\": 1}"), argument("expected"));
    SAME(says("{\"top_k\": 1, \"n_predict\": " + half + "}"), argument("half"));
    CHECK(says("{\"seed\": 5}") == says("{\"seed\": 5}"));
    SAME(says("{\"grammar\": \"root ::= \\\"abc\\\"\"}"), std::string("abc"));
    std::string expected = argument("expected");
    SAME(says("{\"temperature\": 0, \"stop\": [\"" + expected.substr(4, 2) + "\"]}"), expected.substr(0, expected.find(expected.substr(4, 2))));
    CHECK(says("{\"json_schema\": {\"type\": \"boolean\"}}").find_first_not_of("truefals") == std::string::npos);
    for (const char * wrong : { "[]", "{", "1" }) {
        Inputs  inputs{ { "text", text }, { "json", wrong } };
        Answer  answer;
        Context context = context_of(instance, inputs, warm, &answer);
        GETS(10u << 24, instance->evaluate(&context));
    }
    for (const char * wrong : { "{\"top_k\": \"x\"}", "{\"stop\": 1}", "{\"temperature\": true}" }) {
        Inputs  inputs{ { "text", text }, { "json", wrong } };
        Answer  answer;
        Context context = context_of(instance, inputs, warm, &answer);
        GETS(INVALID_PARAMETER, instance->evaluate(&context));
    }
    OK(plugin.gpt->destroy(instance));
}

inline void memory(Plugin & plugin) {
    Gives  host;
    Cuda   cuda = made<Cuda>();
    Inputs prompt{ { "text", argument("prompt") } };
    Runtime how = raw(tokens());
    cuda.functions[0] = reinterpret_cast<void *>(Gives::took);
    cuda.functions[1] = &host;
    cuda.functions[4] = reinterpret_cast<void *>(Gives::take);
    cuda.functions[5] = &host;
    cuda.functions[6] = reinterpret_cast<void *>(Gives::give_back);
    cuda.functions[7] = &host;
    auto creation = [&](Creation & with) {
        const void * chain = with.chain();
        with.own.base.next = &cuda;
        return chain;
    };
    Creation   with(number("small"));
    Instance * instance = nullptr;
    OK(plugin.gpt->create(creation(with), &instance));
    SAME(evaluated(instance, prompt, how), argument("expected"));
    CHECK(host.held > 0 && host.held <= number("small") << 20 && limits_of(plugin, instance).held <= host.held + 4096 && host.reported == host.calls);
    // another instance has to say the same
    Creation   other(number("small"));
    Instance * second = nullptr;
    GETS(INVALID_PARAMETER, plugin.gpt->create(other.chain(), &second));
    OK(plugin.gpt->destroy(instance));
    CHECK(host.held == 0 && host.taken.empty());
    host.refuses = true;
    Creation   again(number("small"));
    CHECK(plugin.gpt->create(creation(again), &instance) != 0 && instance == nullptr && host.held == 0);
    cuda.functions[4] = nullptr;
    Creation   lacks(number("small"));
    GETS(INVALID_PARAMETER, plugin.gpt->create(creation(lacks), &instance));
    cuda.functions[6] = nullptr;
    Creation   reports(number("small"));
    GETS(NOT_IMPLEMENTED, plugin.gpt->create(creation(reports), &instance));
    Cuda context = made<Cuda>();
    context.context = &host;
    Creation   none(number("small"));
    const void * chain = none.chain();
    none.own.base.next = &context;
    CHECK(plugin.gpt->create(chain, &instance) != 0 && instance == nullptr); // there is no driver here, or no such context
}

inline void images(Plugin & plugin) {
    Creation with(number("budget"));
    with.common.models = argument("vision").c_str();
    with.gpt.context   = 1024;
    Instance * instance = with.create(plugin);
    const int  width = 112, height = 84;
    std::vector<uint8_t> rgb(width * height * 3), rgba, other;
    for (size_t i = 0; i < rgb.size(); i++) rgb[i] = static_cast<uint8_t>(i * 7 + i / 336 * 31);
    other = rgb;
    for (uint8_t & byte : other) byte = static_cast<uint8_t>(255 - byte);
    for (size_t i = 0; i < rgb.size(); i += 3) rgba.insert(rgba.end(), { rgb[i], rgb[i + 1], rgb[i + 2], 77 });
    Runtime how = greedy(16);
    how.interactive = false; // each begins anew
    Answer  last;
    auto    evaluate = [&](const std::string & text, const std::vector<uint8_t> & bytes, int c, int w, size_t size, Answer & answer) {
        CpuData memory = made<CpuData>();
        memory.buffer  = bytes.data();
        memory.bytes   = size;
        Image image    = made<Image>();
        image.bytes = &memory; image.h = height; image.w = w; image.c = c;
        Inputs inputs{ { "text", text } };
        std::vector<Slot> slots(inputs.slots);
        slots.push_back(made<Slot>());
        slots[1].key  = "image";
        slots[1].data = reinterpret_cast<const DataText *>(&image);
        Slots array = made<Slots>();
        array.count = 2;
        array.items = slots.data();
        Context context = context_of(instance, inputs, how, &answer);
        context.inputs  = &array;
        return instance->evaluate(&context);
    };
    auto sees = [&](const std::string & text, const std::vector<uint8_t> & bytes, int c) {
        Answer answer;
        OK(evaluate(text, bytes, c, width, bytes.size(), answer));
        CHECK(!answer.text.empty());
        return answer.text;
    };
    std::string seen = sees("what is this?", rgb, 3);
    SAME(sees("what is this?", rgb, 3), seen);
    SAME(sees("what is this?", rgba, 4), seen);
    SAME(sees("what is this?<image>", rgb, 3), seen);
    CHECK(sees("what is this?", other, 3) != seen);
    CHECK(sees("<image>what is this?", rgb, 3) != seen);
    Answer answer;
    GETS(INVALID_PARAMETER, evaluate("x", rgb, 3, width, rgb.size() - 1, answer)); // a byte is missing
    GETS(INVALID_PARAMETER, evaluate("x", rgb, 2, width, rgb.size(), answer));
    GETS(INVALID_PARAMETER, evaluate("x", rgb, 3, 0, rgb.size(), answer));
    GETS(INVALID_PARAMETER, evaluate("x", rgb, 3, -width, rgb.size(), answer));
    how.templated = true;
    GETS(NOT_IMPLEMENTED, evaluate("x", rgb, 3, width, rgb.size(), answer));
    how.templated = false;
    // refused with its image, which is not left for the next one
    GETS(INVALID_PARAMETER, evaluate("<image> and <__media__>", rgb, 3, width, rgb.size(), answer));
    CHECK(answer.states.empty());
    SAME(sees("what is this?", rgb, 3), seen);
    OK(plugin.gpt->destroy(instance));
    // a model without an encoder
    Creation blind(number("budget"));
    instance = blind.create(plugin);
    GETS(NOT_IMPLEMENTED, evaluate("x", rgb, 3, width, rgb.size(), answer));
    OK(plugin.gpt->destroy(instance));
}
