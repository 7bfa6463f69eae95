// Requests into decisions: what players may say about themselves, and what becomes of it.
#include "orchestrator/decision.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/str.h"
#include "orchestrator/test_plan.h"

struct fixture {
    struct arena *arena;
    struct media_plan *plan; // MPEG-2 and AAC in MP4, 854x480
    Orchestrator__OpenRequest req;
    struct decision d;
    struct err err;
};

static int begin(void **state)
{
    static struct fixture f;
    f = (struct fixture){.arena = arena_new(1 << 20), .plan = test_plan(100, 1000000)};
    assert_non_null(f.arena);
    orchestrator__open_request__init(&f.req);
    *state = &f;
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;
    media_plan_free(f->plan);
    arena_free(f->arena);
    return 0;
}

static enum status make(struct fixture *f)
{
    return decision_make(f->arena, f->plan, &f->req, &f->d, &f->err);
}

static void test_nothing_said_is_any_browser(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(make(f), STATUS_OK);
    assert_string_equal(f->d.profile->name, "generic");
    assert_int_equal(f->d.d.mode, MEDIA_MODE_TRANSCODE);
    assert_int_equal(f->d.d.n_notes, 1);
    assert_string_equal(f->d.d.notes[0].text, "video codec mpeg2video");
}

static void test_lists_alone_decide_as_they_always_did(void **state)
{
    struct fixture *f = *state;
    char *video[] = {(char[]){"mpeg2video"}}, *opus[] = {(char[]){"opus"}};
    Orchestrator__DeviceProfile p = ORCHESTRATOR__DEVICE_PROFILE__INIT;
    f->req.profile = &p;
    p.video_codecs = video;
    p.n_video_codecs = 1;
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(f->d.d.mode, MEDIA_MODE_DIRECT);

    p.audio_codecs = opus;
    p.n_audio_codecs = 1;
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(f->d.d.mode, MEDIA_MODE_TRANSCODE);
    assert_true(media_decision_has(&f->d.d, MEDIA_REASON_AUDIO_CODEC));

    p.n_audio_codecs = 0;
    p.never_direct = true;
    p.max_height = 360;
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(f->d.d.n_notes, 2);
    assert_string_equal(f->plan->renditions[f->d.d.video_rendition].id, "v360");
}

static void test_the_lower_limit_holds(void **state)
{
    struct fixture *f = *state;
    Orchestrator__DeviceProfile p = ORCHESTRATOR__DEVICE_PROFILE__INIT;
    Orchestrator__Limits l = ORCHESTRATOR__LIMITS__INIT;
    char mpv[] = "mpv";
    f->req.player = mpv;
    f->req.profile = &p;
    f->req.limits = &l;
    p.max_height = 360;
    l.max_height = 479;
    assert_int_equal(make(f), STATUS_OK);
    assert_string_equal(f->plan->renditions[f->d.d.video_rendition].id, "v360");
    p.max_height = 0;
    l.max_height = -5; // says nothing
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(f->d.d.mode, MEDIA_MODE_DIRECT);
}

static void test_an_unknown_player_is_answered_with_the_known_ones(void **state)
{
    struct fixture *f = *state;
    char name[] = "netscape";
    f->req.player = name;
    assert_int_equal(make(f), STATUS_NOT_FOUND);
    assert_non_null(strstr(f->err.msg, "netscape"));
    assert_non_null(strstr(f->err.msg, "chrome"));
}

static void test_a_custom_profile_decides_by_its_rules(void **state)
{
    struct fixture *f = *state;
    char *mp4[] = {(char[]){"mp4"}}, *mpeg2[] = {(char[]){"mpeg2video"}},
         *aac[] = {(char[]){"aac"}};
    Orchestrator__ContainerRule c = ORCHESTRATOR__CONTAINER_RULE__INIT, *containers[] = {&c};
    Orchestrator__VideoRule v = ORCHESTRATOR__VIDEO_RULE__INIT, *videos[] = {&v};
    Orchestrator__AudioRule a = ORCHESTRATOR__AUDIO_RULE__INIT, *audios[] = {&a};
    Orchestrator__PlayerProfile p = ORCHESTRATOR__PLAYER_PROFILE__INIT;
    c.containers = mp4;
    c.video = v.codecs = mpeg2;
    c.audio = a.codecs = aac;
    c.n_containers = c.n_video = c.n_audio = v.n_codecs = a.n_codecs = 1;
    p.containers = containers;
    p.video = videos;
    p.audio = audios;
    p.n_containers = p.n_video = p.n_audio = 1;
    p.takes_late_index = true;
    f->req.custom = &p;
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(f->d.d.mode, MEDIA_MODE_DIRECT);

    v.max_height = 240;
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(f->d.d.notes[0].reason, MEDIA_REASON_VIDEO_SIZE);

    v.max_height = -1;
    assert_int_equal(make(f), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(f->err.msg, "video[0]"));

    v.max_height = 0;
    char *bad[] = {(char[]){"mp\"4"}};
    c.containers = bad;
    assert_int_equal(make(f), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(f->err.msg, "containers[0].containers"));
}

static void test_the_answer_tells_every_track(void **state)
{
    struct fixture *f = *state;
    Orchestrator__Decision *m = NULL;
    assert_int_equal(make(f), STATUS_OK);
    assert_int_equal(decision_tell(f->arena, f->plan, &f->d, &m, &f->err), STATUS_OK);
    assert_int_equal(m->method, ORCHESTRATOR__METHOD__METHOD_TRANSCODE);
    assert_string_equal(m->video_rendition, "v480");
    assert_string_equal(m->audio_rendition, "a128");
    assert_int_equal(m->n_reasons, 1);
    assert_int_equal(m->reasons[0]->reason, ORCHESTRATOR__REASON__REASON_VIDEO_CODEC);
    assert_int_equal(m->n_tracks, 2);
    assert_string_equal(m->tracks[0]->type, "video");
    assert_string_equal(m->tracks[0]->way, "made anew");
    assert_int_equal(m->tracks[0]->n_reasons, 1);
    assert_string_equal(m->tracks[1]->codec, "aac");
    assert_int_equal(m->tracks[1]->n_reasons, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nothing_said_is_any_browser, begin, end),
        cmocka_unit_test_setup_teardown(test_lists_alone_decide_as_they_always_did, begin, end),
        cmocka_unit_test_setup_teardown(test_the_lower_limit_holds, begin, end),
        cmocka_unit_test_setup_teardown(test_an_unknown_player_is_answered_with_the_known_ones,
                                        begin, end),
        cmocka_unit_test_setup_teardown(test_a_custom_profile_decides_by_its_rules, begin, end),
        cmocka_unit_test_setup_teardown(test_the_answer_tells_every_track, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
