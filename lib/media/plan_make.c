// Making a plan: where to cut, which rungs, which peak rates. Pure; the probe supplies the facts.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "media/plan.h"
#include "media/plan_internal.h"

bool media_grid_lay_out(struct media_grid *g, bool is_video)
{
    int64_t at = 0;
    uint32_t frame = 0;
    for (size_t i = 0; i < g->n_segments; i++) {
        struct media_segment *s = &g->segments[i];
        s->start = at;
        if (is_video) {
            if (s->n_frames > g->n_frames - frame)
                return false;
            s->first_frame = frame;
            frame += s->n_frames;
            s->duration = media_grid_frame_time(g, frame) - at;
        }
        if (s->duration <= 0 || s->duration > g->duration - at)
            return false;
        at += s->duration;
    }
    return at == g->duration && (!is_video || frame == g->n_frames);
}

// ---- cutting video ----

// Milliseconds: the first segments are short so that playing starts early.
#define SEGMENT_MS 4000
#define FIRST_SEGMENT_MS 2000
#define N_FIRST_SEGMENTS 2
#define SNAP_MS 1000 // how far a cut moves to meet a source keyframe
#define TAIL_MS 1500 // a remainder shorter than this joins the last segment

static int64_t ms_ticks(const struct media_grid *g, int64_t ms)
{
    return media_scale_near(ms, g->timescale, 1000);
}

