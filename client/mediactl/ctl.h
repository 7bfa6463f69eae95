#pragma once
// mediactl: one run of one command.
#include <stdbool.h>
#include <stdio.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/cauce.h"
#include "cauce/common.pb-c.h"
#include "client/src/call.h"
#include "tidy.h"

// Options: one number each; the rows are in options.c.
enum option {
    OPT_HELP,
    OPT_VERSION,
    OPT_JSON,
    OPT_SERVER,
    OPT_STATE_DIR,
    OPT_TIMEOUT,
    OPT_PASSWORD_FILE,
    OPT_EMAIL,
    OPT_EVERYWHERE,
    OPT_TITLE,
    OPT_DESCRIPTION,
    OPT_PRESET,
    OPT_CODECS,
    OPT_PRICE,
    OPT_PUBLIC,
    OPT_WAIT,
    OPT_SYNC,
    OPT_MINE,
    OPT_KIND,
    OPT_LIMIT,
    OPT_PAGE,
    OPT_OUT,
    OPT_STDOUT,
    OPT_PLAYER,
    OPT_MAX_HEIGHT,
    OPT_MAX_BITRATE,
    OPT_NEVER_DIRECT,
    OPT_PROFILE,
    OPT_AUDIO,
    OPT_SUBTITLES,
    OPT_BURN,
    OPT_NO_COPIES,
    OPT_RENDITION,
    OPT_SEEK,
    OPT_FROM_LIBRARY,
    OPT_IDEMPOTENCY_KEY,
    OPT_TO,
    OPT_STATE,
    OPT_TOPIC,
    OPT_FROM,
    OPT_SUBJECT,
    OPT_DATA,
    OPT_HEADER,
    OPT_METADATA,
    OPT_ROUTE,
    OPT_NODE,
    OPT_DEADLINE,
    OPT_KEY,
    OPT_WATCH,
    OPT_UNUSED,
    OPT_SINCE,
    OPT_CONSUMER,
    OPT_OWNER,
    OPT_ALL,
    OPT_REASON,
    OPT_NOW,
    OPT_LANG,
    OPT_DEFAULT,
    OPT_FORCED,
    OPT_HEARING_IMPAIRED,
    OPT_REPLACE,
    OPT_SPOKEN,
    N_OPTIONS
};
#define ALLOW(o) (UINT64_C(1) << (o))
#define ALLOW_COMMON                                                                               \
    (ALLOW(OPT_HELP) | ALLOW(OPT_VERSION) | ALLOW(OPT_JSON) | ALLOW(OPT_SERVER) |                  \
     ALLOW(OPT_STATE_DIR) | ALLOW(OPT_TIMEOUT))
#define ALLOW_PAGE (ALLOW(OPT_LIMIT) | ALLOW(OPT_PAGE))

enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_NOT_FOUND = 3,
    EXIT_DENIED = 4,
    EXIT_CONFLICT = 5,
    EXIT_UNAVAILABLE = 6,
    EXIT_DEADLINE = 7,
    EXIT_INTERRUPTED = 130,
};

struct ctl;
struct command {
    const char *name; // "job ls"; one or two words
    const char *args; // "ITEM", as help shows it
    size_t min_args, max_args;
    uint64_t options; // besides ALLOW_COMMON
    enum { CONNECTED, ALONE } needs;
    enum status (*run)(struct ctl *k);
    const char *help;
};
struct option_row {
    const char *name;  // "--title"
    const char *value; // "TEXT"; NULL for a flag
    const char *help;
};
extern const struct option_row option_rows[N_OPTIONS];
// Groups of commands, in the order in which help shows them.
struct command_group {
    const struct command *commands;
    size_t n;
};
extern const struct command_group auth_commands, subtitle_commands, item_commands, upload_commands,
    play_commands, shop_commands, library_commands, job_commands, worker_commands, user_commands,
    event_commands, rpc_commands, node_commands, misc_commands;
extern const struct command_group *const command_groups[];
extern const size_t n_command_groups;

struct ctl {
    const struct command *command;
    const char *group; // "job": all that was given, with --help
    char **words;      // the whole command line, to say how to continue
    size_t n_words;
    char *args[64];
    size_t n_args;
    const char *opt[N_OPTIONS]; // value; "" for a flag that was given; NULL when not given
    struct {
        const char *text;
        char separator;          // between key and value
    } headers[RPC_METADATA_MAX]; // each -H and --metadata
    size_t n_headers;
    int64_t timeout_ms; // 0: default
    char *state_dir;
    cauce *c;
    bool is_misused;  // err is about the command line: exit status 2
    bool is_reported; // err has been told already
    struct err err;
};

