// A demuxer that can reach the given bytes and nothing else: own I/O, no protocols, no nested
// opens, white lists of containers and codecs.
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <libavutil/dict.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "media/window.h"

#define IO_BUFFER (64 << 10)
#define PROBE_BYTES "5242880"
#define MAX_PIXELS "67108864"

static const char formats[] =
    "mov,matroska,mpegts,mpeg,avi,flv,ogg,mp3,aac,ac3,eac3,wav,w64,flac,gif";
static const char codecs[] =
    "h264,hevc,mpeg1video,mpeg2video,mpeg4,msmpeg4v1,msmpeg4v2,msmpeg4,h263,h263p,flv,vp6,vp6f,vp8,"
    "vp9,libdav1d,av1,theora,mjpeg,prores,dnxhd,dvvideo,wmv1,wmv2,gif,png,cinepak,svq1,svq3,ffv1,"
    "huffyuv,aac,mp3float,mp3,mp2float,mp2,mp1float,mp1,ac3,eac3,dca,opus,vorbis,flac,alac,amrnb,"
    "amrwb,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_u8,pcm_s8,pcm_f32le,"
    "pcm_f32be,pcm_f64le,pcm_f64be,pcm_alaw,pcm_mulaw,pcm_bluray,pcm_dvd,adpcm_ima_wav,"
    "adpcm_ima_qt,adpcm_ms,adpcm_swf,nellymoser,wmav1,wmav2,speex,qdm2,gsm,gsm_ms,"
    "subrip,srt,text,mov_text,webvtt,ass,ssa,pgssub,dvdsub,dvbsub";

enum status codec_source_read(const struct codec_source *src, int64_t at, void *dst, int64_t n,
                              const char *what, struct err *err)
{
    if (at < 0 || n > src->size - at)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: the file is cut off", what);
    for (uint8_t *to = dst; n > 0;) {
        int64_t len = MEDIA_READ_BLOCK - (src->base + at) % MEDIA_READ_BLOCK;
        if (len > n)
            len = n;
        if (src->need && !src->need(src->ud, src->base + at, len))
            return err_set(err, STATUS_UNAVAILABLE, "%s: source bytes at %lld could not be had",
                           what, (long long)at);
        ssize_t got = pread(src->fd, to, (size_t)len, src->base + at);
        if (got <= 0)
            return err_set(err, STATUS_UNAVAILABLE, "%s: %s", what,
                           got < 0 ? strerror(errno) : "the source is cut off");
        at += got;
        to += got;
        n -= got;
    }
    return STATUS_OK;
}

static int read_bytes(void *opaque, uint8_t *dst, int want)
{
    struct codec_input *in = opaque;
    const struct codec_source *s = in->src;
    int64_t left = s->size - in->pos;
    if (left <= 0)
        return AVERROR_EOF;
    if (want > left)
        want = (int)left;
    // One block at most, so that getting one never costs another that the same read needs.
    int64_t block_left = MEDIA_READ_BLOCK - (s->base + in->pos) % MEDIA_READ_BLOCK;
    if (want > block_left)
        want = (int)block_left;
    if (s->need && !in->sparse && !s->need(s->ud, s->base + in->pos, want)) {
        in->failed = true;
        in->missing = in->pos;
        return AVERROR(EIO);
    }
    ssize_t n = pread(s->fd, dst, (size_t)want, s->base + in->pos);
    if (n <= 0) {
        in->failed |= n < 0;
        return n < 0 ? AVERROR(errno) : AVERROR_EOF;
    }
    in->pos += n;
    return (int)n;
}

static int64_t seek_bytes(void *opaque, int64_t offset, int whence)
{
    struct codec_input *in = opaque;
    if (whence == AVSEEK_SIZE)
        return in->src->size;
    whence &= ~AVSEEK_FORCE;
    int64_t base = whence == SEEK_SET   ? 0
                   : whence == SEEK_CUR ? in->pos
                   : whence == SEEK_END ? in->src->size
                                        : -1;
    if (base < 0 || offset > INT64_MAX - base || base + offset < 0)
        return AVERROR(EINVAL);
    return in->pos = base + offset;
}

