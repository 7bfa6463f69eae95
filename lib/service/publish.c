// Where a role publishes its events, and what it tells others about it.
//
// Unless somebody says otherwise that is beside its first address: the same folder, or the same
// host and a port that the system chooses, since who follows is told the port by a call.
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "event/event.h"
#include "service/internal.h"

#define TCP "tcp://"

static enum status too_long(struct err *err)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "the address to publish on is too long");
}

// The address without its port, and how long that is.
static size_t host_len(const char *url)
{
    const char *colon = strrchr(url, ':');
    return str_starts_with(url, TCP) && colon ? (size_t)(colon - url) : strlen(url);
}

// ipc:///run/session-1.sock -> ipc:///run/session-1.pub
enum status svc_publish_url(const char *listen, char ret[RPC_URL_SIZE], struct err *err)
{
    static const char sock[] = ".sock";
    size_t n = host_len(listen), n_sock = strlen(sock);
    bool is_tcp = str_starts_with(listen, TCP);
    if (!is_tcp && n > n_sock && str_eq(listen + n - n_sock, sock))
        n -= n_sock;
    int len = snprintf(ret, RPC_URL_SIZE, "%.*s%s", (int)n, listen, is_tcp ? ":0" : ".pub");
    return len > 0 && len < RPC_URL_SIZE ? STATUS_OK : too_long(err);
}

// What others dial instead: the host by which they know us and the port of `url`. "": just url.
enum status svc_publish_as(const char *url, const char *known_as, char ret[RPC_URL_SIZE],
                           struct err *err)
{
    ret[0] = '\0';
    if (!str_starts_with(url, TCP) || !str_starts_with(known_as, TCP))
        return STATUS_OK;
    int len = snprintf(ret, RPC_URL_SIZE, "%.*s%s", (int)host_len(known_as), known_as,
                       url + host_len(url));
    return len > 0 && len < RPC_URL_SIZE ? STATUS_OK : too_long(err);
}

enum status svc_publish_events(struct svc *svc, struct event_log *l,
                               const struct svc_event_options *o, struct err *err)
{
    char *const *listen = svc->options->listen;
    char url[RPC_URL_SIZE], as[RPC_URL_SIZE], told[RPC_URL_SIZE];
    enum status s = STATUS_OK;
    if (!o->url)
        s = svc_publish_url(listen && listen[0] ? listen[0] : svc->self->url, url, err);
    else if (!str_copy(url, sizeof url, o->url))
        s = too_long(err);
    if (s == STATUS_OK)
        s = svc_publish_as(url, svc->self->url, as, err);
    if (s != STATUS_OK)
        return s;
    const struct event_publish_opts p = {.url = url,
                                         .advertise = o->as   ? o->as
                                                      : as[0] ? as
                                                              : NULL};
    s = event_log_publish(l, &p, told, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "publish events on %s", url);
    event_log_retain(l, o->retention_ms, o->unread_ms);
    svc_set_events_url(svc, told);
    log_info(svc->log, "publishing", F_STR("url", told));
    return STATUS_OK;
}
