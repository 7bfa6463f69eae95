// Sound from generated files to decoded segments: exact where it can be, whole where it must be.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "media/image.h"
#include "media/loudness.h"
#include "support/media.h"

#define RATE MEDIA_AUDIO_RATE

// ---- a source, its plan, its segments ----

struct song {
    struct codec_source src;
    struct media_plan *plan;
    int32_t gain_mdb; // of normalised renditions
};

static struct song open_song(const char *args, const char *suffix)
{
    struct song s = {0};
    struct stat st;
    struct err err = ERR_INIT;
    s.src.fd = test_media_make(args, suffix);
    if (s.src.fd < 0)
        fail_msg("ffmpeg made nothing of %s", args);
    assert_int_equal(fstat(s.src.fd, &st), 0);
    s.src.size = st.st_size;
    if (codec_probe(&s.src, NULL, &s.plan, &err) != STATUS_OK)
        fail_msg("%s: %s", suffix, err.msg);
    return s;
}

static void close_song(struct song *s)
{
    media_plan_free(s->plan);
    close(s->src.fd);
}

static size_t rendition(const struct song *s, const char *id)
{
    int r = media_plan_find(s->plan, id);
    if (r < 0)
        fail_msg("the plan has no %s", id);
    return (size_t)r;
}

struct made {
    struct buf bytes; // in the order that they came
    uint64_t hash[16][MEDIA_MAX_RENDITIONS];
};

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct made *m = ud;
    uint64_t h = 1469598103934665603U;
    (void)err;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 1099511628211U;
    assert_true(out->segment < N_ELEMENTS(m->hash));
    m->hash[out->segment][out->rendition] = h;
    buf_append(&m->bytes, bytes, n);
    return STATUS_OK;
}

