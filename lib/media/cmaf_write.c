#include "media/cmaf.h"

#include <string.h>

#include "media/cmaf_internal.h"

size_t cmaf_begin(struct buf *b, uint32_t type)
{
    size_t at = b->len;
    buf_put_be32(b, 0);
    buf_put_be32(b, type);
    return at;
}

size_t cmaf_begin_full(struct buf *b, uint32_t type, uint8_t version, uint32_t flags)
{
    size_t at = cmaf_begin(b, type);
    buf_put_be32(b, (uint32_t)version << 24 | flags);
    return at;
}

static void set_be32(struct buf *b, size_t at, uint32_t v)
{
    if (b->failed)
        return;
    b->data[at] = (uint8_t)(v >> 24);
    b->data[at + 1] = (uint8_t)(v >> 16);
    b->data[at + 2] = (uint8_t)(v >> 8);
    b->data[at + 3] = (uint8_t)v;
}

void cmaf_end(struct buf *b, size_t at)
{
    set_be32(b, at, (uint32_t)(b->len - at));
}

void cmaf_put_zeros(struct buf *b, size_t n)
{
    for (; n > 0; n--)
        buf_put_u8(b, 0);
}

bool cmaf_is_video(const struct media_track_config *c)
{
    return media_codec_is_video(c->codec);
}

uint32_t cmaf_track_id(const struct media_track_config *c)
{
    return cmaf_is_video(c) ? MEDIA_VIDEO_TRACK : MEDIA_AUDIO_TRACK;
}

void cmaf_put_matrix(struct buf *b)
{
    static const uint32_t unity[9] = {0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000};
    for (size_t i = 0; i < N_ELEMENTS(unity); i++)
        buf_put_be32(b, unity[i]);
}

// ---- init segment ----

static void put_ftyp(struct buf *b)
{
    static const char brands[] = "iso6\0\0\0\0iso6cmfcmp41";
    size_t at = cmaf_begin(b, BOX('f', 't', 'y', 'p'));
    buf_append(b, brands, sizeof(brands) - 1);
    cmaf_end(b, at);
}

static void put_mvhd(struct buf *b)
{
    size_t at = cmaf_begin_full(b, BOX('m', 'v', 'h', 'd'), 0, 0);
    cmaf_put_zeros(b, 8);     // created, modified
    buf_put_be32(b, 1000);    // timescale
    buf_put_be32(b, 0);       // duration: in the fragments
    buf_put_be32(b, 0x10000); // rate 1
    buf_put_be16(b, 0x100);   // volume 1
    cmaf_put_zeros(b, 10);
    cmaf_put_matrix(b);
    cmaf_put_zeros(b, 24);
    buf_put_be32(b, MEDIA_AUDIO_TRACK + 1); // next track
    cmaf_end(b, at);
}

static void put_tkhd(struct buf *b, const struct media_track_config *c)
{
    size_t at = cmaf_begin_full(b, BOX('t', 'k', 'h', 'd'), 0, 3); // enabled, in movie
    cmaf_put_zeros(b, 8);
    buf_put_be32(b, cmaf_track_id(c));
    cmaf_put_zeros(b, 4 + 4 + 8 + 2 + 2); // reserved, duration, reserved, layer, group
    buf_put_be16(b, cmaf_is_video(c) ? 0 : 0x100);
    cmaf_put_zeros(b, 2);
    cmaf_put_matrix(b);
    buf_put_be32(b, c->width << 16);
    buf_put_be32(b, c->height << 16);
    cmaf_end(b, at);
}

static void put_edts(struct buf *b, uint32_t media_time)
{
    size_t at = cmaf_begin(b, BOX('e', 'd', 't', 's'));
    size_t elst = cmaf_begin_full(b, BOX('e', 'l', 's', 't'), 0, 0);
    buf_put_be32(b, 1);
    buf_put_be32(b, 0); // duration: everything that the fragments bring
    buf_put_be32(b, media_time);
    buf_put_be32(b, 0x10000);
    cmaf_end(b, elst);
    cmaf_end(b, at);
}

static void put_mdhd(struct buf *b, const struct media_track_config *c)
{
    size_t at = cmaf_begin_full(b, BOX('m', 'd', 'h', 'd'), 0, 0);
    cmaf_put_zeros(b, 8);
    buf_put_be32(b, c->timescale);
    buf_put_be32(b, 0);
    buf_put_be16(b, 0x55c4); // "und"
    buf_put_be16(b, 0);
    cmaf_end(b, at);
}

void cmaf_put_hdlr(struct buf *b, bool video)
{
    size_t at = cmaf_begin_full(b, BOX('h', 'd', 'l', 'r'), 0, 0);
    buf_put_be32(b, 0);
    buf_append(b, video ? "vide" : "soun", 4);
    cmaf_put_zeros(b, 12);
    buf_append(b, "cauce", 6);
    cmaf_end(b, at);
}

