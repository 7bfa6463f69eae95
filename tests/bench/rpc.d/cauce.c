// Cauce as a user of it would write the two programs: generated stubs and dispatcher, an anonymous
// client link, an access token that the server verifies (Ed25519), the role check of bench.proto,
// and a deadline for every call.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/str.h"
#include "base/time.h"
#include "bench.h"
#include "bench.rpc.h"
#include "crypto/crypto.h"
#include "rpc/rpc.h"
#include "rpc/transport.h"

#define CALL_MS 30000
#define STREAM_MS 600000
#define TOKEN_S 3600
#define N_HANDLERS 8
#define MAX_MESSAGE (4U << 20)

// The transport that CAUCE_BENCH_TRANSPORT names; NULL: the library's own choice.
static const struct transport_ops *transport(void)
{
    const char *name = getenv("CAUCE_BENCH_TRANSPORT");
    const struct transport_ops *ops = name ? transport_named(name) : NULL;
    if (!name || ops)
        return ops;
    fprintf(stderr, "no transport called '%s'\n", name);
    exit(2);
}

// ---------------------------------------------------------------- server

struct service {
    uint8_t token_public[32];
};

// The token's payload is "USER-ID EXPIRY", the expiry in milliseconds since 1970.
static enum status verify(void *ud, const char *token, size_t len, struct rpc_user *ret,
                          struct err *err)
{
    struct service *sv = ud;
    AUTO(buf_done) struct buf payload;
    buf_init(&payload, 256);
    enum status s = crypto_paseto_verify(&payload, sv->token_public, token, len, NULL, NULL, err);
    if (s != STATUS_OK)
        return s;
    long long exp = 0;
    if (sscanf(buf_str(&payload), "%36s %lld", ret->id, &exp) != 2)
        return err_set(err, STATUS_UNAUTHENTICATED, "the token says something else");
    ret->roles = ROLE_USER;
    ret->exp_wall_ms = exp;
    return STATUS_OK;
}

static enum status echo(struct rpc_call *c, const Bench__Payload *req, Bench__Payload *ret,
                        struct err *err)
{
    (void)c;
    (void)err;
    ret->data = req->data; // the request lives until the reply is packed
    return STATUS_OK;
}

static enum status download(struct rpc_call *c, const Bench__Wanted *req, struct err *err)
{
    if (req->message_bytes == 0 || req->message_bytes > MAX_MESSAGE)
        return err_set(err, STATUS_INVALID_ARGUMENT, "message_bytes: 1 to %u", MAX_MESSAGE);
    Bench__Payload msg = BENCH__PAYLOAD__INIT;
    msg.data.data = bench_payload(req->message_bytes);
    for (uint64_t left = req->total_bytes; left;) {
        msg.data.len = left < req->message_bytes ? (size_t)left : req->message_bytes;
        enum status s = bench_bench_download_write(c, &msg, err);
        if (s != STATUS_OK)
            return s;
        left -= msg.data.len;
    }
    return STATUS_OK;
}

static const struct bench_bench_handlers handlers = {
    .echo = echo,
    .echo_pooled = echo,
    .download = download,
};

static bool make_token(struct service *sv, struct buf *out)
{
    uint8_t secret[64];
    char text[64];
    struct err err = ERR_INIT;
    crypto_ed25519_keypair(sv->token_public, secret);
    int n = snprintf(text, sizeof text, "u1 %lld", (long long)(time_wall_ms() + TOKEN_S * 1000));
    return crypto_paseto_sign(out, secret, text, (size_t)n, NULL, NULL, &err) == STATUS_OK;
}