static void make(const struct song *s, const uint8_t *renditions, uint32_t n_renditions,
                 uint32_t first, uint32_t n, struct made *m)
{
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = s->src.size,
                           .threads = 1,
                           .gain_mdb = s->gain_mdb,
                           .first_segment = first,
                           .n_segments = n,
                           .n_renditions = n_renditions};
    memcpy(t.renditions, renditions, n_renditions);
    struct codec_sink sink = {.segment = keep, .ud = m};
    struct err err = ERR_INIT;
    if (codec_encode(&s->src, s->plan, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

// ---- playing what was made ----

struct heard {
    float *side[MEDIA_MAX_CHANNELS];
    int64_t n;
    int channels, bits;
};

static void put(struct heard *h, const AVFrame *f, AVRational tb)
{
    int64_t at = av_rescale_q(f->best_effort_timestamp, tb, (AVRational){1, RATE});
    h->channels = f->ch_layout.nb_channels;
    for (int i = 0; i < f->nb_samples; i++) {
        for (int c = 0; c < h->channels && at + i >= 0 && at + i < h->n; c++) {
            size_t k = (size_t)(i * h->channels + c);
            float v = f->format == AV_SAMPLE_FMT_FLTP  ? ((const float *)(void *)f->data[c])[i]
                      : f->format == AV_SAMPLE_FMT_FLT ? ((const float *)(void *)f->data[0])[k]
                      : f->format == AV_SAMPLE_FMT_S16
                          ? (float)((const int16_t *)(void *)f->data[0])[k] / 32768
                          : (float)(((const int32_t *)(void *)f->data[0])[k] / 256) / 8388608;
            h->side[c][at + i] = v;
        }
    }
}

static void decode(AVFormatContext *fmt, struct heard *h)
{
    const AVStream *st = fmt->streams[0];
    AVCodecContext *dec = avcodec_alloc_context3(avcodec_find_decoder(st->codecpar->codec_id));
    AVPacket *pkt = av_packet_alloc();
    AVFrame *f = av_frame_alloc();
    assert_true(dec && pkt && f);
    assert_true(avcodec_parameters_to_context(dec, st->codecpar) >= 0);
    dec->pkt_timebase = st->time_base;
    assert_int_equal(avcodec_open2(dec, NULL, NULL), 0);
    for (bool more = true; more;) {
        more = av_read_frame(fmt, pkt) >= 0;
        assert_int_equal(avcodec_send_packet(dec, more ? pkt : NULL), 0);
        av_packet_unref(pkt);
        while (avcodec_receive_frame(dec, f) >= 0)
            put(h, f, st->time_base);
    }
    h->bits = st->codecpar->bits_per_raw_sample;
    av_frame_free(&f);
    av_packet_free(&pkt);
    avcodec_free_context(&dec);
}

// The whole of a rendition, as a file.
static int make_file(const struct song *s, const char *id)
{
    size_t r = rendition(s, id);
    struct made m = {.bytes = {0}};
    buf_init(&m.bytes, 64 << 20);
    buf_append(&m.bytes, s->plan->renditions[r].init, s->plan->renditions[r].init_len);
    make(s, &(uint8_t){(uint8_t)r}, 1, 0, (uint32_t)s->plan->audio.n_segments, &m);
    int fd = memfd_create("rendition", MFD_CLOEXEC);
    assert_int_equal(write(fd, m.bytes.data, m.bytes.len), (ssize_t)m.bytes.len);
    buf_done(&m.bytes);
    return fd;
}

// The whole of a rendition, as a player hears it.
static struct heard play(const struct song *s, const char *id)
{
    char path[32];
    struct heard h = {.n = media_plan_samples(s->plan)};
    for (int c = 0; c < MEDIA_MAX_CHANNELS; c++)
        assert_non_null(h.side[c] = mem_array((size_t)h.n, sizeof(float)));
    int fd = make_file(s, id);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    AVFormatContext *fmt = NULL;
    assert_int_equal(avformat_open_input(&fmt, path, NULL, NULL), 0);
    assert_true(avformat_find_stream_info(fmt, NULL) >= 0);
    decode(fmt, &h);
    avformat_close_input(&fmt);
    close(fd);
    return h;
}

static void heard_done(struct heard *h)
{
    for (int c = 0; c < MEDIA_MAX_CHANNELS; c++)
        mem_free(h->side[c]);
}

// ---- exact ----

#define NOISE(seconds)                                                                             \
    "-f lavfi -i anoisesrc=r=48000:d=" seconds ":a=0.9:seed=1 -f lavfi -i "                        \
    "anoisesrc=r=48000:d=" seconds ":a=0.9:seed=2 -filter_complex [0][1]amerge -ac 2 "

// The samples of a WAV file whose data end with it.
static void check_exact(const struct song *s, const struct heard *h, int bits)
{
    size_t n = (size_t)h->n * 2, width = (size_t)bits / 8, bad = 0;
    uint8_t *pcm = mem_alloc(n * width);
    assert_non_null(pcm);
    assert_int_equal(pread(s->src.fd, pcm, n * width, s->src.size - (off_t)(n * width)),
                     (ssize_t)(n * width));
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = pcm + i * width;
        int32_t v =
            bits == 16
                ? (int16_t)(p[0] | p[1] << 8)
                : (int32_t)((uint32_t)p[0] << 8 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 24) /
                      256;
        bad += h->side[i % 2][i / 2] * (float)(1 << (bits - 1)) != (float)v;
    }
    mem_free(pcm);
    assert_int_equal(bad, 0);
}

static void test_flac_is_the_source_to_the_sample(void **state)
{
    (void)state;
    static const struct {
        const char *args;
        int bits;
    } rows[] = {{NOISE("5") "-c:a pcm_s16le", 16}, {NOISE("5") "-c:a pcm_s24le", 24}};
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct song s = open_song(rows[i].args, ".wav");
        struct heard h = play(&s, "flac");
        assert_int_equal(h.n, 5 * RATE);
        assert_int_equal(h.bits, rows[i].bits);
        check_exact(&s, &h, rows[i].bits);
        heard_done(&h);
        close_song(&s);
    }
}

// ---- gapless ----

#define HZ 440
#define AMPLITUDE 0.125 // of ffmpeg's sine
#define FIRST 150001    // samples of the first part, on no encoder's frame boundary
#define ALL 288000

static double sine_at(int64_t n)
{
    return AMPLITUDE * sin(2 * M_PI * HZ * (double)n / RATE);
}

