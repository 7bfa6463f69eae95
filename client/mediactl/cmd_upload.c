// upload.
#include <inttypes.h>
#include <string.h>

#include "ctl.h"

static void put_member(struct buf *b, const char *name, const char *value)
{
    buf_printf(b, "%s\"%s\":", b->data[b->len - 1] == '{' ? "" : ",", name);
    buf_put_json_string(b, value, strlen(value));
}

static void put_result(struct buf *b, const char *path, const cauce_upload_result *r)
{
    buf_puts(b, b->data[b->len - 1] == '[' ? "{" : ",{");
    put_member(b, "file", path);
    put_member(b, "upload_id", r->upload_id);
    put_member(b, "item_id", r->item_id);
    put_member(b, "job_id", r->job_id);
    put_member(b, "state", r->state);
    put_member(b, "reason", r->reason);
    put_member(b, "url", r->url);
    buf_printf(b, ",\"size\":%" PRId64 ",\"sent\":%" PRId64 "}", r->size, r->sent);
}

static enum status upload_one(struct ctl *k, const char *path, const cauce_upload_opts *o,
                              cauce_upload_result *r)
{
    struct progress p;
    progress_init(&p, k, path);
    cauce_error e;
    enum status s = ctl_status(k, cauce_upload_file(k->c, path, o, progress_update, &p, r, &e), &e);
    if (s == STATUS_OK && strcmp(r->state, "failed") == 0)
        s = err_set(&k->err, STATUS_FAILED_PRECONDITION, "%s", r->reason);
    if (s == STATUS_OK && ctl_has(k, OPT_WAIT) && strcmp(r->state, "ready") != 0) {
        s = ctl_status(
            k, cauce_wait_ready(k->c, r->item_id, CAUCE_UNTIL_READY, 0, progress_update, &p, &e),
            &e);
        if (s == STATUS_OK)
            str_copy(r->state, sizeof(r->state), "ready");
    }
    progress_end(&p);
    return s == STATUS_OK ? s : err_wrap(&k->err, s, "upload %s", path);
}

static enum status fill_opts(struct ctl *k, cauce_upload_opts *o, char currency[4])
{
    cauce_upload_opts_init(o);
    o->title = k->opt[OPT_TITLE];
    o->description = k->opt[OPT_DESCRIPTION];
    o->preset = k->opt[OPT_PRESET];
    o->video_codecs = k->opt[OPT_CODECS];
    o->publish = ctl_has(k, OPT_PUBLIC);
    o->sync = ctl_has(k, OPT_SYNC);
    o->stall_ms = (uint32_t)k->timeout_ms;
    o->currency = currency;
    if (!ctl_has(k, OPT_PRICE))
        return STATUS_OK;
    return ctl_parse_money(k, k->opt[OPT_PRICE], &o->price_minor, currency);
}

static enum status cmd_upload(struct ctl *k)
{
    cauce_upload_opts o;
    char currency[4] = "EUR";
    enum status s = fill_opts(k, &o, currency);
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_puts(&b, "{\"uploads\":[");
    for (size_t i = 0; i < k->n_args && s == STATUS_OK; i++) {
        cauce_upload_result r;
        s = upload_one(k, k->args[i], &o, &r);
        if (s != STATUS_OK)
            break;
        put_result(&b, k->args[i], &r);
        if (!ctl_has(k, OPT_JSON))
            printf("%s  %s  %s  %s\n", r.item_id, r.state, r.url, k->args[i]);
    }
    buf_puts(&b, "]}\n");
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        fputs(buf_str(&b), stdout);
    buf_done(&b);
    return s;
}

static const struct command commands[] = {
    {"upload", "FILE..", 1, 64,
     ALLOW(OPT_TITLE) | ALLOW(OPT_DESCRIPTION) | ALLOW(OPT_PRICE) | ALLOW(OPT_PUBLIC) |
         ALLOW(OPT_WAIT) | ALLOW(OPT_SYNC) | ALLOW(OPT_PRESET) | ALLOW(OPT_CODECS),
     CONNECTED, cmd_upload, "upload files; the same again continues"},
};
const struct command_group upload_commands = {commands, N_ELEMENTS(commands)};
