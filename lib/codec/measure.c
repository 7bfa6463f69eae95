// How loud the sound of an item is, by ITU-R BS.1770-4 and EBU R 128 (Tech 3341, 3342), measured on
// the stereo that players get, and what a song looks like: its waveform. One pass over all of it.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "media/image.h"
#include "media/loudness.h"

#define HOP (MEDIA_AUDIO_RATE / 10) // 100 ms: blocks of 400 ms overlap by three quarters
#define WINDOW (HOP * 200)
#define BLOCK_HOPS 4
#define SHORT_HOPS 30 // of 3 s, for the range
#define OVERSAMPLING 4
#define POINTS 1800
#define FLOOR_LUFS (-70.0)

struct biquad {
    double b[3], a[2], z[2];
};

// BS.1770-4, annex 1, tables 1 and 2: the head's shelf, then the high-pass, at 48 kHz.
static const struct biquad shelf = {{1.53512485958697, -2.69169618940638, 1.19839281085285},
                                    {-1.69065929318241, 0.73248077421585},
                                    {0, 0}};
static const struct biquad high_pass = {{1, -2, 1}, {-1.99004745483398, 0.99007225036621}, {0, 0}};

struct meter {
    struct biquad filters[2][2]; // by side
    double *hops;                // mean squares of both sides, of 100 ms each
    size_t n_hops;
    struct SwrContext *over;
    float *fine[2];
    float peak; // of the oversampled signal
    int64_t per_point, n_points;
    int8_t *points; // least and most, in turn
};

static double filter(struct biquad *f, double x)
{
    double y = f->b[0] * x + f->z[0];
    f->z[0] = f->b[1] * x - f->a[0] * y + f->z[1];
    f->z[1] = f->b[2] * x - f->a[1] * y;
    return y;
}

static double lufs(double mean_square)
{
    return mean_square > 0 ? -0.691 + 10 * log10(mean_square) : -HUGE_VAL;
}

// ---- taking in ----

static void take_hop(struct meter *m, float *const side[2], int64_t n)
{
    double sum = 0;
    for (int c = 0; c < 2; c++) {
        for (int64_t i = 0; i < n; i++) {
            double y = filter(&m->filters[c][1], filter(&m->filters[c][0], (double)side[c][i]));
            sum += y * y;
        }
    }
    m->hops[m->n_hops++] = sum / HOP;
}

static int8_t point(float v)
{
    float x = v * 127;
    return (int8_t)lrintf(fminf(fmaxf(x, -128), 127));
}

static void take_points(struct meter *m, float *const side[2], int64_t at, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t k = (at + i) / m->per_point;
        int8_t v = point((side[0][i] + side[1][i]) / 2);
        int8_t *p = &m->points[2 * k];
        bool first = (at + i) % m->per_point == 0;
        p[0] = first || v < p[0] ? v : p[0];
        p[1] = first || v > p[1] ? v : p[1];
    }
}

static enum status take_peak(struct meter *m, float *const side[2], int64_t n, struct err *err)
{
    int got = swr_convert(m->over, (uint8_t **)m->fine, WINDOW * OVERSAMPLING,
                          (const uint8_t **)(uintptr_t)side, (int)n);
    if (got < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "loudness: out of memory");
    for (int c = 0; c < 2; c++)
        for (int i = 0; i < got; i++)
            m->peak = fmaxf(m->peak, fabsf(m->fine[c][i]));
    return STATUS_OK;
}

static enum status take_window(struct meter *m, float *const side[2], int64_t at, int64_t n,
                               struct err *err)
{
    // Files of floats may hold anything; what is no number would stay in the filters.
    for (int c = 0; c < 2; c++)
        for (int64_t i = 0; i < n; i++)
            side[c][i] = isfinite(side[c][i]) ? fminf(fmaxf(side[c][i], -8), 8) : 0;
    for (int64_t i = 0; i < n; i += HOP) {
        float *const part[2] = {side[0] + i, side[1] + i};
        take_hop(m, part, n - i < HOP ? n - i : HOP);
    }
    take_points(m, side, at, n);
    return take_peak(m, side, n, err);
}

// ---- giving out ----

static double mean(const struct meter *m, size_t at, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += m->hops[at + i];
    return sum / (double)n;
}

// Mean of the blocks that are louder than a gate.
static double gated(const struct meter *m, size_t hops, double gate)
{
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i + hops <= m->n_hops; i++) {
        double ms = mean(m, i, hops);
        if (lufs(ms) > gate) {
            sum += ms;
            n++;
        }
    }
    return n ? sum / (double)n : 0;
}

static double integrated(const struct meter *m)
{
    double loud = gated(m, BLOCK_HOPS, FLOOR_LUFS);
    if (loud <= 0)
        return FLOOR_LUFS;
    double v = lufs(gated(m, BLOCK_HOPS, lufs(loud) - 10));
    return v > FLOOR_LUFS ? v : FLOOR_LUFS;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static enum status range(const struct meter *m, double *ret, struct err *err)
{
    *ret = 0;
    double loud = gated(m, SHORT_HOPS, FLOOR_LUFS), gate = lufs(loud) - 20;
    if (loud <= 0 || m->n_hops < SHORT_HOPS)
        return STATUS_OK;
    double *v = mem_array(m->n_hops, sizeof(*v));
    if (!v)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "loudness: out of memory");
    size_t n = 0;
    for (size_t i = 0; i + SHORT_HOPS <= m->n_hops; i++) {
        double l = lufs(mean(m, i, SHORT_HOPS));
        if (l > gate && l > FLOOR_LUFS)
            v[n++] = l;
    }
    qsort(v, n, sizeof(*v), by_value);
    if (n)
        *ret = v[(size_t)((double)(n - 1) * 0.95 + 0.5)] - v[(size_t)((double)(n - 1) * 0.1 + 0.5)];
    mem_free(v);
    return STATUS_OK;
}

