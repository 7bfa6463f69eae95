// The ready file: tells whoever started us that we serve, and where. Written under a temporary name
// and renamed, so that it is there whole or not at all.
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "service/internal.h"

#define MAX_BYTES (1U << 20)

static void put_member(struct buf *b, const char *key, const char *value)
{
    if (!value[0])
        return;
    buf_printf(b, ",\"%s\":", key);
    buf_put_json_string(b, value, strlen(value));
}

static void put_node(struct buf *b, struct instance *in)
{
    buf_printf(b, "{\"pid\":%ld", (long)getpid());
    put_member(b, "node", in->svc.self->id);
    put_member(b, "role", in->role->name);
    put_member(b, "kind", in->svc.self->kind);
    pthread_mutex_lock(&in->lock);
    buf_puts(b, ",\"urls\":[");
    for (size_t i = 0; i < in->n_urls; i++) {
        buf_puts(b, i ? "," : "");
        buf_put_json_string(b, in->urls[i], strlen(in->urls[i]));
    }
    buf_putc(b, ']');
    put_member(b, "events", in->events_url);
    put_member(b, "http", in->http);
    put_member(b, "public", in->public_url);
    pthread_mutex_unlock(&in->lock);
    buf_putc(b, '}');
}

// One node: its object. Several: {"pid", "nodes": [...]}, and the first public addresses on top.
static void put_all(struct buf *b, struct instance *const *in, size_t n)
{
    if (n == 1) {
        put_node(b, in[0]);
        buf_putc(b, '\n');
        return;
    }
    buf_printf(b, "{\"pid\":%ld,\"nodes\":[", (long)getpid());
    for (size_t i = 0; i < n; i++) {
        buf_puts(b, i ? "," : "");
        put_node(b, in[i]);
    }
    buf_putc(b, ']');
    bool found = false;
    for (size_t i = 0; i < n && !found; i++) {
        pthread_mutex_lock(&in[i]->lock);
        found = in[i]->public_url[0] != '\0';
        if (found) {
            put_member(b, "http", in[i]->http);
            put_member(b, "public", in[i]->public_url);
        }
        pthread_mutex_unlock(&in[i]->lock);
    }
    buf_puts(b, "}\n");
}

enum status svc_write_ready(const char *path, struct instance *const *in, size_t n, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    AUTO(mem_free_p) char *temp = mem_printf("%s.new", path);

    buf_init(&b, MAX_BYTES);
    put_all(&b, in, n);
    if (!temp || b.failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "ready file: out of memory");
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(err, errno, "ready file %s", temp);
    bool ok = write(fd, b.data, b.len) == (ssize_t)b.len;
    int why = errno;
    if (close(fd) != 0 || !ok || rename(temp, path) != 0) {
        why = ok ? errno : why;
        unlink(temp);
        return err_errno(err, why, "ready file %s", path);
    }
    return STATUS_OK;
}
