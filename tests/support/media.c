#include "support/media.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define FILM(size, rate, seconds)                                                                  \
    "-f lavfi -i testsrc2=size=" size ":rate=" rate ":duration=" seconds
#define SOUND(rate, seconds)                                                                       \
    " -f lavfi -i sine=frequency=440:sample_rate=" rate ":duration=" seconds
#define H264 " -c:v libx264 -preset ultrafast -g 50 -pix_fmt yuv420p"

static const struct {
    const char *name;
    const char *args; // ffmpeg's, separated by single spaces
} stand_ins[] = {
    {"video/nasa_2video_2audio_2movtext.mp4",
     FILM("480x270", "30", "13") SOUND("16000", "13") H264 " -c:a aac -shortest"},
    {"video/crowd_720x400_h264_5s.mp4", FILM("720x400", "30", "5") H264},
    {"video/face_sign_help.mkv", FILM("640x480", "30", "1.9") H264},
    {"video/webcam_640x360_h264_aac.flv",
     FILM("640x360", "30", "6") SOUND("44100", "6") H264 " -c:a aac -shortest"},
    {"video/underwater_640x480_mjpeg_mp2.mov",
     FILM("640x480", "25", "5") SOUND("44100", "5") " -c:v mjpeg -c:a mp2 -shortest"},
    {"audio/guitar_6s.wav", "-f lavfi -i sine=frequency=330:sample_rate=44100:duration=6"},
    {"audio/guitar_alac_6s.m4a",
     "-f lavfi -i sine=frequency=330:sample_rate=44100:duration=6 -c:a alac"},
    {"audio/score_31s.mp3", "-f lavfi -i sine=frequency=220:duration=31 -ac 2 -c:a libmp3lame"},
};

static int run_ffmpeg(const char *args, const char *out)
{
    char words[1024], *argv[80] = {NULL};
    size_t n = 0;
    snprintf(words, sizeof words, "ffmpeg -y -v error -nostdin %s %s", args, out);
    for (char *rest = words, *w; n < 79 && (w = strsep(&rest, " "));)
        argv[n++] = w;
    pid_t pid = 0;
    int status = -1;
    if (posix_spawnp(&pid, "ffmpeg", NULL, NULL, argv, environ) == 0)
        waitpid(pid, &status, 0);
    return status;
}

int test_media_make(const char *args, const char *suffix)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/cauce-media-XXXXXX%s", suffix);
    int fd = mkstemps(path, (int)strlen(suffix));
    if (fd < 0)
        return -1;
    close(fd);
    fd = run_ffmpeg(args, path) == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    unlink(path);
    return fd;
}

static int make_stand_in(const char *name)
{
    for (size_t i = 0; i < sizeof stand_ins / sizeof stand_ins[0]; i++) {
        if (strcmp(stand_ins[i].name, name) != 0)
            continue;
        return test_media_make(stand_ins[i].args, strrchr(name, '.'));
    }
    return -1;
}

int test_media_open(const char *name)
{
    const char *data = getenv("CAUCE_TEST_DATA"), *src = getenv("CAUCE_SOURCE_DIR");
    char path[1024];
    if (data)
        snprintf(path, sizeof path, "%s/media/%s", data, name);
    else
        snprintf(path, sizeof path, "%s/../shared/media/%s", src ? src : ".", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fd = make_stand_in(name);
    if (fd < 0)
        printf("[  NOTE    ] no test media: %s is not there; set CAUCE_TEST_DATA\n", path);
    return fd;
}
