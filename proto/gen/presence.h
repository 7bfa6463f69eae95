#pragma once
// proto3 `optional` for protoc-gen-c 1.4.1, which refuses it.
#include "plugin.h"

// One optional field, as the generated C calls it.
struct presence_field {
    const char *base;    // "cauce/store": the generated files' common name
    const char *message; // "Store__EditItemRequest"
    const char *lower;   // "store__edit_item_request"
    const char *upper;   // "STORE__EDIT_ITEM_REQUEST"
    const char *name;    // field name in the descriptor
    const char *member;  // C member name
    size_t index;        // position of the member in the message's init macro
    bool is_string;      // strings have no has_ member: NULL is absent
};
struct presence {
    struct presence_field *fields;
    size_t n_fields, cap;
};

// Turn the optional fields of a file into plain ones and remember them. package is the C package.
void presence_strip(struct presence *p, file_proto *f);

// Give the remembered fields their presence back in the generated text: label OPTIONAL and, but for
// strings, a member has_x. Ends the program when the text is not what protoc-gen-c 1.4 writes.
void presence_restore(const struct presence *p, gen_response *r);
