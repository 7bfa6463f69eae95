#pragma once
// The gateway: the platform's only public address. Forwards calls and streams of apps to the
// service that owns the method, and serves browsers: HLS with an edge cache, files, JSON, the
// player page.
#include "service/service.h"

extern const struct svc_role gateway_role;