// The first grid frame at or after t, at least `from`.
static uint32_t frame_at(const struct media_grid *g, uint32_t from, int64_t t)
{
    uint32_t lo = from, hi = g->n_frames;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (media_grid_frame_time(g, mid) < t)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

// The keyframe nearest to `ideal` within [lo, hi]; -1 when there is none.
static int64_t key_near(const struct media_keyframe *keys, size_t n, int64_t ideal, int64_t lo,
                        int64_t hi)
{
    size_t a = 0, b = n;
    while (a < b) {
        size_t mid = a + (b - a) / 2;
        if (keys[mid].time < lo)
            a = mid + 1;
        else
            b = mid;
    }
    int64_t best = -1;
    for (; a < n && keys[a].time <= hi; a++) {
        int64_t d = keys[a].time - ideal, had = best - ideal;
        if (best < 0 || (d < 0 ? -d : d) < (had < 0 ? -had : had))
            best = keys[a].time;
    }
    return best;
}

// Decoding of a segment starts at the last keyframe at or before its first frame.
static void set_seek(struct media_segment *s, const struct media_keyframe *keys, size_t n)
{
    s->seek_ticks = MEDIA_TIME_UNKNOWN;
    s->seek_offset = -1;
    size_t a = 0, b = n;
    while (a < b) {
        size_t mid = a + (b - a) / 2;
        if (keys[mid].time <= s->start)
            a = mid + 1;
        else
            b = mid;
    }
    if (a == 0)
        return;
    s->seek_ticks = keys[a - 1].ticks;
    s->seek_offset = keys[a - 1].offset;
}

// The first chunks are small: one segment, then two, so that something plays early.
static enum status cut_chunks(struct media_grid *g, const uint32_t *sizes, size_t n_sizes,
                              struct err *err)
{
    g->chunks = mem_array(g->n_segments, sizeof(*g->chunks));
    if (!g->chunks)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    uint32_t at = 0, all = (uint32_t)g->n_segments;
    for (g->n_chunks = 0; at < all; g->n_chunks++) {
        uint32_t n = sizes[g->n_chunks < n_sizes ? g->n_chunks : n_sizes - 1];
        if (n > all - at)
            n = all - at;
        g->chunks[g->n_chunks] = (struct media_chunk){at, n};
        at += n;
    }
    return STATUS_OK;
}

enum status media_plan_cut_video(struct media_grid *g, const struct media_keyframe *keys,
                                 size_t n_keys, struct err *err)
{
    static const uint32_t chunk_sizes[] = {1, 2, 4};
    size_t max = (size_t)(g->duration / ms_ticks(g, TAIL_MS)) + 2;
    if (max > MEDIA_MAX_SEGMENTS)
        max = MEDIA_MAX_SEGMENTS;
    g->segments = mem_array(max, sizeof(*g->segments));
    if (!g->segments)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");

    uint32_t frame = 0;
    while (frame < g->n_frames) {
        if (g->n_segments == max)
            return err_set(err, STATUS_OUT_OF_RANGE, "plan: too many segments");
        bool early = g->n_segments < N_FIRST_SEGMENTS;
        int64_t start = media_grid_frame_time(g, frame);
        int64_t ideal = start + ms_ticks(g, early ? FIRST_SEGMENT_MS : SEGMENT_MS);
        int64_t lo = early ? ideal : ideal - ms_ticks(g, SNAP_MS);
        int64_t cut = key_near(keys, n_keys, ideal, lo, ideal + ms_ticks(g, SNAP_MS));
        uint32_t end = frame_at(g, frame + 1, cut < 0 ? ideal : cut);
        if (g->duration - media_grid_frame_time(g, end) < ms_ticks(g, TAIL_MS))
            end = g->n_frames;
        struct media_segment *s = &g->segments[g->n_segments++];
        s->start = start;
        s->first_frame = frame;
        s->n_frames = end - frame;
        s->duration = media_grid_frame_time(g, end) - start;
        set_seek(s, keys, n_keys);
        frame = end;
    }
    return cut_chunks(g, chunk_sizes, N_ELEMENTS(chunk_sizes), err);
}

// Milliseconds; keyframes 10 s apart are what encoders usually make at least.
#define LEAST_COPY_MS 1500
#define MOST_COPY_MS 11000

// The end of the segment that begins at keyframe `at`: the index of the keyframe nearest to the
// wanted length, n_keys for the grid's end; SIZE_MAX when none is near enough.
static size_t next_cut(const struct media_grid *g, const struct media_keyframe *keys, size_t n_keys,
                       size_t at, int64_t length)
{
    int64_t start = keys[at].time, tail = ms_ticks(g, TAIL_MS);
    size_t best = SIZE_MAX;
    int64_t best_off = INT64_MAX;
    for (size_t i = at + 1; i <= n_keys; i++) {
        int64_t d = (i < n_keys ? keys[i].time : g->duration) - start;
        if (d > ms_ticks(g, MOST_COPY_MS) + (i == n_keys ? tail : 0))
            break;
        bool fits =
            i == n_keys || (d >= ms_ticks(g, LEAST_COPY_MS) && g->duration - keys[i].time >= tail);
        int64_t off = d > length ? d - length : length - d;
        if (fits && off < best_off) {
            best = i;
            best_off = off;
        }
    }
    return best;
}

enum status media_plan_cut_at_keys(struct media_grid *g, const struct media_keyframe *keys,
                                   size_t n_keys, bool *ret_cut, struct err *err)
{
    static const uint32_t chunk_sizes[] = {1, 2, 4};
    *ret_cut = false;
    if (n_keys == 0 || keys[0].time != 0)
        return STATUS_OK;
    size_t max = (size_t)(g->duration / ms_ticks(g, LEAST_COPY_MS)) + 2, n = 0;
    AUTO(mem_free_p) struct media_segment *segments = mem_array(max, sizeof(*segments));
    if (!segments)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    uint32_t frame = 0;
    for (size_t at = 0; at < n_keys;) {
        int64_t length = ms_ticks(g, n < N_FIRST_SEGMENTS ? FIRST_SEGMENT_MS : SEGMENT_MS);
        size_t next = next_cut(g, keys, n_keys, at, length);
        if (next == SIZE_MAX || n == max || n == MEDIA_MAX_SEGMENTS)
            return STATUS_OK;
        uint32_t end = next < n_keys ? frame_at(g, frame + 1, keys[next].time) : g->n_frames;
        int64_t ends = media_grid_frame_time(g, end);
        if (next < n_keys && ends != keys[next].time)
            return STATUS_OK;
        segments[n++] = (struct media_segment){.start = keys[at].time,
                                               .duration = ends - keys[at].time,
                                               .first_frame = frame,
                                               .n_frames = end - frame,
                                               .seek_ticks = keys[at].ticks,
                                               .seek_offset = keys[at].offset};
        frame = end;
        at = next;
    }
    g->segments = TAKE(segments);
    g->n_segments = n;
    *ret_cut = true;
    return cut_chunks(g, chunk_sizes, N_ELEMENTS(chunk_sizes), err);
}

// ---- cutting audio ----

#define AUDIO_BLOCKS 12 // 3.84 s
#define AUDIO_FIRST_BLOCKS 6
#define AUDIO_TAIL_BLOCKS 3

enum status media_plan_cut_audio(struct media_grid *g, int64_t n_samples, uint32_t priming,
                                 struct err *err)
{
    static const uint32_t chunk_sizes[] = {2, 4, 16}; // about 4 s, 15 s, then 60 s
    g->timescale = MEDIA_AUDIO_RATE;
    g->duration = n_samples + priming;
    size_t max = (size_t)(g->duration / (AUDIO_FIRST_BLOCKS * MEDIA_AUDIO_BLOCK)) + 2;
    g->segments = mem_array(max, sizeof(*g->segments));
    if (!g->segments)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    for (int64_t at = 0; at < g->duration;) {
        bool early = g->n_segments < N_FIRST_SEGMENTS;
        int64_t d = (early ? AUDIO_FIRST_BLOCKS : AUDIO_BLOCKS) * MEDIA_AUDIO_BLOCK;
        if (g->duration - at - d < AUDIO_TAIL_BLOCKS * MEDIA_AUDIO_BLOCK)
            d = g->duration - at;
        g->segments[g->n_segments++] = (struct media_segment){
            .start = at, .duration = d, .seek_ticks = MEDIA_TIME_UNKNOWN, .seek_offset = -1};
        at += d;
    }
    return cut_chunks(g, chunk_sizes, N_ELEMENTS(chunk_sizes), err);
}

// ---- ladder ----

static const struct rung {
    uint32_t side;    // shorter side of a 16:9 picture
    uint32_t maxrate; // bits per second at up to 30 frames per second
    uint8_t crf;
} rungs[] = {
    {1080, 5000000, 23}, {720, 2800000, 23}, {480, 1400000, 23},
    {360, 800000, 23},   {240, 400000, 24},
};

// H.264 Table A-1: the least level whose macroblock rate, frame size and bit rate suffice.
static const struct {
    uint8_t level;
    uint32_t mb_per_s, mb_per_frame, kbps; // High profile's kbps
} levels[] = {
    {21, 19800, 792, 5000},          {30, 40500, 1620, 12500},    {31, 108000, 3600, 17500},
    {32, 216000, 5120, 25000},       {40, 245760, 8192, 25000},   {42, 522240, 8704, 62500},
    {50, 589824, 22080, 168750},     {51, 983040, 36864, 300000}, {52, 2073600, 36864, 300000},
    {62, 16711680, 139264, 1000000},
};

static uint8_t level_for(uint32_t w, uint32_t h, double fps, uint32_t maxrate)
{
    uint32_t mw = (w + 15) / 16, mh = (h + 15) / 16, frame = mw * mh;
    for (size_t i = 0; i < N_ELEMENTS(levels); i++)
        if (frame <= levels[i].mb_per_frame && frame * fps <= levels[i].mb_per_s &&
            (uint64_t)mw * mw <= 8ULL * levels[i].mb_per_frame &&
            (uint64_t)mh * mh <= 8ULL * levels[i].mb_per_frame && maxrate / 1000 <= levels[i].kbps)
            return levels[i].level;
    return levels[N_ELEMENTS(levels) - 1].level;
}

uint8_t media_h264_level(const struct media_rendition *r)
{
    double rate = r->frame_rate.den > 0 ? (double)r->frame_rate.num / r->frame_rate.den : 25;
    return level_for(r->width, r->height, rate, r->maxrate_bps);
}

static uint32_t even_side(double v)
{
    uint32_t n = (uint32_t)(v / 2 + 0.5) * 2;
    return n < 2 ? 2 : n;
}

// The factor that fits the picture into the rung's 16:9 box, turned upright for portrait. Slightly
// above 1 counts as 1: 854x480 is a 480 rung although its box is 853 1/3 wide.
static double rung_scale(uint32_t w, uint32_t h, uint32_t side)
{
    double lng = w > h ? w : h, shrt = w > h ? h : w;
    double by_long = side * 16.0 / 9 / lng, by_short = side / shrt;
    double f = by_long < by_short ? by_long : by_short;
    return f > 0.98 && f < 1.02 ? 1 : f;
}

static void fill_rung(struct media_rendition *r, const struct rung *g, uint32_t w, uint32_t h,
                      double f, struct media_rational fps)
{
    *r = (struct media_rendition){.kind = MEDIA_VIDEO, .codec = MEDIA_CODEC_H264};
    snprintf(r->id, sizeof(r->id), "v%u", g->side);
    // A side no larger than the source's, also when that one is odd.
    r->width = even_side(f < 1 ? w * f : (double)(w & ~1U));
    r->height = even_side(f < 1 ? h * f : (double)(h & ~1U));
    r->frame_rate = fps;
    double rate = fps.den > 0 ? (double)fps.num / fps.den : 25;
    r->maxrate_bps = rate > 31 ? (uint32_t)(g->maxrate * 1.5) : g->maxrate;
    r->bitrate_bps = r->maxrate_bps / 10 * 6;
    r->crf = g->crf;
    r->profile = 100; // High
    r->level = media_h264_level(r);
    snprintf(r->codecs, sizeof(r->codecs), "avc1.%02x00%02x", (unsigned)r->profile,
             (unsigned)r->level);
}

size_t media_plan_ladder(uint32_t width, uint32_t height, struct media_rational frame_rate,
                         struct media_rendition *out, size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < N_ELEMENTS(rungs) && n < max; i++) {
        double f = rung_scale(width, height, rungs[i].side);
        if (f > 1 && !(n == 0 && i == N_ELEMENTS(rungs) - 1))
            continue; // above the source; the lowest stays for a source below it
        fill_rung(&out[n], &rungs[i], width, height, f > 1 ? 1 : f, frame_rate);
        // Each rung is scaled from the one above it: cheaper, and fixed whichever are asked for.
        out[n].scale_from = n ? (uint8_t)(n - 1) : MEDIA_FROM_SOURCE;
        n++;
    }
    return n;
}

