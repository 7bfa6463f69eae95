// Texts of other users on a terminal: what could move the cursor, change colours or hide lines is
// shown as '?'. Line breaks stay.
#include "tidy.h"

#include <stddef.h>

#include "base/str.h"

void ctl_tidy_text(char *s)
{
    for (unsigned char *p = (unsigned char *)s; p && *p; p++) {
        bool c1 = p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f; // U+0080 to U+009F in UTF-8
        if (c1)
            *p++ = '?';
        if (c1 || (*p < ' ' && *p != '\n') || *p == 0x7f)
            *p = '?';
    }
}

static void tidy_value(const ProtobufCFieldDescriptor *f, void *value)
{
    if (f->type == PROTOBUF_C_TYPE_STRING && *(char **)value != f->default_value)
        ctl_tidy_text(*(char **)value);
    else if (f->type == PROTOBUF_C_TYPE_MESSAGE)
        ctl_tidy(*(ProtobufCMessage **)value);
}

void ctl_tidy(ProtobufCMessage *m)
{
    for (unsigned i = 0; m && i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        char *at = (char *)m + f->offset;
        if (f->label != PROTOBUF_C_LABEL_REPEATED) {
            tidy_value(f, at);
            continue;
        }
        size_t n = *(size_t *)(void *)((char *)m + f->quantifier_offset);
        for (size_t k = 0; k < n; k++)
            tidy_value(f, *(char **)(void *)at + k * sizeof(void *));
    }
}
