#pragma once
// Writes C from the model: one emit_ function per construct.
#include "model.h"

char *emit_header(const struct unit *u);           // <base>.rpc.h
char *emit_source(const struct unit *u);           // <base>.rpc.c
char *emit_services_header(void);                  // cauce/services.rpc.h
char *emit_services_source(const struct model *m); // cauce/services.rpc.c
