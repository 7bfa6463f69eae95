#pragma once
// Which of a plan's renditions a master playlist or manifest lists. An offer has a name, made of
// its parts and fit for an address: "hevc-h264-aac-copy-p720". The empty name is what every player
// can use.
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "media/decide.h"
#include "media/plan.h"

#define MEDIA_OFFER_SIZE 96 // of a name

struct media_offer {
    uint32_t codecs;       // bits 1 << media_codec; none of a kind: H.264, AAC
    uint32_t max_height;   // the shorter side; 0: no limit
    uint32_t max_kbps;     // picture and sound; 0: no limit
    uint8_t default_track; // 1 + index of the source's sound track that plays first; 0: its own
    uint8_t burn;          // 1 + index of the subtitle track in the picture; 0: none
    bool copies;           // the picture's packets as the source has them, packed anew
    bool sound_copies;     // the sound's
    bool surround;         // more than two channels
    bool normalised;       // even loudness instead of the source's
    bool rates;            // sound at every rate, and without pictures too
};
// dst holds MEDIA_OFFER_SIZE bytes.
void media_offer_name(const struct media_offer *o, char *dst);
// errors: INVALID_ARGUMENT for what media_offer_name() does not write
enum status media_offer_parse(const char *name, struct media_offer *ret,
                              struct err *err) MUST_CHECK;
// What has to be on the list for what was decided.
void media_offer_for(const struct media_plan *p, const struct media_profile *profile,
                     const struct media_limits *limits, const struct media_decision *d,
                     struct media_offer *ret);
// Is that rendition on the list? The lowest picture always is.
bool media_offer_has(const struct media_plan *p, const struct media_offer *o, size_t rendition);

// Renditions of sound that differ in their track alone are a family, named like the one of the
// default track: "a128" of "a128-2". dst holds sizeof(media_rendition.id) bytes.
void media_rendition_family(const struct media_rendition *r, char *dst);
