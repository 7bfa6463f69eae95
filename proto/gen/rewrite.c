// protoc-gen-cauce-c: shows protoc-gen-c a request that it can take and passes its answer on.
//
// Removed: services (protobuf-c's own RPC is not used), source comments, cauce/options.proto and
// all options, `optional` of proto3 (see presence.c). Added: the C package, so that package
// cauce.session.v1 becomes C prefix session.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plugin.h"
#include "presence.h"

extern char **environ;

// Files that only carry options: C code never sees them.
static bool is_option_file(const char *name)
{
    return gen_str_eq(name, "cauce/options.proto") ||
           gen_str_eq(name, "google/protobuf/descriptor.proto");
}

// FileOptions { [pb_c_file] { c_package: pkg } }, as unknown field 1019 of the options.
static Google__Protobuf__FileOptions *options_with_package(const char *pkg)
{
    size_t n = strlen(pkg);
    if (n > 100)
        gen_die("package component %s is longer than 100 bytes", pkg);
    Google__Protobuf__FileOptions *o = gen_alloc(1, sizeof(*o));
    google__protobuf__file_options__init(o);
    uint8_t *data = gen_alloc(n + 3, 1);
    data[0] = (uint8_t)(n + 2); // length of the embedded message
    data[1] = (6U << 3) | 2U;   // c_package, length-delimited
    data[2] = (uint8_t)n;
    memcpy(data + 3, pkg, n);
    ProtobufCMessageUnknownField *u = gen_alloc(1, sizeof(*u));
    *u = (ProtobufCMessageUnknownField){1019, PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED, n + 3, data};
    o->base.n_unknown_fields = 1;
    o->base.unknown_fields = u;
    return o;
}

static void strip_imports(file_proto *f)
{
    size_t kept = 0;
    for (size_t i = 0; i < f->n_dependency; i++)
        if (!is_option_file(f->dependency[i]))
            f->dependency[kept++] = f->dependency[i];
    f->n_dependency = kept;
    f->n_public_dependency = f->n_weak_dependency = 0;
}

static void rewrite_file(file_proto *f, struct presence *p)
{
    char *pkg = gen_c_package(f->package);
    f->options = pkg ? options_with_package(pkg) : NULL;
    f->n_service = 0;
    f->n_extension = 0;
    f->source_code_info = NULL;
    strip_imports(f);
    presence_strip(p, f);
}

static void rewrite(gen_request *r, struct presence *p)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->n_file_to_generate; i++)
        if (!is_option_file(r->file_to_generate[i]))
            r->file_to_generate[kept++] = r->file_to_generate[i];
    r->n_file_to_generate = kept;
    kept = 0;
    for (size_t i = 0; i < r->n_proto_file; i++) {
        if (is_option_file(r->proto_file[i]->name))
            continue;
        rewrite_file(r->proto_file[i], p);
        r->proto_file[kept++] = r->proto_file[i];
    }
    r->n_proto_file = kept;
}

// ---------------------------------------------------------------- the real generator

struct child {
    pid_t pid;
    int in, out;
};

static void pipe_pair(int fd[2])
{
    if (pipe2(fd, O_CLOEXEC) != 0)
        gen_die("pipe: %s", strerror(errno));
}

static struct child spawn(const char *program)
{
    int in[2], out[2];
    pipe_pair(in);
    pipe_pair(out);
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    char *name = gen_strndup(program, strlen(program));
    char *argv[] = {name, NULL};
    struct child c = {.in = in[1], .out = out[0]};
    int e = posix_spawnp(&c.pid, program, &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (e)
        gen_die("start %s: %s (package protobuf-c-compiler)", program, strerror(e));
    close(in[0]);
    close(out[1]);
    return c;
}

// protoc plugins read all of their input before they write, so one direction after the other.
static gen_response *run_protoc_gen_c(const gen_request *r)
{
    size_t n = google__protobuf__compiler__code_generator_request__get_packed_size(r);
    uint8_t *p = gen_alloc(n, 1);
    google__protobuf__compiler__code_generator_request__pack(r, p);
    struct child c = spawn("protoc-gen-c");
    gen_write_all(c.in, p, n);
    close(c.in);
    struct gen_bytes answer = gen_read_all(c.out);
    int status = 0;
    while (waitpid(c.pid, &status, 0) < 0)
        if (errno != EINTR)
            gen_die("wait for protoc-gen-c: %s", strerror(errno));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        gen_die("protoc-gen-c failed");
    gen_response *ret =
        google__protobuf__compiler__code_generator_response__unpack(NULL, answer.len, answer.data);
    if (!ret)
        gen_die("protoc-gen-c: its answer is not a CodeGeneratorResponse");
    return ret;
}

// A cast through an integer drops const without the warning that clang gives in whatever code uses
// an init macro; it is the same address.
static void soften_casts(gen_response *r)
{
    static const char hard[] = "(char *)protobuf_c_empty_string";
    for (size_t i = 0; i < r->n_file; i++) {
        struct gen_text t;
        gen_text_init(&t);
        const char *from = r->file[i]->content;
        for (const char *at; (at = strstr(from, hard)); from = at + strlen(hard))
            fprintf(t.f, "%.*s(char *)(uintptr_t)protobuf_c_empty_string", (int)(at - from), from);
        fputs(from, t.f);
        r->file[i]->content = gen_text_take(&t);
    }
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    gen_request *r = gen_read_request();
    struct presence optional = {0};
    rewrite(r, &optional);
    gen_response *answer = run_protoc_gen_c(r);
    if (!answer->error) {
        presence_restore(&optional, answer);
        soften_casts(answer);
    }
    answer->has_supported_features = 1;
    answer->supported_features =
        GOOGLE__PROTOBUF__COMPILER__CODE_GENERATOR_RESPONSE__FEATURE__FEATURE_PROTO3_OPTIONAL;
    gen_write_response(answer);
    return 0;
}
