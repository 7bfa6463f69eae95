#include <string.h>

#include "http/http.h"

// One path segment against one pattern segment "text{name}text".
static bool match_segment(const char *pat, size_t pat_len, const char *seg, size_t seg_len,
                          struct http_vars *vars)
{
    const char *open = memchr(pat, '{', pat_len);
    const char *close = open ? memchr(open, '}', pat_len - (size_t)(open - pat)) : NULL;
    if (!close)
        return pat_len == seg_len && memcmp(pat, seg, pat_len) == 0;
    size_t before = (size_t)(open - pat);
    size_t after = pat_len - (size_t)(close + 1 - pat);
    if (seg_len <= before + after || memcmp(seg, pat, before) != 0 ||
        memcmp(seg + seg_len - after, close + 1, after) != 0 || vars->n == HTTP_MAX_VARS)
        return false;
    vars->vars[vars->n++] = (struct http_var){
        .name = open + 1,
        .name_len = (size_t)(close - open - 1),
        .value = seg + before,
        .value_len = seg_len - before - after,
    };
    return true;
}

bool http_route_match(const char *pattern, const char *path, struct http_vars *ret)
{
    ret->n = 0;
    while (*pattern == '/' && *path == '/') {
        pattern++;
        path++;
        size_t pat_len = strcspn(pattern, "/"), seg_len = strcspn(path, "/");
        if (!match_segment(pattern, pat_len, path, seg_len, ret))
            return false;
        pattern += pat_len;
        path += seg_len;
    }
    return *pattern == '\0' && *path == '\0';
}

static int hex_value(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c) : NULL;
    return at ? (int)(at - digits) : -1;
}

char *http_unescape(struct arena *a, const char *s, size_t n, bool plus_is_space)
{
    char *out = arena_alloc(a, n + 1);
    size_t len = 0;
    for (size_t i = 0; out && i < n; i++) {
        char c = s[i] == '+' && plus_is_space ? ' ' : s[i];
        if (c == '%') {
            int hi = n - i > 2 ? hex_value(s[i + 1]) : -1;
            int lo = n - i > 2 ? hex_value(s[i + 2]) : -1;
            if (hi < 0 || lo < 0 || hi + lo == 0)
                return NULL;
            c = (char)(hi << 4 | lo);
            i += 2;
        }
        out[len++] = c;
    }
    return out;
}
