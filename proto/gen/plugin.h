#pragma once
// What both protoc plugins share: the request from protoc, text output, names.
//
// The plugins are short-lived programs: they exit on any failure, and leave freeing to the kernel.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "google/protobuf/compiler/plugin.pb-c.h"

typedef Google__Protobuf__Compiler__CodeGeneratorRequest gen_request;
typedef Google__Protobuf__Compiler__CodeGeneratorResponse gen_response;
typedef Google__Protobuf__Compiler__CodeGeneratorResponse__File gen_file;
typedef Google__Protobuf__FileDescriptorProto file_proto;
typedef Google__Protobuf__DescriptorProto message_proto;
typedef Google__Protobuf__FieldDescriptorProto field_proto;
typedef Google__Protobuf__ServiceDescriptorProto service_proto;
typedef Google__Protobuf__MethodDescriptorProto method_proto;
typedef Google__Protobuf__SourceCodeInfo__Location location_proto;

#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

// Prints the message to standard error and ends the program with failure.
_Noreturn void gen_die(const char *fmt, ...) PRINTF_LIKE(1, 2);

void *gen_alloc(size_t n, size_t size); // zeroed; never NULL
char *gen_printf(const char *fmt, ...) PRINTF_LIKE(1, 2);
char *gen_strndup(const char *s, size_t n);

// Everything from a descriptor until its end.
struct gen_bytes {
    uint8_t *data;
    size_t len;
};
struct gen_bytes gen_read_all(int fd);
void gen_write_all(int fd, const void *p, size_t n);

gen_request *gen_read_request(void);            // standard input
void gen_write_response(const gen_response *r); // standard output

// Text being written; gen_text_take() ends it.
struct gen_text {
    FILE *f;
    char *text;
    size_t len;
};
void gen_text_init(struct gen_text *t);
char *gen_text_take(struct gen_text *t);

// ---- names ----
bool gen_is_c_keyword(const char *s);
bool gen_str_eq(const char *a, const char *b);
char *gen_snake(const char *camel); // WhoAmI -> who_am_i
char *gen_lower(const char *s);
char *gen_upper(const char *s);
// "cauce.session.v1" -> "session": the component before a version, NULL when the package has none.
char *gen_c_package(const char *package);
// protobuf-c's own rule for descriptors: LoginRequest -> login_request, WhoAmIReply ->
// who_am_ireply
char *gen_pbc_lower(const char *camel);
char *gen_pbc_camel(const char *name); // rename_me -> RenameMe
