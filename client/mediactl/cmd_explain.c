// play explain: how an item would be played by a player, and why.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "ctl.h"
#include "explain.h"
#include "json/proto.h"

enum { MAX_PROFILE_BYTES = 1 << 20 };

// ---------------------------------------------------------------- the question

static enum status read_whole(struct ctl *k, const char *path, struct buf *ret)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return err_errno(&k->err, errno, "open %s", path);
    char block[4096];
    for (size_t n; (n = fread(block, 1, sizeof(block), f)) > 0;)
        buf_append(ret, block, n);
    bool bad = ferror(f) != 0;
    fclose(f);
    if (bad)
        return err_errno(&k->err, EIO, "read %s", path);
    return ret->failed ? err_set(&k->err, STATUS_INVALID_ARGUMENT, "%s: larger than %d bytes", path,
                                 MAX_PROFILE_BYTES)
                       : STATUS_OK;
}

static enum status read_profile(struct ctl *k, const char *path, struct arena *a,
                                Orchestrator__PlayerProfile **ret)
{
    struct buf text;
    buf_init(&text, MAX_PROFILE_BYTES);
    AUTO(json_free_p) struct json_value *v = NULL;
    ProtobufCMessage *m = NULL;
    enum status s = read_whole(k, path, &text);
    if (s == STATUS_OK)
        s = json_parse(buf_str(&text), text.len, 0, &v, &k->err);
    if (s == STATUS_OK)
        s = json_read_message(v, &orchestrator__player_profile__descriptor, a, &m, &k->err);
    buf_done(&text);
    if (s != STATUS_OK)
        return err_wrap(&k->err, s, "%s", path);
    *ret = (Orchestrator__PlayerProfile *)(void *)m;
    return STATUS_OK;
}

static enum status take_player(struct ctl *k, struct arena *a, Orchestrator__OpenRequest *req)
{
    const char *name = k->opt[OPT_PROFILE];
    if (!name)
        return STATUS_OK;
    if (str_ends_with(name, ".json"))
        return read_profile(k, name, a, &req->custom);
    req->player = client_str(name);
    return STATUS_OK;
}

static enum status take_burn(struct ctl *k, Orchestrator__Wishes *w)
{
    static const char *const when[] = {"needed", "never", "always"};
    if (!ctl_has(k, OPT_BURN))
        return STATUS_OK;
    for (size_t i = 0; i < N_ELEMENTS(when); i++)
        if (str_eq(k->opt[OPT_BURN], when[i])) {
            w->burn = (Orchestrator__Burn)i;
            return STATUS_OK;
        }
    return ctl_misused(k, "--burn needed, never or always");
}

static enum status take_wishes(struct ctl *k, Orchestrator__Wishes *w, Orchestrator__Limits *l)
{
    int64_t height = 0;
    enum status s = ctl_number(k, OPT_MAX_HEIGHT, 1, 16384, 0, &height, &k->err);
    if (s == STATUS_OK)
        s = ctl_number(k, OPT_MAX_BITRATE, 1, INT64_MAX, 0, &l->max_bitrate, &k->err);
    if (s == STATUS_OK)
        s = take_burn(k, w);
    l->max_height = (int32_t)height;
    w->audio_language = client_str(k->opt[OPT_AUDIO]);
    w->subtitle_language = client_str(k->opt[OPT_SUBTITLES]);
    w->no_direct = ctl_has(k, OPT_NEVER_DIRECT);
    w->no_copies = ctl_has(k, OPT_NO_COPIES);
    return s;
}

// ---------------------------------------------------------------- the answer

// "REASON_VIDEO_CODEC" as people say it: "video codec".
static void reason_name(char *dst, size_t size, Orchestrator__Reason r)
{
    const ProtobufCEnumValue *v =
        protobuf_c_enum_descriptor_get_value(&orchestrator__reason__descriptor, (int)r);
    (void)str_copy(dst, size, v ? v->name + strlen("REASON_") : "unknown");
    for (char *c = dst; *c; c++)
        *c = *c == '_' ? ' ' : *c >= 'A' && *c <= 'Z' ? (char)(*c - 'A' + 'a') : *c;
}

static const char *method_text(Orchestrator__Method m)
{
    switch (m) {
    case ORCHESTRATOR__METHOD__METHOD_DIRECT:
        return "plays the source itself";
    case ORCHESTRATOR__METHOD__METHOD_REMUX:
        return "plays the source's packets, packed anew";
    case ORCHESTRATOR__METHOD__METHOD_TRANSCODE:
        return "plays what is made for it";
    default: // of a newer server
        return "plays it";
    }
}

