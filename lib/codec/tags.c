// What a song says about itself: title, artist and its place on an album, from the container or,
// where that has none (Ogg), from the first sound stream.
#include <string.h>

#include "base/str.h"
#include "codec/internal.h"

static const char *find(const struct codec_input *in, const char *key)
{
    const AVDictionaryEntry *e = av_dict_get(in->fmt->metadata, key, NULL, 0);
    for (unsigned i = 0; !e && i < in->fmt->nb_streams; i++) {
        const AVStream *st = in->fmt->streams[i];
        if (st->codecpar->codec_type == AVMEDIA_TYPE_AUDIO) {
            e = av_dict_get(st->metadata, key, NULL, 0);
            break;
        }
    }
    return e ? e->value : NULL;
}

// Digits at *s, past them; 0 when there are none or too many.
static uint16_t number(const char **s)
{
    unsigned n = 0;
    for (; **s >= '0' && **s <= '9'; (*s)++)
        n = n > UINT16_MAX ? n : n * 10 + (unsigned)(**s - '0');
    return n <= UINT16_MAX ? (uint16_t)n : 0;
}

// "3" or "3/12"; the total may also be a tag of its own.
static void place(const struct codec_input *in, const char *key, const char *total_key,
                  uint16_t *ret, uint16_t *ret_total)
{
    const char *s = find(in, key), *total = find(in, total_key);
    if (s) {
        *ret = number(&s);
        if (*s == '/' && !total)
            total = s + 1;
    }
    if (total)
        *ret_total = number(&total);
}

void codec_tags(const struct codec_input *in, struct media_source *s)
{
    codec_copy_text(s->title, sizeof(s->title), find(in, "title"));
    codec_copy_text(s->artist, sizeof(s->artist), find(in, "artist"));
    codec_copy_text(s->album, sizeof(s->album), find(in, "album"));
    codec_copy_text(s->album_artist, sizeof(s->album_artist), find(in, "album_artist"));
    codec_copy_text(s->genre, sizeof(s->genre), find(in, "genre"));
    codec_copy_text(s->date, sizeof(s->date), find(in, "date"));
    place(in, "track", "tracktotal", &s->track_number, &s->n_album_tracks);
    place(in, "disc", "disctotal", &s->disc_number, &s->n_discs);
}
