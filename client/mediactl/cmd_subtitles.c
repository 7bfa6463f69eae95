// subtitles: text that is added to an item, listed and removed.
#include <errno.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "ctl.h"

#define MAX_FILE_BYTES ((4 << 20) - (64 << 10))

static const char *flags_of(const Orchestrator__SubtitleInfo *i, char dst[48])
{
    snprintf(dst, 48, "%s%s%s", i->is_default ? "default " : "", i->forced ? "forced " : "",
             i->hearing_impaired ? "hearing-impaired " : "");
    size_t n = strlen(dst);
    if (n)
        dst[n - 1] = '\0';
    return dst;
}

static enum status print_list(struct ctl *k, const Orchestrator__ListSubtitlesReply *r)
{
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    static const char *const heads[] = {"ID", "LANGUAGE", "STATE", "FLAGS", "TITLE"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_subtitles; i++) {
        const Orchestrator__SubtitleInfo *s = r->subtitles[i];
        char flags[48];
        table_add(&t, "%s", s->id);
        table_add(&t, "%s", s->language);
        table_add(&t, "%s%s%s", s->state, s->reason[0] ? ": " : "", s->reason);
        table_add(&t, "%s", flags_of(s, flags));
        table_add(&t, "%s", s->title);
    }
    return table_print(&t, stdout, &k->err);
}

static enum status cmd_ls(struct ctl *k)
{
    Orchestrator__ListSubtitlesRequest req = ORCHESTRATOR__LIST_SUBTITLES_REQUEST__INIT;
    req.item_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__ListSubtitlesReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_subtitle_list, NULL, &req, &r);
    return s == STATUS_OK ? print_list(k, r) : s;
}

static enum status read_file(struct ctl *k, const char *path, struct buf *ret)
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        return err_set(&k->err, STATUS_NOT_FOUND, "%s: %s", path, strerror(errno));
    uint8_t piece[16384];
    for (size_t n; (n = fread(piece, 1, sizeof(piece), f)) > 0;)
        buf_append(ret, piece, n);
    bool failed = ferror(f) != 0;
    fclose(f);
    if (failed)
        return err_set(&k->err, STATUS_INTERNAL, "%s: cannot be read", path);
    if (ret->failed)
        return err_set(&k->err, STATUS_INVALID_ARGUMENT, "%s: more than %d bytes", path,
                       MAX_FILE_BYTES);
    return STATUS_OK;
}

static enum status cmd_add(struct ctl *k)
{
    Orchestrator__PutSubtitleRequest req = ORCHESTRATOR__PUT_SUBTITLE_REQUEST__INIT;
    AUTO(rpc_message_free_p) Orchestrator__SubtitleInfo *r = NULL;
    struct buf file;
    buf_init(&file, MAX_FILE_BYTES);
    enum status s = read_file(k, k->args[1], &file);
    req.item_id = k->args[0];
    req.language = client_str(k->opt[OPT_LANG]);
    req.title = client_str(k->opt[OPT_TITLE]);
    req.is_default = ctl_has(k, OPT_DEFAULT);
    req.forced = ctl_has(k, OPT_FORCED);
    req.hearing_impaired = ctl_has(k, OPT_HEARING_IMPAIRED);
    req.replaces = client_str(k->opt[OPT_REPLACE]);
    req.data = (ProtobufCBinaryData){.data = file.data, .len = file.len};
    if (s == STATUS_OK)
        s = CTL_CALL(k, orchestrator_subtitle_put, NULL, &req, &r);
    buf_done(&file);
    if (s != STATUS_OK)
        return err_wrap(&k->err, s, "%s", k->args[1]);
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    printf("%s %s\n", r->id, r->state);
    return STATUS_OK;
}

static enum status cmd_rm(struct ctl *k)
{
    Orchestrator__DeleteSubtitleRequest req = ORCHESTRATOR__DELETE_SUBTITLE_REQUEST__INIT;
    req.item_id = k->args[0];
    req.id = k->args[1];
    AUTO(rpc_message_free_p) Orchestrator__DeleteSubtitleReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_subtitle_delete, NULL, &req, &r);
    return s == STATUS_OK && ctl_has(k, OPT_JSON) ? ctl_print_message(k, &r->base) : s;
}

static const struct command commands[] = {
    {"subtitles add", "ITEM FILE", 2, 2,
     ALLOW(OPT_LANG) | ALLOW(OPT_TITLE) | ALLOW(OPT_DEFAULT) | ALLOW(OPT_FORCED) |
         ALLOW(OPT_HEARING_IMPAIRED) | ALLOW(OPT_REPLACE),
     CONNECTED, cmd_add, "add text to my item: SRT, WebVTT or ASS"},
    {"subtitles ls", "ITEM", 1, 1, 0, CONNECTED, cmd_ls, "list the texts of my item"},
    {"subtitles rm", "ITEM ID", 2, 2, 0, CONNECTED, cmd_rm, "remove a text that was added"},
};
const struct command_group subtitle_commands = {commands, N_ELEMENTS(commands)};