// Most that a part differs from the sine, which it begins at `from`, but for `edge` samples at both
// ends.
static double worst(const struct heard *h, int64_t from, int64_t edge)
{
    double most = 0;
    for (int64_t i = edge; i < h->n - edge; i++)
        most = fmax(most, fabs((double)h->side[0][i] - sine_at(from + i)));
    return most;
}

static struct song part(const char *codec, const char *suffix, int from, int to)
{
    char args[256];
    snprintf(args, sizeof(args),
             "-f lavfi -i sine=frequency=%d:sample_rate=48000:duration=6 -af "
             "atrim=start_sample=%d:end_sample=%d,asetpts=N -c:a %s",
             HZ, from, to, codec);
    return open_song(args, suffix);
}

static void test_songs_follow_one_another_without_a_gap(void **state)
{
    (void)state;
    static const struct {
        const char *codec, *suffix;
        int edge;     // where a lossy one is off, because the sound begins and ends at once
        int n_off;    // MP4 tells the length in milliseconds
        double error; // a shift by three samples has 0.02
    } rows[] = {
        {"pcm_s16le", ".wav", 0, 0, 0.0001},   {"flac", ".flac", 0, 0, 0.0001},
        {"alac", ".m4a", 0, 0, 0.0001},        {"aac", ".m4a", 1024, 48, 0.02},
        {"libmp3lame", ".mp3", 1152, 0, 0.02}, {"libopus", ".opus", 960, 0, 0.02},
        {"libvorbis", ".ogg", 1024, 0, 0.02},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        const int from[2] = {0, FIRST}, to[2] = {FIRST, ALL};
        for (size_t k = 0; k < 2; k++) {
            struct song s = part(rows[i].codec, rows[i].suffix, from[k], to[k]);
            struct heard h = play(&s, "flac");
            double off = worst(&h, from[k], rows[i].edge);
            if (llabs(h.n - (to[k] - from[k])) > rows[i].n_off || off > rows[i].error)
                fail_msg("%s: %lld samples of %d, at most %.4f off", rows[i].codec, (long long)h.n,
                         to[k] - from[k], off);
            heard_done(&h);
            close_song(&s);
        }
    }
}

static void test_every_rendition_is_in_time_across_joins(void **state)
{
    (void)state;
    static const char *const ids[] = {"a64", "a128", "a256", "o128", "flac"};
    struct song s = part("pcm_s16le", ".wav", 0, ALL);
    assert_true(s.plan->audio.n_segments > 2);
    for (size_t i = 0; i < N_ELEMENTS(ids); i++) {
        struct heard h = play(&s, ids[i]);
        double off = worst(&h, 0, 1024);
        if (off > 0.05) // what 64 kbit/s leave of it; a segment out of time has twice the amplitude
            fail_msg("%s is up to %.4f off", ids[i], off);
        heard_done(&h);
    }
    close_song(&s);
}

// ---- tracks ----

static void test_tracks_and_channels_have_bytes_of_their_own_in_any_task(void **state)
{
    (void)state;
    struct song s = open_song(
        "-f lavfi -i anoisesrc=r=48000:d=5:seed=3 -f lavfi -i sine=300:d=5:sample_rate=44100 -map "
        "0 "
        "-map 1 -filter:a:0 pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0 -c:a:0 flac -c:a:1 aac "
        "-metadata:s:a:0 language=eng -metadata:s:a:1 language=spa -metadata:s:a:1 title=Voz",
        ".mkv");
    const struct media_track *t = s.plan->source.tracks;
    assert_true(t[0].chosen && t[1].chosen);
    assert_string_equal(t[1].language, "spa");
    assert_string_equal(t[1].title, "Voz");
    assert_false(s.plan->renditions[rendition(&s, "a128-1")].lazy);
    assert_true(s.plan->renditions[rendition(&s, "a384")].lazy);
    assert_int_equal(s.plan->renditions[rendition(&s, "a384")].channels, 6);
    struct made whole = {.bytes = {0}}, alone = {.bytes = {0}};
    buf_init(&whole.bytes, 64 << 20);
    buf_init(&alone.bytes, 64 << 20);
    uint8_t all[MEDIA_MAX_RENDITIONS];
    uint32_t n = (uint32_t)s.plan->n_renditions, n_segments = (uint32_t)s.plan->audio.n_segments;
    for (uint32_t i = 0; i < n; i++)
        all[i] = (uint8_t)i;
    make(&s, all, n, 0, n_segments, &whole);
    for (uint32_t k = 0; k < n_segments; k++)
        for (uint32_t i = 0; i < n; i++)
            make(&s, &all[i], 1, k, 1, &alone);
    assert_memory_equal(whole.hash, alone.hash, sizeof(whole.hash));
    buf_done(&whole.bytes);
    buf_done(&alone.bytes);
    close_song(&s);
}

