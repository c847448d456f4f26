// What llama.cpp and libstdc++ print to standard output and standard error goes to the log: the two belong to the host. build.rs has
// the linker bring all calls of this library here (--wrap). What is written into other files is written.
#include <stdarg.h>
#include <stdio.h>

// Gets what would have been printed; NULL: nobody. Set once, before llama.cpp is used.
void pipeshard_quiet_tell(void (*tell)(const char *));

static void (*listener)(const char *);

void pipeshard_quiet_tell(void (*tell)(const char *)) {
    listener = tell;
}

static int is_standard(FILE * file) {
    return file == stdout || file == stderr;
}

static void say(const char * text) {
    if (listener != NULL) {
        listener(text);
    }
}

// As long as a message of llama.cpp's may be; the rest is left out.
static int say_formatted(const char * format, va_list values) {
    char text[2048];
    int  length = vsnprintf(text, sizeof text, format, values);
    if (length >= 0) {
        say(text);
    }
    return length;
}

int __wrap_fprintf(FILE * file, const char * format, ...);
int __wrap_printf(const char * format, ...);
int __real_fputs(const char * text, FILE * file);
int __wrap_fputs(const char * text, FILE * file);
int __wrap_puts(const char * text);
size_t __real_fwrite(const void * bytes, size_t size, size_t count, FILE * file);
size_t __wrap_fwrite(const void * bytes, size_t size, size_t count, FILE * file);
int __real_fputc(int byte, FILE * file);
int __wrap_fputc(int byte, FILE * file);
int __wrap_putc(int byte, FILE * file);
int __wrap_putchar(int byte);

int __wrap_fprintf(FILE * file, const char * format, ...) {
    va_list values;
    va_start(values, format);
    int length = is_standard(file) ? say_formatted(format, values) : vfprintf(file, format, values);
    va_end(values);
    return length;
}

int __wrap_printf(const char * format, ...) {
    va_list values;
    va_start(values, format);
    int length = say_formatted(format, values);
    va_end(values);
    return length;
}

int __wrap_fputs(const char * text, FILE * file) {
    if (!is_standard(file)) {
        return __real_fputs(text, file);
    }
    say(text);
    return 0;
}

int __wrap_puts(const char * text) {
    say(text);
    return 0;
}

size_t __wrap_fwrite(const void * bytes, size_t size, size_t count, FILE * file) {
    if (!is_standard(file)) {
        return __real_fwrite(bytes, size, count, file);
    }
    char text[2048];
    snprintf(text, sizeof text, "%.*s", (int) (size * count < sizeof text ? size * count : sizeof text - 1), (const char *) bytes);
    say(text);
    return count;
}

// Single characters are ends of lines and parts of numbers: they say nothing by themselves.
int __wrap_fputc(int byte, FILE * file) {
    return is_standard(file) ? byte : __real_fputc(byte, file);
}

int __wrap_putc(int byte, FILE * file) {
    return __wrap_fputc(byte, file);
}

int __wrap_putchar(int byte) {
    return byte;
}
