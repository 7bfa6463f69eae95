#pragma once
// What protoc-gen-cauce-rpc knows about services after parsing; emit.c writes only from this.
#include "plugin.h"

enum kind { KIND_UNARY, KIND_SERVER_STREAM, KIND_CLIENT_STREAM, KIND_BIDI };

// One message as protobuf-c names it.
struct msg {
    const char *type;  // Session__LoginRequest
    const char *lower; // session__login_request
};

struct method {
    const char *name;   // Login
    const char *full;   // cauce.session.v1.Session.Login
    const char *snake;  // login
    const char *member; // login; a C keyword gets a trailing _
    enum kind kind;
    struct msg request, reply;
    const char *allow; // ROLE_ANON | ROLE_USER
    bool idempotent, run_inline;
    const char *http; // "POST /path" or NULL
    uint32_t max_attempts, initial_backoff_ms, max_backoff_ms, hedge_after_ms;
    uint32_t max_concurrent, max_queue_ms;
};

struct service {
    const char *name;   // Session
    const char *full;   // cauce.session.v1.Session
    const char *prefix; // session_session
    struct method *methods;
    size_t n_methods;
};

struct unit {              // one .proto file to generate
    const char *proto;     // cauce/session.proto
    const char *base;      // cauce/session
    const char **includes; // pb-c headers of all messages that methods name
    size_t n_includes;
    struct service *services;
    size_t n_services;
};

struct model {
    struct unit *units;
    size_t n_units;
    char *errors;                    // "file:line: message" lines; empty when all is well
    struct gen_bytes descriptor_set; // FileDescriptorSet of everything, without source comments
};

struct model *model_new(gen_request *r);