static void print_reasons(const Orchestrator__Decision *d)
{
    for (size_t i = 0; i < d->n_reasons; i++) {
        char name[48];
        reason_name(name, sizeof(name), d->reasons[i]->reason);
        printf("  %-18s %s", name, d->reasons[i]->text);
        if (d->reasons[i]->track)
            printf(" (stream %d)", d->reasons[i]->track - 1);
        putchar('\n');
    }
}

static enum status print_tracks(struct ctl *k, const Orchestrator__Decision *d)
{
    static const char *const heads[] = {"STREAM", "TYPE", "CODEC",  "LANGUAGE",
                                        "ABOUT",  "HOW",  "AGAINST"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < d->n_tracks; i++) {
        const Orchestrator__TrackVerdict *v = d->tracks[i];
        char against[200] = "-";
        for (size_t r = 0, n = 0; r < v->n_reasons && n < sizeof(against); r++) {
            char name[48];
            reason_name(name, sizeof(name), v->reasons[r]);
            n += (size_t)snprintf(against + n, sizeof(against) - n, "%s%s", r ? ", " : "", name);
        }
        table_add(&t, "%d", v->stream);
        table_add(&t, "%s", v->type);
        table_add(&t, "%s", v->codec);
        table_add(&t, "%s", *v->language ? v->language : "-");
        table_add(&t, "%s", *v->about ? v->about : "-");
        table_add(&t, "%s", *v->way ? v->way : "left out");
        table_add(&t, "%s", against);
    }
    return table_print(&t, stdout, &k->err);
}

static enum status print_renditions(struct ctl *k, const Orchestrator__DecideReply *r)
{
    static const char *const heads[] = {"RENDITION", "CODECS", "SIZE", "KBIT/S", "MADE", ""};
    const Orchestrator__Decision *d = r->decision;
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_renditions; i++) {
        const Orchestrator__Rendition *m = r->renditions[i];
        bool chosen = str_eq(m->id, d->video_rendition) || str_eq(m->id, d->audio_rendition);
        table_add(&t, "%s", m->id);
        table_add(&t, "%s", m->codecs);
        if (m->width)
            table_add(&t, "%dx%d", m->width, m->height);
        else
            table_add(&t, "-");
        table_add(&t, "%" PRId64, m->bandwidth / 1000);
        table_add(&t, "%d of %d", m->segments_ready, m->segments);
        table_add(&t, "%s", chosen ? "<-" : "");
    }
    return table_print(&t, stdout, &k->err);
}

static enum status print_answer(struct ctl *k, const Orchestrator__DecideReply *r)
{
    const Orchestrator__Decision *d = r->decision;
    if (!d)
        return err_set(&k->err, STATUS_INTERNAL, "the server sent no decision");
    printf("%s \"%s\", %s, %" PRId64 " kbit/s\n%s %s", r->item_id, r->title, r->container,
           r->bitrate / 1000, d->player, method_text(d->method));
    if (d->method != ORCHESTRATOR__METHOD__METHOD_DIRECT)
        printf(": %s%s%s", d->video_rendition,
               *d->video_rendition && *d->audio_rendition ? " + " : "", d->audio_rendition);
    putchar('\n');
    if (r->loudness)
        printf("%.1f LUFS, range %.1f LU, true peak %.1f dBTP\n",
               r->loudness->integrated_mlufs / 1000.0, r->loudness->range_mlu / 1000.0,
               r->loudness->true_peak_mdb / 1000.0);
    print_reasons(d);
    putchar('\n');
    enum status s = print_tracks(k, d);
    putchar('\n');
    return s == STATUS_OK ? print_renditions(k, r) : s;
}

enum status cmd_play_explain(struct ctl *k)
{
    Orchestrator__OpenRequest req = ORCHESTRATOR__OPEN_REQUEST__INIT;
    Orchestrator__Wishes wishes = ORCHESTRATOR__WISHES__INIT;
    Orchestrator__Limits limits = ORCHESTRATOR__LIMITS__INIT;
    AUTO(arena_free_p) struct arena *a = arena_new(8U << 20);
    if (!a)
        return err_set(&k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    req.item_id = k->args[0];
    req.wishes = &wishes;
    req.limits = &limits;
    enum status s = take_player(k, a, &req);
    if (s == STATUS_OK)
        s = take_wishes(k, &wishes, &limits);
    AUTO(rpc_message_free_p) Orchestrator__DecideReply *r = NULL;
    if (s == STATUS_OK)
        s = CTL_CALL(k, orchestrator_playback_decide, NULL, &req, &r);
    if (s != STATUS_OK)
        return s;
    return ctl_has(k, OPT_JSON) ? ctl_print_message(k, &r->base) : print_answer(k, r);
}