// Whatever a file names, it is not opened.
static int refuse_open(AVFormatContext *s, AVIOContext **pb, const char *url, int flags,
                       AVDictionary **options)
{
    (void)s, (void)pb, (void)url, (void)flags, (void)options;
    return AVERROR(EPERM);
}

enum status codec_error(const struct codec_input *in, int av, const char *what, struct err *err)
{
    if (in && in->failed)
        return err_set(err, STATUS_UNAVAILABLE, "%s: source bytes at %lld could not be had", what,
                       (long long)in->missing);
    if (av == AVERROR(ENOMEM))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", what);
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    av_strerror(av, text, sizeof(text));
    return err_set(err, STATUS_INVALID_ARGUMENT, "%s: %s", what, text);
}

static void free_io(AVIOContext *io)
{
    if (io)
        av_freep(&io->buffer);
    avio_context_free(&io);
}

AVFormatContext *codec_format_new(void *ud, int (*read)(void *ud, uint8_t *dst, int want),
                                  int64_t (*seek)(void *ud, int64_t offset, int whence))
{
    uint8_t *buffer = av_malloc(IO_BUFFER);
    AVIOContext *io =
        buffer ? avio_alloc_context(buffer, IO_BUFFER, 0, ud, read, NULL, seek) : NULL;
    AVFormatContext *f = io ? avformat_alloc_context() : NULL;
    if (!f) {
        if (!io)
            av_free(buffer);
        free_io(io);
        return NULL;
    }
    f->pb = io;
    f->flags |= AVFMT_FLAG_CUSTOM_IO;
    f->io_open = refuse_open;
    return f;
}

int codec_format_open(AVFormatContext **f, const AVInputFormat *format, AVDictionary **options)
{
    AVIOContext *io = (*f)->pb;
    int n = avformat_open_input(f, NULL, format, options);
    if (n < 0) // that frees the format's context but not our I/O
        free_io(io);
    return n;
}

void codec_format_close(AVFormatContext **f)
{
    AVIOContext *io = *f ? (*f)->pb : NULL;
    avformat_close_input(f);
    free_io(io);
}

void codec_input_close(struct codec_input *in)
{
    if (!in)
        return;
    codec_format_close(&in->fmt);
    mem_free(in);
}

static enum status open_format(struct codec_input *in, bool raw_times, struct err *err)
{
    AVDictionary *o = NULL;
    if (raw_times)
        av_dict_set(&o, "ignore_editlist", "1", 0);
    av_dict_set(&o, "format_whitelist", formats, 0);
    av_dict_set(&o, "codec_whitelist", codecs, 0);
    av_dict_set(&o, "protocol_whitelist", "", 0);
    av_dict_set(&o, "probesize", PROBE_BYTES, 0);
    av_dict_set(&o, "max_streams", "64", 0);
    av_dict_set(&o, "analyzeduration", "10000000", 0);
    int n = codec_format_open(&in->fmt, NULL, &o);
    av_dict_free(&o);
    if (n >= 0)
        return STATUS_OK;
    if (in->failed)
        return codec_error(in, n, "source", err);
    if (n == AVERROR(ENOMEM)) // also the answer to too many streams
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "the file holds more streams or larger tables than a film has");
    return err_set(err, STATUS_INVALID_ARGUMENT,
                   n == AVERROR(EINVAL) || n == AVERROR_INVALIDDATA || n == AVERROR_EOF
                       ? "this is not a film or sound file that can be read here, or it is cut off"
                       : "the file cannot be read: damaged or cut off");
}