void cmaf_put_dinf(struct buf *b)
{
    size_t at = cmaf_begin(b, BOX('d', 'i', 'n', 'f'));
    size_t dref = cmaf_begin_full(b, BOX('d', 'r', 'e', 'f'), 0, 0);
    buf_put_be32(b, 1);
    size_t url = cmaf_begin_full(b, BOX('u', 'r', 'l', ' '), 0, 1); // in this file
    cmaf_end(b, url);
    cmaf_end(b, dref);
    cmaf_end(b, at);
}

// Parameter sets are in the sample entry alone, so hvc1 and not hev1.
static const struct {
    uint32_t entry, config;
} video_codes[MEDIA_N_CODECS] = {
    [MEDIA_CODEC_H264] = {BOX('a', 'v', 'c', '1'), BOX('a', 'v', 'c', 'C')},
    [MEDIA_CODEC_HEVC] = {BOX('h', 'v', 'c', '1'), BOX('h', 'v', 'c', 'C')},
    [MEDIA_CODEC_AV1] = {BOX('a', 'v', '0', '1'), BOX('a', 'v', '1', 'C')},
    [MEDIA_CODEC_VP9] = {BOX('v', 'p', '0', '9'), BOX('v', 'p', 'c', 'C')},
};

uint32_t cmaf_video_entry(enum media_codec codec)
{
    return video_codes[codec].entry;
}

uint32_t cmaf_video_config(enum media_codec codec)
{
    return video_codes[codec].config;
}

static void put_picture(struct buf *b, const struct media_track_config *c)
{
    size_t at = cmaf_begin(b, cmaf_video_entry(c->codec));
    cmaf_put_zeros(b, 6);
    buf_put_be16(b, 1); // data reference
    cmaf_put_zeros(b, 16);
    buf_put_be16(b, (uint16_t)c->width);
    buf_put_be16(b, (uint16_t)c->height);
    buf_put_be32(b, 0x480000); // 72 dpi
    buf_put_be32(b, 0x480000);
    buf_put_be32(b, 0);
    buf_put_be16(b, 1); // frames a sample
    cmaf_put_zeros(b, 32);
    buf_put_be16(b, 0x18);
    buf_put_be16(b, 0xffff);
    size_t config = cmaf_begin(b, cmaf_video_config(c->codec));
    buf_append(b, c->config, c->config_len);
    cmaf_end(b, config);
    size_t pasp = cmaf_begin(b, BOX('p', 'a', 's', 'p'));
    buf_put_be32(b, 1);
    buf_put_be32(b, 1);
    cmaf_end(b, pasp);
    cmaf_end(b, at);
}

// ES descriptor (14496-1, 7.2.6.5) with one-byte lengths; the config is at most 64 bytes.
static void put_esds(struct buf *b, const struct media_track_config *c)
{
    uint8_t n = (uint8_t)c->config_len;
    size_t at = cmaf_begin_full(b, BOX('e', 's', 'd', 's'), 0, 0);
    buf_put_u8(b, 3);
    buf_put_u8(b, (uint8_t)(3 + 2 + 13 + 2 + n + 3));
    buf_put_be16(b, MEDIA_AUDIO_TRACK);
    buf_put_u8(b, 0);
    buf_put_u8(b, 4);
    buf_put_u8(b, (uint8_t)(13 + 2 + n));
    buf_put_u8(b, 0x40); // MPEG-4 audio
    buf_put_u8(b, 0x15); // audio stream
    cmaf_put_zeros(b, 3);
    buf_put_be32(b, c->bitrate_bps);
    buf_put_be32(b, c->bitrate_bps);
    buf_put_u8(b, 5);
    buf_put_u8(b, n);
    buf_append(b, c->config, n);
    buf_put_u8(b, 6);
    buf_put_u8(b, 1);
    buf_put_u8(b, 2);
    cmaf_end(b, at);
}

// Bits of a sample that STREAMINFO tells (RFC 9639, 8.2).
static uint16_t flac_bits(const struct media_track_config *c)
{
    return c->config_len < 14 ? 16
                              : (uint16_t)(((c->config[12] & 1) << 4 | c->config[13] >> 4) + 1);
}

