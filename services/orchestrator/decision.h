#pragma once
// The playback decision over the wire: requests into lib/media's terms, and its answer back.
#include "base/arena.h"
#include "cauce/orchestrator.pb-c.h"
#include "media/decide.h"
#include "media/offer.h"
#include "orchestrator/internal.h"

struct decision {
    const struct media_profile *profile;
    struct media_decision d;
    char offer[MEDIA_OFFER_SIZE]; // name of the list of renditions that a player is to choose from
};
// What the request says about the player decides about the plan. What is made lives in a.
// errors  NOT_FOUND: no such player; INVALID_ARGUMENT, with its path, for what a profile cannot say
enum status decision_make(struct arena *a, const struct media_plan *plan,
                          const Orchestrator__OpenRequest *req, struct decision *ret,
                          struct err *err) MUST_CHECK;
// errors  RESOURCE_EXHAUSTED
enum status decision_tell(struct arena *a, const struct media_plan *plan, const struct decision *d,
                          Orchestrator__Decision **ret, struct err *err) MUST_CHECK;

// What finished renditions came to. errors  RESOURCE_EXHAUSTED
enum status rates_fill(struct orch *o, struct arena *a, const struct item *it,
                       Orchestrator__PlanReply *ret, struct err *err) MUST_CHECK;
