// cauced keys show: who has which key, until when, and what is being changed. Nothing secret.
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauced.h"
#include "command.h"
#include "config/config.h"
#include "keyring.h"

#define MAX_TEXT_BYTES (4U << 20)
#define DAY_S (24 * 3600)

struct options {
    char *keys;
    bool json;
};
#define OPT(field) offsetof(struct options, field)

static const struct cfg_option rows[] = {
    {"keys", CFG_STRING, OPT(keys), NULL, 0, 0, "directory that 'cauced keys' made"},
    {"json", CFG_BOOL, OPT(json), NULL, 0, 0, "one JSON object on standard output"},
};
static const struct cfg_spec spec = {
    .section = "keys-show",
    .usage = "cauced keys show --keys DIR [--json]",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

enum grant_state { GRANT_GOOD, GRANT_ENDS_SOON, GRANT_EXPIRED, GRANT_REVOKED, GRANT_ELSEWHERE };
static const char *const grant_states[] = {
    [GRANT_GOOD] = "good",       [GRANT_ENDS_SOON] = "renew",    [GRANT_EXPIRED] = "expired",
    [GRANT_REVOKED] = "revoked", [GRANT_ELSEWHERE] = "not here",
};

static enum grant_state judge(const struct keyring *k, const struct svc_node *n,
                              struct chan_grant *g)
{
    int64_t now_s = time_wall_ms() / 1000;

    memset(g, 0, sizeof(*g));
    if (keyring_load_grant(k, n->id, ".grant", g, NULL) != STATUS_OK)
        return GRANT_ELSEWHERE;
    if (svc_nodes_is_revoked(k->before, g))
        return GRANT_REVOKED;
    if (g->not_after_s < now_s)
        return GRANT_EXPIRED;
    return g->not_after_s < now_s + KEYRING_RENEW_S ? GRANT_ENDS_SOON : GRANT_GOOD;
}

static bool has_secret(const struct keyring *k, const struct svc_node *n)
{
    AUTO(mem_free_p) char *path = keyring_path(k, n->id, ".key");

    return path && access(path, F_OK) == 0;
}

static void day_of(char out[11], int64_t unix_s)
{
    char text[TIME_RFC3339_SIZE];

    time_rfc3339(text, unix_s * 1000);
    snprintf(out, 11, "%.10s", text);
}

// ---------------------------------------------------------------- for people

static void put_row(struct buf *b, const struct keyring *k, const struct svc_node *n)
{
    struct chan_grant g;
    char key[KEYRING_FINGERPRINT_SIZE], until[11] = "-";
    enum grant_state state = judge(k, n, &g);

    keyring_fingerprint(key, n->key);
    if (state != GRANT_ELSEWHERE)
        day_of(until, g.not_after_s);
    buf_printf(b, "%-20s %-12s %-6s %-20s %-10s %-8s %s\n", n->id, svc_role_name(n->role), n->kind,
               key, until, grant_states[state], has_secret(k, n) ? "yes" : "no");
    if (n->has_next_key) {
        keyring_fingerprint(key, n->next_key);
        buf_printf(b,
                   "  next key           %20s %s   both are accepted until 'cauced keys retire'\n",
                   "", key);
    }
    if (n->has_token_key) {
        keyring_fingerprint(key, n->token_key);
        buf_printf(b, "  signs tokens       %20s %s\n", "", key);
    }
    if (n->has_next_token_key) {
        keyring_fingerprint(key, n->next_token_key);
        buf_printf(b, "  or                 %20s %s   tokens of both are accepted\n", "", key);
    }
}

static void put_text(struct buf *b, const struct keyring *k)
{
    char key[KEYRING_FINGERPRINT_SIZE];

    keyring_fingerprint(key, k->operator_public);
    buf_printf(b, "operator %s, its secret is %s\n\n", key, k->has_operator ? "here" : "not here");
    buf_printf(b, "%-20s %-12s %-6s %-20s %-10s %-8s %s\n", "NODE", "ROLE", "KIND", "KEY", "UNTIL",
               "GRANT", "SECRET HERE");
    for (size_t i = 0; i < k->n; i++)
        put_row(b, k, &k->nodes[i]);
    for (size_t i = 0; i < k->n_revoked; i++)
        buf_printf(b, "%s%s", i == 0 ? "\nrevoked: " : ", ", k->revoked[i].id);
    if (k->n_revoked > 0)
        buf_putc(b, '\n');
}

// ---------------------------------------------------------------- for programs

static void put_string(struct buf *b, const char *before, const char *value)
{
    buf_puts(b, before);
    buf_put_json_string(b, value, strlen(value));
}

static void put_fingerprint(struct buf *b, const char *before, const uint8_t key[32])
{
    char text[KEYRING_FINGERPRINT_SIZE];

    keyring_fingerprint(text, key);
    put_string(b, before, text);
}

static void put_node(struct buf *b, const struct keyring *k, const struct svc_node *n)
{
    struct chan_grant g;
    enum grant_state state = judge(k, n, &g);
    char until[TIME_RFC3339_SIZE];

    put_string(b, "{\"node\":", n->id);
    put_string(b, ",\"role\":", svc_role_name(n->role));
    if (n->kind[0])
        put_string(b, ",\"kind\":", n->kind);
    put_string(b, ",\"url\":", n->url);
    put_fingerprint(b, ",\"key\":", n->key);
    if (n->has_next_key)
        put_fingerprint(b, ",\"nextKey\":", n->next_key);
    if (n->has_token_key)
        put_fingerprint(b, ",\"tokenKey\":", n->token_key);
    if (n->has_next_token_key)
        put_fingerprint(b, ",\"nextTokenKey\":", n->next_token_key);
    put_string(b, ",\"grant\":", grant_states[state]);
    if (state != GRANT_ELSEWHERE) {
        time_rfc3339(until, g.not_after_s * 1000);
        put_string(b, ",\"until\":", until);
        buf_printf(b, ",\"serial\":%llu", (unsigned long long)g.serial);
    }
    buf_printf(b, ",\"secretHere\":%s}", has_secret(k, n) ? "true" : "false");
}

static void put_json(struct buf *b, const struct keyring *k)
{
    put_fingerprint(b, "{\"operator\":", k->operator_public);
    buf_printf(b, ",\"operatorHere\":%s,\"nodes\":[", k->has_operator ? "true" : "false");
    for (size_t i = 0; i < k->n; i++) {
        buf_puts(b, i ? "," : "");
        put_node(b, k, &k->nodes[i]);
    }
    buf_puts(b, "],\"revoked\":[");
    for (size_t i = 0; i < k->n_revoked; i++)
        put_string(b, i ? "," : "", k->revoked[i].id);
    buf_puts(b, "]}\n");
}

// ---------------------------------------------------------------- the command

static enum status show(const struct options *o, struct err *err)
{
    AUTO(keyring_free_p) struct keyring *k = NULL;
    AUTO(buf_done) struct buf b = {0};

    enum status s = keyring_open(o->keys, &k, err);
    if (s != STATUS_OK)
        return s;
    if (!k->before)
        return err_set(err, STATUS_NOT_FOUND, "%s has no nodes.ini; 'cauced keys --out' makes it",
                       o->keys);
    buf_init(&b, MAX_TEXT_BYTES);
    if (o->json)
        put_json(&b, k);
    else
        put_text(&b, k);
    if (b.failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (fwrite(b.data, 1, b.len, stdout) != b.len || fflush(stdout) != 0)
        return err_set(err, STATUS_UNAVAILABLE, "standard output cannot be written");
    return STATUS_OK;
}

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    const struct options *o = ud;
    (void)words;
    return o->keys ? show(o, err) : command_misused(ret_misused, err, "--keys DIR is");
}

int cauced_keys_show(int argc, char **argv)
{
    static const struct command_line command = {.name = "keys show", .spec = &spec, .run = run};
    struct options o = {0};
    return command_main(&command, &o, &o, argc, argv);
}
