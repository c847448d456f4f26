// Hosts of the NVIGI-shaped plug-in, one for each `test=`: tests/nvigi.rs says what they are for.
#include "given.hpp"

namespace {

const Framework core_ = framework();

// A prompt without a template's marks, in a conversation of its own.

void information(Plugin & plugin) {
    const PluginInfo * info = nullptr;
    GETS(INVALID_PARAMETER, plugin.get_info(&core_, nullptr));
    OK(plugin.get_info(&core_, &info));
    CHECK(info->base.uid == PluginInfo::uid() && info->base.version == 2);
    CHECK(info->id.id == ours().id && info->id.crc24 == ours().crc24);
    CHECK(info->api.major == 0 && info->api.minor == 0 && info->api.build <= 1 && info->plugin.minor >= 2);
    CHECK(info->interfaces.length == 4 && info->interfaces.data[0].uid_ == Inference::uid());
    CHECK(info->interfaces.data[2].uid_ == SessionState::uid() && info->interfaces.data[2].base.uid == InterfaceInfo::uid());
    CHECK(std::strlen(info->description.data) == info->description.length && info->author.length > 0);
}

void capabilities(Plugin & plugin) {
    Creation     how(number("budget"));
    const void * out = &how;
    GETS(INVALID_PARAMETER, plugin.gpt->capabilities(&out, &how.gpt));
    CHECK(out == nullptr);
    for (const char * guid : { argument("guid").c_str(), "" }) {
        how.common.guid = guid;
        OK(plugin.gpt->capabilities(&out, how.chain()));
        auto caps = static_cast<const Capabilities *>(out);
        CHECK(caps->base.uid == Capabilities::uid() && caps->count == (guid[0] ? 1u : 2u) && caps->backends == 3 && caps->flags[0] == 0);
        bool found = false;
        for (size_t i = 0; i < caps->count; i++) {
            // the card says 100,000 MB, which hosts would take for too much
            CHECK(caps->budgets[i] > 1 && caps->budgets[i] <= number("small"));
            found |= argument("guid") == caps->guids[i] && std::strcmp(caps->names[i], "tiny") == 0;
        }
        CHECK(found);
        auto samplers = static_cast<const Sampler *>(caps->base.next);
        CHECK(samplers->base.uid == Sampler::uid() && samplers->top_k == 40 && samplers->last == 64 && samplers->eta == 0.1f);
    }
}

// ------------------------------------------------------------------------------------------------------------ evaluations

void blocking(Plugin &, Instance * instance) {
    Inputs  prompt{ { "text", argument("prompt") } };
    Runtime how = raw(tokens());
    SAME(evaluated(instance, prompt, how), argument("expected"));
    // by the template of the card, which only joins the texts, so that the tokens are the same
    Runtime     chat = greedy(tokens());
    std::string all  = argument("prompt"), one = all.substr(0, 10), two = all.substr(10, 12), three = all.substr(22);
    chat.interactive = false;
    SAME(evaluated(instance, prompt, chat), argument("expected"));
    Inputs parts{ { "assistant", three }, { "text", two }, { "system", one } };
    SAME(evaluated(instance, parts, chat), argument("expected"));
    // a system prompt alone is kept for what comes
    Inputs system{ { "system", one } }, rest{ { "text", two + three } };
    chat.interactive = true;
    SAME(evaluated(instance, system, chat), "");
    SAME(evaluated(instance, rest, chat), argument("expected"));
    // and begins a conversation
    SAME(evaluated(instance, system, chat), "");
    chat.prefix = "  ";
    Inputs changed{ { "text", (two + three).substr(2) } };
    chat.prefix = (one = (two + three).substr(0, 2)).c_str();
    SAME(evaluated(instance, changed, chat), argument("expected"));
    // a text that ends the answer
    std::string stop = argument("expected").substr(20, 8);
    how.reverse = stop.c_str();
    SAME(evaluated(instance, prompt, how), argument("expected").substr(0, argument("expected").find(stop)));
}

void pieces(Plugin &, Instance * instance) {
    Inputs  prompt{ { "text", argument("prompt") } };
    Runtime how = raw(tokens());
    Answer & answer = *new Answer;
    Context context = context_of(instance, prompt, how, &answer);
    for (bool lets_go : { false, true }) {
        answer.text.clear();
        answer.states.clear();
        answer.lets_go = lets_go;
        OK(instance->evaluate_async(&context));
        answer.wait(true);
        SAME(answer.text, argument("expected"));
        CHECK(answer.terminal() == 1 && answer.states.back() == DONE && answer.states.size() > 10);
    }
    // the next one waits for the end of this one, whose context is the host's again
    Runtime none = raw(1);
    evaluated(instance, prompt, none);
    for (size_t i = 0; i < sizeof context; i++) CHECK(reinterpret_cast<unsigned char *>(&context)[i] == 0xA5);
}

void cancelled(Plugin &, Instance * instance) {
    Inputs  prompt{ { "text", argument("prompt") } };
    // so slow that nothing but the cancellation ends it
    Runtime slow = raw(400), how = raw(tokens());
    slow.rate = 1;
    {
        Answer & answer = *new Answer; // by what the callback returns
        Context context = context_of(instance, prompt, how, &answer);
        answer.returns = CANCEL;
        answer.at      = 3;
        OK(instance->evaluate_async(&context));
        answer.wait(true);
        CHECK(answer.states.size() == 4 && answer.terminal() == 1 && answer.states.back() == CANCEL);
        CHECK(argument("expected").find(answer.text) == 0 && !answer.text.empty());
    }
    {
        Answer & answer = *new Answer; // by a call
        Context context = context_of(instance, prompt, slow, &answer);
        OK(instance->evaluate_async(&context));
        answer.wait(false);
        OK(instance->cancel(&context));
        // it is over when the call returns
        CHECK(answer.terminal() == 1 && answer.states.back() == CANCEL);
        GETS(NOT_IMPLEMENTED, instance->cancel(&context));
    }
    {
        Answer & answer = *new Answer; // by a call in the callback
        Context context = context_of(instance, prompt, slow, &answer);
        answer.cancels = true;
        OK(instance->evaluate_async(&context));
        answer.wait(true);
        CHECK(answer.states.size() == 2 && answer.states.back() == CANCEL);
    }
    {
        Answer & answer = *new Answer; // by the next evaluation
        Context context = context_of(instance, prompt, slow, &answer);
        OK(instance->evaluate_async(&context));
        answer.wait(false);
        SAME(evaluated(instance, prompt, how), argument("expected"));
        CHECK(answer.terminal() == 1 && answer.states.back() == CANCEL);
    }
    {
        Answer & answer = *new Answer; // one that blocks, from another thread
        Context context = context_of(instance, prompt, slow, &answer);
        context.runtime = &slow;
        std::thread other([&] {
            while (instance->cancel(&context) != 0) std::this_thread::yield();
        });
        GETS(CANCELLED, instance->evaluate(&context));
        other.join();
        CHECK(answer.states.size() == 1 && answer.states[0] == CANCEL);
    }
}

void polled(Plugin & plugin, Instance * instance) {
    Inputs   prompt{ { "text", argument("prompt") } };
    Runtime  how     = raw(tokens());
    Context  context = context_of(instance, prompt, how, nullptr);
    uint32_t state   = 77;
    GETS(INVALID_STATE, plugin.polled->results(&context, true, &state));
    GETS(INVALID_PARAMETER, instance->evaluate(&context));
    OK(instance->evaluate_async(&context));
    std::string text;
    for (state = PENDING; state == PENDING;) {
        OK(plugin.polled->results(&context, true, &state));
        std::string now = text_of(context.outputs);
        // the same until it is released
        OK(plugin.polled->results(&context, true, &state));
        SAME(text_of(context.outputs), now);
        CHECK((state == PENDING) == !now.empty());
        text += now;
        OK(plugin.polled->release(&context, state));
        CHECK(context.outputs == nullptr);
    }
    CHECK(state == DONE);
    SAME(text, argument("expected"));
    GETS(INVALID_STATE, plugin.polled->results(&context, true, &state));
    GETS(INVALID_STATE, plugin.polled->release(&context, state));
    // into memory of the host's; what does not fit is not lost
    char     buffer[4096] = "";
    CpuData  memory       = made<CpuData>();
    DataText data         = made<DataText>();
    Slot     slot         = made<Slot>();
    Slots    array        = made<Slots>();
    memory.buffer = buffer; data.utf8 = &memory; slot.key = "text"; slot.data = &data; array.count = 1; array.items = &slot;
    context.outputs = &array;
    OK(instance->evaluate_async(&context));
    text.clear();
    for (state = PENDING; state == PENDING;) {
        memory.bytes = 0;
        GETS(NO_RESOURCES, plugin.polled->results(&context, true, &state));
        memory.bytes = sizeof buffer;
        OK(plugin.polled->results(&context, true, &state));
        CHECK(context.outputs == &array);
        text += buffer;
        OK(plugin.polled->release(&context, state));
    }
    SAME(text, argument("expected"));
    // what the host has enough of
    context.outputs = nullptr;
    Runtime slow = raw(400);
    slow.rate       = 1;
    context.runtime = &slow;
    OK(instance->evaluate_async(&context));
    OK(plugin.polled->results(&context, true, &state));
    CHECK(state == PENDING);
    OK(plugin.polled->release(&context, state));
    // a paced answer: after the first token there is nothing for a while
    GETS(NOT_READY, plugin.polled->results(&context, false, &state));
    OK(instance->cancel(&context));
    do {
        OK(plugin.polled->results(&context, false, &state));
        OK(plugin.polled->release(&context, state));
    } while (state == PENDING);
    CHECK(state == CANCEL);
}

void kept(Plugin & plugin, Instance *& instance) {
    Inputs  prompt{ { "text", argument("prompt") } }, nothing{ { "text", "" } };
    Runtime how = raw(tokens() / 2);
    SAME(evaluated(instance, prompt, how), argument("half"));
    size_t               size = plugin.state->size(instance);
    std::vector<uint8_t> bytes(size);
    int                  past = -1;
    CHECK(size > 1000);
    CHECK(plugin.state->get(instance, bytes.data(), size - 1, &past) == 0);
    CHECK(plugin.state->get(instance, bytes.data(), size, &past) == size && past > tokens() / 2);
    OK(plugin.gpt->destroy(instance));
    // elsewhere, with less memory
    Creation less(number("small"));
    instance = less.create(plugin);
    CHECK(!plugin.state->set(instance, bytes.data(), size / 2, past));
    CHECK(plugin.state->set(instance, bytes.data(), size, past));
    how.interactive = true;
    SAME(argument("half") + evaluated(instance, nothing, how), argument("expected"));
    CHECK(plugin.state->size(nullptr) == 0);
}

void all(Plugin & plugin) {
    capabilities(plugin);
    Creation   how(number("budget"));
    Instance * instance = how.create(plugin);
    CHECK(instance->inputs(instance->data)->count == 5 && instance->outputs(instance->data)->count == 1);
    blocking(plugin, instance);
    pieces(plugin, instance);
    cancelled(plugin, instance);
    polled(plugin, instance);
    kept(plugin, instance);
    OK(plugin.gpt->destroy(instance));
    OK(plugin.gpt->destroy(nullptr));
    GETS(INVALID_PARAMETER, plugin.gpt->destroy(instance));
    // a template of no one's: ChatML
    how.common.guid = argument("other").c_str();
    how.own.flags   = PIPESHARD_NVIGI_STREAM;
    instance        = how.create(plugin);
    // what is evaluated when this returns stays as well
    Inputs & prompt = *new Inputs{ { "text", argument("prompt") } };
    Runtime  chat = greedy(tokens()), & slow = *new Runtime(greedy(400));
    Answer & answer = *new Answer;
    Context & context = *new Context(context_of(instance, prompt, chat, &answer));
    OK(instance->evaluate(&context));
    CHECK(answer.text.size() > 20 && answer.states.size() > 10 && answer.states.back() == DONE && answer.terminal() == 1);
    // Deregister destroys what is left, and ends what runs
    slow.rate       = 1;
    context.runtime = &slow;
    answer.states.clear();
    OK(instance->evaluate_async(&context));
    answer.wait(false);
}

// --------------------------------------------------------------------------------------------------------------- versions

// Everything from `size` on becomes what crashes, or is refused, where it is read.
template <typename T> void poison(T & value, uint32_t version, size_t size) {
    value.base.version = version;
    std::memset(reinterpret_cast<char *>(&value) + size, 0xA5, sizeof value - size);
}

template <typename T> struct Newer {
    T    value;
    char more[64];
};

void versions(Plugin & plugin) {
    Inputs prompt{ { "text", argument("prompt") } };
    auto   with = [&](Creation & how, const void * chain) {
        Instance * instance = nullptr;
        OK(plugin.gpt->create(chain, &instance));
        Runtime old = raw(tokens());
        SAME(evaluated(instance, prompt, old), argument("expected"));
        OK(plugin.gpt->destroy(instance));
        (void) how;
    };
    Sampler sampler = made<Sampler>();
    sampler.previous = 64; sampler.top_k = 40; sampler.min_p = 0.05f; sampler.tfs_z = 1; sampler.typical = 1; sampler.exponent = 1;
    sampler.last = 64; sampler.repeat = 1; sampler.xtc_threshold = 0.1f; sampler.tau = 5; sampler.eta = 0.1f;
    Cuda cuda = made<Cuda>();
    {
        Creation how(number("budget"));
        poison(how.common, 1, 72);
        poison(how.gpt, 1, 44);
        poison(sampler, 1, 106);
        poison(cuda, 1, 56);
        const void * chain = how.chain();
        how.own.base.next  = &sampler;
        sampler.base.next  = &cuda;
        with(how, chain);
    }
    {
        Creation how(number("budget"));
        poison(how.gpt, 2, 64);
        with(how, how.chain());
    }
    {
        Creation how(number("budget")); // what will be added behind is not known, and not read
        Newer<Gpt> gpt;
        std::memset(static_cast<void *>(&gpt), 0xA5, sizeof gpt);
        gpt.value              = how.gpt;
        gpt.value.base.version = 99;
        const void * chain     = how.chain();
        how.common.base.next   = &gpt;
        gpt.value.base.next    = &how.own;
        with(how, chain);
    }
    Creation   how(number("budget"));
    Instance * instance = how.create(plugin);
    struct { uint32_t version; size_t size; } known[] = { { 3, 120 }, { 4, 144 }, { 5, 160 }, { 6, 168 } };
    for (auto & v : known) {
        Runtime old = raw(tokens());
        if (v.size < sizeof old) poison(old, v.version, v.size);
        SAME(evaluated(instance, prompt, old), argument("expected"));
    }
    // without promptPretemplatized the card's template joins, see above
    for (auto v : { std::pair<uint32_t, size_t>{ 1, 104 }, { 2, 112 } }) {
        Runtime old = greedy(tokens());
        old.interactive = false;
        poison(old, v.first, v.second);
        SAME(evaluated(instance, prompt, old), argument("expected"));
    }
    // a context of version 0 has no fields
    Answer & answer = *new Answer;
    Runtime now     = raw(tokens());
    Context context = context_of(instance, prompt, now, &answer);
    context.base.version = 0;
    GETS(INVALID_PARAMETER, instance->evaluate(&context));
    CHECK(answer.states.empty());
}

void chains(Plugin & plugin) {
    // structs of others, of which one has an id that begins as one of NVIGI's
    std::vector<FileIo> unknown(14, made<FileIo>());
    for (size_t i = 0; i < unknown.size(); i++) {
        std::memset(static_cast<void *>(&unknown[i]), 0xA5, sizeof unknown[i]);
        unknown[i].base.uid = FileIo::uid();
        unknown[i].base.uid.d[4 + i % 4] ^= 1;
        unknown[i].base.version = 1;
        unknown[i].base.next    = i + 1 < unknown.size() ? &unknown[i + 1] : nullptr;
    }
    Inputs     prompt{ { "text", argument("prompt") } };
    Runtime    how = raw(tokens());
    Creation   parts(number("budget"));
    Instance * instance = nullptr;
    parts.chain();
    // 16 in all: 13, then what is meant
    unknown[12].base.next = &parts.common;
    OK(plugin.gpt->create(&unknown[0], &instance));
    SAME(evaluated(instance, prompt, how), argument("expected"));
    OK(plugin.gpt->destroy(instance));
    // 17
    unknown[12].base.next = &unknown[13];
    unknown[13].base.next = &parts.common;
    instance = reinterpret_cast<Instance *>(8);
    GETS(INVALID_PARAMETER, plugin.gpt->create(&unknown[0], &instance));
    CHECK(instance == nullptr && said("more than 16 structs"));
    // what is known and empty is no wish
    Cuda   cuda = made<Cuda>();
    FileIo io   = made<FileIo>();
    parts.chain();
    parts.own.base.next = &cuda;
    cuda.base.next      = &io;
    OK(plugin.gpt->create(&parts.common, &instance));
    OK(plugin.gpt->destroy(instance));
}

// ----------------------------------------------------------------------------------------------------------------- budget


void budget(Plugin & plugin) {
    Inputs     prompt{ { "text", argument("prompt") } };
    Runtime    how = raw(tokens());
    Instance * instance = reinterpret_cast<Instance *>(8);
    Creation   tiny(1);
    CHECK(plugin.control->last_minimum() == 0);
    GETS(NO_RESOURCES, plugin.gpt->create(tiny.chain(), &instance));
    uint64_t minimum = plugin.control->last_minimum();
    CHECK(instance == nullptr && minimum > 1 << 20 && minimum < number("small") << 20 && said("the smallest vramBudgetMB that works is"));
    char text[2048];
    CHECK(plugin.control->last_error(text, sizeof text) == std::strlen(text) + 1 && std::strstr(text, "budget") != nullptr);
    // which works, and is kept
    Creation enough((minimum + (1 << 20) - 1) >> 20);
    instance = enough.create(plugin);
    SAME(evaluated(instance, prompt, how), argument("expected"));
    pipeshard_limits now = limits_of(plugin, instance);
    CHECK(now.budget == enough.common.budget << 20 && now.held <= now.budget && now.peak <= now.budget && now.held > 0);
    // another one: their budgets add up, and settings have to be the same
    Creation   more(number("small"));
    Instance * second = more.create(plugin);
    CHECK(limits_of(plugin, second).budget == (enough.common.budget + more.common.budget) << 20);
    Instance * third = nullptr;
    more.own.simulated = "vram=2G";
    GETS(INVALID_PARAMETER, plugin.gpt->create(more.chain(), &third));
    more.own.simulated = "vram=1G";
    more.common.budget = 0;
    GETS(INVALID_PARAMETER, plugin.gpt->create(more.chain(), &third));
    SAME(evaluated(second, prompt, how), argument("expected"));
    SAME(evaluated(instance, prompt, how), argument("expected"));
    OK(plugin.gpt->destroy(second));
    CHECK(limits_of(plugin, instance).budget == enough.common.budget << 20);
    // while it runs
    OK(plugin.control->set_budget(instance, number("budget") << 20, 0, &now));
    CHECK(now.budget == number("budget") << 20);
    SAME(evaluated(instance, prompt, how), argument("expected"));
    OK(plugin.control->set_budget(instance, number("small") << 20, 0, nullptr));
    now = limits_of(plugin, instance);
    CHECK(now.held <= number("small") << 20);
    GETS(NO_RESOURCES, plugin.control->set_budget(instance, 1 << 20, 0, nullptr));
    CHECK(plugin.control->last_minimum() == now.minimum);
    SAME(evaluated(instance, prompt, how), argument("expected"));
    OK(plugin.control->sleep(instance));
    CHECK(limits_of(plugin, instance).asleep == 1);
    OK(plugin.control->wake(instance));
    SAME(evaluated(instance, prompt, how), argument("expected"));
    size_t            size = plugin.control->report(instance, nullptr, 0);
    std::vector<char> report(size);
    CHECK(size > 100 && plugin.control->report(instance, report.data(), size) == size && report[0] == '{');
    OK(plugin.gpt->destroy(instance));
    GETS(INVALID_PARAMETER, plugin.control->get_limits(instance, &now));
    // not stated
    for (size_t none : { size_t(0), SIZE_MAX }) {
        Creation free_(none);
        instance = free_.create(plugin);
        CHECK(limits_of(plugin, instance).budget > 500ull << 20);
        OK(plugin.gpt->destroy(instance));
    }
}

// --------------------------------------------------------------------------------------------------------------- refusals

void refusals(Plugin & plugin) {
    GETS(INVALID_STATE, plugin.reg(&core_)); // a second time
    auto refused = [&](uint32_t code, auto change) {
        Creation   how(number("budget"));
        Instance * instance = reinterpret_cast<Instance *>(8);
        const void * chain = how.chain();
        change(how);
        GETS(code, plugin.gpt->create(chain, &instance));
        CHECK(instance == nullptr);
    };
    int       something = 0;
    Sampler   sampler   = made<Sampler>();
    Cuda      cuda      = made<Cuda>();
    FileIo    io        = made<FileIo>();
    sampler.typical = 1; sampler.repeat = 1; sampler.last = 64;
    refused(INVALID_PARAMETER, [](Creation & c) { c.common.guid = ""; });
    refused(INVALID_PARAMETER, [](Creation & c) { c.common.guid = "../../etc"; });
    refused(INVALID_PARAMETER, [](Creation & c) { c.common.models = nullptr; });
    refused(INVALID_PARAMETER, [](Creation & c) { c.common.base.next = nullptr; });
    refused(INVALID_PARAMETER, [](Creation & c) { c.gpt.type_k = 4711; });
    refused(INVALID_PARAMETER, [](Creation & c) { c.own.flags = 1024; });
    refused(NOT_FOUND, [](Creation & c) { c.common.guid = "{00000000-0000-0000-0000-000000000000}"; });
    refused(10u << 24, [](Creation & c) { c.common.card = "{"; });
    refused(NOT_IMPLEMENTED, [](Creation & c) { c.gpt.loras = 1; });
    refused(NOT_IMPLEMENTED, [&](Creation & c) { c.own.base.next = &sampler; sampler.mirostat = 2; });
    sampler.mirostat = 0;
    refused(NOT_IMPLEMENTED, [&](Creation & c) { c.own.base.next = &sampler; sampler.cache = "a file"; });
    refused(INVALID_PARAMETER, [&](Creation & c) { c.own.base.next = &cuda; cuda.functions[4] = &something; });
    refused(INVALID_PARAMETER, [&](Creation & c) { c.own.base.next = &io; io.functions[0] = &something; });
    GETS(INVALID_PARAMETER, plugin.gpt->create(nullptr, nullptr));

    Creation   how(number("budget"));
    Instance * instance = how.create(plugin);
    Inputs     prompt{ { "text", argument("prompt") } };
    auto       unwanted = [&](uint32_t code, auto change) {
        Answer & answer = *new Answer;
        Runtime wish    = raw(tokens());
        Context context = context_of(instance, prompt, wish, &answer);
        change(context, wish);
        GETS(code, instance->evaluate(&context));
        GETS(code, instance->evaluate_async(&context));
        // nothing has begun
        CHECK(answer.states.empty());
    };
    Inputs image{ { "image", "x" } }, json{ { "json", "{" } }, unknown{ { "xyz", "x" } }, damaged{ { "text", "\xff\xfe" } };
    unwanted(INVALID_PARAMETER, [&](Context & c, Runtime &) { c.inputs = &image.array; });
    unwanted(10u << 24, [&](Context & c, Runtime &) { c.inputs = &json.array; });
    unwanted(INVALID_PARAMETER, [&](Context & c, Runtime &) { c.inputs = &unknown.array; });
    unwanted(INVALID_PARAMETER, [&](Context & c, Runtime &) { c.inputs = &damaged.array; });
    unwanted(INVALID_PARAMETER, [&](Context & c, Runtime &) { c.inputs = nullptr; });
    unwanted(INVALID_PARAMETER, [&](Context & c, Runtime &) { c.instance = nullptr; });
    unwanted(NOT_IMPLEMENTED, [&](Context &, Runtime & r) { r.jinja = false; });
    unwanted(NOT_IMPLEMENTED, [&](Context &, Runtime & r) { r.chat_template = "{{ messages }}"; });
    unwanted(NOT_IMPLEMENTED, [&](Context &, Runtime & r) { r.loras = 2; });
    GETS(INVALID_PARAMETER, instance->evaluate(nullptr));
    GETS(INVALID_PARAMETER, instance->cancel(nullptr));
    {
        // one that fails after it has begun: invalid, once
        Answer & answer = *new Answer;
        Runtime wish    = raw(tokens());
        Context context = context_of(instance, prompt, wish, &answer);
        Sampler broken  = sampler;
        broken.cache      = nullptr;
        broken.grammar    = "root ::= (";
        wish.base.next    = &broken;
        GETS(INVALID_PARAMETER, instance->evaluate(&context));
        CHECK(answer.states.size() == 1 && answer.states[0] == STATE_INVALID && answer.text.empty());
        answer.states.clear();
        OK(instance->evaluate_async(&context));
        answer.wait(true);
        CHECK(answer.states.size() == 1 && answer.states[0] == STATE_INVALID);
    }
    Runtime fine = raw(tokens());
    SAME(evaluated(instance, prompt, fine), argument("expected"));
    // its functions are asked once more when its memory is gone
    Instance functions = *instance;
    OK(plugin.gpt->destroy(instance));
    instance = &functions;
    unwanted(INVALID_PARAMETER, [&](Context & c, Runtime &) { c.instance = nullptr; });
}

const std::map<std::string, void (*)(Plugin &)> TESTS = {
    { "all", all }, { "versions", versions }, { "chains", chains }, { "budget", budget }, { "refusals", refusals },
    { "files", files }, { "requests", requests }, { "memory", memory }, { "images", images },
};

void once() {
    Plugin plugin;
    // as Core does it: only to ask, and then to use
    int before = threads();
    plugin.load();
    information(plugin);
    CHECK(threads() == before);
    CHECK(dlclose(plugin.library) == 0);
    CHECK(!is_mapped());
    plugin.load();
    information(plugin);
    GETS(INVALID_STATE, plugin.dereg());
    plugin.enter(core_);
    CHECK(TESTS.count(argument("test")) == 1);
    TESTS.at(argument("test"))(plugin);
    plugin.leave();
    CHECK(threads() == before);
}

} // namespace

int main(int argc, char ** argv) {
    for (int i = 1; i < argc; i++) {
        std::string word = argv[i];
        size_t      at   = word.find('=');
        given[word.substr(0, at)] = word.substr(at + 1);
    }
    for (int round = 0; round < 3; round++) {
        // what a thread leaves for its end would keep the plug-in
        std::thread(once).join();
        CHECK(!is_mapped());
    }
    return 0;
}
