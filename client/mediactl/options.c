// The command line: options are rows of one table, commands say which they take.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"

// clang-format off
const struct option_row option_rows[N_OPTIONS] = {
    [OPT_HELP]            = {"--help", NULL, "show this help"},
    [OPT_VERSION]         = {"--version", NULL, "print the version of this program"},
    [OPT_JSON]            = {"--json", NULL, "one JSON object instead of text"},
    [OPT_SERVER]          = {"--server", "URL", "cauce://host:port#key (CAUCE_SERVER, else the last login's)"},
    [OPT_STATE_DIR]       = {"--state-dir", "DIR", "where the login is kept (CAUCE_STATE_DIR, else ~/.local/state/cauce)"},
    [OPT_TIMEOUT]         = {"--timeout", "TIME", "of one call, and how long an upload may stand still: 10s, 2m"},
    [OPT_PASSWORD_FILE]   = {"--password-file", "FILE", "read the password's first line from FILE (else CAUCE_PASSWORD, else asked)"},
    [OPT_EMAIL]           = {"--email", "ADDRESS", "email address of the account"},
    [OPT_EVERYWHERE]      = {"--everywhere", NULL, "log out all devices of the user"},
    [OPT_TITLE]           = {"--title", "TEXT", "title (else from the file's name)"},
    [OPT_DESCRIPTION]     = {"--description", "TEXT", "description"},
    [OPT_PRESET]          = {"--preset", "PRESET", "fast (the usual) or quality: slower, smaller"},
    [OPT_CODECS]          = {"--codecs", "LIST", "hevc,av1,vp9: made on request besides H.264"},
    [OPT_PRICE]           = {"--price", "AMOUNT", "price, as in \"5.00 EUR\" (else free)"},
    [OPT_PUBLIC]          = {"--public", NULL, "publish as soon as it can be played"},
    [OPT_WAIT]            = {"--wait", NULL, "wait until everything is made"},
    [OPT_SYNC]            = {"--sync", NULL, "short inputs (at most 10 s): finish within the call"},
    [OPT_MINE]            = {"--mine", NULL, "only what I made"},
    [OPT_KIND]            = {"--kind", "KIND", "video or audio"},
    [OPT_LIMIT]           = {"--limit", "N", "rows of one page, 1 to 200 (else 50)"},
    [OPT_PAGE]            = {"--page", "TOKEN", "page to show, from nextPage of the one before"},
    [OPT_OUT]             = {"--out", "FILE", "write the bytes to FILE"},
    [OPT_STDOUT]          = {"--stdout", NULL, "write the bytes to standard output"},
    [OPT_PLAYER]          = {"--player", "PROGRAM", "start PROGRAM and feed it (mpv, ffplay, ...)"},
    [OPT_MAX_HEIGHT]      = {"--max-height", "PIXELS", "no picture higher than this"},
    [OPT_MAX_BITRATE]     = {"--max-bitrate", "BITS", "no more bits per second than this"},
    [OPT_NEVER_DIRECT]    = {"--never-direct", NULL, "renditions, also when the source would do"},
    [OPT_PROFILE]         = {"--profile", "NAME", "the player: chrome, mpv, ..., or a profile of your own in FILE.json"},
    [OPT_AUDIO]           = {"--audio", "LANGUAGE", "sound in this language"},
    [OPT_SUBTITLES]       = {"--subtitles", "LANGUAGE", "subtitles in this language"},
    [OPT_BURN]            = {"--burn", "WHEN", "subtitles into the picture: needed, never, always"},
    [OPT_NO_COPIES]       = {"--no-copies", NULL, "do not pack the source's packets anew"},
    [OPT_RENDITION]       = {"--rendition", "NAMES", "picture, sound or both: v720, a128, v720+a128"},
    [OPT_SEEK]            = {"--seek", "SECONDS", "begin there (renditions only)"},
    [OPT_FROM_LIBRARY]    = {"--from-library", "DIR", "play a downloaded item; needs no server"},
    [OPT_IDEMPOTENCY_KEY] = {"--idempotency-key", "KEY", "the same key never charges twice (else a new one)"},
    [OPT_TO]              = {"--to", "DIR", "library folder (CAUCE_LIBRARY, else ~/Cauce)"},
    [OPT_STATE]           = {"--state", "STATE", "only those in this state"},
    [OPT_TOPIC]           = {"--topic", "TOPIC", "auth, upload, transcode, store or swarm (else transcode)"},
    [OPT_FROM]            = {"--from", "N", "number of the first event wanted; tail: -1, the default, is only new ones"},
    [OPT_SUBJECT]         = {"--subject", "ID", "only events about this item, order or user"},
    [OPT_DATA]            = {"-d", "JSON", "the request in JSON, @FILE or - for standard input (else {}); streams: one a line"},
    [OPT_HEADER]          = {"-H", "KEY:VALUE", "metadata of the call; may be given several times"},
    [OPT_METADATA]        = {"--metadata", "KEY=VALUE", "the same"},
    [OPT_ROUTE]           = {"--route", "NAME", "backend that is asked, where a method has several: an origin, an event topic"},
    [OPT_NODE]            = {"--node", "NODE", "ask this node (else the gateway)"},
    [OPT_DEADLINE]        = {"--deadline", "TIME", "when the call must have ended: 5s, 2m (else 15s, streams a day)"},
    [OPT_KEY]             = {"--key", "KEY", "idempotency key: the call may be repeated and has one effect"},
    [OPT_WATCH]           = {"--watch", NULL, "go on, with what changes"},
    [OPT_SINCE]           = {"--since", "TIME", "begin with events of that time (2025-01-31T12:00:00Z), or so long ago (10m)"},
    [OPT_CONSUMER]        = {"--consumer", "NAME", "keep the position under this name, and go on from there the next time"},
    [OPT_OWNER]           = {"--owner", "OWNER", "whose: a user's id, or a role (admin)"},
    [OPT_ALL]             = {"--all", NULL, "of all users and roles (admin)"},
    [OPT_REASON]          = {"--reason", "TEXT", "why; shown with the item"},
    [OPT_NOW]             = {"--now", NULL, "give back what it works on instead of finishing it"},
    [OPT_LANG]            = {"--lang", "CODE", "language: en, de, ..."},
    [OPT_DEFAULT]         = {"--default", NULL, "shown unless the viewer chooses otherwise"},
    [OPT_FORCED]          = {"--forced", NULL, "only what must be read: signs, another language"},
    [OPT_HEARING_IMPAIRED] = {"--hearing-impaired", NULL, "describes sounds too"},
    [OPT_REPLACE]         = {"--replace", "ID", "remove this one when the new one can be shown"},
    [OPT_SPOKEN]          = {"--spoken", NULL, "in subtitles: what is said, and when"},
    [OPT_UNUSED]          = {"--unused", NULL, "methods that were never called, too"},
};
// clang-format on

