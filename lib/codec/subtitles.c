// A texts task: the source's tracks of text, or a file of text that was added later, made into
// WebVTT. One pass over the source for all tracks.
//
// FFmpeg's decoders turn every kind of text but WebVTT into events of ASS, so that there is one
// place where markup is understood (media_webvtt_from_ass). Times are the media's own: edit lists
// are applied here.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"
#include "media/texts.h"
#include "media/webvtt.h"

#define OPEN_END_US 8000000 // a cue whose end is not said lasts until the next one, or that long
#define ASS_COMMAS 8        // before the text of an event
#define NO_TEXT SIZE_MAX    // of a cue that only ends what is open: 3GPP timed text's empty samples

struct cue {
    int64_t start_us, end_us; // of the timeline; end_us MEDIA_TIME_UNKNOWN: not said
    size_t order, text, text_len;
    char settings[MEDIA_CUE_SETTINGS];
};

struct track {     // one that is being read
    unsigned name; // "rendition" of its output
    int stream;
    AVCodecContext *dec; // NULL: WebVTT, which is text as it is
    struct codec_edits edits;
    int64_t zero_us;        // source time that is timeline 0
    uint32_t width, height; // of the script that positions are said in
    struct cue *cues;
    size_t n, cap;
    struct buf text;
    bool full; // there is more than is kept
};

static void track_done(struct track *t)
{
    avcodec_free_context(&t->dec);
    codec_edits_done(&t->edits);
    buf_done(&t->text);
    mem_free(t->cues);
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "subtitles: out of memory");
}

// ---------------------------------------------------------------- characters

// Windows-1252 where it differs from Latin-1; 0: not a character.
static const uint16_t cp1252[32] = {0x20ac, 0,      0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021,
                                    0x02c6, 0x2030, 0x0160, 0x2039, 0x0152, 0,      0x017d, 0,
                                    0,      0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014,
                                    0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0,      0x017e, 0x0178};

static void put_char(struct buf *b, uint32_t v)
{
    if (v < 0x80) {
        buf_putc(b, (char)v);
    } else if (v < 0x800) {
        buf_putc(b, (char)(0xc0 | v >> 6));
        buf_putc(b, (char)(0x80 | (v & 0x3f)));
    } else if (v < 0x10000) {
        buf_putc(b, (char)(0xe0 | v >> 12));
        buf_putc(b, (char)(0x80 | (v >> 6 & 0x3f)));
        buf_putc(b, (char)(0x80 | (v & 0x3f)));
    } else {
        buf_putc(b, (char)(0xf0 | v >> 18));
        buf_putc(b, (char)(0x80 | (v >> 12 & 0x3f)));
        buf_putc(b, (char)(0x80 | (v >> 6 & 0x3f)));
        buf_putc(b, (char)(0x80 | (v & 0x3f)));
    }
}

static void from_utf16(const uint8_t *p, size_t n, bool big, struct buf *ret)
{
    for (size_t i = 0; i + 1 < n; i += 2) {
        uint32_t v = big ? (uint32_t)p[i] << 8 | p[i + 1] : (uint32_t)p[i + 1] << 8 | p[i];
        if (v >= 0xd800 && v < 0xdc00 && i + 3 < n) {
            uint32_t low =
                big ? (uint32_t)p[i + 2] << 8 | p[i + 3] : (uint32_t)p[i + 3] << 8 | p[i + 2];
            if (low >= 0xdc00 && low < 0xe000) {
                v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
                i += 2;
            }
        }
        put_char(ret, v >= 0xd800 && v < 0xe000 ? 0xfffd : v);
    }
}

// Appends as UTF-8 what is UTF-16 by its mark, UTF-8, or else Windows-1252.
static void to_utf8(const uint8_t *p, size_t n, struct buf *ret)
{
    if (n >= 2 && ((p[0] == 0xff && p[1] == 0xfe) || (p[0] == 0xfe && p[1] == 0xff))) {
        from_utf16(p + 2, n - 2, p[0] == 0xfe, ret);
    } else if (str_is_utf8(p, n)) {
        size_t mark = n >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
        buf_append(ret, p + mark, n - mark);
    } else {
        for (size_t i = 0; i < n; i++) {
            uint32_t v = p[i] >= 0x80 && p[i] < 0xa0 ? cp1252[p[i] - 0x80] : p[i];
            put_char(ret, v ? v : p[i] ? 0xfffd : 0);
        }
    }
}