static void test_a_rate_that_changes_midway_goes_on_in_time(void **state)
{
    (void)state;
    // ADTS says its rate in every frame: two recordings after one another.
    int parts[2] = {test_media_make("-f lavfi -i sine=440:d=3:sample_rate=44100 -c:a aac", ".aac"),
                    test_media_make("-f lavfi -i sine=440:d=3:sample_rate=48000 -c:a aac", ".aac")};
    int fd = memfd_create("joined", MFD_CLOEXEC);
    char block[4096];
    ssize_t got;
    for (size_t i = 0; i < 2; i++) {
        assert_true(parts[i] >= 0);
        while ((got = read(parts[i], block, sizeof(block))) > 0)
            assert_int_equal(write(fd, block, (size_t)got), got);
        close(parts[i]);
    }
    struct stat st;
    struct err err = ERR_INIT;
    assert_int_equal(fstat(fd, &st), 0);
    struct song s = {.src = {.fd = fd, .size = st.st_size}};
    if (codec_probe(&s.src, NULL, &s.plan, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    struct heard h = play(&s, "flac");
    double quiet = 0, loud = 0; // a quarter of a second in the middle of each part
    for (int64_t i = 0; i < RATE / 4; i++) {
        loud = fmax(loud, fabs((double)h.side[0][RATE * 3 / 2 + i]));
        quiet = fmax(quiet, fabs((double)h.side[0][RATE * 9 / 2 + i]));
    }
    assert_true(loud > AMPLITUDE * 0.8 && loud < AMPLITUDE * 1.3);
    assert_true(quiet > AMPLITUDE * 0.8 && quiet < AMPLITUDE * 1.3);
    heard_done(&h);
    close_song(&s);
}

// ---- channels ----

// What one sample of 1 in those channels (bits) becomes.
static void mix(AVChannelLayout from, unsigned channels, int n_out, float out[6])
{
    struct SwrContext *swr = NULL;
    struct err err = ERR_INIT;
    float in[64], one[6] = {0};
    float *planes[6];
    for (int c = 0; c < from.nb_channels; c++)
        in[c] = channels >> c & 1 ? 1 : 0;
    for (int c = 0; c < 6; c++)
        planes[c] = &one[c];
    if (codec_mix_open(&swr, &from, AV_SAMPLE_FMT_FLT, RATE, n_out, RATE, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    const uint8_t *data = (const uint8_t *)in;
    assert_int_equal(swr_convert(swr, (uint8_t **)planes, 1, &data, 1), 1);
    memcpy(out, one, sizeof(one));
    swr_free(&swr);
}

static void test_downmix_keeps_the_balance_and_never_clips(void **state)
{
    (void)state;
    const AVChannelLayout mono = AV_CHANNEL_LAYOUT_MONO, five = AV_CHANNEL_LAYOUT_5POINT1,
                          seven = AV_CHANNEL_LAYOUT_7POINT1;
    static const float all_down = 1 / (1 + 2 * 0.70710678F);
    float out[6];
    mix(mono, 1, 2, out);
    assert_float_equal(out[0], 1, 1e-6F);
    assert_float_equal(out[1], 1, 1e-6F);
    mix(five, 1, 2, out); // front left
    assert_float_equal(out[0], all_down, 1e-5F);
    assert_float_equal(out[1], 0, 1e-6F);
    mix(five, 4, 2, out); // the centre: 3 dB below the fronts, on both sides
    assert_float_equal(out[0], all_down * 0.70710678F, 1e-5F);
    assert_float_equal(out[1], all_down * 0.70710678F, 1e-5F);
    mix(five, 8, 2, out); // low frequencies
    assert_float_equal(out[0], 0, 1e-6F);
    mix(five, 0x3f, 2, out);
    assert_true(out[0] <= 1.00001F && out[0] > 0.99F);
    mix(seven, 0xff, 2, out);
    assert_true(out[0] <= 1.00001F && out[1] <= 1.00001F);
    mix(seven, 0xff, 6, out);
    for (int c = 0; c < 6; c++)
        assert_true(out[c] <= 1.00001F && out[c] > 0);
    mix(five, 4, 6, out); // kept as it is
    assert_float_equal(out[2], 1, 1e-6F);
    assert_float_equal(out[0], 0, 1e-6F);
}

// ---- tags ----

static void test_songs_tell_their_place_on_the_album(void **state)
{
    (void)state;
    static const struct {
        const char *codec, *suffix;
    } rows[] = {{"libmp3lame", ".mp3"}, {"flac", ".flac"}, {"aac", ".m4a"}, {"libvorbis", ".ogg"}};
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        char args[400];
        snprintf(args, sizeof(args),
                 "-f lavfi -i sine=d=1 -metadata title=Dos -metadata artist=Una -metadata "
                 "album=Disco -metadata album_artist=Varias -metadata genre=Folk -metadata "
                 "date=1999 -metadata track=2/9 -metadata disc=1/2 -c:a %s",
                 rows[i].codec);
        struct song s = open_song(args, rows[i].suffix);
        const struct media_source *m = &s.plan->source;
        assert_string_equal(m->title, "Dos");
        assert_string_equal(m->artist, "Una");
        assert_string_equal(m->album, "Disco");
        assert_string_equal(m->album_artist, "Varias");
        assert_string_equal(m->genre, "Folk");
        assert_string_equal(m->date, "1999");
        assert_int_equal(m->track_number, 2);
        assert_int_equal(m->n_album_tracks, 9);
        assert_int_equal(m->disc_number, 1);
        assert_int_equal(m->n_discs, 2);
        close_song(&s);
    }
}

// ---- waveform, loudness ----

struct text {
    char s[32768];
    struct media_loudness loudness;
    int n_loudness;
};

static enum status keep_text(void *ud, const struct media_segment_out *out, const void *bytes,
                             size_t n, struct err *err)
{
    struct text *t = ud;
    if (out->rendition == MEDIA_IMAGE_LOUDNESS) {
        t->n_loudness++;
        return media_loudness_parse(bytes, n, &t->loudness, err);
    }
    assert_int_equal(out->rendition, MEDIA_IMAGE_WAVEFORM);
    assert_true(media_image_is_sane(bytes, n) && n < sizeof(t->s));
    memcpy(t->s, bytes, n);
    t->s[n] = '\0';
    return STATUS_OK;
}

static double field(const struct text *t, const char *name)
{
    const char *at = strstr(t->s, name);
    assert_non_null(at);
    return strtod(at + strlen(name) + 2, NULL);
}

static void measure(const struct song *s, struct text *ret)
{
    struct media_task task = {.kind = MEDIA_TASK_MEASURE,
                              .source_size = s->src.size,
                              .threads = 1,
                              .n_segments = 1,
                              .n_renditions = 1,
                              .renditions = {MEDIA_IMAGE_LOUDNESS, MEDIA_IMAGE_WAVEFORM}};
    task.n_renditions += media_image_is_planned(s->plan, MEDIA_IMAGE_WAVEFORM);
    struct codec_sink sink = {.segment = keep_text, .ud = ret};
    struct err err = ERR_INIT;
    *ret = (struct text){.n_loudness = 0};
    if (codec_measure(&s->src, s->plan, &task, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(ret->n_loudness, 1);
}

static void test_loudness_and_waveform_are_those_of_the_song(void **state)
{
    (void)state;
    // EBU Tech 3341, cases 1 and 3: a steady tone, and a tone with quiet parts, which do not count.
    static const struct {
        const char *args;
        double lufs;
    } rows[] = {
        {"-f lavfi -i sine=1000:d=20:sample_rate=48000 -c:a pcm_s16le", -18.06},
        {"-f lavfi -i sine=1000:d=40:sample_rate=48000 -af "
         "volume=0.1:enable='between(t,0,10)+between(t,30,40)' -c:a pcm_s16le",
         -18.06},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct song s = open_song(rows[i].args, ".wav");
        struct text t;
        measure(&s, &t);
        double l = field(&t, "integrated_lufs"), peak = field(&t, "true_peak_dbtp");
        if (fabs(l - rows[i].lufs) > 0.1 || fabs(peak + 18.06) > 0.3)
            fail_msg("%.2f LUFS, %.2f dBTP", l, peak);
        assert_true(i ? field(&t, "range_lu") > 15 : field(&t, "range_lu") < 0.1);
        double length = field(&t, "\"length");
        assert_true(length > 1700 && length <= 1800);
        assert_non_null(strstr(t.s, "-16,16,-16,16")); // an eighth of 127
        assert_true(fabs(t.loudness.integrated_mlufs / 1000.0 - l) < 0.001);
        assert_true(fabs(t.loudness.true_peak_mdb / 1000.0 - peak) < 0.001);
        close_song(&s);
    }
}

static void test_cover_of_a_strange_kind_does_not_cost_the_waveform(void **state)
{
    (void)state;
    struct song s = open_song("-f lavfi -i sine=d=1:sample_rate=48000 -f lavfi -i "
                              "color=size=32x32:duration=0.04 -map 0 -map 1 -c:v bmp -c:a "
                              "libmp3lame -disposition:v attached_pic",
                              ".mp3");
    struct text t;
    struct media_task task = {.kind = MEDIA_TASK_IMAGES,
                              .source_size = s.src.size,
                              .threads = 1,
                              .n_segments = 1,
                              .n_renditions = 1,
                              .renditions = {MEDIA_IMAGE_POSTER}};
    struct codec_sink sink = {.segment = keep_text, .ud = &t};
    struct err err = ERR_INIT;
    assert_true(media_image_is_planned(s.plan, MEDIA_IMAGE_POSTER));
    if (codec_images(&s.src, s.plan, &task, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    measure(&s, &t);
    assert_true(field(&t, "\"length") > 0);
    close_song(&s);
}

// Measure, make the normalised rendition, measure that.
static void normalise(struct song *s, struct media_loudness *ret_before,
                      struct media_loudness *ret_after)
{
    struct text t;
    struct err err = ERR_INIT;
    measure(s, &t);
    *ret_before = t.loudness;
    s->gain_mdb = media_loudness_gain_mdb(&t.loudness);
    struct song made = {.src = {.fd = make_file(s, "a128n")}};
    struct stat st;
    assert_int_equal(fstat(made.src.fd, &st), 0);
    made.src.size = st.st_size;
    assert_int_equal(codec_probe(&made.src, NULL, &made.plan, &err), STATUS_OK);
    measure(&made, &t);
    *ret_after = t.loudness;
    close_song(&made);
}

static void test_normalised_sound_is_as_loud_as_it_says(void **state)
{
    (void)state;
    static const struct {
        const char *args, *suffix;
        int32_t mlufs;
    } rows[] = {
        {"-f lavfi -i sine=1000:d=12 -af volume=-12dB -c:a pcm_s16le", ".wav", -30060},
        {"-f lavfi -i sine=1000:d=12 -af volume=15dB -c:a pcm_s16le", ".wav", -3060},
        {"-f lavfi -i testsrc=s=64x64:r=5:d=6 -f lavfi -i sine=1000:d=6 -af volume=-12dB -c:v "
         "mpeg4 -c:a flac",
         ".mkv", -30060},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct song s = open_song(rows[i].args, rows[i].suffix);
        struct media_loudness before, after;
        assert_true(s.plan->renditions[rendition(&s, "a128n")].lazy);
        normalise(&s, &before, &after);
        if (abs(before.integrated_mlufs - rows[i].mlufs) > 100 ||
            abs(after.integrated_mlufs + 16000) > 300)
            fail_msg("row %zu: %d mLUFS became %d", i, before.integrated_mlufs,
                     after.integrated_mlufs);
        close_song(&s);
    }
}

static void test_normalised_sound_keeps_its_peaks_below_full_scale(void **state)
{
    (void)state;
    struct song s = open_song("-f lavfi -i aevalsrc='0.03*sin(2000*PI*t)+"
                              "0.9*sin(2000*PI*t)*between(t,5,5.001)':d=12:s=48000 -c:a pcm_s16le",
                              ".wav");
    struct media_loudness before, after;
    normalise(&s, &before, &after);
    if (before.integrated_mlufs > -25000 || before.true_peak_mdb < -3000)
        fail_msg("%d mLUFS, %d mdBTP", before.integrated_mlufs, before.true_peak_mdb);
    assert_int_equal(s.gain_mdb, -1000 - before.true_peak_mdb);
    if (after.true_peak_mdb > -500)
        fail_msg("the peak is at %d mdBTP", after.true_peak_mdb);
    assert_true(abs(before.integrated_mlufs + s.gain_mdb - after.integrated_mlufs) < 300);
    close_song(&s);
}

static void test_silence_stays_as_it_is(void **state)
{
    (void)state;
    struct song s = open_song("-f lavfi -i anullsrc=r=48000:d=3 -c:a pcm_s16le", ".wav");
    struct media_loudness before, after;
    normalise(&s, &before, &after);
    assert_int_equal(before.integrated_mlufs, MEDIA_LOUDNESS_SILENCE);
    assert_int_equal(s.gain_mdb, 0);
    assert_int_equal(after.integrated_mlufs, MEDIA_LOUDNESS_SILENCE);
    close_song(&s);
}

// ---- FLAC frames ----

static void test_flac_frames_are_numbered_through(void **state)
{
    (void)state;
    struct song s = open_song("-f lavfi -i sine=d=20:sample_rate=48000 -c:a pcm_s16le", ".wav");
    struct heard h = play(&s, "flac"); // the decoder refuses frames whose checksums are wrong
    assert_true(worst(&h, 0, 0) < 0.0001);
    struct buf b;
    buf_init(&b, 1 << 10);
    uint8_t frame[] = {0xff, 0xf8, 0xc9, 0x18, 0x00, 0x00, 1, 2, 3, 4};
    assert_true(codec_put_flac_frame(&b, frame, sizeof(frame), 0x12345));
    static const uint8_t number[] = {0xf0, 0x92, 0x8d, 0x85};
    assert_memory_equal(b.data + 4, number, sizeof(number));
    assert_int_equal(b.len, sizeof(frame) + 3);
    frame[1] = 0xf9; // of variable size: numbers mean something else
    assert_false(codec_put_flac_frame(&b, frame, sizeof(frame), 1));
    buf_done(&b);
    heard_done(&h);
    close_song(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flac_is_the_source_to_the_sample),
        cmocka_unit_test(test_songs_follow_one_another_without_a_gap),
        cmocka_unit_test(test_every_rendition_is_in_time_across_joins),
        cmocka_unit_test(test_tracks_and_channels_have_bytes_of_their_own_in_any_task),
        cmocka_unit_test(test_a_rate_that_changes_midway_goes_on_in_time),
        cmocka_unit_test(test_downmix_keeps_the_balance_and_never_clips),
        cmocka_unit_test(test_songs_tell_their_place_on_the_album),
        cmocka_unit_test(test_loudness_and_waveform_are_those_of_the_song),
        cmocka_unit_test(test_cover_of_a_strange_kind_does_not_cost_the_waveform),
        cmocka_unit_test(test_normalised_sound_is_as_loud_as_it_says),
        cmocka_unit_test(test_normalised_sound_keeps_its_peaks_below_full_scale),
        cmocka_unit_test(test_silence_stays_as_it_is),
        cmocka_unit_test(test_flac_frames_are_numbered_through),
    };
    av_log_set_level(AV_LOG_QUIET);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