// ---------------------------------------------------------------- help

static void print_options(uint64_t set, FILE *f)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (!(set & ALLOW(i)))
            continue;
        const struct option_row *r = &option_rows[i];
        fprintf(f, "  %-18s %-9s  %s\n", r->name, r->value ? r->value : "", r->help);
    }
}

static void print_command(const struct command *c, FILE *f)
{
    fprintf(f, "  %-18s %-18s %s\n", c->name, c->args, c->help);
}

static bool is_of_group(const struct command *c, const char *group)
{
    size_t n = strlen(group);
    return strncmp(c->name, group, n) == 0 && c->name[n] == ' ';
}

void ctl_help_group(const char *group, FILE *f)
{
    fprintf(f, "usage: mediactl %s COMMAND [ARGUMENTS] [OPTIONS]\n\n", group);
    for (size_t g = 0; g < n_command_groups; g++)
        for (size_t i = 0; i < command_groups[g]->n; i++)
            if (is_of_group(&command_groups[g]->commands[i], group))
                print_command(&command_groups[g]->commands[i], f);
    fprintf(f, "\nEvery command has --help.\n");
}

void ctl_help(const struct command *c, FILE *f)
{
    if (c) {
        fprintf(f, "usage: mediactl %s%s%s\n\n%s\n\n", c->name, c->args[0] ? " " : "", c->args,
                c->help);
        print_options(c->options | ALLOW_COMMON, f);
        return;
    }
    fprintf(f, "usage: mediactl COMMAND [ARGUMENTS] [OPTIONS]\n\n");
    for (size_t g = 0; g < n_command_groups; g++)
        for (size_t i = 0; i < command_groups[g]->n; i++)
            print_command(&command_groups[g]->commands[i], f);
    fprintf(f, "\nEvery command has --help. Options that all commands take:\n");
    print_options(ALLOW_COMMON, f);
    fprintf(f, "\nExit status: 0 ok, 1 failed, 2 usage, 3 not found, 4 denied, 5 conflict, 6 "
               "unavailable,\n"
               "7 deadline, 130 interrupted (the command that continues is printed).\n");
}