// ---------------------------------------------------------------- cues

static bool room_for_cue(struct track *t)
{
    if (t->n < t->cap)
        return true;
    size_t cap = t->cap ? 2 * t->cap : 128;
    struct cue *p = mem_realloc(t->cues, cap, sizeof(*p));
    if (!p)
        return false;
    t->cues = p;
    t->cap = cap;
    return true;
}

// The text that was just written to t->text, from `text` on, shows at that time.
static enum status add_cue(struct track *t, int64_t start_us, int64_t end_us, size_t text,
                           const char *settings, struct err *err)
{
    if (t->text.len == text)
        return STATUS_OK;
    size_t len = text == NO_TEXT ? 0 : t->text.len - text;
    if (t->n == MEDIA_MAX_CUES || t->text.failed) {
        t->full = true;
        return STATUS_OK;
    }
    if (!room_for_cue(t))
        return no_memory(err);
    struct cue *c = &t->cues[t->n];
    *c = (struct cue){.start_us = start_us,
                      .end_us = end_us,
                      .order = t->n++,
                      .text = len ? text : 0,
                      .text_len = len};
    str_copy(c->settings, sizeof(c->settings), settings);
    return STATUS_OK;
}

// A cue of source time to one of the timeline for each piece of it that the edit list shows.
static enum status place_cue(struct track *t, int64_t start_us, int64_t end_us, size_t text,
                             const char *settings, struct err *err)
{
    static const struct codec_edit as_it_is = {
        .media_us = INT64_MIN / 4, .movie_us = INT64_MIN / 4, .duration_us = INT64_MAX / 2};
    size_t n = t->edits.n ? t->edits.n : 1;
    bool open = end_us == MEDIA_TIME_UNKNOWN;
    enum status s = STATUS_OK;
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        const struct codec_edit *e = t->edits.n ? &t->edits.p[i] : &as_it_is;
        int64_t from = start_us > e->media_us ? start_us : e->media_us,
                to = e->media_us + e->duration_us;
        if (!open && end_us < to)
            to = end_us;
        if (to <= from)
            continue;
        int64_t shift = e->movie_us - e->media_us - t->zero_us;
        s = add_cue(t, from + shift, open ? MEDIA_TIME_UNKNOWN : to + shift, text, settings, err);
    }
    return s;
}

static const char *event_text(const char *ass)
{
    for (int i = 0; ass && i < ASS_COMMAS; i++) {
        ass = strchr(ass, ',');
        ass += ass != NULL;
    }
    return ass;
}

static void put_text(struct track *t, const char *p, size_t n, char settings[MEDIA_CUE_SETTINGS])
{
    if (t->dec)
        media_webvtt_from_ass(p, n, t->width, t->height, &t->text, settings);
    else
        media_webvtt_clean(p, n < MEDIA_MAX_CUE_BYTES ? n : MEDIA_MAX_CUE_BYTES, &t->text);
}

struct times {
    int64_t start_us, end_us;
};

// What a decoder of text makes of a packet: damage is passed over.
static enum status decode_text(struct track *t, AVPacket *pkt, struct times at, struct err *err)
{
    AVSubtitle sub = {0};
    int got = 0;
    enum status s = STATUS_OK;
    if (avcodec_decode_subtitle2(t->dec, &sub, &got, pkt) < 0 || !got)
        return STATUS_OK;
    for (unsigned i = 0; s == STATUS_OK && i < sub.num_rects; i++) {
        char settings[MEDIA_CUE_SETTINGS] = "";
        const char *text = event_text(sub.rects[i]->ass);
        size_t from = t->text.len;
        if (!text)
            continue;
        put_text(t, text, strlen(text), settings);
        s = place_cue(t, at.start_us, at.end_us, from, settings, err);
    }
    avsubtitle_free(&sub);
    return s;
}

