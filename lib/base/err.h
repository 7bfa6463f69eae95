#pragma once
// Errors: a status and a sentence, in caller's storage, so that reporting "out of memory" needs
// none.
#include <stdarg.h>

#include "base/auto.h"
#include "base/status.h"

struct err {
    enum status code;
    char msg[240]; // UTF-8, NUL-terminated; cut at the end, on a character boundary, when too long
};

#define ERR_INIT                                                                                   \
    {                                                                                              \
        STATUS_OK, ""                                                                              \
    }

// Say what went wrong. e may be NULL. Returns code, so that `return err_set(...)` reads well.
enum status err_set(struct err *e, enum status code, const char *fmt, ...) PRINTF_LIKE(3, 4);
enum status err_vset(struct err *e, enum status code, const char *fmt, va_list ap)
    PRINTF_LIKE(3, 0);

// Put the context in front of what e already says: "publish a1: open x: No such file". Returns
// code.
enum status err_wrap(struct err *e, enum status code, const char *fmt, ...) PRINTF_LIKE(3, 4);

// err_set() with errno's text appended and its code from status_from_errno().
enum status err_errno(struct err *e, int errnum, const char *fmt, ...) PRINTF_LIKE(3, 4);
