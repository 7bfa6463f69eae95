#include "base/err.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

// snprintf cuts anywhere; move the cut back to where a UTF-8 character ends.
static void trim_to_character(char *s, size_t size, int printed)
{
    if (printed < 0)
        s[0] = '\0';
    if (printed < 0 || (size_t)printed < size)
        return;
    size_t n = size - 1, start = n;
    while (start > 0 && n - start < 4 && ((unsigned char)s[start - 1] & 0xc0) == 0x80)
        start--;
    if (start == 0)
        return;
    unsigned char lead = (unsigned char)s[start - 1];
    size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (n - (start - 1) < want)
        s[start - 1] = '\0';
}

enum status err_vset(struct err *e, enum status code, const char *fmt, va_list ap)
{
    if (!e)
        return code;
    char text[sizeof e->msg] = ""; // an argument may well be e->msg itself
    int n = vsnprintf(text, sizeof text, fmt, ap);
    trim_to_character(text, sizeof text, n);
    e->code = code;
    memcpy(e->msg, text, sizeof text);
    return code;
}

enum status err_set(struct err *e, enum status code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(e, code, fmt, ap);
    va_end(ap);
    return code;
}

// Put what fmt says, ": " and `tail` into e.
PRINTF_LIKE(4, 0)
static void join(struct err *e, enum status code, const char *tail, const char *fmt, va_list ap)
{
    err_vset(e, code, fmt, ap);
    size_t n = strlen(e->msg), room = sizeof e->msg - n;
    if (tail[0] == '\0')
        return;
    int printed = snprintf(e->msg + n, room, ": %s", tail);
    trim_to_character(e->msg + n, room, printed);
}

enum status err_wrap(struct err *e, enum status code, const char *fmt, ...)
{
    if (!e)
        return code;
    char inner[sizeof e->msg];
    memcpy(inner, e->msg, sizeof inner);
    va_list ap;
    va_start(ap, fmt);
    join(e, code, inner, fmt, ap);
    va_end(ap);
    return code;
}

enum status err_errno(struct err *e, int errnum, const char *fmt, ...)
{
    enum status code = status_from_errno(errnum);
    if (!e)
        return code;
    char text[96];
    va_list ap;
    va_start(ap, fmt);
    join(e, code, strerror_r(errnum, text, sizeof text), fmt, ap);
    va_end(ap);
    return code;
}
