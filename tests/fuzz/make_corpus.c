// Writes the first inputs of each fuzz target: fuzz_make_corpus FOLDER. What fuzzing found later is
// beside them; files that are there keep their name, so running it again changes nothing that is
// made of fixed keys alone.
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "cauce/services.rpc.h"
#include "channel/internal.h"
#include "everything.pb-c.h"
#include "fuzz.h"
#include "fuzz_keys.h"
#include "google/protobuf/descriptor.pb-c.h"
#include "media/cmaf.h"
#include "media/task.h"
#include "rpc/details.h"
#include "rpc/frame.h"
#include "support/every_message.h"
#include "support/random_message.h"
#include "json/proto.h"

enum { PATH_BYTES = 4096, MAX_BYTES = 1 << 20 };

static const char *folder;

static void make_folder(const char *path)
{
    if (mkdir(path, 0777) != 0 && errno != EEXIST) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
}

static void put(const char *target, const char *name, const void *p, size_t n)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, target);
    make_folder(path);
    snprintf(path, sizeof path, "%s/%s/%s", folder, target, name);
    FILE *f = fopen(path, "we");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(1);
    }
}

static void put_buf(const char *target, const char *name, struct buf *b)
{
    FUZZ_CHECK(!b->failed);
    put(target, name, b->data, b->len);
    buf_done(b);
}

static void put_part(struct buf *b, const void *p, size_t n)
{
    buf_put_be16(b, (uint16_t)n);
    buf_append(b, p, n);
}

// ---------------------------------------------------------------- calls and frames

static const struct rpc_trace trace = {.trace_id = {1}, .span_id = {2}, .flags = 1};
static const struct rpc_metadata metadata[] = {{"tenant", "blue", 4}, {"x-1", "", 0}};

static void call_open(struct buf *b, bool all)
{
    struct frame_call c = {.slot = 1, .deadline_ms = 15000, .method = "cauce.demo.v1.Demo.Echo"};
    if (all) {
        c.flags = FRAME_OPEN_FORWARDED;
        c.route = "origin-1";
        c.key = "idempotency";
        c.trace = &trace;
        c.metadata = metadata;
        c.n_metadata = N_ELEMENTS(metadata);
    }
    frame_put_open(b, 1, &c);
}

static void call_status(struct buf *b, enum status code)
{
    static uint8_t details[RPC_DETAILS_MAX_BYTES];
    AUTO(arena_free_p) struct arena *a = arena_new(MAX_BYTES);
    struct call_details *d = details_new(a);
    FUZZ_CHECK(d);
    details_reason(d, a, "QUOTA");
    details_retryable(d);
    details_violation(d, a, "items[3].name", "too long");
    details_entry(d, a, "tenant", "blue", 4);
    struct frame_status st = {.code = code, .retry_after_ms = 250, .msg = "not now"};
    st.details = details;
    st.n_details = details_pack(d, details);
    frame_put_status(b, 1, &st);
}

// The payload of the one frame in b, behind a byte that says which kind it is.
static void put_call(const char *name, bool is_status, struct buf *b)
{
    const uint8_t *p = b->data;
    struct frame f;
    struct buf out;
    FUZZ_CHECK(frame_next(&p, b->data + b->len, &f));
    buf_init(&out, MAX_BYTES);
    buf_put_u8(&out, is_status);
    buf_append(&out, f.p, f.n);
    put_buf("call", name, &out);
    buf_done(b);
}

static void make_calls(void)
{
    struct buf b;
    buf_init(&b, MAX_BYTES);
    call_open(&b, false);
    put_call("open", false, &b);
    buf_init(&b, MAX_BYTES);
    call_open(&b, true);
    put_call("open-all", false, &b);
    buf_init(&b, MAX_BYTES);
    call_status(&b, STATUS_RESOURCE_EXHAUSTED);
    put_call("status-details", true, &b);
    buf_init(&b, MAX_BYTES);
    frame_put_status(&b, 1, &(struct frame_status){.code = STATUS_NOT_FOUND, .msg = "no item"});
    put_call("status", true, &b);
}

static void make_frames(void)
{
    struct buf b;
    buf_init(&b, MAX_BYTES);
    buf_put_be16(&b, 40);
    frame_put(&b, FRAME_AUTH, 0, 1, "v4.public.token", 15);
    call_open(&b, true);
    frame_put(&b, FRAME_DATA, FRAME_LAST | FRAME_HALF, 1, "message", 7);
    frame_put(&b, FRAME_END, 0, 1, NULL, 0);
    call_status(&b, STATUS_UNAVAILABLE);
    frame_put(&b, FRAME_CANCEL, 0, 300, NULL, 0);
    frame_put_number(&b, FRAME_WINDOW, 0, 1 << 20);
    frame_put_number(&b, FRAME_ACK, 0, UINT64_MAX);
    frame_put(&b, FRAME_PING, 0, 0, NULL, 0);
    frame_put(&b, FRAME_GOAWAY, 0, 0, NULL, 0);
    put_buf("frame", "one-of-each", &b);
}

