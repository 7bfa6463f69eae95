// Progress on standard error.
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"

enum { REDRAW_MS = 100, BAR_WIDTH = 24 };

void progress_init(struct progress *p, const struct ctl *k, const char *what)
{
    (void)k;
    const char *slash = strrchr(what, '/');
    *p = (struct progress){.is_terminal = isatty(STDERR_FILENO) == 1,
                           .what = slash ? slash + 1 : what};
}

static void start_stage(struct progress *p, const cauce_progress *now)
{
    if (p->stage[0])
        progress_end(p);
    str_copy(p->stage, sizeof(p->stage), now->stage);
    p->began_ms = time_mono_ms();
    p->began_at = now->sent;
    p->drawn_ms = 0;
    p->decile = 0;
}

static void rate_text(char *dst, size_t size, const struct progress *p, const cauce_progress *now,
                      int64_t took_ms)
{
    int64_t moved = now->sent - p->began_at, left = now->total - now->sent - now->skipped;
    dst[0] = '\0';
    if (took_ms < 500 || moved <= 0)
        return;
    double per_ms = (double)moved / (double)took_ms;
    int64_t eta_s = left > 0 ? (int64_t)((double)left / per_ms / 1000) : 0;
    bool is_bytes = strcmp(now->stage, "transcode") != 0 && strcmp(now->stage, "index") != 0;
    if (is_bytes)
        snprintf(dst, size, "%.1f MB/s  ", per_ms / 1000);
    size_t n = strlen(dst);
    if (now->total > 0)
        snprintf(dst + n, size - n, "%" PRId64 ":%02d left", eta_s / 60, (int)(eta_s % 60));
}

static void draw(struct progress *p, const cauce_progress *now, int percent)
{
    int64_t ms = time_mono_ms();
    if (percent < 100 && ms - p->drawn_ms < REDRAW_MS)
        return;
    p->drawn_ms = ms;
    char rate[64], bar[BAR_WIDTH + 1];
    rate_text(rate, sizeof(rate), p, now, ms - p->began_ms);
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)(percent * BAR_WIDTH / 100));
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K%-9s [%s] %3d %%  %s  %.40s", now->stage, bar, percent, rate, p->what);
    fflush(stderr);
}

int progress_update(const cauce_progress *now, void *ud)
{
    struct progress *p = ud;
    if (p->is_quiet)
        return 0;
    if (strcmp(p->stage, now->stage) != 0)
        start_stage(p, now);
    int percent = 0;
    if (now->total > 0)
        percent = (int)((double)(now->sent + now->skipped) * 100 / (double)now->total);
    percent = percent < 0 ? 0 : percent > 100 ? 100 : percent;
    if (p->is_terminal) {
        draw(p, now, percent);
    } else if (percent / 10 > p->decile) {
        p->decile = percent / 10;
        fprintf(stderr, "%s %s: %d %%\n", now->stage, p->what, p->decile * 10);
    }
    return 0;
}

void progress_end(struct progress *p)
{
    if (p->is_terminal && p->drawn_ms)
        fputc('\n', stderr);
    p->drawn_ms = 0;
}
