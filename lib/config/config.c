// Four sources, weakest first; each later one replaces what the earlier ones said. A list given
// again on the command line appends, but its first word there replaces the weaker sources' list.
#include "config/config.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

enum source { SRC_DEFAULT, SRC_FILE, SRC_ENVIRONMENT, SRC_ARGV };

struct loader {
    const struct cfg_spec *spec;
    void *into;
    enum source *set_by; // per option: who set it last
};

static void *field(void *into, const struct cfg_option *o)
{
    return (char *)into + o->offset;
}

// ---------------------------------------------------------------- values

static void free_list(char **list)
{
    for (char **it = list; it && *it; it++)
        mem_free(*it);
    mem_free(list);
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status set_string(char **at, const char *value, struct err *err)
{
    char *copy = mem_strdup(value);
    if (!copy)
        return no_memory(err);
    mem_free(*at);
    *at = copy;
    return STATUS_OK;
}

static enum status append_word(char ***at, const char *word, size_t len, struct err *err)
{
    size_t n = 0;
    while (*at && (*at)[n])
        n++;
    char **grown = mem_realloc(*at, n + 2, sizeof *grown);
    if (!grown)
        return no_memory(err);
    *at = grown;
    grown[n] = grown[n + 1] = NULL;
    grown[n] = mem_alloc(len + 1);
    if (!grown[n])
        return no_memory(err);
    memcpy(grown[n], word, len);
    return STATUS_OK;
}

static enum status append_list(char ***at, const char *value, struct err *err)
{
    for (const char *p = value;; p++) {
        p += strspn(p, " \t");
        size_t len = strcspn(p, ",");
        size_t trimmed = len;
        while (trimmed > 0 && (p[trimmed - 1] == ' ' || p[trimmed - 1] == '\t'))
            trimmed--;
        enum status s = trimmed ? append_word(at, p, trimmed, err) : STATUS_OK;
        if (s != STATUS_OK)
            return s;
        p += len;
        if (*p == '\0')
            return STATUS_OK;
    }
}

static enum status set_bool(bool *at, const char *value, struct err *err)
{
    static const struct {
        const char *word;
        bool truth;
    } words[] = {
        {"true", true},   {"yes", true}, {"on", true},   {"1", true},
        {"false", false}, {"no", false}, {"off", false}, {"0", false},
    };
    for (size_t i = 0; i < N_ELEMENTS(words); i++)
        if (str_eq(value, words[i].word)) {
            *at = words[i].truth;
            return STATUS_OK;
        }
    return err_set(err, STATUS_INVALID_ARGUMENT, "'%s' is neither true nor false", value);
}

static enum status set_number(const struct cfg_option *o, int64_t *at, const char *value,
                              struct err *err)
{
    int64_t v = 0;
    enum status s = o->type == CFG_I64 ? str_parse_i64(value, INT64_MIN, INT64_MAX, &v, err)
                    : o->type == CFG_DURATION_MS ? str_parse_duration_ms(value, &v, err)
                                                 : str_parse_bytes(value, &v, err);
    if (s != STATUS_OK)
        return STATUS_INVALID_ARGUMENT;
    if ((o->min || o->max) && (v < o->min || v > o->max))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s is outside %lld..%lld%s", value,
                       (long long)o->min, (long long)o->max,
                       o->type == CFG_DURATION_MS ? " ms"
                       : o->type == CFG_BYTES     ? " bytes"
                                                  : "");
    *at = v;
    return STATUS_OK;
}

