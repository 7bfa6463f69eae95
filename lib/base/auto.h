#pragma once
// Scope-bound cleanup: gcc's and clang's `cleanup` attribute, spelled once.

#define AUTO(fn)                                                                                   \
    __attribute__((cleanup(fn))) // runs fn(&var) when var's scope ends, last declared first

// Define fn_p(), the cleanup form of a destructor `void fn(type *)`.
#define DEFINE_AUTO(type, fn)                                                                      \
    static inline void fn##_p(type **p)                                                            \
    {                                                                                              \
        if (*p)                                                                                    \
            fn(*p);                                                                                \
    }

// Move ownership out of a variable: its value, leaving NULL behind.
#define TAKE(p)                                                                                    \
    __extension__({                                                                                \
        __typeof__(p) *take_at_ = &(p), take_v_ = *take_at_;                                       \
        *take_at_ = NULL;                                                                          \
        take_v_;                                                                                   \
    })

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define N_ELEMENTS(a) (sizeof(a) / sizeof((a)[0]))
