// Options of a role: the common rows and its own, in one table.
//
// With several roles in one process a word of the command line goes to every role that knows the
// option; one that nobody knows is an error. The options file and the environment have a section
// for each role, or for the node when it was named (origin:video-1 -> [video-1],
// CAUCE_VIDEO_1_...).
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "service/internal.h"

#define OPT(field) offsetof(struct svc_options, field)
#define NODE_MARK "{node}"
#define MAX_VALUE_BYTES 65536

const struct cfg_option svc_option_rows[] = {
    // clang-format off
    {"config", CFG_STRING, OPT(config), NULL, 0, 0, "options file (INI), a section per role or node"},
    {"node", CFG_STRING, OPT(node), NULL, 0, 0, "our node id [the first of our role in nodes.ini]"},
    {"keys", CFG_STRING, OPT(keys), NULL, 0, 0, "directory that 'cauced keys' made"},
    {"listen", CFG_STRING_LIST, OPT(listen), NULL, 0, 0, "internal address [the node's url]; may be given again"},
    {"ready-file", CFG_STRING, OPT(ready_file), NULL, 0, 0, "written once we serve, removed at the end"},
    {"log-level", CFG_STRING, OPT(log_level), "info", 0, 0, "debug, info, warn, error or off"},
    {"database", CFG_STRING, OPT(database), NULL, 0, 0, "PostgreSQL, as libpq's connection string"},
    {"migrations", CFG_STRING, OPT(migrations), NULL, 0, 0, "directory of the SQL files, to check the database"},
    {"threads", CFG_I64, OPT(threads), "8", 1, 256, "threads that run handlers"},
    {"max-peers", CFG_I64, OPT(max_conns), "0", 0, 1000000, "connections of nodes and apps at once; 0: two thirds of the open files"},
    {"max-peers-per-address", CFG_I64, OPT(max_conns_per_addr), "0", 0, 1000000, "of one address; 0: a quarter of those"},
    {"drain", CFG_DURATION_MS, OPT(drain_ms), "3s", 0, 600000, "how long a stop waits for open calls"},
    // clang-format on
};
const size_t svc_n_option_rows = N_ELEMENTS(svc_option_rows);

const struct svc_options *instance_options(const struct instance *in)
{
    return in->options;
}

// ---------------------------------------------------------------- the command line

static const struct cfg_option *find_row(const struct cfg_option *rows, size_t n, const char *name,
                                         size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(rows[i].name) == len && memcmp(rows[i].name, name, len) == 0)
            return &rows[i];
    return NULL;
}

// The row that a word ("--data", "--data=x", "--no-flag") is about, among the common ones and the
// role's.
static const struct cfg_option *row_of(const struct svc_role *role, const char *word)
{
    const char *name = word + 2;
    size_t len = strcspn(name, "=");

    for (unsigned negated = 0; negated < 2; negated++) {
        const struct cfg_option *o = find_row(svc_option_rows, svc_n_option_rows, name, len);
        if (!o)
            o = find_row(role->spec.options, role->spec.n_options, name, len);
        if (o && (!negated || o->type == CFG_BOOL))
            return o;
        if (!str_starts_with(name, "no-"))
            break;
        name += 3;
        len -= 3;
    }
    return NULL;
}

static bool takes_next_word(const struct cfg_option *o, const char *word)
{
    return o->type != CFG_BOOL && !strchr(word, '=');
}

// The words that are about this role's options.
static enum status select_words(const struct svc_role *role, const struct svc_role *const *all,
                                size_t n_all, int argc, char **argv, char **out, int *ret_n,
                                struct err *err)
{
    int n = 0;

    for (int i = 0; i < argc; i++) {
        if (!str_starts_with(argv[i], "--"))
            return err_set(err, STATUS_INVALID_ARGUMENT, "unexpected word '%s'; see --help",
                           argv[i]);
        const struct cfg_option *o = row_of(role, argv[i]), *other = o;
        for (size_t r = 0; r < n_all && !other; r++)
            other = row_of(all[r], argv[i]);
        if (!other)
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "no role here has the option '%s'; see --help", argv[i]);
        bool two = takes_next_word(other, argv[i]) && i + 1 < argc;
        if (o)
            out[n++] = argv[i];
        if (two)
            i++;
        if (o && two)
            out[n++] = argv[i];
    }
    *ret_n = n;
    return STATUS_OK;
}

