#pragma once
// Role store: catalogue, prices, orders, ledger, entitlements, libraries. Owns the database schema
// `store` and mints media tokens.
#include "service/service.h"

extern const struct svc_role store_role;
