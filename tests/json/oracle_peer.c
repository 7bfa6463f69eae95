// The C side of oracle_test.py: makes random messages, prints and reads JSON, as lines ask for.
//
//   types                    the names of all message types
//   make TYPE SEED FLAGS     a random message: its bytes in hex, and its JSON
//   print TYPE FLAGS HEX     "ok JSON", or "no" and why not
//   read TYPE FLAGS JSON     "ok HEX", or "no" and why not
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "everything.pb-c.h"
#include "rpc/rpc.h"
#include "support/every_message.h"
#include "support/random_message.h"
#include "json/proto.h"

enum { MAX_BYTES = 16 << 20 };

static struct type_list types;

static void put_hex(const void *p, size_t n)
{
    AUTO(mem_free_p) char *hex = mem_alloc(2 * n + 1);
    if (!hex)
        exit(1);
    str_hex(hex, p, n);
    fputs(hex, stdout);
}

static void put_packed(const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    AUTO(mem_free_p) uint8_t *p = mem_alloc(n + 1);
    if (!p)
        exit(1);
    put_hex(p, protobuf_c_message_pack(m, p));
}

// False with why not on one line.
static bool put_json(const ProtobufCMessage *m, unsigned flags, const char *before)
{
    AUTO(buf_done) struct buf b = {0};
    struct err err = ERR_INIT;
    buf_init(&b, MAX_BYTES);
    enum status s = json_print_message(m, flags, &b, &err);
    if (s == STATUS_OK)
        printf("%s%s", before, buf_str(&b));
    else
        printf("no %s", err.msg);
    return s == STATUS_OK;
}

static void print(const ProtobufCMessageDescriptor *d, unsigned flags, const uint8_t *p, size_t n,
                  const char *before)
{
    AUTO(rpc_message_free_p) ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    if (rpc_message_unpack(d, p, n, &m, &err) == STATUS_OK)
        put_json(m, flags, before);
    else
        printf("no %s", err.msg);
}

static void make(const ProtobufCMessageDescriptor *d, uint64_t seed, unsigned flags)
{
    AUTO(arena_free_p) struct arena *a = arena_new(MAX_BYTES);
    struct random_source r = {.state = seed};
    ProtobufCMessage *m = a ? random_message(&r, d, a) : NULL;
    size_t n = m ? protobuf_c_message_get_packed_size(m) : 0;
    AUTO(mem_free_p) uint8_t *p = mem_alloc(n + 1);
    if (!m || !p)
        exit(1);
    put_hex(p, protobuf_c_message_pack(m, p));
    print(d, flags, p, n, " ");
}

static void print_hex(const ProtobufCMessageDescriptor *d, unsigned flags, const char *hex)
{
    size_t n = strlen(hex) / 2;
    AUTO(mem_free_p) uint8_t *p = mem_alloc(n + 1);
    if (!p || !str_unhex(p, n, hex))
        exit(1);
    print(d, flags, p, n, "ok ");
}

static void read_json(const ProtobufCMessageDescriptor *d, unsigned flags, const char *json)
{
    AUTO(arena_free_p) struct arena *a = arena_new(MAX_BYTES);
    AUTO(json_free_p) struct json_value *v = NULL;
    ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    enum status s = json_parse(json, strlen(json), 0, &v, &err);
    if (s == STATUS_OK)
        s = json_read_message_with(v, d, flags, a, &m, &err);
    if (s != STATUS_OK) {
        printf("no %s", err.msg);
        return;
    }
    fputs("ok ", stdout);
    put_packed(m);
}

static const ProtobufCMessageDescriptor *type_of(const char *name)
{
    for (size_t i = 0; name && i < types.n; i++)
        if (str_eq(types.d[i]->name, name))
            return types.d[i];
    fprintf(stderr, "oracle_peer: no type '%s'\n", name ? name : "");
    exit(1);
}

static void answer(char *line)
{
    char *rest = line, *verb = strsep(&rest, " ");
    if (str_eq(verb, "types")) {
        for (size_t i = 0; i < types.n; i++)
            printf("%s%s", i ? " " : "", types.d[i]->name);
        return;
    }
    const ProtobufCMessageDescriptor *d = type_of(strsep(&rest, " "));
    uint64_t number = strtoull(rest ? strsep(&rest, " ") : "0", NULL, 10);
    if (str_eq(verb, "make"))
        make(d, number, (unsigned)strtoul(rest ? rest : "0", NULL, 10));
    else if (str_eq(verb, "print"))
        print_hex(d, (unsigned)number, rest ? rest : "");
    else
        read_json(d, (unsigned)number, rest ? rest : "");
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    if (!type_list_init(&types) || !type_list_add(&types, &test__everything__descriptor))
        return 1;
    while ((n = getline(&line, &cap, stdin)) > 0) {
        line[n - 1] = '\0'; // its end
        answer(line);
        putchar('\n');
        fflush(stdout);
    }
    free(line);
    type_list_done(&types);
    return 0;
}
