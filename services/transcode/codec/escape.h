#pragma once
// The test build of cauce-codec tries to break out after it was confined; the real one does
// nothing.
#ifdef CAUCE_TEST_ESCAPE
void escape_try(void);
#else
static inline void escape_try(void)
{
}
#endif