static int serve(const char *argument)
{
    (void)argument;
    struct err err = ERR_INIT;
    struct service sv;
    struct chan_identity id = {.grant_len = 0};
    AUTO(buf_done) struct buf address;
    buf_init(&address, 4096);
    crypto_dh_keypair(id.public_key, id.secret);
    AUTO(work_pool_free_p) struct work_pool *pool = work_pool_new("handlers", N_HANDLERS, 4096);
    struct rpc_server_opts o = {.identity = &id,
                                .pool = pool,
                                .verify = verify,
                                .verify_ud = &sv,
                                .transport = transport()};
    struct rpc_server *s = pool ? rpc_server_new(&o, &err) : NULL;
    char url[RPC_URL_SIZE];
    if (!s || bench_bench_serve(s, &handlers, &sv, &err) != STATUS_OK ||
        rpc_server_listen(s, "tcp://127.0.0.1:0", true, url, &err) != STATUS_OK) {
        fprintf(stderr, "%s\n", err.msg);
        rpc_server_free(s);
        return 1;
    }
    buf_printf(&address, "%s,", url);
    for (size_t i = 0; i < sizeof id.public_key; i++)
        buf_printf(&address, "%02x", id.public_key[i]);
    buf_puts(&address, ",");
    if (make_token(&sv, &address))
        bench_ready(buf_str(&address));
    bench_wait_stdin();
    rpc_server_free(s);
    rpc_fini();
    return 0;
}

// ---------------------------------------------------------------- client

struct conn {
    struct rpc_client *client;
    bool pooled;
    char token[512];
};

// "URL,KEY,TOKEN"
static bool read_address(const char *address, struct rpc_endpoint *ret, char *url, char *token,
                         size_t token_size)
{
    const char *key = strchr(address, ',');
    const char *tok = key ? strchr(key + 1, ',') : NULL;
    if (!tok || key - address >= RPC_URL_SIZE || tok - key != 65 || strlen(tok) >= token_size)
        return false;
    snprintf(url, RPC_URL_SIZE, "%.*s", (int)(key - address), address);
    for (int i = 0; i < 32; i++) {
        char hex[3] = {key[1 + 2 * i], key[2 + 2 * i], 0};
        ret->key[i] = (uint8_t)strtoul(hex, NULL, 16);
    }
    memcpy(token, tok + 1, strlen(tok));
    ret->url = url;
    return true;
}

static struct conn *open_links(const char *address, bool pooled, size_t n)
{
    struct conn *c = calloc(1, sizeof *c);
    struct rpc_endpoint *e = calloc(n, sizeof *e);
    char url[RPC_URL_SIZE];
    struct err err = ERR_INIT;
    if (c && e && read_address(address, e, url, c->token, sizeof c->token)) {
        for (size_t i = 1; i < n; i++)
            e[i] = e[0];
        c->pooled = pooled;
        struct rpc_client_opts o = {.endpoints = e, .n_endpoints = n, .transport = transport()};
        c->client = rpc_client_new(&o, &err);
    }
    free(e);
    if (c && c->client)
        return c;
    fprintf(stderr, "connect to %s: %s\n", address, err.msg);
    free(c);
    return NULL;
}

static void *bench_connect(const char *address, bool pooled)
{
    return open_links(address, pooled, 1); // the first call waits for the connection
}

static void bench_disconnect(void *conn)
{
    struct conn *c = conn;
    rpc_client_free(c->client);
    free(c);
}

// One client with n links, as a channel with n backends has.
static void *bench_connect_many(const char *address, size_t n)
{
    struct conn *c = open_links(address, false, n);
    struct rpc_client_stats st = {0};
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    int64_t until = time_mono_us() + 60000000;
    while (c && time_mono_us() < until) {
        rpc_client_get_stats(c->client, &st);
        if (st.n_connects >= n)
            return c;
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_nsec = ts.tv_nsec < 995000000 ? ts.tv_nsec + 5000000 : 999999999;
        pthread_mutex_lock(&lock);
        pthread_cond_timedwait(&never, &lock, &ts);
        pthread_mutex_unlock(&lock);
    }
    fprintf(stderr, "%llu of %zu connections\n", (unsigned long long)st.n_connects, n);
    if (c)
        bench_disconnect(c);
    return NULL;
}

static struct rpc_opts call_opts(const struct conn *c)
{
    return (struct rpc_opts){.token = c->token, .deadline_us = time_deadline_in_ms(CALL_MS)};
}

static bool bench_echo(void *conn, size_t size)
{
    struct conn *c = conn;
    struct rpc_opts o = call_opts(c);
    struct err err = ERR_INIT;
    Bench__Payload req = BENCH__PAYLOAD__INIT, *reply = NULL;
    req.data.data = bench_payload(size);
    req.data.len = size;
    enum status s = c->pooled ? bench_bench_echo_pooled(c->client, &o, &req, &reply, &err)
                              : bench_bench_echo(c->client, &o, &req, &reply, &err);
    bool ok = s == STATUS_OK && reply->data.len == size;
    if (s != STATUS_OK)
        fprintf(stderr, "echo: %s\n", err.msg);
    rpc_message_free(reply);
    return ok;
}

