// Subtitles burnt into pictures: scripts and pictures of text, in films made here.
#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "codec/internal.h"

extern char **environ;

static char folder[] = "/tmp/cauce-burn-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    return mkdtemp(folder) && codec_preload(&err) == STATUS_OK ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static const char *path_of(const char *name)
{
    static char path[4][128];
    static unsigned next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof(path[0]), "%s/%s", folder, name);
    return p;
}

static struct codec_source open_file(const char *name)
{
    struct stat st;
    int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_int_equal(unlink(path_of(name)), 0);
    return (struct codec_source){.fd = fd, .size = st.st_size};
}

// args: ffmpeg's, separated by single spaces; run inside the folder.
static void run_ffmpeg(const char *args)
{
    char words[1024], *argv[80];
    size_t n = 0;
    snprintf(words, sizeof(words), "ffmpeg -y -v error -nostdin %s", args);
    for (char *save = NULL, *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[n++] = w;
    argv[n] = NULL;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, folder);
    pid_t pid;
    int status, r = posix_spawnp(&pid, "ffmpeg", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r != 0) {
        printf("[  NOTE    ] no ffmpeg to make a film with\n");
        skip();
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (status != 0)
        fail_msg("ffmpeg %s: %d", args, status);
}

static struct media_plan *probe(const struct codec_source *s)
{
    struct media_plan *p = NULL;
    struct err err = ERR_INIT;
    if (codec_probe(s, NULL, &p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return p;
}

static size_t find(const struct media_plan *p, const char *id)
{
    int i = media_plan_find(p, id);
    if (i < 0)
        fail_msg("the plan has no %s", id);
    return (size_t)i;
}

// ---- films ----

#define W 256
#define H 144

static const char script[] =
    "[Script Info]\nScriptType: v4.00+\nPlayResX: 256\nPlayResY: 144\n\n[V4+ Styles]\n"
    "Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, "
    "Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, "
    "Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\n"
    "Style: Default,No Such Font,24,&H00FFFFFF,&H000000FF,&H00000000,&H00000000,0,0,0,0,100,100,0,"
    "0,1,2,0,2,10,10,10,1\n\n[Events]\n"
    "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    // From the first segment into the second.
    "Dialogue: 0,0:00:01.00,0:00:02.52,Default,,0,0,0,,Hello\n"
    // Moving, so that its pictures depend on the time.
    "Dialogue: 0,0:00:05.00,0:00:05.60,Default,,0,0,0,,{\\move(40,72,200,72)}{\\c&H0000FF&}red\n";

static struct codec_source styled_film(void)
{
    FILE *f = fopen(path_of("a.ass"), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(script, 1, sizeof(script) - 1, f), sizeof(script) - 1);
    assert_int_equal(fclose(f), 0);
    run_ffmpeg("-f lavfi -i color=gray:s=256x144:r=25:d=12 -i a.ass -c:v mpeg4 -c:s ass -g 25 "
               "film.mkv");
    assert_int_equal(unlink(path_of("a.ass")), 0);
    return open_file("film.mkv");
}

// ---- pictures ----

static AVFrame *gray(void)
{
    AVFrame *f = av_frame_alloc();
    assert_non_null(f);
    f->format = AV_PIX_FMT_YUV420P;
    f->width = W;
    f->height = H;
    assert_int_equal(av_frame_get_buffer(f, 0), 0);
    for (int p = 0; p < 3; p++)
        memset(f->data[p], 128, (size_t)f->linesize[p] * (size_t)(p ? H / 2 : H));
    return f;
}

struct box { // of what is no longer gray
    int n, x0, y0, x1, y1;
};

static struct box changed(const AVFrame *f)
{
    struct box b = {0, W, H, -1, -1};
    for (int y = 0; y < H; y++) {
        for (int x = 0; x < W; x++) {
            if (f->data[0][y * f->linesize[0] + x] == 128 &&
                f->data[1][y / 2 * f->linesize[1] + x / 2] == 128 &&
                f->data[2][y / 2 * f->linesize[2] + x / 2] == 128)
                continue;
            b.n++;
            b.x0 = x < b.x0 ? x : b.x0;
            b.y0 = y < b.y0 ? y : b.y0;
            b.x1 = x > b.x1 ? x : b.x1;
            b.y1 = y > b.y1 ? y : b.y1;
        }
    }
    return b;
}

static struct codec_burner *burner(const struct codec_source *s, const struct media_plan *p,
                                   const char *id)
{
    struct codec_burner *b = NULL;
    struct err err = ERR_INIT;
    size_t n = p->video.n_segments;
    if (codec_burner_new(s, p, find(p, id), 0, (uint32_t)n, &b, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return b;
}

// What is laid over grid frame `frame`; a picture that is shared stays as it is.
static struct box burn(struct codec_burner *b, const struct media_plan *p, uint32_t frame)
{
    struct err err = ERR_INIT;
    AUTO(codec_frame_free_p) AVFrame *shared = gray();
    AUTO(codec_frame_free_p) AVFrame *f = av_frame_clone(shared);
    size_t segment = media_grid_segment_at(
        &p->video, media_ticks_to_us(media_grid_frame_time(&p->video, frame), p->video.timescale));
    if (codec_burner_run(b, f, segment, frame, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(changed(shared).n, 0);
    return changed(f);
}

static void test_script_shows_from_its_first_frame_to_its_last(void **state)
{
    (void)state;
    struct codec_source s = styled_film();
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    const struct media_rendition *r = &p->renditions[find(p, "v240-s1")];
    assert_true(r->lazy && r->burn == 2 && r->width == W && r->height == H);
    assert_non_null(strstr(r->recipe, "burns in track 1"));
    struct codec_burner *b = burner(&s, p, "v240-s1");
    for (uint32_t frame = 0; frame < 75; frame++) { // 25 a second
        struct box box = burn(b, p, frame);
        if ((box.n > 0) != (frame >= 25 && frame < 63))
            fail_msg("frame %u: %d points", frame, box.n);
        if (box.n) // a line at the bottom, in the middle
            assert_true(box.y0 > H / 2 && box.x0 > W / 4 && box.x1 < W * 3 / 4 && box.n > 300);
    }
    int last = 0;
    for (uint32_t frame = 126; frame < 139; frame++) {
        struct box box = burn(b, p, frame);
        assert_true(box.n > 0 && box.x0 >= last);
        last = box.x0;
    }
    assert_true(last > 120);
    codec_burner_free(b);
    close(s.fd);
}

// ---- segments ----

#define MAX_SEGMENTS 16
struct segments {
    uint64_t hash[MAX_SEGMENTS];
};

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct segments *s = ud;
    (void)err;
    uint64_t h = 1469598103934665603U;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 1099511628211U;
    assert_true(out->segment < MAX_SEGMENTS);
    s->hash[out->segment] = h;
    return STATUS_OK;
}

static void encode(const struct codec_source *s, const struct media_plan *p, const char *id,
                   uint32_t first, uint32_t n, unsigned threads, struct segments *ret)
{
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = s->size,
                           .threads = threads,
                           .first_segment = first,
                           .n_segments = n,
                           .n_renditions = 1,
                           .renditions = {(uint8_t)find(p, id)}};
    struct codec_sink sink = {.segment = keep, .ud = ret};
    struct err err = ERR_INIT;
    if (codec_encode(s, p, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

static void test_segments_are_the_same_alone_and_together(void **state)
{
    (void)state;
    struct codec_source s = styled_film();
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    uint32_t n = (uint32_t)p->video.n_segments;
    struct segments plain = {{0}}, all = {{0}}, alone = {{0}};
    assert_true(n >= 4 && n <= MAX_SEGMENTS);
    encode(&s, p, "v240", 0, n, 1, &plain);
    encode(&s, p, "v240-s1", 0, n, 2, &all);
    for (uint32_t i = n; i-- > 0;)
        encode(&s, p, "v240-s1", i, 1, 1, &alone);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(all.hash[i] == alone.hash[i]);
        int64_t from = media_segment_start_us(&p->video, i),
                to = from + media_segment_duration_us(&p->video, i);
        bool shows = (from < 2520000 && to > 1000000) || (from < 5600000 && to > 5000000);
        assert_true((all.hash[i] != plain.hash[i]) == shows);
    }
    assert_true(all.hash[n - 1] == plain.hash[n - 1]);
    close(s.fd);
}

// ---- pictures of text ----

// A white bar of 64 x 16 at (96, 112) of 256 x 144.
static size_t encode_bar(uint8_t *dst, int size, AVCodecParameters *ret)
{
    const AVCodec *codec = avcodec_find_encoder(AV_CODEC_ID_DVD_SUBTITLE);
    AVCodecContext *c = avcodec_alloc_context3(codec);
    assert_true(codec && c);
    c->width = W;
    c->height = H;
    c->time_base = (AVRational){1, 1000};
    assert_true(avcodec_open2(c, codec, NULL) >= 0);
    AVSubtitle sub = {.end_display_time = 1500, .num_rects = 1};
    AVSubtitleRect rect = {
        .x = 96, .y = 112, .w = 64, .h = 16, .nb_colors = 2, .type = SUBTITLE_BITMAP};
    AVSubtitleRect *rects = &rect;
    uint8_t pixels[64 * 16];
    uint32_t palette[256] = {0x00000000, 0xffffffff};
    memset(pixels, 1, sizeof(pixels));
    pixels[0] = 0; // some of it lets the picture through
    rect.data[0] = pixels;
    rect.data[1] = (uint8_t *)palette;
    rect.linesize[0] = 64;
    sub.rects = &rects;
    int n = avcodec_encode_subtitle(c, dst, size, &sub);
    assert_true(n > 0 && avcodec_parameters_from_context(ret, c) >= 0);
    avcodec_free_context(&c);
    return (size_t)n;
}

static void copy_film(AVFormatContext *in, AVFormatContext *out, const uint8_t *bar, size_t bar_n)
{
    AVPacket *pkt = av_packet_alloc();
    bool put = false;
    while (av_read_frame(in, pkt) >= 0) {
        int64_t ms = av_rescale_q(pkt->pts, in->streams[0]->time_base, (AVRational){1, 1000});
        av_packet_rescale_ts(pkt, in->streams[0]->time_base, out->streams[0]->time_base);
        assert_true(av_interleaved_write_frame(out, pkt) >= 0);
        if (ms < 1000 || put)
            continue;
        put = true;
        assert_true(av_new_packet(pkt, (int)bar_n) >= 0);
        memcpy(pkt->data, bar, bar_n);
        pkt->stream_index = 1;
        pkt->pts = pkt->dts = 1000;
        pkt->duration = 1500;
        av_packet_rescale_ts(pkt, (AVRational){1, 1000}, out->streams[1]->time_base);
        assert_true(av_interleaved_write_frame(out, pkt) >= 0);
    }
    assert_true(put);
    av_packet_free(&pkt);
}

static struct codec_source bitmap_film(void)
{
    AVFormatContext *in = NULL, *out = NULL;
    uint8_t bar[8192];
    run_ffmpeg("-f lavfi -i color=gray:s=256x144:r=25:d=4 -c:v mpeg4 -g 25 plain.mkv");
    assert_true(avformat_open_input(&in, path_of("plain.mkv"), NULL, NULL) >= 0);
    assert_true(avformat_alloc_output_context2(&out, NULL, NULL, path_of("bars.mkv")) >= 0);
    AVStream *video = avformat_new_stream(out, NULL), *text = avformat_new_stream(out, NULL);
    assert_true(avcodec_parameters_copy(video->codecpar, in->streams[0]->codecpar) >= 0);
    video->codecpar->codec_tag = 0;
    size_t n = encode_bar(bar, sizeof(bar), text->codecpar);
    text->codecpar->codec_tag = 0;
    assert_true(avio_open(&out->pb, path_of("bars.mkv"), AVIO_FLAG_WRITE) >= 0);
    assert_true(avformat_write_header(out, NULL) >= 0);
    copy_film(in, out, bar, n);
    assert_true(av_write_trailer(out) >= 0);
    avio_closep(&out->pb);
    avformat_free_context(out);
    avformat_close_input(&in);
    assert_int_equal(unlink(path_of("plain.mkv")), 0);
    return open_file("bars.mkv");
}

static void test_picture_of_text_lies_where_it_belongs(void **state)
{
    (void)state;
    struct codec_source s = bitmap_film();
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    assert_int_equal(p->source.tracks[1].subtitle, MEDIA_SUBTITLE_BITMAP);
    assert_false(p->source.tracks[1].chosen); // there is no text in it
    struct codec_burner *b = burner(&s, p, "v240-s1");
    for (uint32_t frame = 0; frame < p->video.n_frames; frame++) {
        struct box box = burn(b, p, frame);
        if ((box.n > 0) != (frame >= 25 && frame < 63))
            fail_msg("frame %u: %d points", frame, box.n);
        if (box.n && (box.x0 != 96 || box.y0 != 112 || box.x1 != 159 || box.y1 != 127))
            fail_msg("frame %u: %d,%d to %d,%d", frame, box.x0, box.y0, box.x1, box.y1);
    }
    codec_burner_free(b);
    close(s.fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_script_shows_from_its_first_frame_to_its_last),
        cmocka_unit_test(test_segments_are_the_same_alone_and_together),
        cmocka_unit_test(test_picture_of_text_lies_where_it_belongs),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
