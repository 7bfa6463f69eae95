// Talking to protoc, text output, names.
#include "plugin.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_INPUT_BYTES = 64 << 20 };

// Read by AddressSanitizer's runtime: what is not freed at exit is meant so (plugin.h).
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

void gen_die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

void *gen_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        gen_die("out of memory");
    return p;
}

char *gen_printf(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&s, fmt, ap) < 0)
        gen_die("out of memory");
    va_end(ap);
    return s;
}

char *gen_strndup(const char *s, size_t n)
{
    char *d = strndup(s, n);
    if (!d)
        gen_die("out of memory");
    return d;
}

struct gen_bytes gen_read_all(int fd)
{
    struct gen_bytes b = {0};
    size_t cap = 0;
    for (;;) {
        if (b.len == cap) {
            cap = cap ? cap * 2 : 1 << 16;
            if (cap > MAX_INPUT_BYTES)
                gen_die("input is larger than %d bytes", MAX_INPUT_BYTES);
            b.data = realloc(b.data, cap);
            if (!b.data)
                gen_die("out of memory");
        }
        ssize_t n = read(fd, b.data + b.len, cap - b.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            gen_die("read: %s", strerror(errno));
        if (n == 0)
            return b;
        b.len += (size_t)n;
    }
}

void gen_write_all(int fd, const void *p, size_t n)
{
    const char *at = p;
    while (n) {
        ssize_t w = write(fd, at, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            gen_die("write: %s", strerror(errno));
        at += w;
        n -= (size_t)w;
    }
}

gen_request *gen_read_request(void)
{
    struct gen_bytes in = gen_read_all(STDIN_FILENO);
    gen_request *r =
        google__protobuf__compiler__code_generator_request__unpack(NULL, in.len, in.data);
    if (!r)
        gen_die("standard input is not a CodeGeneratorRequest: run by protoc only");
    return r;
}

void gen_write_response(const gen_response *r)
{
    size_t n = google__protobuf__compiler__code_generator_response__get_packed_size(r);
    uint8_t *p = gen_alloc(n, 1);
    google__protobuf__compiler__code_generator_response__pack(r, p);
    gen_write_all(STDOUT_FILENO, p, n);
}

void gen_text_init(struct gen_text *t)
{
    *t = (struct gen_text){0};
    t->f = open_memstream(&t->text, &t->len);
    if (!t->f)
        gen_die("out of memory");
}

char *gen_text_take(struct gen_text *t)
{
    if (fclose(t->f) != 0)
        gen_die("out of memory");
    return t->text;
}

bool gen_is_c_keyword(const char *s)
{
    static const char *const words[] = {
        "auto",    "break",  "case",     "char",   "const",    "continue", "default",
        "do",      "double", "else",     "enum",   "extern",   "float",    "for",
        "goto",    "if",     "inline",   "int",    "long",     "register", "restrict",
        "return",  "short",  "signed",   "sizeof", "static",   "struct",   "switch",
        "typedef", "union",  "unsigned", "void",   "volatile", "while",    "typeof",
    };
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(words[i], s) == 0)
            return true;
    return false;
}

bool gen_str_eq(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

// An underscore goes before an upper-case letter that starts a word: after a lower-case letter or
// digit, or as the last capital of a run (HTTPGet -> http_get).
char *gen_snake(const char *camel)
{
    struct gen_text t;
    gen_text_init(&t);
    for (const char *p = camel; *p; p++) {
        unsigned char c = (unsigned char)*p, before = p > camel ? (unsigned char)p[-1] : '_';
        bool starts = isupper(c) && (islower(before) || isdigit(before) ||
                                     (isupper(before) && islower((unsigned char)p[1])));
        if (starts)
            fputc('_', t.f);
        fputc(tolower(c), t.f);
    }
    return gen_text_take(&t);
}

char *gen_lower(const char *s)
{
    char *d = gen_strndup(s, strlen(s));
    for (char *p = d; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    return d;
}

char *gen_upper(const char *s)
{
    char *d = gen_strndup(s, strlen(s));
    for (char *p = d; *p; p++)
        *p = (char)toupper((unsigned char)*p);
    return d;
}

static bool is_version(const char *s, size_t n)
{
    if (n < 2 || s[0] != 'v')
        return false;
    for (size_t i = 1; i < n; i++)
        if (!isdigit((unsigned char)s[i]))
            return false;
    return true;
}

char *gen_c_package(const char *package)
{
    const char *last = package ? strrchr(package, '.') : NULL;
    if (!last || !is_version(last + 1, strlen(last + 1)))
        return NULL;
    const char *start = last;
    while (start > package && start[-1] != '.')
        start--;
    return gen_strndup(start, (size_t)(last - start));
}

char *gen_pbc_lower(const char *camel)
{
    struct gen_text t;
    gen_text_init(&t);
    bool was_upper = true;
    for (const char *p = camel; *p; p++) {
        bool is_upper = isupper((unsigned char)*p);
        if (is_upper && !was_upper)
            fputc('_', t.f);
        fputc(tolower((unsigned char)*p), t.f);
        was_upper = is_upper;
    }
    return gen_text_take(&t);
}

char *gen_pbc_camel(const char *name)
{
    struct gen_text t;
    gen_text_init(&t);
    bool up = true;
    for (const char *p = name; *p; p++) {
        if (*p == '_') {
            up = true;
            continue;
        }
        fputc(up ? toupper((unsigned char)*p) : *p, t.f);
        up = false;
    }
    return gen_text_take(&t);
}
