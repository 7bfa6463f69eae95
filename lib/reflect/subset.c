// A part of the set: one file and all that it needs, for whoever asks what a process serves.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "reflect/internal.h"

static size_t file_index(const struct reflect *r, const file_proto *f)
{
    size_t i = 0;
    while (i < r->set->n_file && r->set->file[i] != f)
        i++;
    return i;
}

static size_t file_by_name(const struct reflect *r, const char *name)
{
    size_t i = 0;
    while (i < r->set->n_file && !str_eq(r->set->file[i]->name, name))
        i++;
    return i;
}

// The file and what it imports, at whatever distance. Files of a set may be named in any order, and
// a forged set may name them in a circle: each is entered once.
static void mark(const struct reflect *r, bool *marks, size_t i)
{
    if (i >= r->set->n_file || marks[i])
        return;
    marks[i] = true;
    const file_proto *f = r->set->file[i];
    for (size_t k = 0; k < f->n_dependency; k++)
        mark(r, marks, file_by_name(r, f->dependency[k]));
}

// Where a service, or a method, is declared: its index; n_services: nowhere.
static size_t service_of(const struct reflect *r, const char *name, const char **ret_kind)
{
    for (size_t i = 0; i < r->n_services; i++) {
        const struct rpc_service *s = &r->services[i];
        *ret_kind = "service";
        if (strcmp(s->name, name) == 0)
            return i;
        *ret_kind = "method";
        for (size_t k = 0; k < s->n_methods; k++)
            if (strcmp(s->methods[k].name, name) == 0)
                return i;
    }
    return r->n_services;
}

static size_t file_of(const struct reflect *r, const char *name, const char **ret_kind)
{
    const struct symbol *s = reflect_symbol(r, name);
    if (s) {
        *ret_kind = s->message ? "message" : "enum";
        return file_index(r, s->file);
    }
    size_t service = service_of(r, name, ret_kind);
    if (service < r->n_services)
        return file_index(r, r->service_files[service]);
    *ret_kind = "file";
    return file_by_name(r, name);
}

static enum status pack(const struct reflect *r, const bool *marks, struct buf *out,
                        struct err *err)
{
    Google__Protobuf__FileDescriptorSet part = GOOGLE__PROTOBUF__FILE_DESCRIPTOR_SET__INIT;
    AUTO(mem_free_p) file_proto **files = mem_array(r->set->n_file, sizeof(files[0]));
    if (!files)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "descriptors: out of memory");
    part.file = files;
    for (size_t i = 0; i < r->set->n_file; i++)
        if (marks[i])
            files[part.n_file++] = r->set->file[i];
    size_t n = google__protobuf__file_descriptor_set__get_packed_size(&part);
    uint8_t *at = buf_reserve(out, n);
    if (!at)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "descriptors: out of memory or too large");
    buf_commit(out, google__protobuf__file_descriptor_set__pack(&part, at));
    return STATUS_OK;
}

enum status reflect_subset(const struct reflect *r, const char *const *services, size_t n_services,
                           const char *name, struct reflect_part *ret, struct buf *out,
                           struct err *err)
{
    size_t n = r->set->n_file;
    AUTO(mem_free_p) bool *known = mem_array(2 * n + 1, sizeof(known[0]));
    if (!known)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "descriptors: out of memory");
    for (size_t i = 0; i < n_services; i++) {
        const char *kind;
        mark(r, known, file_of(r, services[i], &kind));
    }
    size_t file = file_of(r, name, &ret->kind);
    if (file >= n || !known[file])
        return err_set(err, STATUS_NOT_FOUND,
                       "no service, method, message, enum or file is called %s here", name);
    ret->file = r->set->file[file]->name ? r->set->file[file]->name : "";
    mark(r, known + n, file);
    return pack(r, known + n, out, err);
}
