#pragma once
// From the server's tokens to a login.
#include "cauce/session.pb-c.h"
#include "internal.h"

// errors: RESOURCE_EXHAUSTED when a token is longer than we keep
enum status client_login_from(struct login *ret, const Session__Tokens *t,
                              struct err *err) MUST_CHECK;
