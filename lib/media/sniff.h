#pragma once
// What a file seems to be, from its first bytes: places an upload on the right origin before the
// probe says for certain. Never trusted for more than that.
#include <stddef.h>

enum media_kind { MEDIA_UNKNOWN = 0, MEDIA_VIDEO = 1, MEDIA_AUDIO = 2 };

const char *media_kind_name(enum media_kind k); // "video", "audio", "unknown"; static storage

// head  the first n bytes, up to 4096 are looked at. MP4, Matroska and Ogg are told apart by the
// track or codec marks that happen to lie in them, else by brand; undecided ones count as video.
// MEDIA_UNKNOWN: no media container that we know (text, playlists, images, programs, ...).
enum media_kind media_sniff(const void *head, size_t n);