static enum status set_value(struct loader *l, const struct cfg_option *o, enum source src,
                             const char *value, struct err *err)
{
    enum source *set_by = &l->set_by[o - l->spec->options];
    void *at = field(l->into, o);
    bool again = *set_by == SRC_ARGV && src == SRC_ARGV;
    *set_by = src;
    switch (o->type) {
    case CFG_STRING:
        return set_string(at, value, err);
    case CFG_STRING_LIST:
        if (!again) {
            free_list(*(char ***)at);
            *(char ***)at = NULL;
        }
        return src == SRC_ARGV ? append_word(at, value, strlen(value), err)
                               : append_list(at, value, err);
    case CFG_BOOL:
        return set_bool(at, value, err);
    case CFG_I64:
    case CFG_DURATION_MS:
    case CFG_BYTES:
        return set_number(o, at, value, err);
    }
    return err_set(err, STATUS_INTERNAL, "option '%s' has no known type", o->name);
}

static const struct cfg_option *find(const struct cfg_spec *spec, const char *name, size_t len)
{
    for (size_t i = 0; i < spec->n_options; i++)
        if (strlen(spec->options[i].name) == len && memcmp(spec->options[i].name, name, len) == 0)
            return &spec->options[i];
    return NULL;
}

// ---------------------------------------------------------------- sources

static enum status load_defaults(struct loader *l, struct err *err)
{
    for (size_t i = 0; i < l->spec->n_options; i++) {
        const struct cfg_option *o = &l->spec->options[i];
        enum status s = o->def ? set_value(l, o, SRC_DEFAULT, o->def, err) : STATUS_OK;
        if (s != STATUS_OK)
            return err_wrap(err, s, "option '%s': default", o->name);
    }
    return STATUS_OK;
}

static enum status file_key(void *ud, const char *section, const char *key, const char *value,
                            struct err *err)
{
    struct loader *l = ud;
    if (!str_eq(section, l->spec->section))
        return STATUS_OK;
    const struct cfg_option *o = find(l->spec, key, strlen(key));
    if (!o)
        return err_set(err, STATUS_INVALID_ARGUMENT, "no option '%s' in section [%s]", key,
                       section);
    enum status s = set_value(l, o, SRC_FILE, value, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "option '%s'", o->name);
}

// CAUCE_ORIGIN_MAX_BYTES
static bool environment_name(char *dst, size_t size, const char *section, const char *option)
{
    int n = snprintf(dst, size, "CAUCE_%s_%s", section, option);
    for (char *p = dst; *p; p++)
        *p = *p == '-' || *p == '.' ? '_' : (char)toupper((unsigned char)*p);
    return n > 0 && (size_t)n < size;
}

static enum status load_environment(struct loader *l, struct err *err)
{
    for (size_t i = 0; i < l->spec->n_options; i++) {
        const struct cfg_option *o = &l->spec->options[i];
        char name[128];
        if (!environment_name(name, sizeof name, l->spec->section, o->name))
            continue;
        const char *value = getenv(name);
        enum status s = value ? set_value(l, o, SRC_ENVIRONMENT, value, err) : STATUS_OK;
        if (s != STATUS_OK)
            return err_wrap(err, s, "option '%s': environment %s", o->name, name);
    }
    return STATUS_OK;
}

// One option word; *i is at it, and moves on when its value is the next word.
static enum status argv_option(struct loader *l, int argc, char **argv, int *i, struct err *err)
{
    const char *word = argv[*i] + 2;
    size_t len = strcspn(word, "=");
    const char *value = word[len] == '=' ? word + len + 1 : NULL;
    const struct cfg_option *o = find(l->spec, word, len);
    if (o && !value && o->type == CFG_BOOL) {
        value = "true";
    } else if (!o && !value && str_starts_with(word, "no-")) {
        o = find(l->spec, word + 3, len - 3);
        o = o && o->type == CFG_BOOL ? o : NULL;
        value = "false";
    }
    if (!o)
        return err_set(err, STATUS_INVALID_ARGUMENT, "no option '--%.*s'; see --help", (int)len,
                       word);
    if (!value && *i + 1 >= argc)
        return err_set(err, STATUS_INVALID_ARGUMENT, "option '--%s' needs a value", o->name);
    if (!value)
        value = argv[++*i];
    enum status s = set_value(l, o, SRC_ARGV, value, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "option '--%s'", o->name);
}