// ---- options.c ----
// Fill k from the command line. errors: INVALID_ARGUMENT with a sentence for people.
enum status ctl_parse(struct ctl *k, int argc, char **argv, struct err *err) MUST_CHECK;
void ctl_help(const struct command *c, FILE *f); // NULL: all commands
void ctl_help_group(const char *group, FILE *f);
static inline bool ctl_has(const struct ctl *k, enum option o)
{
    return k->opt[o] != NULL;
}
// A value out of range is wrong usage.
enum status ctl_number(struct ctl *k, enum option o, int64_t min, int64_t max, int64_t def,
                       int64_t *ret, struct err *err) MUST_CHECK;
// *ret_ms stays as it is when the option was not given.
enum status ctl_span(struct ctl *k, enum option o, int64_t *ret_ms) MUST_CHECK;
// Say in k->err that the command line is wrong.
enum status ctl_misused(struct ctl *k, const char *fmt, ...) PRINTF_LIKE(2, 3);
// --limit and --page; borrowed from k.
enum status ctl_page(struct ctl *k, Common__Page *ret) MUST_CHECK;

// ---- output.c ----
// What a library function said, as a status with its sentence in k->err.
enum status ctl_status(struct ctl *k, cauce_status s, const cauce_error *e);
// "5.00 EUR" to 500 and "EUR"; the currency has two decimals. Anything else is wrong usage.
enum status ctl_parse_money(struct ctl *k, const char *text, int64_t *ret_minor,
                            char ret_currency[4]) MUST_CHECK;
#define CTL_MONEY_SIZE 40
void ctl_money(char dst[CTL_MONEY_SIZE], int64_t minor, const char *currency);
void ctl_say_more(const char *next_page); // how to get the next page, if there is one
#define CTL_TIME_SIZE 32
void ctl_duration(char dst[CTL_TIME_SIZE], int64_t us);
enum status ctl_print_message(struct ctl *k,
                              const ProtobufCMessage *m) MUST_CHECK; // JSON, one line
// JSON of m at the end of b, as all output of this program has it.
enum status ctl_put_message(struct ctl *k, const ProtobufCMessage *m, struct buf *b) MUST_CHECK;
// A table: first row is the heading. Cells are copied; widths count characters.
struct table {
    struct arena *arena;
    char **cells;
    size_t n_columns, n_cells, cap;
    bool failed;
};
void table_add(struct table *t, const char *fmt, ...) PRINTF_LIKE(2, 3); // one cell
void table_heads(struct table *t, const char *const *heads, size_t n);
enum status table_print(struct table *t, FILE *f, struct err *err) MUST_CHECK; // and frees it

// ---- progress.c ----
// A bar with rate and time left on a terminal, one line per 10 % otherwise; on standard error.
struct progress {
    bool is_terminal, is_quiet;
    const char *what;
    char stage[16];
    int64_t began_ms, drawn_ms, began_at;
    int decile;
};
void progress_init(struct progress *p, const struct ctl *k, const char *what);
int progress_update(const cauce_progress *now, void *ud); // a cauce_progress_fn
void progress_end(struct progress *p);

enum status cmd_job_watch(struct ctl *k) MUST_CHECK; // cmd_watch.c

// ---- calls: texts of a reply are fit for a terminal unless JSON is wanted ----
#define CTL_CALL(k, stub, route, req, ret)                                                         \
    __extension__({                                                                                \
        struct client_try try_;                                                                    \
        enum status ctl_s_ =                                                                       \
            client_try_begin(&try_, (k)->c, CLIENT_IF_LOGGED_IN, (route), 0, NULL, &(k)->err);     \
        if (ctl_s_ == STATUS_OK)                                                                   \
            ctl_s_ = CLIENT_CALL(                                                                  \
                &try_, stub(client_rpc((k)->c), &try_.opts, (req), (ret), &(k)->err), &(k)->err);  \
        if (ctl_s_ == STATUS_OK && !ctl_has((k), OPT_JSON))                                        \
            ctl_tidy(&(*(ret))->base);                                                             \
        ctl_s_;                                                                                    \
    })