// ---------------------------------------------------------------- messages

static void random_of(struct buf *out, const ProtobufCMessageDescriptor *d, uint64_t seed,
                      bool json)
{
    AUTO(arena_free_p) struct arena *a = arena_new(16 << 20);
    struct random_source r = {.state = seed};
    struct err err = ERR_INIT;
    ProtobufCMessage *m = random_message(&r, d, a);
    FUZZ_CHECK(m);
    if (json) {
        FUZZ_CHECK(json_print_message(m, 0, out, &err) == STATUS_OK);
        return;
    }
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = buf_reserve(out, n);
    FUZZ_CHECK(p);
    buf_commit(out, protobuf_c_message_pack(m, p));
}

static void make_messages(void)
{
    struct type_list types;
    FUZZ_CHECK(type_list_init(&types) && type_list_add(&types, &test__everything__descriptor));
    for (size_t i = 0; i < types.n; i++) {
        struct buf b;
        buf_init(&b, MAX_BYTES);
        buf_put_be16(&b, (uint16_t)i);
        random_of(&b, types.d[i], 3, false);
        if (b.len > 2 && b.len < 2048) // small ones
            put_buf("message", types.d[i]->name, &b);
        buf_done(&b);
    }
    type_list_done(&types);
}

static void make_json(void)
{
    static const char *const texts[] = {
        "{\"int32Map\":{\"7\":{\"name\":\"x\"}},\"boolMap\":{\"true\":\"RED\",\"false\":9}}",
        "{\"timestampValue\":\"2026-11-21T09:05:29.123456789+01:00\",\"durationValue\":\"-0.5s\"}",
        "{\"doubles\":[1.5,\"NaN\",-0.0,1e300],\"uint64s\":[\"18446744073709551615\",1e19]}",
        "{\"bytesValue\":\"-_8=\",\"optional_string\":\"\",\"chosenInner\":{\"again\":{}}}",
        "{\"messageValue\":{\"again\":{\"inners\":[{},{\"name\":\"\\u00e9\"}]}},\"nothing\":null}",
    };
    for (unsigned i = 0; i < N_ELEMENTS(texts); i++) {
        char name[32];
        struct buf b;
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, i == 4); // unknown fields are skipped
        buf_put_u8(&b, 0);
        buf_puts(&b, texts[i]);
        snprintf(name, sizeof name, "text-%u", i);
        put_buf("json", name, &b);
    }
    struct buf b;
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 2);
    buf_put_u8(&b, 0);
    put_part(&b, "messageValue.again.strings=x", 28);
    buf_puts(&b, "{\"chosenNumber\":3}");
    put_buf("json", "set-field", &b);
    buf_init(&b, MAX_BYTES);
    buf_put_be16(&b, 0);
    random_of(&b, &test__everything__descriptor, 8, true);
    put_buf("json", "everything", &b);
}

// ---------------------------------------------------------------- the channel

static void init_of(struct fuzz_world *w, enum chan_link link, struct buf *out)
{
    struct err err = ERR_INIT;
    struct chan *c = fuzz_initiator(w, link);
    FUZZ_CHECK(chan_start(c, out, &err) == STATUS_OK);
    chan_free(c);
}

