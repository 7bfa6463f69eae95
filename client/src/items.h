#pragma once
// Items of the store as the public structs show them.
#include "cauce/store.pb-c.h"
#include "internal.h"

// A list whose strings live in one arena with it. more(ud, i) gives the i-th item.
enum status client_items_new(const Store__Item *(*more)(const void *ud, size_t i), const void *ud,
                             size_t n, const char *next_page, cauce_items **ret,
                             struct err *err) MUST_CHECK;
