#include "media/sniff.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/auto.h"

#define HEAD_MAX 4096

struct head {
    const uint8_t *p;
    size_t n;
};

const char *media_kind_name(enum media_kind k)
{
    switch (k) {
    case MEDIA_VIDEO:
        return "video";
    case MEDIA_AUDIO:
        return "audio";
    case MEDIA_UNKNOWN:
        break;
    }
    return "unknown";
}

static bool has_at(const struct head *h, size_t at, const void *mark, size_t n)
{
    return at <= h->n && h->n - at >= n && memcmp(h->p + at, mark, n) == 0;
}

static bool contains(const struct head *h, const char *mark)
{
    return memmem(h->p, h->n, mark, strlen(mark)) != NULL;
}

static enum media_kind mp4_kind(const struct head *h)
{
    static const char *const audio_brands[] = {"M4A ", "M4B ", "M4P "};
    for (size_t i = 0; i < N_ELEMENTS(audio_brands); i++)
        if (has_at(h, 8, audio_brands[i], 4))
            return MEDIA_AUDIO;
    if (contains(h, "vide") || contains(h, "vmhd"))
        return MEDIA_VIDEO;
    // A sound handler and the whole of moov's track list seen: nothing but sound.
    if (contains(h, "soun") && contains(h, "moov") && contains(h, "mdat"))
        return MEDIA_AUDIO;
    return MEDIA_VIDEO;
}

static enum media_kind ogg_kind(const struct head *h)
{
    if (contains(h, "\x80theora") || contains(h, "OVP80") || contains(h, "BBCD"))
        return MEDIA_VIDEO;
    return MEDIA_AUDIO;
}

static enum media_kind matroska_kind(const struct head *h)
{
    if (contains(h, "V_"))
        return MEDIA_VIDEO;
    return contains(h, "A_") ? MEDIA_AUDIO : MEDIA_VIDEO;
}

static enum media_kind riff_kind(const struct head *h)
{
    if (has_at(h, 8, "AVI ", 4))
        return MEDIA_VIDEO;
    return has_at(h, 8, "WAVE", 4) ? MEDIA_AUDIO : MEDIA_UNKNOWN;
}

static enum media_kind flv_kind(const struct head *h)
{
    return h->n > 4 && (h->p[4] & 1) ? MEDIA_VIDEO : MEDIA_AUDIO;
}

static bool is_mpegts(const struct head *h)
{
    for (size_t start = 0; start <= 4; start += 4) { // 188-byte packets, or 192 with a time stamp
        size_t step = start ? 192 : 188, n = 0;
        for (size_t at = start; at < h->n && h->p[at] == 0x47; at += step)
            n++;
        if (n >= 3 || (n > 0 && start + n * step >= h->n && h->n >= step))
            return true;
    }
    return false;
}

static enum media_kind always_video(const struct head *h)
{
    (void)h;
    return MEDIA_VIDEO;
}

static enum media_kind always_audio(const struct head *h)
{
    (void)h;
    return MEDIA_AUDIO;
}

// MPEG audio or ADTS: a frame header with no reserved value in it.
static bool is_mpeg_audio(const struct head *h)
{
    if (h->n < 4 || h->p[0] != 0xff || (h->p[1] & 0xe0) != 0xe0)
        return false;
    unsigned layer = (h->p[1] >> 1) & 3, version = (h->p[1] >> 3) & 3;
    if (layer == 0)
        return (h->p[1] & 0xf6) == 0xf0 && ((h->p[2] >> 2) & 15) < 13; // ADTS
    return version != 1 && (h->p[2] >> 4) != 15 && ((h->p[2] >> 2) & 3) != 3;
}

static const struct {
    size_t at;
    const char *mark;
    size_t n;
    enum media_kind (*kind)(const struct head *);
} marks[] = {
    {4, "ftyp", 4, mp4_kind},
    {4, "moov", 4, mp4_kind},
    {4, "mdat", 4, mp4_kind},
    {4, "wide", 4, mp4_kind},
    {4, "free", 4, mp4_kind},
    {4, "skip", 4, mp4_kind},
    {4, "styp", 4, mp4_kind},
    {0, "\x1a\x45\xdf\xa3", 4, matroska_kind},
    {0, "OggS", 4, ogg_kind},
    {0, "RIFF", 4, riff_kind},
    {0, "FLV\x01", 4, flv_kind},
    {0, "fLaC", 4, always_audio},
    {0, "ID3", 3, always_audio},
    {0, "\x0b\x77", 2, always_audio},
    {0, "RF64", 4, always_audio},
    {0, "\0\0\x01\xba", 4, always_video},
    {0, "\0\0\x01\xb3", 4, always_video},
    {0, "GIF8", 4, always_video},
};

enum media_kind media_sniff(const void *head, size_t n)
{
    struct head h = {head, n < HEAD_MAX ? n : HEAD_MAX};
    for (size_t i = 0; i < N_ELEMENTS(marks); i++)
        if (has_at(&h, marks[i].at, marks[i].mark, marks[i].n))
            return marks[i].kind(&h);
    if (is_mpegts(&h))
        return MEDIA_VIDEO;
    return is_mpeg_audio(&h) ? MEDIA_AUDIO : MEDIA_UNKNOWN;
}
