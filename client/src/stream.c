// A stream: pieces one after the other, a position in the present one.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"
#include "media/media.h"

struct cauce_stream {
    const struct stream_source *source;
    void *ud;
    struct buf piece; // bytes of the present piece
    size_t next;      // piece to fetch when the present one is used up
    size_t at;        // in the present piece
    int64_t position; // in the whole stream, since it began or was sought
    bool restart;     // the first piece (init) goes out before `next`
    cauce_error error;
};

enum status client_stream_new(const struct stream_source *source, void *ud, cauce_stream **ret,
                              struct err *err)
{
    cauce_stream *s = mem_alloc(sizeof(*s));
    if (!s) {
        source->free(ud);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    }
    s->source = source;
    s->ud = ud;
    buf_init(&s->piece, MEDIA_MAX_SEGMENT_BYTES + (1U << 20));
    *ret = s;
    return STATUS_OK;
}

static int64_t fail(cauce_stream *s, const struct err *e, enum status st)
{
    client_fail(e, st, &s->error);
    return -(int64_t)st;
}

// Fetch the next piece; *ret_end when there is none.
static enum status advance(cauce_stream *s, bool *ret_end, struct err *err)
{
    *ret_end = !s->restart && s->next >= s->source->n_pieces(s->ud);
    if (*ret_end)
        return STATUS_OK;
    buf_reset(&s->piece);
    s->at = 0;
    enum status st = s->source->piece(s->ud, s->restart ? 0 : s->next, &s->piece, err);
    if (st != STATUS_OK) {
        buf_reset(&s->piece);
        return st;
    }
    if (s->restart)
        s->restart = false;
    else
        s->next++;
    return STATUS_OK;
}

int64_t cauce_stream_read(cauce_stream *s, void *buf, size_t n)
{
    struct err e = ERR_INIT;
    size_t done = 0;
    while (done < n) {
        size_t left = s->piece.len - s->at;
        if (left == 0) {
            if (done)
                break; // what is there goes out before the next piece is waited for
            bool end = false;
            enum status st = advance(s, &end, &e);
            if (st != STATUS_OK)
                return fail(s, &e, st);
            if (end)
                break;
            continue;
        }
        size_t take = left < n - done ? left : n - done;
        memcpy((char *)buf + done, s->piece.data + s->at, take);
        s->at += take;
        done += take;
        s->position += (int64_t)take;
    }
    return (int64_t)done;
}

// Last piece that begins at or before the offset.
static size_t find_piece(const struct client_piece *l, size_t n, int64_t offset)
{
    size_t low = 0, high = n;
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (l[mid].offset <= offset)
            low = mid;
        else
            high = mid;
    }
    return low;
}

static enum status seek_to(cauce_stream *s, int64_t offset, struct err *err)
{
    const struct client_piece *l = NULL;
    enum status st = s->source->layout(s->ud, &l, err);
    if (st != STATUS_OK)
        return st;
    size_t n = s->source->n_pieces(s->ud), i = n ? find_piece(l, n, offset) : 0;
    buf_reset(&s->piece);
    s->at = 0;
    s->restart = false;
    s->next = i;
    s->position = offset;
    if (n == 0 || offset >= l[i].offset + l[i].len) {
        s->next = n;
        return STATUS_OK;
    }
    if (offset == l[i].offset)
        return STATUS_OK;
    bool end = false;
    st = advance(s, &end, err);
    s->at = (size_t)(offset - l[i].offset);
    return st;
}

int64_t cauce_stream_seek(cauce_stream *s, int64_t offset, int whence)
{
    struct err e = ERR_INIT;
    const struct client_piece *l = NULL;
    enum status st = s->source->layout(s->ud, &l, &e);
    if (st != STATUS_OK)
        return fail(s, &e, st);
    int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? s->position : 0;
    if (whence == SEEK_END)
        base = s->source->info(s->ud)->size;
    int64_t to = 0;
    if ((whence != SEEK_SET && whence != SEEK_CUR && whence != SEEK_END) ||
        __builtin_add_overflow(base, offset, &to) || to < 0)
        return fail(s, &e, err_set(&e, STATUS_INVALID_ARGUMENT, "seek before the beginning"));
    st = seek_to(s, to, &e);
    return st == STATUS_OK ? to : fail(s, &e, st);
}

cauce_status cauce_stream_seek_time(cauce_stream *s, int64_t time_us)
{
    struct err e = ERR_INIT;
    size_t i = 0;
    enum status st = s->source->piece_at(s->ud, time_us, &i, &e);
    if (st != STATUS_OK)
        return client_fail(&e, st, &s->error);
    buf_reset(&s->piece);
    s->at = 0;
    s->position = 0;
    s->restart = true;
    s->next = i;
    return CAUCE_OK;
}

void cauce_stream_get_info(cauce_stream *s, cauce_stream_info *ret)
{
    *ret = *s->source->info(s->ud);
}

const cauce_error *cauce_stream_error(const cauce_stream *s)
{
    return &s->error;
}

void cauce_stream_close(cauce_stream *s)
{
    if (!s)
        return;
    s->source->free(s->ud);
    buf_done(&s->piece);
    mem_free(s);
}

// ---------------------------------------------------------------- a play as a stream

static size_t play_n_pieces(void *ud)
{
    return client_play_n_pieces(ud);
}
static enum status play_piece(void *ud, size_t i, struct buf *ret, struct err *err)
{
    return client_play_piece(ud, i, ret, err);
}
static enum status play_layout(void *ud, const struct client_piece **ret, struct err *err)
{
    return client_play_layout(ud, ret, err);
}
static enum status play_piece_at(void *ud, int64_t time_us, size_t *ret, struct err *err)
{
    return client_play_piece_at(ud, time_us, ret, err);
}
static const cauce_stream_info *play_info(void *ud)
{
    return client_play_info(ud);
}
static void play_free(void *ud)
{
    client_play_free(ud);
}

static const struct stream_source play_source = {
    .n_pieces = play_n_pieces,
    .piece = play_piece,
    .layout = play_layout,
    .piece_at = play_piece_at,
    .info = play_info,
    .free = play_free,
};

void cauce_play_opts_init(cauce_play_opts *opts)
{
    *opts = (cauce_play_opts){.size = sizeof(*opts)};
}

cauce_status cauce_play_open(cauce *c, const char *item_id, const cauce_play_opts *opts,
                             cauce_stream **ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    struct client_play *p = NULL;
    enum status s = client_play_new(c, item_id, false, opts, &p, &e);
    if (s == STATUS_OK)
        s = client_stream_new(&play_source, p, ret, &e);
    return client_fail(&e, s, err);
}
