#pragma once
// A worker: leases tasks, runs the confined codec on them, stores what it makes.
#include "service/service.h"

extern const struct svc_role transcode_role;