static enum status take_webvtt(struct track *t, const AVPacket *pkt, struct times at,
                               struct err *err)
{
    char settings[MEDIA_CUE_SETTINGS] = "";
    size_t size = 0, from = t->text.len;
    const uint8_t *set = av_packet_get_side_data(pkt, AV_PKT_DATA_WEBVTT_SETTINGS, &size);
    if (set)
        media_webvtt_clean_settings((const char *)set, size, settings);
    put_text(t, (const char *)pkt->data, (size_t)pkt->size, settings);
    return place_cue(t, at.start_us, at.end_us, from, settings, err);
}

// Text that is not UTF-8 in spite of its container: a packet of its own, or the one that came.
static enum status to_utf8_packet(const struct track *t, AVPacket *pkt, struct err *err)
{
    enum AVCodecID id = t->dec ? t->dec->codec_id : AV_CODEC_ID_WEBVTT;
    if (id == AV_CODEC_ID_MOV_TEXT || str_is_utf8(pkt->data, (size_t)pkt->size))
        return STATUS_OK;
    struct buf b;
    buf_init(&b, 4 * MEDIA_MAX_CUE_BYTES);
    size_t n = (size_t)pkt->size < MEDIA_MAX_CUE_BYTES ? (size_t)pkt->size : MEDIA_MAX_CUE_BYTES;
    to_utf8(pkt->data, n, &b);
    int64_t pts = pkt->pts, duration = pkt->duration;
    av_packet_unref(pkt);
    bool ok = !b.failed && av_new_packet(pkt, (int)b.len) >= 0;
    if (ok && b.len)
        memcpy(pkt->data, b.data, b.len);
    pkt->pts = pts;
    pkt->duration = duration;
    buf_done(&b);
    return ok ? STATUS_OK : no_memory(err);
}

static enum status take_packet(struct track *t, const AVStream *st, AVPacket *pkt, struct err *err)
{
    if (pkt->pts == AV_NOPTS_VALUE || pkt->size <= 0 || t->full)
        return STATUS_OK;
    enum status s = to_utf8_packet(t, pkt, err);
    if (s != STATUS_OK)
        return s;
    struct times at = {.start_us = av_rescale_q(pkt->pts, st->time_base, AV_TIME_BASE_Q),
                       .end_us = MEDIA_TIME_UNKNOWN};
    // Beyond any timeline; what is nearer may be added to without overflow.
    if (at.start_us < -MEDIA_MAX_DURATION_US * 100 || at.start_us > MEDIA_MAX_DURATION_US * 100)
        return STATUS_OK;
    if (pkt->duration > 0)
        at.end_us = at.start_us + codec_packet_duration_us(pkt, st->time_base);
    if (t->dec && t->dec->codec_id == AV_CODEC_ID_MOV_TEXT && pkt->size <= 2)
        return place_cue(t, at.start_us, at.end_us, NO_TEXT, "", err);
    return t->dec ? decode_text(t, pkt, at, err) : take_webvtt(t, pkt, at, err);
}

// ---------------------------------------------------------------- the whole track

