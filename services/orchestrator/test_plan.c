#include "orchestrator/test_plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "media/media.h"

static const uint8_t avcc[] = {1,   100, 0,  31, 0xff, 0xe1, 0,    4,   0x67,
                               100, 0,   31, 1,  0,    2,    0x68, 0xee};
static const uint8_t asc[] = {0x11, 0x90};
static const uint8_t dops[] = {0, 2, 1, 0x38, 0, 0, 0xbb, 0x80, 0, 0, 0};

static void set_init(struct media_rendition *r, const uint8_t *config, size_t n)
{
    bool video = r->kind == MEDIA_VIDEO;
    struct media_track_config c = {.codec = r->codec,
                                   .timescale = r->timescale,
                                   .width = r->width,
                                   .height = r->height,
                                   .channels = video ? 0 : 2,
                                   .sample_rate = video ? 0 : MEDIA_AUDIO_RATE,
                                   .priming = r->priming,
                                   .bitrate_bps = r->bitrate_bps,
                                   .config = config,
                                   .config_len = n};
    struct buf b;
    buf_init(&b, MEDIA_MAX_INIT_BYTES);
    assert_int_equal(media_cmaf_init(&c, &b, NULL), STATUS_OK);
    r->init = buf_take(&b, &r->init_len);
}

static void add_audio(struct media_plan *p, const char *id, enum media_codec codec)
{
    struct media_rendition *r = &p->renditions[p->n_renditions++];
    bool aac = codec == MEDIA_CODEC_AAC;
    snprintf(r->id, sizeof r->id, "%s", id);
    snprintf(r->codecs, sizeof r->codecs, "%s", aac ? "mp4a.40.2" : "opus");
    r->kind = MEDIA_AUDIO;
    r->codec = codec;
    r->track = p->kind == MEDIA_VIDEO;
    r->channels = 2;
    r->frame_rate = (struct media_rational){0, 1};
    r->timescale = MEDIA_AUDIO_RATE;
    r->frame_samples = aac ? 1024 : 960;
    r->priming = aac ? 1024 : 312;
    r->bitrate_bps = 128000;
    set_init(r, aac ? asc : dops, aac ? sizeof asc : sizeof dops);
}

static void add_video(struct media_plan *p, uint32_t n_frames)
{
    struct media_grid *g = &p->video;
    g->timescale = 12800;
    g->n_frames = n_frames;
    g->duration = (int64_t)n_frames * 512;
    g->frame_ticks = 512;
    assert_int_equal(media_plan_cut_video(g, NULL, 0, NULL), STATUS_OK);
    p->n_renditions = media_plan_ladder(854, 480, (struct media_rational){25, 1}, p->renditions, 5);
    for (size_t i = 0; i < p->n_renditions; i++) {
        p->renditions[i].timescale = g->timescale;
        p->renditions[i].cts_shift = 1100;
        set_init(&p->renditions[i], avcc, sizeof avcc);
    }
}

struct media_plan *test_plan(uint32_t n_frames, int64_t source_size)
{
    struct media_plan *p = media_plan_new();
    assert_non_null(p);
    bool video = n_frames > 0;
    int64_t samples = video ? (int64_t)n_frames * 1920 : 20 * 48000;
    p->kind = video ? MEDIA_VIDEO : MEDIA_AUDIO;
    snprintf(p->build, sizeof p->build, "test");
    p->source = (struct media_source){.container = MEDIA_CONTAINER_MP4,
                                      .size_bytes = source_size,
                                      .duration_us = samples * 1000000 / 48000,
                                      .bitrate_bps = 200000,
                                      .n_tracks = video ? 2 : 1};
    snprintf(p->source.mime, sizeof p->source.mime, "%s", video ? "video/mp4" : "audio/mp4");
    for (size_t i = 0; i < p->source.n_tracks; i++) {
        struct media_track *t = &p->source.tracks[i];
        bool is_video = video && i == 0;
        t->type = is_video ? MEDIA_TRACK_VIDEO : MEDIA_TRACK_AUDIO;
        t->chosen = true;
        snprintf(t->codec, sizeof t->codec, "%s", is_video ? "mpeg2video" : "aac");
        t->width = is_video ? 854 : 0;
        t->height = is_video ? 480 : 0;
        t->sar = t->frame_rate = (struct media_rational){1, 1};
    }
    if (video)
        add_video(p, n_frames);
    assert_int_equal(media_plan_cut_audio(&p->audio, samples, 1024, NULL), STATUS_OK);
    add_audio(p, "a128", MEDIA_CODEC_AAC);
    if (!video)
        add_audio(p, "o128", MEDIA_CODEC_OPUS);
    media_plan_set_bandwidth(p);
    struct err err = ERR_INIT;
    if (media_plan_check(p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return p;
}