static void make_handshakes(void)
{
    static const char *const names[] = {"", "raw-client", "raw-service", "raw-enrol"};
    struct fuzz_world w;
    struct buf b, init;
    fuzz_world_init(&w);
    for (unsigned link = CHAN_LINK_CLIENT; link <= CHAN_LINK_ENROL; link++) {
        buf_init(&init, CHAN_MAX_HANDSHAKE);
        init_of(&w, (enum chan_link)link, &init);
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, 0);
        put_part(&b, init.data, init.len);
        put_buf("handshake", names[link], &b);
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, 1);
        buf_put_u8(&b, (uint8_t)link);
        put_part(&b, init.data + CHAN_HEADER_SIZE + 3, init.len - CHAN_HANDSHAKE_OVERHEAD);
        put_buf("handshake", names[link] + 4, &b);
        buf_done(&init);
    }
    for (uint8_t how = 2; how < 6; how++) { // a payload with a grant, for any link
        char name[32];
        for (uint8_t link = 0; link < 3; link++) {
            buf_init(&b, MAX_BYTES);
            buf_put_u8(&b, how);
            if (how != 5)
                buf_put_u8(&b, link);
            buf_put_u8(&b, 1);
            put_part(&b, how % 2 ? w.client.grant : w.server.grant, w.client.grant_len);
            buf_put_u8(&b, 2);
            put_part(&b, w.join.id, sizeof w.join.id);
            buf_put_u8(&b, 0);
            snprintf(name, sizeof name, "payload-%u-%u", how, link);
            put_buf("handshake", name, &b);
        }
    }
    for (uint8_t how = 0; how < 8; how++) { // inside a session
        char name[32];
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, 6);
        buf_put_u8(&b, how);
        for (uint8_t type = 0; type < 5; type++) {
            buf_put_u8(&b, type);
            buf_put_u8(&b, 1);
            put_part(&b, w.client.grant, 96);
        }
        snprintf(name, sizeof name, "inside-%u", how);
        put_buf("handshake", name, &b);
    }
}

// Behind SP's hello: the first message of a client; a length that cannot be; a wrong protocol.
static void make_servers(void)
{
    struct fuzz_world w;
    struct buf b, init;
    fuzz_world_init(&w);
    buf_init(&init, CHAN_MAX_HANDSHAKE);
    init_of(&w, CHAN_LINK_CLIENT, &init);
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 3);
    put_part(&b, init.data, init.len);
    put_part(&b, "CQ\1\5", 4);
    put_buf("server", "init", &b);
    buf_done(&init);
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 1);
    buf_append(&b, "\0\0\0\0\x40\0\0\0\x80\0\0\1", 12);
    put_buf("server", "claims-a-gibibyte", &b);
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 0);
    buf_append(&b, "\0SP\0\0\x31\0\0", 8);
    put_buf("server", "another-protocol", &b);
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 1);
    buf_append(&b, "\0\0\0\0\0\0\0\5\0\0\0\1x\0\0\0", 16);
    put_buf("server", "no-request-id", &b);
}

static void make_records(void)
{
    struct buf b;
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 0);
    buf_puts(&b, "CQ\1\5sessionscountersciphertext and tag");
    put_buf("record", "raw", &b);
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 1);
    put_part(&b, "", 0);
    buf_puts(&b, "plaintext");
    put_buf("record", "sealed", &b);
    for (uint8_t at = 0; at < 44; at += 4) {
        char name[32];
        const uint8_t flip[] = {0, at, 1};
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, 1);
        put_part(&b, flip, sizeof flip);
        buf_puts(&b, "plaintext");
        snprintf(name, sizeof name, "flipped-%u", at);
        put_buf("record", name, &b);
    }
}

static void make_pubsub(void)
{
    struct pubsub_writer w;
    struct err err = ERR_INIT;
    struct buf b;
    fuzz_writer(&w);
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 0);
    FUZZ_CHECK(pubsub_seal(&w, "event", 5, &b, &err) == STATUS_OK);
    put_buf("pubsub", "raw", &b);
    pubsub_writer_done(&w);
    for (uint8_t at = 0; at < 120; at += 8) {
        char name[32];
        const uint8_t flip[] = {0, at, 1};
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, 1);
        put_part(&b, flip, at ? sizeof flip : 0);
        buf_puts(&b, "event");
        snprintf(name, sizeof name, "sealed-%u", at);
        put_buf("pubsub", name, &b);
    }
}

// ---------------------------------------------------------------- HTTP

static void make_http(void)
{
    static const char *const conditions[][4] = {
        {"\"tag\"", "W/\"tag\", \"b\"", "\"tag\"", "bytes=0-1"},
        {"*", "*", "x", "bytes=-5"},
        {"", "", "", "bytes=99999999999999999999-"},
    };
    struct buf b;
    for (unsigned i = 0; i < N_ELEMENTS(conditions); i++) {
        char name[32];
        buf_init(&b, MAX_BYTES);
        buf_put_u8(&b, 2);
        buf_put_u8(&b, 0xfe);
        buf_put_be16(&b, 1000);
        for (unsigned k = 0; k < 3; k++)
            put_part(&b, conditions[i][k], strlen(conditions[i][k]));
        buf_puts(&b, conditions[i][3]);
        snprintf(name, sizeof name, "conditions-%u", i);
        put_buf("http", name, &b);
    }
    buf_init(&b, MAX_BYTES);
    buf_append(&b, "\0\2", 2);
    buf_puts(&b, "/hls/token/item/720/12.m4s");
    put_buf("http", "route", &b);
    buf_init(&b, MAX_BYTES);
    buf_append(&b, "\1\1", 2);
    buf_puts(&b, "a%20b+c%C3%A9%00");
    put_buf("http", "unescape", &b);
}

