// Unpacking untrusted protobuf.
//
// protobuf-c 1.4 recurses without a limit, accepts strings that are not UTF-8 and multiplies a
// small input into a large heap. So the bytes are walked once along the descriptors first (depth,
// number of fields, UTF-8), and what protobuf-c then allocates comes from one arena with a budget
// that grows with the input. The arena starts in front of the message, so the message alone is
// enough to free everything.
//
// A large field of bytes is not copied: protobuf-c gets the message without it, and the field then
// points into what was received, which the arena keeps.
#include <limits.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "rpc/internal.h"

#define MAX_DEPTH 32
#define MAX_FIELDS (256U << 10)
#define BUDGET_BASE (1U << 20)
#define BUDGET_PER_BYTE 32U
#define LARGE 1024U // bytes worth the trouble
#define STACK_REST 256

// ---------------------------------------------------------------- prescan

struct scan {
    unsigned n_fields;
    struct err *err;
    // The message's own large field of bytes, if there is one, and where it begins.
    const ProtobufCFieldDescriptor *large;
    const uint8_t *large_tag, *large_bytes;
    size_t large_len;
};

static bool read_varint(const uint8_t **p, const uint8_t *end, uint64_t *ret)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70 && *p < end; shift += 7) {
        uint8_t b = *(*p)++;
        v |= shift < 64 ? (uint64_t)(b & 0x7f) << shift : 0;
        if (!(b & 0x80)) {
            *ret = v;
            return true;
        }
    }
    return false;
}

static enum status malformed(struct scan *s, const ProtobufCMessageDescriptor *d, const char *what)
{
    return err_set(s->err, STATUS_INVALID_ARGUMENT, "malformed %s: %s", d->name, what);
}

static enum status scan_message(struct scan *s, const ProtobufCMessageDescriptor *d,
                                const uint8_t *p, size_t n, unsigned depth);

static enum status scan_bytes(struct scan *s, const ProtobufCMessageDescriptor *d,
                              const ProtobufCFieldDescriptor *f, const uint8_t *p, size_t n,
                              unsigned depth)
{
    if (!f)
        return STATUS_OK;
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        if (memchr(p, 0, n))
            return malformed(s, d, "a string holds a zero byte");
        if (!str_is_utf8(p, n))
            return malformed(s, d, "a string is not UTF-8");
    }
    if (f->type == PROTOBUF_C_TYPE_MESSAGE)
        return scan_message(s, f->descriptor, p, n, depth + 1);
    if (f->label == PROTOBUF_C_LABEL_REPEATED && f->type != PROTOBUF_C_TYPE_STRING &&
        f->type != PROTOBUF_C_TYPE_BYTES) {
        s->n_fields += (unsigned)(n / 8); // packed numbers: cheap, but not free
        if (s->n_fields > MAX_FIELDS)
            return err_set(s->err, STATUS_RESOURCE_EXHAUSTED, "%s: more than %u fields", d->name,
                           MAX_FIELDS);
    }
    return STATUS_OK;
}

// The last one with a number counts, so another one behind it takes its place.
static void note_large(struct scan *s, const ProtobufCFieldDescriptor *f, const uint8_t *tag,
                       const uint8_t *p, size_t n)
{
    if (s->large && s->large == f)
        s->large = NULL;
    if (!s->large && n >= LARGE && f->type == PROTOBUF_C_TYPE_BYTES &&
        f->label == PROTOBUF_C_LABEL_NONE && !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)) {
        s->large = f;
        s->large_tag = tag;
        s->large_bytes = p;
        s->large_len = n;
    }
}

