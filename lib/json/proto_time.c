// google.protobuf.Timestamp and Duration: both are seconds and nanoseconds, with the same numbers
// and types of fields.
#include "base/time.h"
#include "json/internal.h"

#define NANOS 1000000000
#define DURATION_MAX_S INT64_C(315576000000) // about ten thousand years, as duration.proto says

struct split {
    int64_t s;
    int32_t ns;
};

enum json_text_kind json_text_kind(const ProtobufCMessageDescriptor *d)
{
    if (strcmp(d->name, "google.protobuf.Timestamp") == 0)
        return JSON_TEXT_TIMESTAMP;
    if (strcmp(d->name, "google.protobuf.Duration") == 0)
        return JSON_TEXT_DURATION;
    return JSON_TEXT_NONE;
}

static unsigned offset_of(const ProtobufCMessage *m, unsigned number)
{
    return protobuf_c_message_descriptor_get_field(m->descriptor, number)->offset;
}

static struct split get_split(const ProtobufCMessage *m)
{
    struct split t;
    memcpy(&t.s, member_at(m, offset_of(m, 1)), sizeof t.s);
    memcpy(&t.ns, member_at(m, offset_of(m, 2)), sizeof t.ns);
    return t;
}

static void set_split(ProtobufCMessage *m, struct split t)
{
    memcpy(member_at_mutable(m, offset_of(m, 1)), &t.s, sizeof t.s);
    memcpy(member_at_mutable(m, offset_of(m, 2)), &t.ns, sizeof t.ns);
}

// ---------------------------------------------------------------- printing

// Fraction of 0, 3, 6 or 9 digits, as the mapping says.
static bool print_fraction(struct buf *out, int32_t ns)
{
    if (ns == 0)
        return true;
    int digits = ns % 1000000 == 0 ? 3 : ns % 1000 == 0 ? 6 : 9;
    int32_t shown = digits == 3 ? ns / 1000000 : digits == 6 ? ns / 1000 : ns;
    return buf_printf(out, ".%0*d", digits, (int)shown);
}

static bool print_timestamp(struct buf *out, struct split t)
{
    char text[TIME_RFC3339_SIZE];
    if (t.s < TIME_RFC3339_MIN_S)
        t = (struct split){TIME_RFC3339_MIN_S, 0};
    if (t.s > TIME_RFC3339_MAX_S)
        t = (struct split){TIME_RFC3339_MAX_S, NANOS - 1};
    if (t.ns < 0 || t.ns >= NANOS)
        t.ns = t.ns < 0 ? 0 : NANOS - 1;
    time_rfc3339(text, t.s * 1000);
    return buf_printf(out, "\"%.19s", text) && print_fraction(out, t.ns) && buf_puts(out, "Z\"");
}

static bool print_duration(struct buf *out, struct split t)
{
    if (t.s > DURATION_MAX_S || t.s < -DURATION_MAX_S)
        t = (struct split){t.s < 0 ? -DURATION_MAX_S : DURATION_MAX_S, 0};
    if (t.ns <= -NANOS || t.ns >= NANOS)
        t.ns = t.ns < 0 ? 1 - NANOS : NANOS - 1;
    if (t.s > 0 && t.ns < 0) // both have one sign
        t = (struct split){t.s - 1, t.ns + NANOS};
    else if (t.s < 0 && t.ns > 0)
        t = (struct split){t.s + 1, t.ns - NANOS};
    bool negative = t.s < 0 || t.ns < 0;
    return buf_printf(out, "\"%s%lld", negative ? "-" : "", (long long)(t.s < 0 ? -t.s : t.s)) &&
           print_fraction(out, t.ns < 0 ? -t.ns : t.ns) && buf_puts(out, "s\"");
}

bool json_print_text(enum json_text_kind kind, const ProtobufCMessage *m, struct buf *out)
{
    switch (kind) {
    case JSON_TEXT_TIMESTAMP:
        return print_timestamp(out, get_split(m));
    case JSON_TEXT_DURATION:
        return print_duration(out, get_split(m));
    case JSON_TEXT_NONE:
        break;
    }
    return false;
}

// ---------------------------------------------------------------- reading

// 1 to max digits at *s, moving it on, as a number with max digits behind the point when fraction.
static bool read_digits(const char **s, int max, bool fraction, int64_t *ret)
{
    int n = 0;
    *ret = 0;
    for (; n < max && **s >= '0' && **s <= '9'; n++, (*s)++)
        *ret = *ret * 10 + (**s - '0');
    if (n == 0)
        return false;
    for (; fraction && n < max; n++)
        *ret *= 10;
    return true;
}

// "1.5s", "-0.000000001s"
static bool read_duration(const char *text, struct split *ret)
{
    bool negative = *text == '-';
    int64_t s, ns = 0;
    text += negative;
    if (!read_digits(&text, 12, false, &s) || s > DURATION_MAX_S)
        return false;
    if (*text == '.' && (text++, !read_digits(&text, 9, true, &ns)))
        return false;
    if (strcmp(text, "s") != 0 || (s == DURATION_MAX_S && ns > 0))
        return false;
    *ret = (struct split){negative ? -s : s, (int32_t)(negative ? -ns : ns)};
    return true;
}

bool json_read_text(enum json_text_kind kind, const char *text, ProtobufCMessage *m)
{
    struct split t;
    bool ok = kind == JSON_TEXT_TIMESTAMP ? time_parse_rfc3339_ns(text, &t.s, &t.ns)
                                          : read_duration(text, &t);
    if (ok)
        set_split(m, t);
    return ok;
}

const char *json_text_wanted(enum json_text_kind kind)
{
    return kind == JSON_TEXT_TIMESTAMP ? "a time such as 2026-11-21T09:05:29Z"
                                       : "a number of seconds such as 1.5s";
}