// ---------------------------------------------------------------- descriptors

// One file of the product's, with what its messages are made of.
static void put_set(const Google__Protobuf__FileDescriptorSet *all, size_t which)
{
    static const char *const shared[] = {"google/protobuf/timestamp.proto", "cauce/common.proto"};
    Google__Protobuf__FileDescriptorProto *files[N_ELEMENTS(shared) + 1];
    Google__Protobuf__FileDescriptorSet set = GOOGLE__PROTOBUF__FILE_DESCRIPTOR_SET__INIT;
    char name[32];
    struct buf b;
    set.file = files;
    for (size_t i = 0; i < all->n_file; i++)
        for (size_t k = 0; k < N_ELEMENTS(shared); k++)
            if (i != which && strcmp(all->file[i]->name, shared[k]) == 0)
                files[set.n_file++] = all->file[i];
    files[set.n_file++] = all->file[which];
    size_t n = google__protobuf__file_descriptor_set__get_packed_size(&set);
    if (n > 6000) // small ones
        return;
    buf_init(&b, MAX_BYTES);
    put_part(&b, "\x0a\1x", 3);
    uint8_t *p = buf_reserve(&b, n);
    FUZZ_CHECK(p);
    buf_commit(&b, google__protobuf__file_descriptor_set__pack(&set, p));
    snprintf(name, sizeof name, "set-%zu", which);
    put_buf("reflect", name, &b);
}

static void make_sets(void)
{
    Google__Protobuf__FileDescriptorSet *all = google__protobuf__file_descriptor_set__unpack(
        NULL, cauce_descriptor_set_size, cauce_descriptor_set);
    FUZZ_CHECK(all);
    for (size_t i = 0; i < all->n_file; i++)
        put_set(all, i);
    google__protobuf__file_descriptor_set__free_unpacked(all, NULL);
}

// ---------------------------------------------------------------- tokens and media

static void put_text(const char *target, const char *name, uint8_t first, const char *text)
{
    struct buf b;
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, first);
    buf_puts(&b, text);
    put_buf(target, name, &b);
}

static void make_others(void)
{
    put_text("token", "signed", 1,
             "{\"sub\":\"018f2b6e-7d3a-7c11-9a55-0123456789ab\",\"name\":\"ann\",\"sid\":\"s\","
             "\"roles\":[\"user\",\"admin\",\"other\"],\"iat\":\"2026-11-21T09:05:29Z\","
             "\"exp\":\"2999-11-21T09:05:29Z\",\"epoch\":7}");
    put_text("token", "raw", 0, "v4.public.AAAA.eyJraWQiOiJrNC5waWQuIn0");
    put_text("media", "plan", 0, "CPLN\1");
    put_text("media", "sniff", 4, "....ftypisom....mp41");
    put_text("media", "offer", 3, "h264-aac-hevc-copy-even-p720-k3000-t2-s1");
    put_text("webvtt", "text", 0,
             " align:start line:10% region:abcdefg<v Ann>a &amp; <b>b\n\n</i> --> c");
    put_text("webvtt", "ass", 1, "\4    {\\an8\\i1}top\\Nline{\\r} {\\pos(1.5,2)}x{\\p1}m 0 0");
    put_text("webvtt", "file", 2, "WEBVTT\n\n00:00:01.000 --> 00:00:02.000 line:5%\n<i>x</i>\n");
    struct media_task t = {.kind = MEDIA_TASK_PROBE, .threads = 2, .source_size = 1 << 20};
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 2);
    FUZZ_CHECK(media_task_encode(&t, &b, &err) == STATUS_OK);
    put_buf("media", "task", &b);
    static const uint8_t picture[] = "\0\0\0\4abcd";
    struct media_sample sample = {
        .data = picture, .size = 8, .duration = 1000, .cts = -5, .sync = true};
    buf_init(&b, MAX_BYTES);
    buf_put_u8(&b, 1);
    FUZZ_CHECK(media_cmaf_fragment(7, MEDIA_VIDEO_TRACK, 90000, &sample, 1, &b, &err) == STATUS_OK);
    put_buf("media", "fragment", &b);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: fuzz_make_corpus FOLDER\n");
        return 2;
    }
    folder = argv[1];
    make_folder(folder);
    fuzz_keys_init();
    make_calls();
    make_frames();
    make_messages();
    make_json();
    make_handshakes();
    make_servers();
    make_records();
    make_pubsub();
    make_http();
    make_sets();
    make_others();
    return 0;
}
