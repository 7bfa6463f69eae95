// What the container and the streams say about themselves.
#include <string.h>

#include <libavutil/display.h>
#include <libavutil/pixdesc.h>

#include "base/str.h"
#include "codec/internal.h"

static const struct {
    const char *format; // FFmpeg's demuxer
    enum media_container container;
    const char *video_mime, *audio_mime;
} containers[] = {
    {"mov,", MEDIA_CONTAINER_MP4, "video/mp4", "audio/mp4"},
    {"matroska,", MEDIA_CONTAINER_MATROSKA, "video/x-matroska", "audio/x-matroska"},
    {"mpegts", MEDIA_CONTAINER_MPEGTS, "video/mp2t", "video/mp2t"},
    {"mpeg", MEDIA_CONTAINER_MPEGPS, "video/mpeg", "video/mpeg"},
    {"avi", MEDIA_CONTAINER_AVI, "video/x-msvideo", "video/x-msvideo"},
    {"flv", MEDIA_CONTAINER_FLV, "video/x-flv", "video/x-flv"},
    {"ogg", MEDIA_CONTAINER_OGG, "video/ogg", "audio/ogg"},
    {"mp3", MEDIA_CONTAINER_MP3, "audio/mpeg", "audio/mpeg"},
    {"aac", MEDIA_CONTAINER_ADTS, "audio/aac", "audio/aac"},
    {"ac3", MEDIA_CONTAINER_AC3, "audio/ac3", "audio/ac3"},
    {"eac3", MEDIA_CONTAINER_AC3, "audio/eac3", "audio/eac3"},
    {"wav", MEDIA_CONTAINER_WAV, "audio/wav", "audio/wav"},
    {"flac", MEDIA_CONTAINER_FLAC, "audio/flac", "audio/flac"},
};

int codec_rotation(const AVStream *st)
{
    size_t size = 0;
    const uint8_t *m = av_stream_get_side_data(st, AV_PKT_DATA_DISPLAYMATRIX, &size);
    if (!m || size < 9 * sizeof(int32_t))
        return 0;
    int32_t matrix[9];
    memcpy(matrix, m, sizeof(matrix));
    double ccw = av_display_rotation_get(matrix);
    if (!(ccw >= -360 && ccw <= 360)) // also not a number
        return 0;
    int quarter = (int)(-ccw / 90 + (ccw < 0 ? 0.5 : -0.5));
    return ((quarter % 4) + 4) % 4 * 90;
}

void codec_display_size(const AVStream *st, uint32_t *ret_w, uint32_t *ret_h)
{
    const AVCodecParameters *par = st->codecpar;
    AVRational sar =
        st->sample_aspect_ratio.num ? st->sample_aspect_ratio : par->sample_aspect_ratio;
    double w = par->width, h = par->height, ratio = sar.den > 0 ? (double)sar.num / sar.den : 1;
    if (ratio < 1.0 / 8 || ratio > 8) // none, or nonsense
        ratio = 1;
    if (ratio > 1)
        w *= ratio;
    else
        h /= ratio;
    if (w > MEDIA_MAX_SIDE_PX || h > MEDIA_MAX_SIDE_PX) {
        w = par->width;
        h = par->height;
    }
    bool turned = codec_rotation(st) % 180 != 0;
    *ret_w = (uint32_t)((turned ? h : w) + 0.5);
    *ret_h = (uint32_t)((turned ? w : h) + 0.5);
}