static enum status load_argv(struct loader *l, int argc, char **argv, char **rest, struct err *err)
{
    bool options_end = false;
    size_t n_rest = 0;
    for (int i = 0; i < argc; i++) {
        enum status s = STATUS_OK;
        if (!options_end && str_eq(argv[i], "--")) {
            options_end = true;
        } else if (!options_end && (str_eq(argv[i], "--help") || str_eq(argv[i], "-h"))) {
            cfg_print_help(l->spec, stdout);
            return err_set(err, STATUS_CANCELLED, "help was asked for");
        } else if (!options_end && str_starts_with(argv[i], "--")) {
            s = argv_option(l, argc, argv, &i, err);
        } else if (!options_end && argv[i][0] == '-' && argv[i][1] != '\0') {
            s = err_set(err, STATUS_INVALID_ARGUMENT, "no option '%s'; see --help", argv[i]);
        } else if (rest) {
            rest[n_rest++] = argv[i];
        } else {
            s = err_set(err, STATUS_INVALID_ARGUMENT, "unexpected word '%s'; see --help", argv[i]);
        }
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static enum status load_all(struct loader *l, const char *file, int argc, char **argv, char **rest,
                            struct err *err)
{
    enum status s = load_defaults(l, err);
    if (s == STATUS_OK && file)
        s = cfg_ini_read(file, file_key, l, err);
    if (s == STATUS_OK)
        s = load_environment(l, err);
    if (s == STATUS_OK)
        s = load_argv(l, argc, argv, rest, err);
    return s;
}

enum status cfg_load(const struct cfg_spec *spec, void *into, const char *file, int argc,
                     char **argv, char ***ret_rest, struct err *err)
{
    AUTO(mem_free_p) char **rest = mem_array((size_t)argc + 1, sizeof *rest);
    AUTO(mem_free_p) enum source *set_by = mem_array(spec->n_options, sizeof *set_by);
    if (!rest || !set_by)
        return no_memory(err);
    struct loader l = {.spec = spec, .into = into, .set_by = set_by};
    enum status s = load_all(&l, file, argc, argv, ret_rest ? rest : NULL, err);
    if (s != STATUS_OK) {
        cfg_done(spec, into);
        return s;
    }
    if (ret_rest)
        *ret_rest = TAKE(rest);
    return STATUS_OK;
}

void cfg_done(const struct cfg_spec *spec, void *into)
{
    for (size_t i = 0; i < spec->n_options; i++) {
        void *at = field(into, &spec->options[i]);
        if (spec->options[i].type == CFG_STRING) {
            mem_free(*(char **)at);
            *(char **)at = NULL;
        } else if (spec->options[i].type == CFG_STRING_LIST) {
            free_list(*(char ***)at);
            *(char ***)at = NULL;
        }
    }
}

void cfg_print_help(const struct cfg_spec *spec, FILE *f)
{
    static const char *const placeholders[] = {
        [CFG_STRING] = " TEXT", [CFG_STRING_LIST] = " TEXT...", [CFG_BOOL] = "",
        [CFG_I64] = " N",       [CFG_DURATION_MS] = " TIME",    [CFG_BYTES] = " BYTES",
    };
    fprintf(f, "usage: %s\n\noptions:\n", spec->usage);
    for (size_t i = 0; i < spec->n_options; i++) {
        const struct cfg_option *o = &spec->options[i];
        int n = fprintf(f, "  --%s%s", o->name, placeholders[o->type]);
        fprintf(f, "%*s%s", n < 30 ? 30 - n : 1, "", o->help ? o->help : "");
        if (o->def && o->def[0])
            fprintf(f, " [%s]", o->def);
        fputc('\n', f);
    }
    char name[128];
    if (environment_name(name, sizeof name, spec->section, "<OPTION>"))
        fprintf(f, "\nEach can also be given as %s in the environment.\n", name);
}