// ---------------------------------------------------------------- parsing

static const struct command *find(const char *name)
{
    for (size_t g = 0; g < n_command_groups; g++)
        for (size_t i = 0; i < command_groups[g]->n; i++)
            if (strcmp(command_groups[g]->commands[i].name, name) == 0)
                return &command_groups[g]->commands[i];
    return NULL;
}

static bool is_group(const char *word)
{
    for (size_t g = 0; g < n_command_groups; g++)
        for (size_t i = 0; i < command_groups[g]->n; i++)
            if (is_of_group(&command_groups[g]->commands[i], word))
                return true;
    return false;
}

static enum status take_header(struct ctl *k, size_t option, struct err *err)
{
    if (k->n_headers == N_ELEMENTS(k->headers))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s more than %zu times",
                       option_rows[option].name, N_ELEMENTS(k->headers));
    k->headers[k->n_headers].text = k->opt[option];
    k->headers[k->n_headers++].separator = option == OPT_HEADER ? ':' : '=';
    return STATUS_OK;
}

// One option, with its value from the same word or the next. *ret_used: words taken.
static enum status take_option(struct ctl *k, char **words, size_t n, size_t *ret_used,
                               struct err *err)
{
    const char *word = strcmp(words[0], "-o") == 0 ? "--out" : words[0];
    const char *equals = strchr(word, '=');
    size_t len = equals ? (size_t)(equals - word) : strlen(word);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const struct option_row *r = &option_rows[i];
        if (strlen(r->name) != len || strncmp(r->name, word, len) != 0)
            continue;
        if (r->value && !equals && n < 2)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s needs %s", r->name, r->value);
        if (!r->value && equals)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s takes no value", r->name);
        k->opt[i] = !r->value ? "" : equals ? equals + 1 : words[1];
        *ret_used = r->value && !equals ? 2 : 1;
        return i == OPT_HEADER || i == OPT_METADATA ? take_header(k, i, err) : STATUS_OK;
    }
    return err_set(err, STATUS_INVALID_ARGUMENT, "unknown option %s", words[0]);
}

// "-5" is an argument: no option begins with a digit.
static bool is_option(const char *word)
{
    return word[0] == '-' && word[1] != '\0' && !(word[1] >= '0' && word[1] <= '9');
}

static enum status take_words(struct ctl *k, char **words, size_t n, struct err *err)
{
    bool only_args = false;
    for (size_t i = 0; i < n;) {
        if (!only_args && strcmp(words[i], "--") == 0) {
            only_args = true;
            i++;
            continue;
        }
        if (!only_args && is_option(words[i])) {
            if (strcmp(words[i], "-h") == 0) {
                k->opt[OPT_HELP] = "";
                i++;
                continue;
            }
            size_t used = 0;
            enum status s = take_option(k, words + i, n - i, &used, err);
            if (s != STATUS_OK)
                return s;
            i += used;
            continue;
        }
        if (k->n_args == N_ELEMENTS(k->args))
            return err_set(err, STATUS_INVALID_ARGUMENT, "too many arguments");
        k->args[k->n_args++] = words[i++];
    }
    return STATUS_OK;
}

