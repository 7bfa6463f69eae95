// Ladders fitted to titles: easy, hard, poor sources; rates by pixels.
#include "media/title.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static size_t ladder(struct media_rendition *out, uint32_t w, uint32_t h)
{
    return media_plan_ladder(w, h, (struct media_rational){25, 1}, out, 5);
}

enum { SMALL = 640 * 360, FULL_HD = 1920 * 1080 };

static const struct {
    const char *what;
    struct media_title title;
    int64_t source_bps;
    size_t n;                  // rungs that are left
    uint8_t top_crf;           // of the first rung
    uint32_t top_min, top_max; // its cap
} rows[] = {
    {"nothing known: the table's", {0, 0, 0}, 0, 5, 23, 5000000, 5000000},
    {"a usual film keeps the table's caps", {SMALL, 20000, 2200}, 8000000, 5, 23, 5000000, 5000000},
    {"noise gets a higher CRF, not a higher cap",
     {SMALL, 60000, 16000},
     90000000,
     5,
     26,
     5000000,
     5000000},
    {"a hard film, a little higher", {SMALL, 40000, 6000}, 20000000, 5, 24, 5000000, 5000000},
    {"an easy film's cap is a few times its mean",
     {SMALL, 12000, 400},
     4000000,
     4,
     23,
     1250000,
     1800000},
    {"a still: one rung, a quarter of the cap",
     {SMALL, 6000, 10},
     1000000,
     1,
     23,
     1250000,
     1250000},
    {"no more than the source has", {SMALL, 20000, 2200}, 1000000, 5, 23, 1500000, 1500000},
    {"a poor source of an unknown film", {0, 0, 0}, 1000000, 5, 23, 1500000, 1500000},
    {"never less than is decent", {SMALL, 20000, 2200}, 1000, 5, 23, 150000, 150000},
    {"figures beyond measure",
     {1, UINT32_MAX, UINT32_MAX},
     INT64_MAX / 1000,
     5,
     26,
     5000000,
     5000000},
};

static void test_ladder_fits_the_title(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct media_rendition r[5];
        size_t n =
            media_title_fit(&rows[i].title, FULL_HD, rows[i].source_bps, r, ladder(r, 1920, 1080));
        if (n != rows[i].n || r[0].crf != rows[i].top_crf || r[0].maxrate_bps < rows[i].top_min ||
            r[0].maxrate_bps > rows[i].top_max)
            fail_msg("%s: %zu rungs, CRF %u, cap %u", rows[i].what, n, (unsigned)r[0].crf,
                     r[0].maxrate_bps);
        for (size_t k = 0; k < n; k++) {
            assert_true(r[k].bitrate_bps > 0 && r[k].bitrate_bps <= r[k].maxrate_bps);
            assert_true(r[k].level >= 21 && r[k].level <= 62);
            assert_true(k == 0 || r[k].maxrate_bps <= r[k - 1].maxrate_bps);
        }
    }
}

static void test_rates_grow_slower_than_pixels(void **state)
{
    (void)state;
    const struct media_title t = {SMALL, 20000, 2200};
    struct media_rendition r[5];
    size_t n = ladder(r, 1920, 1080);
    uint32_t own = 8 * (20000 + 99 * 2200) / 4;
    assert_int_equal(n, 5);
    assert_in_range(media_title_rate(&t, &r[3]), own - own / 100, own + own / 100);
    uint32_t full = media_title_rate(&t, &r[0]); // nine times the pixels: 9^(3/4) = 5.2
    assert_in_range(full, own * 51ULL / 10, own * 53ULL / 10);
}

static void test_one_rung_stays_whatever_it_takes(void **state)
{
    (void)state;
    struct media_rendition r[5];
    const struct media_title still = {SMALL, 100, 0};
    assert_int_equal(media_title_fit(&still, 320 * 180, 5000, r, ladder(r, 320, 180)), 1);
    assert_int_equal(r[0].maxrate_bps, 150000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ladder_fits_the_title),
        cmocka_unit_test(test_rates_grow_slower_than_pixels),
        cmocka_unit_test(test_one_rung_stays_whatever_it_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