const char *svc_find_option_word(int argc, char **argv, const char *name)
{
    size_t len = strlen(name);

    for (int i = 0; i < argc; i++) {
        if (!str_starts_with(argv[i], "--") || strncmp(argv[i] + 2, name, len) != 0)
            continue;
        if (argv[i][2 + len] == '=')
            return argv[i] + 2 + len + 1;
        if (argv[i][2 + len] == '\0' && i + 1 < argc)
            return argv[i + 1];
    }
    return NULL;
}

// ---------------------------------------------------------------- loading

static enum status merge_rows(struct instance *in, struct err *err)
{
    const struct cfg_spec *own = &in->role->spec;

    in->rows = mem_array(svc_n_option_rows + own->n_options, sizeof(*in->rows));
    in->options = mem_alloc(in->role->options_size);
    if (!in->rows || !in->options)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "options: out of memory");
    memcpy(in->rows, svc_option_rows, sizeof(svc_option_rows));
    if (own->n_options > 0)
        memcpy(in->rows + svc_n_option_rows, own->options, own->n_options * sizeof(*own->options));
    in->spec = (struct cfg_spec){.section = in->section,
                                 .usage = own->usage,
                                 .options = in->rows,
                                 .n_options = svc_n_option_rows + own->n_options};
    return STATUS_OK;
}

enum status instance_load_options(struct instance *in, const struct role_word *w, bool is_only,
                                  const struct svc_role *const *all_roles, size_t n_all_roles,
                                  int argc, char **argv, struct err *err)
{
    in->role = w->role;
    (void)str_copy(in->section, sizeof(in->section), w->node[0] ? w->node : w->role->name);
    enum status s = merge_rows(in, err);
    if (s != STATUS_OK)
        return s;
    AUTO(mem_free_p) char **words = mem_array((size_t)argc + 1, sizeof(*words));
    int n = 0;
    if (!words)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "options: out of memory");
    if (is_only) {
        memcpy(words, argv, (size_t)argc * sizeof(*words));
        n = argc;
    } else {
        s = select_words(in->role, all_roles, n_all_roles, argc, argv, words, &n, err);
    }
    if (s == STATUS_OK)
        s = cfg_load(&in->spec, in->options, svc_find_option_word(argc, argv, "config"), n, words,
                     NULL, err);
    if (s != STATUS_OK)
        return s;
    struct svc_options *o = in->options;
    if (w->node[0] && o->node && !str_eq(w->node, o->node))
        return err_set(err, STATUS_INVALID_ARGUMENT, "node '%s' was named, but --node says '%s'",
                       w->node, o->node);
    if (w->node[0] && !o->node && !(o->node = mem_strdup(w->node)))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "options: out of memory");
    return STATUS_OK;
}

void instance_free_options(struct instance *in)
{
    if (in->options && in->rows)
        cfg_done(&in->spec, in->options);
    mem_free(in->options);
    mem_free(in->rows);
    in->options = NULL;
    in->rows = NULL;
}

const char *instance_kind(const struct instance *in)
{
    const struct cfg_option *o =
        find_row(in->role->spec.options, in->role->spec.n_options, "kind", 4);

    if (!o || o->type != CFG_STRING)
        return NULL;
    return *(char *const *)(const void *)((const char *)in->options + o->offset);
}

// ---------------------------------------------------------------- {node}

static enum status expand_string(char **at, const char *node, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    const char *rest = *at, *mark = rest ? strstr(rest, NODE_MARK) : NULL;

    if (!mark)
        return STATUS_OK;
    buf_init(&b, MAX_VALUE_BYTES);
    for (; mark; mark = strstr(rest, NODE_MARK)) {
        buf_append(&b, rest, (size_t)(mark - rest));
        buf_puts(&b, node);
        rest = mark + strlen(NODE_MARK);
    }
    buf_puts(&b, rest);
    char *expanded = b.failed ? NULL : mem_strdup(buf_str(&b));
    if (!expanded)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "option '%s': too long", *at);
    mem_free(*at);
    *at = expanded;
    return STATUS_OK;
}

enum status instance_expand_node(struct instance *in, struct err *err)
{
    enum status s = STATUS_OK;

    for (size_t i = 0; i < in->spec.n_options && s == STATUS_OK; i++) {
        void *at = (char *)in->options + in->rows[i].offset;
        if (in->rows[i].type == CFG_STRING)
            s = expand_string(at, in->svc.self->id, err);
        if (in->rows[i].type != CFG_STRING_LIST)
            continue;
        for (char **list = *(char ***)at; s == STATUS_OK && list && *list; list++)
            s = expand_string(list, in->svc.self->id, err);
    }
    return s;
}
