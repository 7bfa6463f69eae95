// play: to a file, to standard output, to a player.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ctl.h"
#include "explain.h"

extern char **environ;

enum { BLOCK_BYTES = 256 << 10 };

struct sink {
    int fd;
    pid_t player; // 0: none
    const char *what;
    int64_t written;
};

// ---------------------------------------------------------------- where it goes

// `PROGRAM -` with the stream as its standard input, and signals as programs expect them.
static enum status start_player(struct ctl *k, const char *program, struct sink *ret)
{
    int fd[2];
    if (pipe2(fd, O_CLOEXEC) != 0)
        return err_errno(&k->err, errno, "pipe");
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    sigset_t none, defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, fd[0], STDIN_FILENO);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &defaults);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    char *argv[] = {client_str(program), client_str("-"), NULL};
    int e = posix_spawnp(&ret->player, program, &fa, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&fa);
    close(fd[0]);
    ret->fd = fd[1];
    ret->what = program;
    if (e) {
        ret->player = 0;
        return err_errno(&k->err, e, "start %s", program);
    }
    return STATUS_OK;
}

static enum status open_sink(struct ctl *k, struct sink *ret)
{
    *ret = (struct sink){.fd = -1};
    if (ctl_has(k, OPT_OUT) + ctl_has(k, OPT_STDOUT) + ctl_has(k, OPT_PLAYER) != 1) {
        k->is_misused = true;
        return err_set(&k->err, STATUS_INVALID_ARGUMENT,
                       "play where to? One of --out FILE, --stdout, --player PROGRAM");
    }
    if (ctl_has(k, OPT_PLAYER))
        return start_player(k, k->opt[OPT_PLAYER], ret);
    if (ctl_has(k, OPT_STDOUT)) {
        ret->fd = dup(STDOUT_FILENO);
        ret->what = "standard output";
    } else {
        ret->what = k->opt[OPT_OUT];
        ret->fd = open(ret->what, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    }
    return ret->fd >= 0 ? STATUS_OK : err_errno(&k->err, errno, "open %s", ret->what);
}

static enum status close_sink(struct ctl *k, struct sink *s, enum status st)
{
    if (s->fd >= 0 && close(s->fd) != 0 && st == STATUS_OK)
        st = err_errno(&k->err, errno, "write %s", s->what);
    int status = 0;
    while (s->player && waitpid(s->player, &status, 0) < 0 && errno == EINTR)
        ;
    if (st == STATUS_OK && s->player && (!WIFEXITED(status) || WEXITSTATUS(status) == 127))
        st = err_set(&k->err, STATUS_UNKNOWN, "%s did not end well", s->what);
    return st;
}

// *ret_closed: the reader has had enough.
static enum status write_block(struct ctl *k, struct sink *s, const char *p, size_t n,
                               bool *ret_closed)
{
    for (size_t done = 0; done < n;) {
        ssize_t w = write(s->fd, p + done, n - done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno == EPIPE && !ctl_has(k, OPT_OUT)) {
            *ret_closed = true;
            return STATUS_OK;
        }
        if (w < 0)
            return err_errno(&k->err, errno, "write %s", s->what);
        done += (size_t)w;
        s->written += w;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- copying

static enum status copy(struct ctl *k, cauce_stream *from, struct sink *to, struct progress *p)
{
    AUTO(mem_free_p) char *block = mem_alloc(BLOCK_BYTES);
    if (!block)
        return err_set(&k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    cauce_stream_info info;
    cauce_stream_get_info(from, &info);
    for (bool closed = false; !closed;) {
        int64_t n = cauce_stream_read(from, block, BLOCK_BYTES);
        if (n < 0)
            return ctl_status(k, (cauce_status)-n, cauce_stream_error(from));
        if (n == 0)
            break;
        enum status s = write_block(k, to, block, (size_t)n, &closed);
        if (s != STATUS_OK)
            return s;
        cauce_progress now = {"play", info.size, to->written, 0};
        progress_update(&now, p);
    }
    return STATUS_OK;
}

static void print_result(struct ctl *k, cauce_stream *from, const struct sink *to)
{
    cauce_stream_info i;
    cauce_stream_get_info(from, &i);
    if (ctl_has(k, OPT_STDOUT))
        return;
    if (!ctl_has(k, OPT_JSON)) {
        const char *plus = i.video_rendition[0] && i.audio_rendition[0] ? "+" : "";
        fprintf(stderr, "%s: %" PRId64 " bytes, %s, ", to->what, to->written, i.mime);
        if (i.direct)
            fprintf(stderr, "the source itself\n");
        else
            fprintf(stderr, "%s%s%s\n", i.video_rendition, plus, i.audio_rendition);
        return;
    }
    struct buf b;
    buf_init(&b, 8192);
    buf_printf(&b, "{\"item\":");
    buf_put_json_string(&b, k->args[0], strlen(k->args[0]));
    buf_puts(&b, ",\"title\":");
    buf_put_json_string(&b, i.title, strlen(i.title));
    buf_puts(&b, ",\"type\":");
    buf_put_json_string(&b, i.mime, strlen(i.mime));
    buf_printf(&b,
               ",\"direct\":%s,\"video\":\"%s\",\"audio\":\"%s\",\"duration_us\":%" PRId64
               ",\"bytes\":%" PRId64 "}\n",
               i.direct ? "true" : "false", i.video_rendition, i.audio_rendition, i.duration_us,
               to->written);
    fputs(buf_str(&b), stdout);
    buf_done(&b);
}

static enum status open_stream(struct ctl *k, cauce_stream **ret)
{
    cauce_play_opts o;
    cauce_play_opts_init(&o);
    int64_t height = 0, bitrate = 0, seek_s = 0;
    enum status s = ctl_number(k, OPT_MAX_HEIGHT, 1, 16384, 0, &height, &k->err);
    if (s == STATUS_OK)
        s = ctl_number(k, OPT_MAX_BITRATE, 1, INT64_MAX, 0, &bitrate, &k->err);
    if (s == STATUS_OK)
        s = ctl_number(k, OPT_SEEK, 0, 1000000, 0, &seek_s, &k->err);
    if (s != STATUS_OK)
        return s;
    o.max_height = (int32_t)height;
    o.max_bitrate_bps = bitrate;
    o.never_direct = ctl_has(k, OPT_NEVER_DIRECT) || ctl_has(k, OPT_SEEK);
    cauce_error e;
    s = ctl_status(k, cauce_play_open(k->c, k->args[0], &o, ret, &e), &e);
    if (s == STATUS_OK && ctl_has(k, OPT_SEEK))
        s = ctl_status(k, cauce_stream_seek_time(*ret, seek_s * 1000000), cauce_stream_error(*ret));
    return s;
}

static enum status open_local(struct ctl *k, cauce_library **ret_library, cauce_stream **ret)
{
    cauce_error e;
    enum status s =
        ctl_status(k, cauce_library_open(k->opt[OPT_FROM_LIBRARY], ret_library, &e), &e);
    return s == STATUS_OK ? ctl_status(k, cauce_library_play(*ret_library, k->args[0], ret, &e), &e)
                          : s;
}

static enum status cmd_play(struct ctl *k)
{
    cauce_stream *from = NULL;
    cauce_library *library = NULL;
    struct sink to = {.fd = -1};
    struct progress p;
    progress_init(&p, k, k->args[0]);
    p.is_quiet = ctl_has(k, OPT_PLAYER);
    enum status s =
        ctl_has(k, OPT_FROM_LIBRARY) ? open_local(k, &library, &from) : open_stream(k, &from);
    if (s == STATUS_OK)
        s = open_sink(k, &to);
    if (s == STATUS_OK)
        s = copy(k, from, &to, &p);
    s = close_sink(k, &to, s);
    progress_end(&p);
    if (s == STATUS_OK)
        print_result(k, from, &to);
    cauce_stream_close(from);
    cauce_library_close(library);
    return s;
}

// ---------------------------------------------------------------- keeping

static void print_saved(const struct ctl *k, const cauce_download_result *r)
{
    if (!ctl_has(k, OPT_JSON)) {
        fprintf(stderr, "%s: %" PRId64 " bytes, %" PRId64 " of them now\n", r->path, r->size,
                r->received);
        return;
    }
    struct buf b;
    buf_init(&b, 8192);
    buf_printf(&b, "{\"path\":");
    buf_put_json_string(&b, r->path, strlen(r->path));
    buf_printf(&b, ",\"bytes\":%" PRId64 ",\"received\":%" PRId64 "}\n", r->size, r->received);
    fputs(buf_str(&b), stdout);
    buf_done(&b);
}

static enum status cmd_download(struct ctl *k)
{
    if (!ctl_has(k, OPT_OUT))
        return ctl_misused(k, "download where to? --out FILE");
    cauce_play_opts o;
    cauce_play_opts_init(&o);
    int64_t height = 0;
    enum status s = ctl_number(k, OPT_MAX_HEIGHT, 1, 16384, 0, &height, &k->err);
    if (s == STATUS_OK)
        s = ctl_number(k, OPT_MAX_BITRATE, 1, INT64_MAX, 0, &o.max_bitrate_bps, &k->err);
    if (s != STATUS_OK)
        return s;
    o.max_height = (int32_t)height;
    struct progress p;
    cauce_download_result r;
    cauce_error e;
    progress_init(&p, k, k->args[0]);
    s = ctl_status(k,
                   cauce_save(k->c, k->args[0], k->opt[OPT_RENDITION], &o, k->opt[OPT_OUT],
                              progress_update, &p, &r, &e),
                   &e);
    progress_end(&p);
    if (s == STATUS_OK)
        print_saved(k, &r);
    return s;
}

static const struct command commands[] = {
    {"play", "ITEM", 1, 1,
     ALLOW(OPT_OUT) | ALLOW(OPT_STDOUT) | ALLOW(OPT_PLAYER) | ALLOW(OPT_MAX_HEIGHT) |
         ALLOW(OPT_MAX_BITRATE) | ALLOW(OPT_NEVER_DIRECT) | ALLOW(OPT_SEEK) |
         ALLOW(OPT_FROM_LIBRARY),
     CONNECTED, cmd_play, "play to a file, standard output or a player"},
    {"play explain", "ITEM", 1, 1,
     ALLOW(OPT_PROFILE) | ALLOW(OPT_MAX_HEIGHT) | ALLOW(OPT_MAX_BITRATE) | ALLOW(OPT_AUDIO) |
         ALLOW(OPT_SUBTITLES) | ALLOW(OPT_BURN) | ALLOW(OPT_NEVER_DIRECT) | ALLOW(OPT_NO_COPIES),
     CONNECTED, cmd_play_explain, "how a player would play it, and why"},
    {"download", "ITEM", 1, 1,
     ALLOW(OPT_OUT) | ALLOW(OPT_RENDITION) | ALLOW(OPT_MAX_HEIGHT) | ALLOW(OPT_MAX_BITRATE),
     CONNECTED, cmd_download, "one MP4 file of renditions; goes on where it was cut"},
};
const struct command_group play_commands = {commands, N_ELEMENTS(commands)};