// ---- peak rates ----

// Shortest run of segments that counts as a window for BANDWIDTH: at least half a target duration.
static double shortest_window_s(const struct media_grid *g)
{
    int64_t longest = 0;
    for (size_t i = 0; i < g->n_segments; i++)
        if (g->segments[i].duration > longest)
            longest = g->segments[i].duration;
    int64_t target = media_scale_ceil(longest, 1, g->timescale);
    double least = (double)g->duration / g->timescale;
    for (size_t i = 0; i < g->n_segments; i++) {
        double d = (double)g->segments[i].duration / g->timescale;
        if (d * 2 >= (double)target && d < least)
            least = d;
    }
    return least > 0.04 ? least : 0.04;
}

#define OTHER_START 0.5 // as MEDIA_H264_START, of the other codecs

static uint32_t clamp_rate(double v)
{
    return v < UINT32_MAX ? (uint32_t)v : UINT32_MAX;
}

void media_plan_set_bandwidth(struct media_plan *p)
{
    for (size_t i = 0; i < p->n_renditions; i++) {
        struct media_rendition *r = &p->renditions[i];
        const struct media_grid *g = media_rendition_grid(p, i);
        if (!g)
            continue;
        double window = shortest_window_s(g), boxes = 160 * 8 / window;
        if (r->kind == MEDIA_VIDEO) {
            double fps = (double)g->n_frames * g->timescale / (double)g->duration;
            double start = r->codec == MEDIA_CODEC_H264 ? MEDIA_H264_START : OTHER_START;
            double peak = r->copy ? 1 : 1 + start / window; // a copy's segments are known
            r->bandwidth_bps = clamp_rate(r->maxrate_bps * peak + boxes + fps * 16 * 8);
        } else {
            // Both encoders vary around their rate; a fifth covers what was seen over one segment.
            double packets = (double)MEDIA_AUDIO_RATE / r->frame_samples;
            r->bandwidth_bps = clamp_rate(r->bitrate_bps * 1.2 + boxes + packets * 4 * 8);
        }
    }
}
