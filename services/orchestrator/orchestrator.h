#pragma once
// Uploads' placement, plans, the queue of work, playback: the role that decides who does what.
#include "service/service.h"

extern const struct svc_role orchestrator_role;