struct many {
    struct conn *conn;
    size_t size;
    struct bench_run *run;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned n_active;
};
struct lane { // one of the calls in flight
    struct many *m;
    int64_t began_ns;
};

static void lane_next(struct lane *l);

static void on_reply(void *ud, enum status s, Bench__Payload *reply, const struct err *err)
{
    struct lane *l = ud;
    bench_done(l->m->run, l->began_ns, s == STATUS_OK && reply->data.len == l->m->size);
    if (s != STATUS_OK)
        fprintf(stderr, "echo: %s\n", err->msg);
    rpc_message_free(reply);
    lane_next(l);
}

static void lane_next(struct lane *l)
{
    struct many *m = l->m;
    if (!bench_next(m->run)) {
        pthread_mutex_lock(&m->lock);
        if (--m->n_active == 0)
            pthread_cond_signal(&m->cond);
        pthread_mutex_unlock(&m->lock);
        return;
    }
    struct rpc_opts o = call_opts(m->conn);
    o.done_inline = !m->conn->pooled; // on_reply() waits for nothing
    Bench__Payload req = BENCH__PAYLOAD__INIT;
    req.data.data = bench_payload(m->size);
    req.data.len = m->size;
    l->began_ns = bench_now_ns();
    if (m->conn->pooled)
        bench_bench_echo_pooled_async(m->conn->client, &o, &req, on_reply, l);
    else
        bench_bench_echo_async(m->conn->client, &o, &req, on_reply, l);
}

static void bench_echo_many(void *conn, size_t size, unsigned in_flight, struct bench_run *r)
{
    struct many m = {.conn = conn,
                     .size = size,
                     .run = r,
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .cond = PTHREAD_COND_INITIALIZER,
                     .n_active = in_flight};
    struct lane *lanes = calloc(in_flight, sizeof *lanes);
    for (unsigned i = 0; lanes && i < in_flight; i++) {
        lanes[i].m = &m;
        lane_next(&lanes[i]);
    }
    pthread_mutex_lock(&m.lock);
    while (lanes && m.n_active)
        pthread_cond_wait(&m.cond, &m.lock);
    pthread_mutex_unlock(&m.lock);
    free(lanes);
}

static void *bench_open(void *conn, size_t message_bytes, uint64_t total_bytes)
{
    struct conn *c = conn;
    struct rpc_opts o = call_opts(c);
    o.deadline_us = time_deadline_in_ms(STREAM_MS);
    struct err err = ERR_INIT;
    Bench__Wanted req = BENCH__WANTED__INIT;
    req.total_bytes = total_bytes;
    req.message_bytes = (uint32_t)message_bytes;
    struct rpc_stream *s = NULL;
    if (bench_bench_download_open(c->client, &o, &req, &s, &err) != STATUS_OK)
        fprintf(stderr, "download: %s\n", err.msg);
    return s;
}

static int64_t bench_next_message(void *stream)
{
    struct err err = ERR_INIT;
    Bench__Payload *msg = NULL;
    if (bench_bench_download_recv(stream, &msg, &err) != STATUS_OK) {
        fprintf(stderr, "download: %s\n", err.msg);
        return -1;
    }
    int64_t n = msg ? (int64_t)msg->data.len : 0;
    rpc_message_free(msg);
    return n;
}

static void bench_close(void *stream)
{
    rpc_stream_free(stream);
}

int main(int argc, char **argv)
{
    static const struct bench_system cauce = {
        .serve = serve,
        .connect = bench_connect,
        .disconnect = bench_disconnect,
        .connect_many = bench_connect_many,
        .echo = bench_echo,
        .echo_many = bench_echo_many,
        .open = bench_open,
        .next = bench_next_message,
        .close = bench_close,
        .two_at_once = true,
    };
    int rc = bench_main(&cauce, argc, argv);
    rpc_fini();
    return rc;
}