static int by_start(const void *a, const void *b)
{
    const struct cue *x = a, *y = b;
    if (x->start_us != y->start_us)
        return x->start_us < y->start_us ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

// Sorted; ends known.
static void settle(struct track *t)
{
    if (t->n)
        qsort(t->cues, t->n, sizeof(*t->cues), by_start);
    for (size_t i = 0; i < t->n; i++) {
        struct cue *c = &t->cues[i];
        if (c->end_us != MEDIA_TIME_UNKNOWN)
            continue;
        c->end_us = c->start_us + OPEN_END_US;
        size_t next = i + 1;
        while (next < t->n && t->cues[next].start_us == c->start_us)
            next++;
        if (next < t->n && t->cues[next].start_us < c->end_us)
            c->end_us = t->cues[next].start_us;
    }
}

static int64_t to_ms(int64_t us)
{
    return media_scale_near(us, 1, 1000);
}

// Clipped to the timeline; false: nothing of it is left, or it says what the one before says.
static bool finish_cue(const struct track *t, const struct cue *c, int64_t all_us,
                       const struct media_cue *before, struct media_cue *ret)
{
    int64_t start = c->start_us > 0 ? c->start_us : 0,
            end = c->end_us < all_us ? c->end_us : all_us;
    *ret = (struct media_cue){.start_ms = to_ms(start),
                              .end_ms = to_ms(end),
                              .settings = c->settings,
                              .settings_len = strlen(c->settings),
                              .text = buf_str(&t->text) + c->text,
                              .text_len = c->text_len};
    if (c->text_len == 0 || end <= start || ret->end_ms <= ret->start_ms)
        return false;
    return !before || before->start_ms != ret->start_ms || before->end_ms != ret->end_ms ||
           before->text_len != ret->text_len || before->settings_len != ret->settings_len ||
           memcmp(before->text, ret->text, ret->text_len) != 0 ||
           memcmp(before->settings, ret->settings, ret->settings_len) != 0;
}

static enum status deliver(struct track *t, const struct media_plan *plan,
                           const struct codec_sink *sink, struct err *err)
{
    struct media_cue *cues = mem_array(t->n ? t->n : 1, sizeof(*cues));
    int64_t all_us = media_plan_duration_us(plan);
    size_t n = 0;
    if (!cues)
        return no_memory(err);
    settle(t);
    for (size_t i = 0; i < t->n; i++)
        n += finish_cue(t, &t->cues[i], all_us, n ? &cues[n - 1] : NULL, &cues[n]);
    struct buf b;
    buf_init(&b, MEDIA_MAX_TEXT_BYTES);
    enum status s = media_webvtt_write(cues, n, &b, err);
    struct media_segment_out out = {.rendition = t->name, .size = (uint32_t)b.len};
    if (s == STATUS_OK)
        s = sink->segment(sink->ud, &out, b.data, b.len, err);
    buf_done(&b);
    mem_free(cues);
    return s;
}

// "PlayResX: 384" in the head of a script; 0: not said.
static uint32_t script_size(const AVCodecContext *dec, const char *name)
{
    const char *head = (const char *)dec->subtitle_header;
    size_t n = head && dec->subtitle_header_size > 0 ? (size_t)dec->subtitle_header_size : 0;
    const char *at = n ? memmem(head, n, name, strlen(name)) : NULL;
    uint32_t v = 0;
    if (!at)
        return 0;
    at += strlen(name);
    while (at < head + n && *at == ' ')
        at++;
    while (at < head + n && *at >= '0' && *at <= '9' && v < 100000)
        v = v * 10 + (uint32_t)(*at++ - '0');
    return v;
}

// Ready to take packets of that stream.
static enum status track_open(struct track *t, struct codec_input *in, int stream, unsigned name,
                              struct err *err)
{
    const AVStream *st = in->fmt->streams[stream];
    t->stream = stream;
    t->name = name;
    // What is over it is cut off, which leaves room for times and settings.
    buf_init(&t->text, MEDIA_MAX_TEXT_BYTES);
    if (st->codecpar->codec_id == AV_CODEC_ID_WEBVTT)
        return STATUS_OK;
    enum status s = codec_decoder_open(in, stream, 1, &t->dec, err);
    if (s != STATUS_OK)
        return s;
    t->width = script_size(t->dec, "PlayResX:");
    t->height = script_size(t->dec, "PlayResY:");
    return STATUS_OK;
}

// ---------------------------------------------------------------- tracks of a film

struct texts {
    struct codec_input *in;
    const struct media_plan *plan;
    const struct codec_sink *sink;
    struct track tracks[MEDIA_MAX_TEXT_TRACKS];
    size_t n;
};

static struct track *track_of(struct texts *x, int stream)
{
    for (size_t i = 0; i < x->n; i++)
        if (x->tracks[i].stream == stream)
            return &x->tracks[i];
    return NULL;
}

// A track that cannot be opened is left out.
static enum status open_tracks(struct texts *x, const struct codec_source *src,
                               const struct media_task *task, struct err *err)
{
    for (unsigned i = 0; i < x->in->fmt->nb_streams; i++)
        x->in->fmt->streams[i]->discard = AVDISCARD_ALL;
    for (uint32_t i = 0; i < task->n_renditions && x->n < MEDIA_MAX_TEXT_TRACKS; i++) {
        unsigned index = task->renditions[i];
        if (index >= x->in->fmt->nb_streams || !media_text_is_planned(x->plan, index))
            return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
        struct track *t = &x->tracks[x->n];
        t->zero_us = x->plan->source.timeline_zero_us;
        enum status s = track_open(t, x->in, (int)index, index, err);
        if (s == STATUS_OK && codec_is_mov(x->in))
            s = codec_edits_read(src, (uint32_t)x->in->fmt->streams[index]->id, &t->edits, err);
        x->n += s == STATUS_OK;
        if (s != STATUS_OK) {
            track_done(t);
            *t = (struct track){.n = 0};
        }
        if (s != STATUS_OK && s != STATUS_INVALID_ARGUMENT)
            return s;
        if (s == STATUS_OK)
            x->in->fmt->streams[index]->discard = AVDISCARD_DEFAULT;
    }
    return STATUS_OK;
}

static enum status read_all(struct texts *x, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    int64_t said = 0;
    int r;
    if (!pkt)
        return no_memory(err);
    while ((r = av_read_frame(x->in->fmt, pkt)) >= 0) {
        struct track *t = track_of(x, pkt->stream_index);
        enum status s = STATUS_OK;
        if (t)
            s = take_packet(t, x->in->fmt->streams[pkt->stream_index], pkt, err);
        av_packet_unref(pkt);
        if (s != STATUS_OK)
            return s;
        if (x->sink->progress && x->in->pos - said >= 8 << 20) {
            said = x->in->pos;
            x->sink->progress(x->sink->ud, said, x->in->src->size);
        }
    }
    bool broken = x->in->failed || r == AVERROR(ENOMEM);
    return broken ? codec_error(x->in, r, "subtitles", err) : STATUS_OK;
}

static enum status texts_of_source(const struct codec_source *src, const struct media_plan *plan,
                                   const struct media_task *task, const struct codec_sink *sink,
                                   struct err *err)
{
    AUTO(codec_input_close_p) struct codec_input *in = NULL;
    enum status s = codec_input_open_raw(src, &in, err);
    if (s != STATUS_OK)
        return s;
    struct texts *x = mem_alloc(sizeof(*x));
    if (!x)
        return no_memory(err);
    *x = (struct texts){.in = in, .plan = plan, .sink = sink};
    s = open_tracks(x, src, task, err);
    if (s == STATUS_OK && x->n)
        s = read_all(x, err);
    for (size_t i = 0; s == STATUS_OK && i < x->n; i++)
        s = deliver(&x->tracks[i], plan, sink, err);
    for (size_t i = 0; i < x->n; i++)
        track_done(&x->tracks[i]);
    mem_free(x);
    return s;
}

// ---------------------------------------------------------------- a file of text

struct memory {
    const uint8_t *p;
    int64_t n, at;
};

static int read_memory(void *ud, uint8_t *dst, int want)
{
    struct memory *m = ud;
    int64_t left = m->n - m->at;
    if (left <= 0)
        return AVERROR_EOF;
    if (want > left)
        want = (int)left;
    memcpy(dst, m->p + m->at, (size_t)want);
    m->at += want;
    return want;
}

static int64_t seek_memory(void *ud, int64_t offset, int whence)
{
    struct memory *m = ud;
    if (whence == AVSEEK_SIZE)
        return m->n;
    int64_t base = whence == SEEK_CUR ? m->at : whence == SEEK_END ? m->n : 0;
    if (offset > INT64_MAX - base || base + offset < 0)
        return AVERROR(EINVAL);
    return m->at = base + offset;
}

// Which of FFmpeg's demuxers reads it.
static const char *text_format(const struct buf *b)
{
    const char *head = buf_str(b);
    size_t n = b->len < 4096 ? b->len : 4096;
    while (n && (*head == '\n' || *head == '\r' || *head == ' '))
        head++, n--;
    if (n >= 6 && memcmp(head, "WEBVTT", 6) == 0)
        return "webvtt";
    bool ass = memmem(head, n, "[Script Info]", 13) || memmem(head, n, "[V4+ Styles]", 12) ||
               memmem(head, n, "[Events]", 8);
    return ass ? "ass" : memmem(head, n, "-->", 3) ? "srt" : NULL;
}

static enum status unreadable(struct err *err)
{
    return err_set(err, STATUS_INVALID_ARGUMENT,
                   "no subtitle can be read from the file: send SRT, WebVTT or ASS");
}

static enum status open_memory(struct memory *m, const char *format, struct codec_input *in,
                               struct err *err)
{
    in->fmt = codec_format_new(m, read_memory, seek_memory);
    if (!in->fmt)
        return no_memory(err);
    return codec_format_open(&in->fmt, av_find_input_format(format), NULL) >= 0 ? STATUS_OK
                                                                                : unreadable(err);
}

static enum status read_text_file(struct codec_input *in, struct track *t, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    enum status s =
        in->fmt->nb_streams == 1 ? track_open(t, in, 0, MEDIA_TEXT_FILE, err) : unreadable(err);
    if (s == STATUS_OK && !pkt)
        s = no_memory(err);
    while (s == STATUS_OK && av_read_frame(in->fmt, pkt) >= 0) {
        s = take_packet(t, in->fmt->streams[0], pkt, err);
        av_packet_unref(pkt);
    }
    if (s == STATUS_OK && t->full)
        s = err_set(err, STATUS_INVALID_ARGUMENT,
                    "the file has more than %d subtitles, or more than %u bytes of text",
                    MEDIA_MAX_CUES, MEDIA_MAX_TEXT_BYTES);
    return s == STATUS_OK && t->n == 0 ? unreadable(err) : s;
}

static enum status texts_of_bytes(const struct buf *utf8, const struct media_plan *plan,
                                  const struct codec_sink *sink, struct err *err)
{
    struct memory m = {.p = utf8->data, .n = (int64_t)utf8->len};
    struct codec_input in = {.fmt = NULL};
    struct track t = {.zero_us = 0}; // its times are those of the timeline
    const char *format = text_format(utf8);
    enum status s = format ? open_memory(&m, format, &in, err) : unreadable(err);
    if (s == STATUS_OK)
        s = read_text_file(&in, &t, err);
    if (s == STATUS_OK)
        s = deliver(&t, plan, sink, err);
    track_done(&t);
    codec_format_close(&in.fmt);
    return s;
}

static enum status texts_of_file(const struct codec_source *src, const struct media_plan *plan,
                                 const struct codec_sink *sink, struct err *err)
{
    if (src->size <= 0 || src->size > MEDIA_MAX_TEXT_BYTES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the file has %lld bytes; at most %u",
                       (long long)src->size, MEDIA_MAX_TEXT_BYTES);
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc((size_t)src->size);
    if (!bytes)
        return no_memory(err);
    enum status s = codec_source_read(src, 0, bytes, src->size, "subtitles", err);
    struct buf utf8;
    buf_init(&utf8, 3 * MEDIA_MAX_TEXT_BYTES);
    if (s == STATUS_OK)
        to_utf8(bytes, (size_t)src->size, &utf8);
    if (s == STATUS_OK && utf8.failed)
        s = no_memory(err);
    if (s == STATUS_OK)
        s = texts_of_bytes(&utf8, plan, sink, err);
    buf_done(&utf8);
    return s;
}

enum status codec_texts(const struct codec_source *src, const struct media_plan *plan,
                        const struct media_task *task, const struct codec_sink *sink,
                        struct err *err)
{
    if (task->n_renditions == 1 && task->renditions[0] == MEDIA_TEXT_FILE)
        return texts_of_file(src, plan, sink, err);
    return texts_of_source(src, plan, task, sink, err);
}