static int32_t thousandths(double v)
{
    return (int32_t)lrint(v * 1000);
}

static enum status judge(const struct meter *m, struct media_loudness *ret, struct err *err)
{
    double lra = 0, peak = m->peak > 0 ? 20 * log10((double)m->peak) : -99;
    enum status s = range(m, &lra, err);
    if (s == STATUS_OK)
        *ret = (struct media_loudness){.integrated_mlufs = thousandths(integrated(m)),
                                       .range_mlu = thousandths(lra),
                                       .true_peak_mdb = thousandths(peak > -99 ? peak : -99)};
    return s;
}

static void print_waveform(const struct meter *m, const struct media_loudness *l, struct buf *b)
{
    buf_printf(b,
               "{\"version\":2,\"channels\":1,\"sample_rate\":%d,\"samples_per_pixel\":%lld,"
               "\"bits\":8,\"length\":%lld,\"loudness\":",
               MEDIA_AUDIO_RATE, (long long)m->per_point, (long long)m->n_points);
    media_loudness_print(l, b);
    buf_puts(b, ",\"data\":[");
    for (int64_t i = 0; i < 2 * m->n_points; i++)
        buf_printf(b, "%s%d", i ? "," : "", m->points[i]);
    buf_puts(b, "]}");
}

static enum status deliver(const struct meter *m, const struct media_task *task,
                           const struct codec_sink *sink, struct err *err)
{
    struct media_loudness l = {0};
    enum status s = judge(m, &l, err);
    for (uint32_t i = 0; s == STATUS_OK && i < task->n_renditions; i++) {
        struct buf b;
        buf_init(&b, MEDIA_MAX_IMAGE_BYTES);
        if (task->renditions[i] == MEDIA_IMAGE_WAVEFORM)
            print_waveform(m, &l, &b);
        else if (task->renditions[i] == MEDIA_IMAGE_LOUDNESS)
            media_loudness_print(&l, &b);
        struct media_segment_out out = {.rendition = task->renditions[i], .size = (uint32_t)b.len};
        if (b.failed)
            s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "loudness: out of memory");
        else if (b.len)
            s = sink->segment(sink->ud, &out, b.data, b.len, err);
        buf_done(&b);
    }
    return s;
}

// ---- the whole ----

static enum status set_up(struct meter *m, int64_t n, struct err *err)
{
    const AVChannelLayout stereo = AV_CHANNEL_LAYOUT_STEREO;
    m->per_point = (n + POINTS - 1) / POINTS;
    m->n_points = (n + m->per_point - 1) / m->per_point;
    for (int c = 0; c < 2; c++) {
        m->filters[c][0] = shelf;
        m->filters[c][1] = high_pass;
        m->fine[c] = mem_array((size_t)WINDOW * OVERSAMPLING, sizeof(float));
    }
    m->hops = mem_array((size_t)(n / HOP) + 2, sizeof(double));
    m->points = mem_array((size_t)m->n_points, 2);
    if (!m->hops || !m->points || !m->fine[0] || !m->fine[1])
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "loudness: out of memory");
    return codec_mix_open(&m->over, &stereo, AV_SAMPLE_FMT_FLTP, MEDIA_AUDIO_RATE, 2,
                          MEDIA_AUDIO_RATE * OVERSAMPLING, err);
}

static enum status measure(struct codec_input *in, const struct media_plan *plan,
                           const struct media_task *task, const struct codec_sink *sink,
                           struct err *err)
{
    const struct media_track *t = media_plan_track(plan, MEDIA_TRACK_AUDIO);
    int64_t n = media_plan_samples(plan);
    struct meter m = {.per_point = 0};
    float *side[2] = {mem_array(WINDOW, sizeof(float)), mem_array(WINDOW, sizeof(float))};
    AUTO(codec_sound_free_p) struct codec_sound *sound = NULL;
    enum status s = STATUS_OK;
    if (!t || n <= 0)
        s = err_set(err, STATUS_FAILED_PRECONDITION, "measure: the plan has no sound");
    else if (!side[0] || !side[1])
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "loudness: out of memory");
    if (s == STATUS_OK)
        s = set_up(&m, n, err);
    if (s == STATUS_OK)
        s = codec_sound_new(in, plan, t->index, 2, &sound, err);
    for (int64_t at = 0; s == STATUS_OK && at < n; at += WINDOW) {
        int64_t end = at + WINDOW < n ? at + WINDOW : n;
        s = codec_sound_read(sound, at, end, side, err);
        if (s == STATUS_OK)
            s = take_window(&m, side, at, end - at, err);
        if (s == STATUS_OK && sink->progress)
            sink->progress(sink->ud, end, n);
    }
    if (s == STATUS_OK)
        s = deliver(&m, task, sink, err);
    for (int c = 0; c < 2; c++) {
        mem_free(side[c]);
        mem_free(m.fine[c]);
    }
    mem_free(m.hops);
    mem_free(m.points);
    swr_free(&m.over);
    return s;
}

enum status codec_measure(const struct codec_source *src, const struct media_plan *plan,
                          const struct media_task *task, const struct codec_sink *sink,
                          struct err *err)
{
    AUTO(codec_input_close_p) struct codec_input *in = NULL;
    enum status s = codec_input_open(src, &in, err);
    if (s != STATUS_OK)
        return s;
    codec_input_use_plan(in, plan);
    return measure(in, plan, task, sink, err);
}
