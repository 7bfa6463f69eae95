#pragma once
// Subtitles as text: WebVTT (W3C) in one plain form, which is what is stored and what is read back.
//
//   WEBVTT
//
//   00:00:01.000 --> 00:00:02.500 line:10%
//   A line of <i>text</i>
//
// Cues rise by their start; times are the timeline's; no identifiers, notes, styles or regions; the
// only tags are b, i, u, c, v, lang, ruby and rt, each closed; no line of a cue is empty.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#define MEDIA_MAX_TEXT_BYTES (4U << 20) // a whole track
#define MEDIA_MAX_CUES 32768
#define MEDIA_MAX_CUE_BYTES 4096 // of one cue as it comes in: what is longer is cut off
#define MEDIA_CUE_SETTINGS 128
#define MEDIA_MAX_TEXT_MS (INT64_C(100) * 3600 * 1000) // times of four digits are not ours

struct media_cue {
    int64_t start_ms, end_ms; // start < end
    const char *settings;     // "line:10% align:start"; settings_len bytes, may be none
    size_t settings_len;
    const char *text; // lines with '\n' between them, no '\n' at the end
    size_t text_len;
};

// ---- writing ----
// Appends text with everything taken out that is not of the plain form: unknown tags, control
// characters, empty lines. What is open is closed, what is no tag is escaped. Cleaning twice
// changes nothing.
void media_webvtt_clean(const char *text, size_t n, struct buf *ret);
// The cue settings among `settings` that are known, in dst.
void media_webvtt_clean_settings(const char *settings, size_t n, char dst[MEDIA_CUE_SETTINGS]);
// The text of an ASS event (what follows the ninth comma of its line): bold, italics and underline
// become tags, alignment and position become settings, all else that is not text goes.
//
// width, height  the script's PlayResX and PlayResY; 0: not known
void media_webvtt_from_ass(const char *text, size_t n, uint32_t width, uint32_t height,
                           struct buf *ret, char settings[MEDIA_CUE_SETTINGS]);
// A whole track of clean cues that rise by their start.
// errors  RESOURCE_EXHAUSTED: more than the buffer takes, or than MEDIA_MAX_CUES
enum status media_webvtt_write(const struct media_cue *cues, size_t n, struct buf *ret,
                               struct err *err) MUST_CHECK;

// ---- reading ----
struct media_webvtt {
    struct media_cue *cues; // their texts point into the bytes
    size_t n;
};
// The plain form and nothing else; trusts nothing.
// errors  INVALID_ARGUMENT (says where); RESOURCE_EXHAUSTED
enum status media_webvtt_parse(const void *bytes, size_t n, struct media_webvtt *ret,
                               struct err *err) MUST_CHECK;
void media_webvtt_done(struct media_webvtt *w);
bool media_webvtt_is_sane(const void *bytes, size_t n);
// An HLS segment (RFC 8216 3.5): the cues that show within [start_us, end_us), with their own
// times, under a map that says that the timeline is that of the pictures.
enum status media_webvtt_slice(const struct media_webvtt *w, int64_t start_us, int64_t end_us,
                               struct buf *ret, struct err *err) MUST_CHECK;
// The words of a cue: no tags, no escapes, one line. Appends.
void media_webvtt_plain(const struct media_cue *c, struct buf *ret);