// Text from outside: valid UTF-8 without control characters, or nothing.
void codec_copy_text(char *dst, size_t size, const char *src)
{
    dst[0] = '\0';
    if (!src || !str_is_utf8(src, strlen(src)))
        return;
    str_copy(dst, size, src);
    for (char *c = dst; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
}

static const char *tag(const AVDictionary *d, const char *key)
{
    const AVDictionaryEntry *e = av_dict_get(d, key, NULL, 0);
    return e ? e->value : NULL;
}

static enum media_track_type track_type(const AVStream *st)
{
    if (st->disposition & AV_DISPOSITION_ATTACHED_PIC)
        return MEDIA_TRACK_PICTURE;
    switch (st->codecpar->codec_type) {
    case AVMEDIA_TYPE_VIDEO:
        return MEDIA_TRACK_VIDEO;
    case AVMEDIA_TYPE_AUDIO:
        return MEDIA_TRACK_AUDIO;
    case AVMEDIA_TYPE_SUBTITLE:
        return MEDIA_TRACK_SUBTITLE;
    default:
        return MEDIA_TRACK_OTHER;
    }
}

static struct media_rational ratio(AVRational r)
{
    struct media_rational out = {0, 1};
    (void)media_rational_reduce(r.num, r.den, INT32_MAX, &out);
    return out;
}

static uint16_t bit_depth(const AVCodecParameters *par)
{
    if (par->codec_type == AVMEDIA_TYPE_VIDEO) {
        const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(par->format);
        return d ? (uint16_t)d->comp[0].depth : 0;
    }
    int bits = par->bits_per_raw_sample ? par->bits_per_raw_sample : par->bits_per_coded_sample;
    return bits > 0 && bits <= 64 ? (uint16_t)bits : 0;
}

static int64_t at_least_0(int64_t v)
{
    return v > 0 ? v : 0;
}

static enum media_subtitle subtitle_kind(const AVStream *st)
{
    switch (st->codecpar->codec_id) {
    case AV_CODEC_ID_SUBRIP:
    case AV_CODEC_ID_TEXT:
    case AV_CODEC_ID_MOV_TEXT:
    case AV_CODEC_ID_WEBVTT:
        return MEDIA_SUBTITLE_TEXT;
    case AV_CODEC_ID_ASS:
    case AV_CODEC_ID_SSA:
        return MEDIA_SUBTITLE_STYLED;
    case AV_CODEC_ID_HDMV_PGS_SUBTITLE:
    case AV_CODEC_ID_DVD_SUBTITLE:
    case AV_CODEC_ID_DVB_SUBTITLE:
        return MEDIA_SUBTITLE_BITMAP;
    default:
        return MEDIA_SUBTITLE_NONE;
    }
}

// What text is in a track is made into WebVTT; pictures of text can only be burnt in.
static void subtitle_facts(const AVStream *st, struct media_track *t)
{
    t->subtitle = subtitle_kind(st);
    t->chosen = t->subtitle == MEDIA_SUBTITLE_TEXT || t->subtitle == MEDIA_SUBTITLE_STYLED;
}

static uint8_t color_code(int v)
{
    return v > 0 && v < 23 ? (uint8_t)v : 2; // H.273 has no more; 2: not specified
}

static void track_facts(const AVStream *st, struct media_track *t)
{
    const AVCodecParameters *par = st->codecpar;
    t->type = track_type(st);
    t->index = (uint16_t)st->index;
    codec_copy_text(t->codec, sizeof(t->codec), avcodec_get_name(par->codec_id));
    codec_copy_text(t->language, sizeof(t->language), tag(st->metadata, "language"));
    codec_copy_text(t->title, sizeof(t->title), tag(st->metadata, "title"));
    t->is_default = (st->disposition & AV_DISPOSITION_DEFAULT) != 0;
    t->is_forced = (st->disposition & AV_DISPOSITION_FORCED) != 0;
    t->is_commentary = (st->disposition & AV_DISPOSITION_COMMENT) != 0;
    t->is_hearing_impaired = (st->disposition & AV_DISPOSITION_HEARING_IMPAIRED) != 0;
    if (t->type == MEDIA_TRACK_SUBTITLE)
        subtitle_facts(st, t);
    codec_copy_text(t->profile, sizeof(t->profile),
                    avcodec_profile_name(par->codec_id, par->profile));
    bool sane = par->width >= 0 && par->height >= 0 && par->width <= MEDIA_MAX_SIDE_PX &&
                par->height <= MEDIA_MAX_SIDE_PX &&
                (int64_t)par->width * par->height <= MEDIA_MAX_PIXELS;
    t->width = sane ? (uint32_t)par->width : 0;
    t->height = sane ? (uint32_t)par->height : 0;
    t->sample_rate =
        par->sample_rate > 0 && par->sample_rate <= 1000000 ? (uint32_t)par->sample_rate : 0;
    int channels = par->ch_layout.nb_channels;
    t->channels = channels > 0 && channels <= 1024 ? (uint16_t)channels : 0;
    t->bit_depth = bit_depth(par);
    if (par->codec_type == AVMEDIA_TYPE_VIDEO) {
        t->level = par->level > 0 && par->level <= UINT16_MAX ? (uint16_t)par->level : 0;
        t->interlaced = par->field_order > AV_FIELD_PROGRESSIVE;
        t->color[0] = color_code(par->color_primaries);
        t->color[1] = color_code(par->color_trc);
        t->color[2] = color_code(par->color_space);
    }
    t->rotation = (int16_t)codec_rotation(st);
    AVRational sar =
        st->sample_aspect_ratio.num ? st->sample_aspect_ratio : par->sample_aspect_ratio;
    t->sar = ratio(sar);
    t->frame_rate = ratio(st->avg_frame_rate);
    t->bitrate_bps = at_least_0(par->bit_rate);
    if (st->duration != AV_NOPTS_VALUE)
        t->duration_us = at_least_0(av_rescale_q(st->duration, st->time_base, AV_TIME_BASE_Q));
}

static void container_facts(const struct codec_input *in, struct media_source *s, bool has_video)
{
    const char *name = in->fmt->iformat->name;
    str_copy(s->mime, sizeof(s->mime), "application/octet-stream");
    str_copy(s->container_name, sizeof(s->container_name), name);
    for (size_t i = 0; i < N_ELEMENTS(containers); i++) {
        if (!str_starts_with(name, containers[i].format))
            continue;
        s->container = containers[i].container;
        str_copy(s->mime, sizeof(s->mime),
                 has_video ? containers[i].video_mime : containers[i].audio_mime);
        break;
    }
    const char *brand = tag(in->fmt->metadata, "major_brand");
    if (s->container == MEDIA_CONTAINER_MP4 && brand && str_starts_with(brand, "qt")) {
        str_copy(s->container_name, sizeof(s->container_name), "quicktime");
        s->container = MEDIA_CONTAINER_OTHER; // browsers differ on it
        str_copy(s->mime, sizeof(s->mime), "video/quicktime");
    }
}

// The index before the data: the first of moov and mdat among the top boxes that lie in what has
// been read already.
static bool is_streamable(const struct codec_input *in)
{
    if (!codec_is_mov(in))
        return true;
    for (unsigned i = 0; i < in->fmt->nb_streams; i++) {
        AVStream *st = in->fmt->streams[i];
        if (avformat_index_get_entries_count(st) > 0) {
            const AVIndexEntry *e = avformat_index_get_entry(st, 0);
            return e->pos > 1024; // a moov of any use is larger than that
        }
    }
    return true;
}

void codec_facts(const struct codec_input *in, struct media_source *s)
{
    bool has_video = false;
    s->size_bytes = in->src->size;
    s->n_tracks = in->fmt->nb_streams < MEDIA_MAX_TRACKS ? in->fmt->nb_streams : MEDIA_MAX_TRACKS;
    for (size_t i = 0; i < s->n_tracks; i++) {
        track_facts(in->fmt->streams[i], &s->tracks[i]);
        has_video |= s->tracks[i].type == MEDIA_TRACK_VIDEO;
    }
    container_facts(in, s, has_video);
    s->streamable = is_streamable(in);
    s->bitrate_bps = at_least_0(in->fmt->bit_rate);
    codec_tags(in, s);
}
