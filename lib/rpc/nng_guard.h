#pragma once
// See nng_guard.c. True when this program's answers to what nng calls are the ones that nng gets: the
// case in every program linked with lib/rpc; without them any peer could end a listener or stop nng's
// reaper.
#include <stdbool.h>

bool nng_guard_is_active(void);
