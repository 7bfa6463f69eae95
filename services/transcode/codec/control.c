#include "control.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/mem.h"

enum status control_init(struct control *c, int fd, struct err *err)
{
    *c = (struct control){.fd = fd};
    pthread_mutex_init(&c->lock, NULL);
    buf_init(&c->packet, MEDIA_RECORD_MAX);
    c->received = mem_alloc(MEDIA_RECORD_MAX + 1);
    return c->received ? STATUS_OK
                       : err_set(err, STATUS_RESOURCE_EXHAUSTED, "control: out of memory");
}

void control_done(struct control *c)
{
    buf_done(&c->packet);
    mem_free(c->received);
    media_window_done(&c->window);
    pthread_mutex_destroy(&c->lock);
}

static enum status send_locked(struct control *c, const struct media_record *r, struct err *err)
{
    buf_reset(&c->packet);
    enum status s = media_record_encode(r, &c->packet, err);
    if (s != STATUS_OK)
        return s;
    ssize_t n;
    do
        n = send(c->fd, c->packet.data, c->packet.len, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)c->packet.len) {
        c->lost = true;
        return err_set(err, STATUS_UNAVAILABLE, "control: the parent is gone");
    }
    return STATUS_OK;
}

enum status control_send(struct control *c, const struct media_record *r, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    enum status s = send_locked(c, r, err);
    pthread_mutex_unlock(&c->lock);
    return s;
}

enum status control_send_bytes(struct control *c, const struct media_record *head, const void *p,
                               size_t n, struct err *err)
{
    enum status s = control_send(c, head, err);
    const uint8_t *from = p;
    while (n > 0 && s == STATUS_OK) {
        size_t part = n < MEDIA_RECORD_MAX - 1 ? n : MEDIA_RECORD_MAX - 1;
        struct media_record r = {.type = MEDIA_REC_DATA, .data = from, .data_len = part};
        s = control_send(c, &r, err);
        from += part;
        n -= part;
    }
    return s;
}

enum status control_receive(struct control *c, struct media_record *ret, struct err *err)
{
    ssize_t n;
    do
        n = recv(c->fd, c->received, MEDIA_RECORD_MAX + 1, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        c->lost = true;
        return err_set(err, STATUS_UNAVAILABLE, "control: the parent is gone");
    }
    return media_record_decode(c->received, (size_t)n, ret, err);
}

static enum status receive_bytes(struct control *c, uint8_t *dst, size_t n, struct err *err)
{
    for (size_t at = 0; at < n;) {
        struct media_record r;
        enum status s = control_receive(c, &r, err);
        if (s != STATUS_OK)
            return s;
        if (r.type != MEDIA_REC_DATA || r.data_len > n - at)
            return err_set(err, STATUS_INTERNAL, "control: data was expected");
        memcpy(dst + at, r.data, r.data_len);
        at += r.data_len;
    }
    return STATUS_OK;
}

enum status control_receive_task(struct control *c, struct media_task *ret, uint8_t **ret_bytes,
                                 struct err *err)
{
    struct media_record r;
    enum status s = control_receive(c, &r, err);
    if (s != STATUS_OK)
        return s;
    if (r.type != MEDIA_REC_TASK || r.a == 0 || r.a > (int64_t)MEDIA_PLAN_MAX_BYTES + 4096)
        return err_set(err, STATUS_INTERNAL, "control: a task was expected");
    size_t n = (size_t)r.a;
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc(n);
    if (!bytes)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "control: out of memory");
    s = receive_bytes(c, bytes, n, err);
    if (s == STATUS_OK)
        s = media_task_decode(bytes, n, ret, err);
    if (s != STATUS_OK)
        return s;
    c->source_size = ret->source_size;
    s = media_window_init(&c->window, ret->source_size, ret->window_blocks, err);
    if (s != STATUS_OK)
        return s;
    *ret_bytes = TAKE(bytes);
    return STATUS_OK;
}

static bool ask(struct control *c, size_t block)
{
    int64_t offset = (int64_t)block * MEDIA_READ_BLOCK, left = c->source_size - offset;
    struct media_record r = {.type = MEDIA_REC_READ,
                             .a = offset,
                             .b = left < MEDIA_READ_BLOCK ? left : MEDIA_READ_BLOCK};
    if (control_send(c, &r, NULL) != STATUS_OK || control_receive(c, &r, NULL) != STATUS_OK)
        return false;
    if (r.type != MEDIA_REC_AVAILABLE || r.a != offset || r.b <= 0)
        return false;
    (void)media_window_add(&c->window, block); // the parent drops the same one
    return true;
}

bool control_need(void *control, int64_t offset, int64_t len)
{
    struct control *c = control;
    if (offset < 0 || len <= 0 || offset >= c->source_size || len > c->source_size - offset)
        return false;
    size_t block = (size_t)(offset / MEDIA_READ_BLOCK);
    if ((size_t)((offset + len - 1) / MEDIA_READ_BLOCK) != block)
        return false;
    return media_window_has(&c->window, block) || ask(c, block);
}
