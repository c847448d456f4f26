// Chat templates and JSON schemas, which llama.cpp has in C++ (common/), behind C functions. No exception leaves this file.

#include "chat.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "log.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

// common/ writes its messages with a thread and to standard error. A library in somebody's program has neither: what it would say
// comes back as the error of the call. With these definitions the linker leaves common/log.cpp out.
struct common_log * common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char *, ...) {}
void common_log_add_json(struct common_log *, const char *, const common_json &) {}
void common_log_default_callback(enum ggml_log_level, const char *, void *) {}
void common_log_flush(struct common_log *) {}
void common_log_pause(struct common_log *) {}
void common_log_resume(struct common_log *) {}
void common_log_set_file(struct common_log *, const char *) {}
void common_log_set_colors(struct common_log *, log_colors) {}
void common_log_set_prefix(struct common_log *, bool) {}
void common_log_set_timestamps(struct common_log *, bool) {}
void common_log_set_jsonl(bool) {}
void common_log_set_verbosity_thold(int) {}
bool common_log_get_jsonl() { return false; }
int  common_log_get_verbosity_thold() { return -1; }

namespace {

char * copy_of(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

// What `work` returns, or null with a text in *error, which the caller frees.
template <typename F> auto caught(char ** error, F && work) -> decltype(work()) {
    *error = nullptr;
    try {
        return work();
    } catch (const std::exception & e) {
        *error = copy_of(e.what());
    } catch (...) {
        *error = copy_of("an exception without a text");
    }
    return nullptr;
}

} // namespace

extern "C" {

// The templates of a model, or one in its place. Null with *error set where it cannot be read.
common_chat_templates * pipeshard_chat_open(const llama_model * model, const char * instead, char ** error) {
    return caught(error, [&] { return common_chat_templates_init(model, instead != nullptr ? instead : "").release(); });
}

void pipeshard_chat_close(common_chat_templates * templates) {
    common_chat_templates_free(templates);
}

// Was the template the model's own or one given, and not a default?
bool pipeshard_chat_is_explicit(const common_chat_templates * templates) {
    return common_chat_templates_was_explicit(templates);
}

// The text of a conversation, a JSON array of {"role", "content"}; with `answer`, up to where the assistant's answer begins.
char * pipeshard_chat_render(const common_chat_templates * templates, const char * messages, bool answer, char ** error) {
    return caught(error, [&] {
        common_chat_templates_inputs inputs;
        inputs.messages              = common_chat_msgs_parse_oaicompat(common_json::parse(std::string(messages)));
        inputs.add_generation_prompt = answer;
        return copy_of(common_chat_templates_apply(templates, inputs).prompt);
    });
}

// The grammar of answers that follow a JSON schema.
char * pipeshard_chat_grammar(const char * schema, char ** error) {
    return caught(error, [&] { return copy_of(json_schema_to_grammar(common_json::parse(std::string(schema)))); });
}

void pipeshard_chat_free(char * text) {
    std::free(text);
}

} // extern "C"
