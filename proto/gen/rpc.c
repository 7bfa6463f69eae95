// protoc-gen-cauce-rpc: typed stubs, server thunks and method tables for lib/rpc.
#include <string.h>

#include "emit.h"

static void add_file(gen_response *r, char *name, char *content)
{
    gen_file *f = gen_alloc(1, sizeof(*f));
    google__protobuf__compiler__code_generator_response__file__init(f);
    f->name = name;
    f->content = content;
    r->file[r->n_file++] = f;
}

int main(void)
{
    const struct model *m = model_new(gen_read_request());
    gen_response r;
    google__protobuf__compiler__code_generator_response__init(&r);
    r.has_supported_features = 1;
    r.supported_features =
        GOOGLE__PROTOBUF__COMPILER__CODE_GENERATOR_RESPONSE__FEATURE__FEATURE_PROTO3_OPTIONAL;
    r.file = gen_alloc(2 * m->n_units + 2, sizeof(r.file[0]));
    if (m->errors[0]) {
        r.error = m->errors;
    } else {
        for (size_t i = 0; i < m->n_units; i++) {
            const struct unit *u = &m->units[i];
            add_file(&r, gen_printf("%s.rpc.h", u->base), emit_header(u));
            add_file(&r, gen_printf("%s.rpc.c", u->base), emit_source(u));
        }
        add_file(&r, gen_printf("cauce/services.rpc.h"), emit_services_header());
        add_file(&r, gen_printf("cauce/services.rpc.c"), emit_services_source(m));
    }
    gen_write_response(&r);
    return 0;
}
