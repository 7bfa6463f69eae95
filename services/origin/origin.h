#pragma once
// Role origin: objects, uploads, ranges. Owns its directory and nothing else; calls nobody.
#include "service/service.h"

extern const struct svc_role origin_role;
