// What the store's files share: who calls, arena copies, checks of requests, page tokens.
#include "internal.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define PAGE_DEFAULT 50
#define PAGE_MAX 200

const char *store_caller_id(const struct store_call *c)
{
    return c->user ? c->user->id : NULL;
}

bool store_is_admin(const struct store_call *c)
{
    return c->is_node || (c->user && (c->user->roles & ROLE_ADMIN));
}

enum status store_no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "store: out of memory");
}

enum status store_need_user(const struct store_call *c, struct err *err)
{
    return c->user ? STATUS_OK : err_set(err, STATUS_UNAUTHENTICATED, "sign in first");
}

enum status store_need_admin(const struct store_call *c, struct err *err)
{
    struct store_user u;
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = c->store->find_user(c->store->find_user_ud, c->user->id, &u, err);
    if (s != STATUS_OK)
        return s;
    if (u.disabled || !(u.roles & ROLE_ADMIN))
        return err_set(err, STATUS_PERMISSION_DENIED, "only an admin may do this");
    return STATUS_OK;
}

char *store_dup(const struct store_call *c, const struct db_result *r, size_t row, unsigned col)
{
    const char *s = db_text(r, row, col);
    return arena_strdup(c->arena, s ? s : "");
}

Google__Protobuf__Timestamp *store_timestamp(const struct store_call *c, int64_t wall_us)
{
    Google__Protobuf__Timestamp *t = arena_alloc(c->arena, sizeof *t);
    if (!t)
        return NULL;
    google__protobuf__timestamp__init(t);
    t->seconds = wall_us / 1000000;
    t->nanos = (int32_t)(wall_us % 1000000) * 1000;
    return t;
}

Common__Money *store_money(const struct store_call *c, int64_t minor, const char *currency,
                           bool *ok)
{
    if (minor == 0 && !currency[0])
        return NULL;
    Common__Money *m = arena_alloc(c->arena, sizeof *m);
    if (m) {
        common__money__init(m);
        m->minor = minor;
        m->currency = arena_strdup(c->arena, currency);
    }
    if (!m || !m->currency)
        *ok = false;
    return m;
}

enum status store_check_currency(const char *currency, const char *field, struct err *err)
{
    if (strlen(currency) == 3 && strspn(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 3)
        return STATUS_OK;
    return rpc_bad_field(err, field, "currency must be a code like EUR");
}

enum status store_check_money(const Common__Money *m, const char *field, bool zero_is_fine,
                              struct err *err)
{
    char path[64];
    if (!m)
        return rpc_bad_field(err, field, "an amount of money is missing");
    snprintf(path, sizeof path, "%s.minor", field);
    if (m->minor < (zero_is_fine ? 0 : 1) || m->minor > STORE_MAX_MINOR)
        return rpc_bad_field(err, path, "amount must be %d to %lld minor units",
                             zero_is_fine ? 0 : 1, (long long)STORE_MAX_MINOR);
    if (m->minor == 0 && !m->currency[0])
        return STATUS_OK;
    snprintf(path, sizeof path, "%s.currency", field);
    return store_check_currency(m->currency, path, err);
}

enum status store_check_id(const char *id, const char *field, struct err *err)
{
    if (uuid_is_valid(id))
        return STATUS_OK;
    return rpc_bad_field(err, field, "%s is not an id", field);
}

// Tokens are the last row's key in base64url; whoever uses the key checks what is in it.
enum status store_page_parse(const Common__Page *p, struct store_page *ret, struct err *err)
{
    size_t n = 0;
    *ret = (struct store_page){.size = PAGE_DEFAULT};
    if (!p)
        return STATUS_OK;
    if (p->size < 0 || p->size > PAGE_MAX)
        return rpc_bad_field(err, "page.size", "page size must be 1 to %d", PAGE_MAX);
    if (p->size)
        ret->size = p->size;
    if (!str_unb64(ret->after, sizeof ret->after - 1, p->token, strlen(p->token), &n) ||
        memchr(ret->after, 0, n) || !str_is_utf8(ret->after, n))
        return rpc_bad_field(err, "page.token", "page token is not one of ours");
    ret->after[n] = '\0';
    return STATUS_OK;
}

char *store_page_token(const struct store_call *c, const char *key)
{
    char *token = arena_alloc(c->arena, str_b64_len(strlen(key)) + 1);
    if (token)
        str_b64(token, key, strlen(key));
    return token;
}
