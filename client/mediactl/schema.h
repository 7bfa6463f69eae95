#pragma once
// What the server says that it serves; what this program was built with when it does not say.
#include "cauce/node.rpc.h"
#include "ctl.h"
#include "reflect/reflect.h"

struct schema {
    struct ctl *k;
    const char *node;            // whom to ask; NULL: the gateway
    const Node__ListReply *list; // every service
    Node__ListReply *reply;      // of the server; NULL: built in
    struct reflect *builtin;     // NULL: the server answers
    struct arena *arena;         // of the list, when built in
};

enum status schema_open(struct schema *s, struct ctl *k) MUST_CHECK;
void schema_done(struct schema *s);

// Names may be cut at the front where that is not ambiguous: "Session.Login". NULL when it names
// none or, with *ret_many, several.
const Node__ServiceInfo *schema_service(const struct schema *s, const char *name, bool *ret_many);
const Node__MethodInfo *schema_method(const struct schema *s, const char *name, bool *ret_many);

// Descriptors in which the symbol (full name) is found. *ret is freed by the caller if *ret_own.
// errors  NOT_FOUND, whatever the call gives
enum status schema_reflect(struct schema *s, const char *symbol, struct reflect **ret,
                           bool *ret_own) MUST_CHECK;
