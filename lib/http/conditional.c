// Conditional and range requests as RFC 9110 sections 13.2.2 and 14.2 order them; pure functions of
// the headers.
#include <string.h>

#include "base/str.h"
#include "http/internal.h"

static const char *skip_space(const char *s)
{
    return s + strspn(s, " \t");
}

// Is the tag in a list such as `"a", W/"b"`, or is the list "*"? weak: W/ makes no difference.
static bool list_has(const char *list, const char *etag, bool weak)
{
    const char *s = skip_space(list);
    if (*s == '*')
        return true;
    size_t want = strlen(etag);
    while (*s) {
        bool is_weak = str_starts_with(s, "W/");
        s += is_weak ? 2 : 0;
        if (*s != '"')
            return false;
        size_t len = strcspn(++s, "\"");
        if (s[len] != '"')
            return false;
        if (len == want && memcmp(s, etag, len) == 0 && (weak || !is_weak))
            return true;
        s = skip_space(s + len + 1);
        if (*s == ',')
            s = skip_space(s + 1);
    }
    return false;
}

static bool parse_number(const char **s, int64_t *ret)
{
    const char *p = *s;
    int64_t v = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v))
            v = INT64_MAX / 16; // any number past the end means the end
    bool any = p > *s;
    *s = p;
    *ret = v;
    return any;
}

// "bytes=first-last", "bytes=first-", "bytes=-suffix". Anything else, several ranges included, may
// be ignored (section 14.2): FULL.
static enum http_outcome parse_range(const char *s, int64_t size, int64_t *ret_first,
                                     int64_t *ret_last)
{
    int64_t first = 0, last = 0;
    if (!str_starts_with(s, "bytes="))
        return HTTP_FULL;
    s = skip_space(s + strlen("bytes="));
    bool has_first = parse_number(&s, &first);
    if (*s++ != '-')
        return HTTP_FULL;
    bool has_last = parse_number(&s, &last);
    s = skip_space(s);
    if (*s != '\0' || (!has_first && !has_last) || (has_first && has_last && last < first))
        return HTTP_FULL;
    if (!has_first) {
        first = last < size ? size - last : 0;
        if (last == 0)
            return HTTP_BAD_RANGE;
        last = size - 1;
    } else if (!has_last || last >= size) {
        last = size - 1;
    }
    if (first >= size)
        return HTTP_BAD_RANGE;
    *ret_first = first;
    *ret_last = last;
    return HTTP_PARTIAL;
}

enum http_outcome http_evaluate(const struct http_conditions *c, bool is_get_or_head, bool is_get,
                                const char *etag, bool ranges, int64_t size, int64_t *ret_first,
                                int64_t *ret_last)
{
    if (c->if_match && !(etag && list_has(c->if_match, etag, false)))
        return HTTP_PRECONDITION;
    if (c->if_none_match && etag && list_has(c->if_none_match, etag, true))
        return is_get_or_head ? HTTP_NOT_MODIFIED : HTTP_PRECONDITION;
    if (!ranges || !is_get || size < 0 || !c->range)
        return HTTP_FULL;
    if (c->if_range && !(etag && c->if_range[0] == '"' && list_has(c->if_range, etag, false)))
        return HTTP_FULL;
    return parse_range(c->range, size, ret_first, ret_last);
}