static enum status scan_message(struct scan *s, const ProtobufCMessageDescriptor *d,
                                const uint8_t *p, size_t n, unsigned depth)
{
    if (depth > MAX_DEPTH)
        return malformed(s, d, "nested too deeply");
    const uint8_t *end = p + n;
    while (p < end) {
        uint64_t tag, v;
        const uint8_t *begin = p;
        if (!read_varint(&p, end, &tag) || tag >> 3 == 0 || tag > UINT32_MAX)
            return malformed(s, d, "bad field tag");
        if (++s->n_fields > MAX_FIELDS)
            return err_set(s->err, STATUS_RESOURCE_EXHAUSTED, "%s: more than %u fields", d->name,
                           MAX_FIELDS);
        switch (tag & 7) {
        case 0:
            if (!read_varint(&p, end, &v))
                return malformed(s, d, "bad number");
            break;
        case 1:
        case 5: {
            size_t width = (tag & 7) == 1 ? 8 : 4;
            if ((size_t)(end - p) < width)
                return malformed(s, d, "cut short");
            p += width;
            break;
        }
        case 2: {
            if (!read_varint(&p, end, &v) || v > (uint64_t)(end - p))
                return malformed(s, d, "cut short");
            const ProtobufCFieldDescriptor *f =
                protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
            enum status st = scan_bytes(s, d, f, p, (size_t)v, depth);
            if (st != STATUS_OK)
                return st;
            if (f && depth == 1)
                note_large(s, f, begin, p, (size_t)v);
            p += v;
            break;
        }
        default:
            return malformed(s, d, "bad wire type");
        }
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- budgeted arena

struct block {
    struct block *next; // in the first block: the newest further block
    size_t used, cap;
    size_t budget; // first block only: bytes that may still be allocated
    void *kept;    // the same: what fields point into
};
#define ALIGN 16U
#define HEAD ((sizeof(struct block) + ALIGN - 1) / ALIGN * ALIGN)

struct pool {
    struct block *first;
    bool over; // the budget or the memory ran out
    size_t hint;
};

static struct block *block_new(struct pool *a, size_t need)
{
    size_t cap = need > a->hint ? need : a->hint;
    struct block *b = mem_alloc_unset(HEAD + cap);
    if (b)
        *b = (struct block){.cap = cap};
    return b;
}

static void *pool_alloc(void *data, size_t size)
{
    struct pool *a = data;
    size_t n = (size + ALIGN - 1) / ALIGN * ALIGN;
    if (n < size)
        return NULL;
    if (!a->first) {
        a->first = block_new(a, n);
        if (!a->first) {
            a->over = true;
            return NULL;
        }
    }
    struct block *first = a->first;
    struct block *b = first->next ? first->next : first;
    if (b->cap - b->used < n) {
        if (n > first->budget || a->over) {
            a->over = true;
            return NULL;
        }
        struct block *fresh = block_new(a, n);
        if (!fresh) {
            a->over = true;
            return NULL;
        }
        size_t spent = fresh->cap < first->budget ? fresh->cap : first->budget;
        first->budget -= spent;
        fresh->next = first->next;
        first->next = fresh;
        b = fresh;
    }
    void *p = (uint8_t *)b + HEAD + b->used;
    b->used += n;
    return p;
}

static void pool_free(void *data, void *p)
{
    (void)data;
    (void)p; // everything dies together
}

static void blocks_free(struct block *first)
{
    while (first) {
        struct block *next = first->next;
        mem_free(first->kept);
        mem_free(first);
        first = next;
    }
}

static enum status check(struct scan *s, const ProtobufCMessageDescriptor *d, const void *p,
                         size_t n)
{
    if (n > RPC_MAX_MESSAGE_BYTES)
        return err_set(s->err, STATUS_RESOURCE_EXHAUSTED, "%s: message of %zu bytes is too large",
                       d->name, n);
    return scan_message(s, d, n ? p : (const void *)"", n, 1);
}

static enum status unpack(const struct scan *s, const ProtobufCMessageDescriptor *d, const void *p,
                          size_t n, ProtobufCMessage **ret, struct err *err)
{
    // One block holds most messages: the struct, a little per field, and the bytes themselves.
    struct pool a = {.hint = d->sizeof_message + n + (size_t)s->n_fields * 24 + 64};
    struct block *first = block_new(&a, ALIGN);
    if (!first)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", d->name);
    first->budget = BUDGET_BASE + n * BUDGET_PER_BYTE;
    a.first = first;
    a.hint = a.hint < 4096 ? 4096 : a.hint;
    ProtobufCAllocator allocator = {.alloc = pool_alloc, .free = pool_free, .allocator_data = &a};
    ProtobufCMessage *m = protobuf_c_message_unpack(d, &allocator, n, n ? p : (const void *)"");
    if (!m) {
        blocks_free(first);
        if (a.over)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: message needs too much memory",
                           d->name);
        return err_set(err, STATUS_INVALID_ARGUMENT, "malformed %s", d->name);
    }
    *ret = m;
    return STATUS_OK;
}

enum status rpc_message_unpack(const ProtobufCMessageDescriptor *d, const void *p, size_t n,
                               ProtobufCMessage **ret, struct err *err)
{
    struct scan s = {.err = err};
    enum status st = check(&s, d, p, n);
    return st == STATUS_OK ? unpack(&s, d, p, n, ret, err) : st;
}

// What is left of a message when its large field is cut out; NULL: no memory.
static uint8_t *cut_large(const struct scan *s, const struct rx_msg *m, uint8_t *stack,
                          size_t *ret_len)
{
    const uint8_t *behind = s->large_bytes + s->large_len;
    size_t before = (size_t)(s->large_tag - m->data), after = (size_t)(m->data + m->n - behind);
    uint8_t *rest = before + after <= STACK_REST ? stack : mem_alloc_unset(before + after);
    if (!rest)
        return NULL;
    memcpy(rest, m->data, before);
    memcpy(rest + before, behind, after);
    *ret_len = before + after;
    return rest;
}

enum status message_take(const ProtobufCMessageDescriptor *d, struct rx_msg *m,
                         ProtobufCMessage **ret, struct err *err)
{
    uint8_t stack[STACK_REST], *rest = m->data;
    size_t n = m->n;
    struct scan s = {.err = err};
    enum status st = check(&s, d, m->data, m->n);
    if (st == STATUS_OK && s.large && !(rest = cut_large(&s, m, stack, &n)))
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", d->name);
    if (st == STATUS_OK)
        st = unpack(&s, d, rest, n, ret, err);
    if (rest != stack && rest != m->data)
        mem_free(rest);
    if (st != STATUS_OK || !s.large) {
        mem_free(m);
        return st;
    }
    ProtobufCBinaryData *field = (void *)((uint8_t *)*ret + s.large->offset);
    *field = (ProtobufCBinaryData){.len = s.large_len, .data = m->data + (s.large_bytes - m->data)};
    ((struct block *)(void *)((uint8_t *)*ret - HEAD))->kept = m;
    return STATUS_OK;
}

// protobuf-c allocates the message before anything else, so it sits right behind the first block's
// head.
void rpc_message_free(void *msg)
{
    if (msg)
        blocks_free((struct block *)(void *)((uint8_t *)msg - HEAD));
}
