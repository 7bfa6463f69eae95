#pragma once
// See nng_guard.c. True when this program's answer to nng's sendmsg() is the one that nng gets: the
// case in every program linked with lib/rpc; a listener without it could be ended by any peer.
#include <stdbool.h>

bool nng_guard_is_active(void);
