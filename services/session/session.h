#pragma once
// Role session: accounts, logins, tokens, audit. Owns the database schema `session`.
#include "service/service.h"

extern const struct svc_role session_role;