static void put_sound(struct buf *b, const struct media_track_config *c)
{
    bool aac = c->codec == MEDIA_CODEC_AAC, flac = c->codec == MEDIA_CODEC_FLAC;
    size_t at = cmaf_begin(b, aac    ? BOX('m', 'p', '4', 'a')
                              : flac ? BOX('f', 'L', 'a', 'C')
                                     : BOX('O', 'p', 'u', 's'));
    cmaf_put_zeros(b, 6);
    buf_put_be16(b, 1);
    cmaf_put_zeros(b, 8);
    buf_put_be16(b, (uint16_t)c->channels);
    buf_put_be16(b, flac ? flac_bits(c) : 16);
    cmaf_put_zeros(b, 4);
    buf_put_be32(b, c->sample_rate << 16);
    if (aac) {
        put_esds(b, c);
    } else if (flac) { // one metadata block, STREAMINFO, the last
        size_t dfla = cmaf_begin_full(b, BOX('d', 'f', 'L', 'a'), 0, 0);
        buf_put_be32(b, 0x80000000U | (uint32_t)c->config_len);
        buf_append(b, c->config, c->config_len);
        cmaf_end(b, dfla);
    } else {
        size_t dops = cmaf_begin(b, BOX('d', 'O', 'p', 's'));
        buf_append(b, c->config, c->config_len);
        cmaf_end(b, dops);
    }
    cmaf_end(b, at);
}

static void put_stbl(struct buf *b, const struct media_track_config *c)
{
    static const uint32_t empty[] = {BOX('s', 't', 't', 's'), BOX('s', 't', 's', 'c'),
                                     BOX('s', 't', 'c', 'o')};
    size_t at = cmaf_begin(b, BOX('s', 't', 'b', 'l'));
    size_t stsd = cmaf_begin_full(b, BOX('s', 't', 's', 'd'), 0, 0);
    buf_put_be32(b, 1);
    if (cmaf_is_video(c))
        put_picture(b, c);
    else
        put_sound(b, c);
    cmaf_end(b, stsd);
    for (size_t i = 0; i < N_ELEMENTS(empty); i++) {
        size_t box = cmaf_begin_full(b, empty[i], 0, 0);
        buf_put_be32(b, 0);
        cmaf_end(b, box);
    }
    size_t stsz = cmaf_begin_full(b, BOX('s', 't', 's', 'z'), 0, 0);
    cmaf_put_zeros(b, 8);
    cmaf_end(b, stsz);
    cmaf_end(b, at);
}

static void put_minf(struct buf *b, const struct media_track_config *c)
{
    size_t at = cmaf_begin(b, BOX('m', 'i', 'n', 'f'));
    bool video = cmaf_is_video(c);
    size_t head = cmaf_begin_full(b, video ? BOX('v', 'm', 'h', 'd') : BOX('s', 'm', 'h', 'd'), 0,
                                  video ? 1 : 0);
    cmaf_put_zeros(b, video ? 8 : 4);
    cmaf_end(b, head);
    cmaf_put_dinf(b);
    put_stbl(b, c);
    cmaf_end(b, at);
}

static void put_trak(struct buf *b, const struct cmaf_track *t)
{
    size_t at = cmaf_begin(b, BOX('t', 'r', 'a', 'k'));
    put_tkhd(b, t->config);
    if (t->edit_time)
        put_edts(b, t->edit_time);
    size_t mdia = cmaf_begin(b, BOX('m', 'd', 'i', 'a'));
    put_mdhd(b, t->config);
    cmaf_put_hdlr(b, cmaf_is_video(t->config));
    put_minf(b, t->config);
    cmaf_end(b, mdia);
    cmaf_end(b, at);
}

void cmaf_put_header(struct buf *b, const struct cmaf_track *tracks, size_t n)
{
    put_ftyp(b);
    size_t at = cmaf_begin(b, BOX('m', 'o', 'o', 'v'));
    put_mvhd(b);
    for (size_t i = 0; i < n; i++)
        put_trak(b, &tracks[i]);
    size_t mvex = cmaf_begin(b, BOX('m', 'v', 'e', 'x'));
    for (size_t i = 0; i < n; i++) {
        size_t trex = cmaf_begin_full(b, BOX('t', 'r', 'e', 'x'), 0, 0);
        buf_put_be32(b, cmaf_track_id(tracks[i].config));
        buf_put_be32(b, 1);
        cmaf_put_zeros(b, 12);
        cmaf_end(b, trex);
    }
    cmaf_end(b, mvex);
    cmaf_end(b, at);
}

static bool config_is_sound(const struct media_track_config *c)
{
    if (c->timescale == 0 || !c->config || c->config_len < 2)
        return false;
    if (cmaf_is_video(c))
        return c->config_len <= 2048 && c->width <= MEDIA_MAX_SIDE_PX &&
               c->height <= MEDIA_MAX_SIDE_PX && c->width && c->height;
    bool fits =
        c->codec == MEDIA_CODEC_FLAC
            ? c->config_len == MEDIA_FLAC_STREAMINFO
            : (c->codec == MEDIA_CODEC_AAC || c->codec == MEDIA_CODEC_OPUS) && c->config_len <= 64;
    return fits && c->channels >= 1 && c->channels <= 8 && c->sample_rate <= UINT16_MAX;
}