// Facts about the streams, from a bounded look at the data.
static enum status look(struct codec_input *in, struct err *err)
{
    unsigned n = in->fmt->nb_streams;
    AVDictionary **options = mem_array(n ? n : 1, sizeof(AVDictionary *));
    if (!options)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "source: out of memory");
    for (unsigned i = 0; i < n; i++) {
        av_dict_set(&options[i], "max_pixels", MAX_PIXELS, 0);
        av_dict_set(&options[i], "threads", "1", 0);
        const AVCodecParameters *par = in->fmt->streams[i]->codecpar;
        if ((uint32_t)par->width > MEDIA_MAX_SIDE_PX || (uint32_t)par->height > MEDIA_MAX_SIDE_PX ||
            (int64_t)par->width * par->height > MEDIA_MAX_PIXELS)
            in->fmt->streams[i]->discard = AVDISCARD_ALL;
    }
    int r = avformat_find_stream_info(in->fmt, options);
    for (unsigned i = 0; i < n; i++)
        av_dict_free(&options[i]);
    mem_free(options);
    return r < 0 ? codec_error(in, r, "the file cannot be read", err) : STATUS_OK;
}

// An MP4's index says all that copying H.264 needs. A fragmented one has none at its beginning.
static bool says_all(const struct codec_input *in, int stream)
{
    if (!codec_is_mov(in) || stream < 0 || (unsigned)stream >= in->fmt->nb_streams)
        return false;
    AVStream *st = in->fmt->streams[stream];
    return st->codecpar->codec_id == AV_CODEC_ID_H264 && st->codecpar->extradata_size > 0 &&
           avformat_index_get_entries_count(st) > 0;
}

// copied: the stream that is not going to be decoded; -1: any may be.
static enum status input_open(const struct codec_source *src, bool raw_times, int copied,
                              struct codec_input **ret, struct err *err)
{
    if (src->size <= 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the file is empty");
    AUTO(codec_input_close_p) struct codec_input *in = mem_alloc(sizeof(*in));
    if (!in)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "source: out of memory");
    in->src = src;
    in->fmt = codec_format_new(in, read_bytes, seek_bytes);
    if (!in->fmt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "source: out of memory");
    enum status s = open_format(in, raw_times, err);
    if (s == STATUS_OK && !says_all(in, copied))
        s = look(in, err);
    if (s != STATUS_OK)
        return s;
    *ret = TAKE(in);
    return STATUS_OK;
}

enum status codec_input_open(const struct codec_source *src, struct codec_input **ret,
                             struct err *err)
{
    return input_open(src, false, -1, ret, err);
}

enum status codec_input_open_raw(const struct codec_source *src, struct codec_input **ret,
                                 struct err *err)
{
    return input_open(src, true, -1, ret, err);
}

enum status codec_input_open_to_copy(const struct codec_source *src, int stream,
                                     struct codec_input **ret, struct err *err)
{
    return input_open(src, false, stream, ret, err);
}

bool codec_is_mov(const struct codec_input *in)
{
    return strncmp(in->fmt->iformat->name, "mov,", 4) == 0;
}

enum status codec_decoder_open(struct codec_input *in, int stream, unsigned threads,
                               AVCodecContext **ret, struct err *err)
{
    const AVStream *st = in->fmt->streams[stream];
    const AVCodec *codec = avcodec_find_decoder(st->codecpar->codec_id);
    if (!codec)
        return err_set(err, STATUS_INVALID_ARGUMENT, "codec %s is not supported",
                       avcodec_get_name(st->codecpar->codec_id));
    AUTO(codec_context_free_p) AVCodecContext *c = avcodec_alloc_context3(codec);
    if (!c || avcodec_parameters_to_context(c, st->codecpar) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "decoder: out of memory");
    c->pkt_timebase = st->time_base;
    c->thread_count = threads > 16 ? 16 : (int)threads;
    AVDictionary *o = NULL;
    av_dict_set(&o, "codec_whitelist", codecs, 0);
    av_dict_set(&o, "max_pixels", MAX_PIXELS, 0);
    int n = avcodec_open2(c, codec, &o);
    av_dict_free(&o);
    if (n < 0)
        return codec_error(in, n, "the file's codec cannot be opened", err);
    *ret = TAKE(c);
    return STATUS_OK;
}