// The first one or two arguments are the command.
static enum status take_command(struct ctl *k, struct err *err)
{
    if (k->n_args == 0)
        return STATUS_OK; // help, or refused by the caller
    size_t n = 1;
    char name[64];
    str_copy(name, sizeof(name), k->args[0]);
    // "play ITEM" beside "play explain ITEM": the longer name is taken where it is one
    bool alone = find(name) != NULL;
    if (alone && k->n_args > 1) {
        char longer[64];
        snprintf(longer, sizeof(longer), "%s %s", k->args[0], k->args[1]);
        alone = find(longer) == NULL;
    }
    if (!alone && is_group(k->args[0])) {
        k->group = k->args[0];
        if (k->n_args < 2 && ctl_has(k, OPT_HELP))
            return STATUS_OK;
        if (k->n_args < 2)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s what? See mediactl --help",
                           k->args[0]);
        snprintf(name, sizeof(name), "%s %s", k->args[0], k->args[1]);
        n = 2;
    }
    k->command = find(name);
    if (!k->command)
        return err_set(err, STATUS_INVALID_ARGUMENT, "unknown command \"%s\": see mediactl --help",
                       name);
    k->n_args -= n;
    memmove(k->args, k->args + n, k->n_args * sizeof(k->args[0]));
    return STATUS_OK;
}

static enum status check(const struct ctl *k, struct err *err)
{
    const struct command *c = k->command;
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (k->opt[i] && !((c->options | ALLOW_COMMON) & ALLOW(i)))
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s does not take %s", c->name,
                           option_rows[i].name);
    if (k->n_args < c->min_args || k->n_args > c->max_args)
        return err_set(err, STATUS_INVALID_ARGUMENT, "usage: mediactl %s%s%s", c->name,
                       c->args[0] ? " " : "", c->args);
    return STATUS_OK;
}

enum status ctl_parse(struct ctl *k, int argc, char **argv, struct err *err)
{
    k->words = argv;
    k->n_words = (size_t)argc;
    enum status s = take_words(k, argv + 1, argc > 0 ? (size_t)argc - 1 : 0, err);
    if (s == STATUS_OK)
        s = take_command(k, err);
    if (s != STATUS_OK || ctl_has(k, OPT_HELP) || ctl_has(k, OPT_VERSION) || !k->command)
        return s;
    s = check(k, err);
    if (s == STATUS_OK && ctl_has(k, OPT_TIMEOUT))
        s = str_parse_duration_ms(k->opt[OPT_TIMEOUT], &k->timeout_ms, err);
    if (s == STATUS_OK && k->timeout_ms > UINT32_MAX)
        s = err_set(err, STATUS_INVALID_ARGUMENT, "--timeout is too long");
    return s;
}

enum status ctl_number(struct ctl *k, enum option o, int64_t min, int64_t max, int64_t def,
                       int64_t *ret, struct err *err)
{
    *ret = def;
    if (!ctl_has(k, o))
        return STATUS_OK;
    enum status s = str_parse_i64(k->opt[o], min, max, ret, err);
    if (s == STATUS_OK)
        return s;
    k->is_misused = true;
    return err_wrap(err, s, "%s", option_rows[o].name);
}

enum status ctl_span(struct ctl *k, enum option o, int64_t *ret_ms)
{
    if (!ctl_has(k, o))
        return STATUS_OK;
    enum status s = str_parse_duration_ms(k->opt[o], ret_ms, &k->err);
    if (s == STATUS_OK)
        return s;
    k->is_misused = true;
    return err_wrap(&k->err, s, "%s", option_rows[o].name);
}

enum status ctl_page(struct ctl *k, Common__Page *ret)
{
    int64_t limit;
    common__page__init(ret);
    enum status s = ctl_number(k, OPT_LIMIT, 1, 200, 0, &limit, &k->err);
    if (s != STATUS_OK)
        return s;
    ret->size = (int32_t)limit;
    ret->token = client_str(k->opt[OPT_PAGE]);
    return STATUS_OK;
}

enum status ctl_misused(struct ctl *k, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(&k->err, STATUS_INVALID_ARGUMENT, fmt, ap);
    va_end(ap);
    k->is_misused = true;
    return STATUS_INVALID_ARGUMENT;
}