enum status media_cmaf_init(const struct media_track_config *c, struct buf *ret, struct err *err)
{
    if (!config_is_sound(c))
        return err_set(err, STATUS_INVALID_ARGUMENT, "init segment: bad track settings");
    cmaf_put_header(ret, &(struct cmaf_track){c, c->priming}, 1);
    if (ret->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "init segment: buffer is full");
    return STATUS_OK;
}

// ---- fragment ----

// Sound: every packet lasts the same and is a sync sample, so trun needs sizes alone. Video keeps
// all fields, so that media_cmaf_adapt() finds offsets to change even in a segment of one frame.
static bool is_uniform(uint32_t track_id, const struct media_sample *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!s[i].sync || s[i].cts || s[i].duration != s[0].duration)
            return false;
    return track_id == MEDIA_AUDIO_TRACK;
}

static void put_trun(struct buf *b, const struct media_sample *s, size_t n, bool uniform,
                     size_t *ret_offset_at)
{
    uint32_t flags = TRUN_OFFSET | TRUN_SIZE;
    if (!uniform)
        flags |= TRUN_DURATION | TRUN_FLAGS | TRUN_CTS;
    size_t at = cmaf_begin_full(b, BOX('t', 'r', 'u', 'n'), 1, flags);
    buf_put_be32(b, (uint32_t)n);
    *ret_offset_at = b->len;
    buf_put_be32(b, 0);
    for (size_t i = 0; i < n; i++) {
        if (!uniform)
            buf_put_be32(b, s[i].duration);
        buf_put_be32(b, s[i].size);
        if (!uniform) {
            buf_put_be32(b, s[i].sync ? FLAGS_SYNC : FLAGS_NON_SYNC);
            buf_put_be32(b, (uint32_t)s[i].cts);
        }
    }
    cmaf_end(b, at);
}

static void put_traf(struct buf *b, uint32_t track_id, int64_t base_time,
                     const struct media_sample *s, size_t n, size_t *ret_offset_at)
{
    bool uniform = is_uniform(track_id, s, n);
    size_t at = cmaf_begin(b, BOX('t', 'r', 'a', 'f'));
    size_t tfhd = cmaf_begin_full(b, BOX('t', 'f', 'h', 'd'), 0,
                                  TFHD_BASE_IS_MOOF |
                                      (uniform ? TFHD_DEFAULT_DURATION | TFHD_DEFAULT_FLAGS : 0));
    buf_put_be32(b, track_id);
    if (uniform) {
        buf_put_be32(b, s[0].duration);
        buf_put_be32(b, FLAGS_SYNC);
    }
    cmaf_end(b, tfhd);
    size_t tfdt = cmaf_begin_full(b, BOX('t', 'f', 'd', 't'), 1, 0);
    buf_put_be64(b, (uint64_t)base_time);
    cmaf_end(b, tfdt);
    put_trun(b, s, n, uniform, ret_offset_at);
    cmaf_end(b, at);
}

enum status media_cmaf_fragment(uint32_t sequence, uint32_t track_id, int64_t base_time,
                                const struct media_sample *samples, size_t n, struct buf *ret,
                                struct err *err)
{
    static const char brands[] = "msdh\0\0\0\0msdhiso6cmfs";
    if (n == 0 || n > MEDIA_MAX_FRAMES || base_time < 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "fragment: no samples or a negative time");
    size_t styp = cmaf_begin(ret, BOX('s', 't', 'y', 'p'));
    buf_append(ret, brands, sizeof(brands) - 1);
    cmaf_end(ret, styp);
    size_t moof = cmaf_begin(ret, BOX('m', 'o', 'o', 'f')), offset_at = 0;
    size_t mfhd = cmaf_begin_full(ret, BOX('m', 'f', 'h', 'd'), 0, 0);
    buf_put_be32(ret, sequence);
    cmaf_end(ret, mfhd);
    put_traf(ret, track_id, base_time, samples, n, &offset_at);
    cmaf_end(ret, moof);
    set_be32(ret, offset_at, (uint32_t)(ret->len - moof + 8));
    size_t mdat = cmaf_begin(ret, BOX('m', 'd', 'a', 't'));
    for (size_t i = 0; i < n; i++)
        buf_append(ret, samples[i].data, samples[i].size);
    cmaf_end(ret, mdat);
    if (ret->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "fragment: over %zu bytes or out of memory",
                       ret->limit);
    return STATUS_OK;
}
