#pragma once
// See nng_guard.c. True when this program's answers to what nng calls are the ones that nng gets:
// the case in every program linked with lib/rpc; without them any peer could end a listener or stop
// nng's reaper.
#include <stdbool.h>

bool nng_guard_is_active(void);

// nng sets itself up when it is first used, which goes wrong when two threads are first at once. To
// be called before anything else of nng, by any thread, any number of times.
void nng_guard_start(void);
void nng_guard_fini(void); // nng_fini(): nothing of nng is in use
