// Rows of the log as messages.
#include "event/internal.h"

void event_timestamp(int64_t us, Google__Protobuf__Timestamp *ret)
{
    google__protobuf__timestamp__init(ret);
    ret->seconds = us / 1000000;
    ret->nanos = (int32_t)(us % 1000000) * 1000;
}

static char *column(const struct db_result *r, size_t row, unsigned col)
{
    const char *s = db_text(r, row, col);
    return (char *)(uintptr_t)(s ? s : ""); // protobuf-c's fields lack const; packing only reads
}

void event_row_read(const struct db_result *r, size_t row, unsigned col, const char *topic,
                    struct event_row *ret)
{
    Event__EventRecord *m = &ret->record;
    event__event_record__init(m);
    event_timestamp(db_i64(r, row, col + 1), &ret->time);
    m->topic = (char *)(uintptr_t)topic;
    m->seq = db_i64(r, row, col);
    m->time = &ret->time;
    m->kind = column(r, row, col + 2);
    m->subject = column(r, row, col + 3);
    m->owner = column(r, row, col + 4);
    m->data = column(r, row, col + 5);
}
