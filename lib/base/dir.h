#pragma once
// Directories.
#include "base/err.h"

// Makes the directory and whatever of its parents is missing, for its owner only (0700). What is
// there stays as it is. An empty path makes nothing. Thread-safe.
enum status dir_make(const char *path, struct err *err) MUST_CHECK;