bool codec_is_matroska(const struct codec_input *in)
{
    return strncmp(in->fmt->iformat->name, "matroska", 8) == 0;
}

// The plan knows where the cluster of a keyframe begins; cues may be missing or thin. The second
// entry is there because the demuxer reads on behind the last one that it knows.
static void add_to_index(struct codec_input *in, int stream, int64_t ticks, int64_t offset)
{
    AVStream *st = in->fmt->streams[stream];
    for (int64_t i = 0; i < 2; i++)
        (void)av_add_index_entry(st, offset, ticks + i, 0, 0, AVINDEX_KEYFRAME);
}

enum status codec_input_seek(struct codec_input *in, int stream, enum media_seek how, int64_t ticks,
                             int64_t offset, struct err *err)
{
    int n;
    if (how == MEDIA_SEEK_BYTES && ticks != MEDIA_TIME_UNKNOWN && offset >= 0) {
        n = avformat_seek_file(in->fmt, -1, INT64_MIN, offset, INT64_MAX, AVSEEK_FLAG_BYTE);
    } else if (how == MEDIA_SEEK_TIME && ticks != MEDIA_TIME_UNKNOWN) {
        if (codec_is_matroska(in) && offset > 0)
            add_to_index(in, stream, ticks, offset);
        n = av_seek_frame(in->fmt, stream, ticks, AVSEEK_FLAG_BACKWARD);
    } else {
        // The beginning: by bytes where the format allows it, for those that cannot seek by time.
        n = av_seek_frame(in->fmt, stream, INT64_MIN / 2, AVSEEK_FLAG_BACKWARD);
        if (n < 0)
            n = avformat_seek_file(in->fmt, stream, INT64_MIN, 0, INT64_MAX, 0);
        if (n < 0)
            n = av_seek_frame(in->fmt, -1, 0, AVSEEK_FLAG_BYTE);
    }
    return n < 0 ? codec_error(in, n, "seek", err) : STATUS_OK;
}

// The last segment of the picture that begins to be decoded at least a second before `ticks`.
static const struct media_segment *
picture_before(const struct media_plan *plan, const AVStream *video, int64_t ticks, AVRational tb)
{
    const struct media_segment *best = NULL;
    int64_t before = av_rescale_q(ticks, tb, video->time_base) -
                     av_rescale_q(1, (AVRational){1, 1}, video->time_base);
    for (size_t i = 0; i < plan->video.n_segments; i++) {
        const struct media_segment *s = &plan->video.segments[i];
        if (s->seek_ticks == MEDIA_TIME_UNKNOWN || s->seek_offset <= 0 || s->seek_ticks > before)
            continue;
        if (!best || s->seek_ticks > best->seek_ticks)
            best = s;
    }
    return best;
}

enum status codec_input_seek_sound(struct codec_input *in, const struct media_plan *plan,
                                   int stream, enum media_seek how, int64_t ticks, struct err *err)
{
    const struct media_track *t = media_plan_track(plan, MEDIA_TRACK_VIDEO);
    bool by_picture = (codec_is_matroska(in) || plan->source.n_jumps) && how == MEDIA_SEEK_TIME &&
                      ticks != MEDIA_TIME_UNKNOWN;
    if (by_picture && t && t->index < in->fmt->nb_streams) {
        const AVStream *video = in->fmt->streams[t->index];
        const struct media_segment *s =
            picture_before(plan, video, ticks, in->fmt->streams[stream]->time_base);
        if (s)
            return codec_input_seek(in, t->index, plan->source.seek, s->seek_ticks, s->seek_offset,
                                    err);
    }
    if (by_picture && (t || plan->source.n_jumps))
        return codec_input_seek(in, stream, MEDIA_SEEK_NONE, MEDIA_TIME_UNKNOWN, -1, err);
    return codec_input_seek(in, stream, how, ticks, -1, err);
}
