// cauced keys, and the life of a process that runs roles: this program runs itself with toy roles.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/node.rpc.h"
#include "cauced.h"
#include "crypto/crypto.h"
#include "service/service.h"
#include "json/json.h"

#define PATIENCE_MS 20000
extern char **environ;

// ---------------------------------------------------------------- toy roles

struct toy_options {
    struct svc_options common;
    char *kind;
    char *ready_when; // not ready until this file is there
    bool stuck;       // never stops by itself
    bool fail;
};
#define OPT(field) offsetof(struct toy_options, field)
static const struct cfg_option toy_rows[] = {
    {"kind", CFG_STRING, OPT(kind), NULL, 0, 0, "kind"},
    {"ready-when", CFG_STRING, OPT(ready_when), NULL, 0, 0, "a file"},
    {"stuck", CFG_BOOL, OPT(stuck), NULL, 0, 0, "never stop"},
    {"fail", CFG_BOOL, OPT(fail), NULL, 0, 0, "do not start"},
};

struct toy {
    const struct toy_options *o;
    sem_t draining;
};

static enum status toy_start(struct svc *svc, const void *options, void **ret_self, struct err *err)
{
    const struct toy_options *o = options;
    if (o->fail)
        return err_set(err, STATUS_UNAVAILABLE, "as it was told");
    struct toy *t = mem_alloc(sizeof(*t));
    if (!t)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    t->o = o;
    sem_init(&t->draining, 0, 0);
    svc_set_http_address(svc, "http://127.0.0.1:1");
    svc_set_public_url(svc, "cauce://127.0.0.1:2#key");
    *ret_self = t;
    return STATUS_OK;
}

static bool toy_ready(void *self, char *reason, size_t size)
{
    const struct toy *t = self;
    if (!t->o->ready_when || access(t->o->ready_when, F_OK) == 0)
        return true;
    (void)str_copy(reason, size, "the file is not there");
    return false;
}

static void toy_drain(void *self)
{
    struct toy *t = self;
    sem_post(&t->draining);
}

static void toy_stop(void *self)
{
    struct toy *t = self;
    while (t->o->stuck)
        pause();
    sem_destroy(&t->draining);
    mem_free(t);
}

// A call that is under way until the process is told to stop.
static enum status toy_cluster(void *self, struct rpc_call *call,
                               const struct Node__ClusterRequest *req,
                               struct Node__ClusterReply *ret, struct err *err)
{
    struct toy *t = self;
    (void)call;
    (void)req;
    (void)ret;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_MS / 1000;
    if (sem_timedwait(&t->draining, &until) != 0)
        return err_set(err, STATUS_INTERNAL, "nobody drained");
    return STATUS_OK;
}

#define TOY(name_, bit)                                                                            \
    {                                                                                              \
        .name = name_, .role = bit,                                                                \
        .spec = {.section = name_,                                                                 \
                 .usage = name_,                                                                   \
                 .options = toy_rows,                                                              \
                 .n_options = N_ELEMENTS(toy_rows)},                                               \
        .options_size = sizeof(struct toy_options), .start = toy_start, .ready = toy_ready,        \
        .drain = toy_drain, .stop = toy_stop, .cluster = toy_cluster,                              \
    }
static const struct svc_role toy_origin = TOY("origin", ROLE_NODE_ORIGIN);
static const struct svc_role toy_session = TOY("session", ROLE_NODE_SESSION);
static const struct svc_role *const toys[] = {&toy_origin, &toy_session};

// ---------------------------------------------------------------- a folder, keys in it

static char folder[64];

static const char *in_folder(const char *name)
{
    static char paths[8][160];
    static unsigned next;
    char *p = paths[next++ % 8];

    snprintf(p, sizeof(paths[0]), "%s/%s", folder, name);
    return p;
}

static void remove_folder(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0); // NOLINT: our own mkdtemp path
}

static int new_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/cauced-test-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    (void)state;
    remove_folder();
    return 0;
}

static int keys(const char *const *words)
{
    char *argv[24];
    int argc = 0;
    char out[128];

    snprintf(out, sizeof(out), "--out=%s", in_folder("keys"));
    argv[argc++] = out;
    for (; words && *words; words++)
        argv[argc++] = (char *)(uintptr_t)*words;
    argv[argc] = NULL;
    return cauced_keys(argc, argv);
}
#define KEYS(...) keys((const char *const[]){__VA_ARGS__, NULL})

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return NULL;
    char *text = mem_alloc(65536);
    assert_non_null(text);
    (void)!fread(text, 1, 65535, f);
    fclose(f);
    return text;
}

static void node_word(char out[256], const char *node)
{
    const char *id_end = strchr(node, ':');

    snprintf(out, 256, "--node=%s@ipc://%s/%.*s.sock", node, folder, (int)(id_end - node), node);
}

static void standard_keys(void)
{
    char a[256], b[256], c[256];

    node_word(a, "video-1:origin:video");
    node_word(b, "audio-1:origin:audio");
    node_word(c, "session-1:session");
    assert_int_equal(KEYS(a, b, c), 0);
}

// ---------------------------------------------------------------- cauced keys

static void test_keys_makes_everything_private(void **state)
{
    (void)state;
    static const char *const secret[] = {"operator.key", "video-1.key", "video-1.grant",
                                         "session-1.key", "session-1.token.key"};
    AUTO(svc_nodes_free_p) struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;
    struct stat st;

    standard_keys();
    for (size_t i = 0; i < N_ELEMENTS(secret); i++) {
        char name[64];
        snprintf(name, sizeof(name), "keys/%s", secret[i]);
        assert_int_equal(stat(in_folder(name), &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
    }
    assert_int_equal(stat(in_folder("keys"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(access(in_folder("keys/video-1.token.key"), F_OK), -1);
    assert_int_equal(svc_nodes_load(in_folder("keys/nodes.ini"), &n, &err), STATUS_OK);
    assert_string_equal(svc_nodes_find(n, "audio-1")->kind, "audio");
    assert_true(svc_nodes_find(n, "session-1")->has_token_key);
    assert_false(svc_nodes_find(n, "video-1")->has_token_key);
}

static void test_keys_again_changes_nothing(void **state)
{
    (void)state;
    static const char *const files[] = {"keys/operator.key", "keys/video-1.key",
                                        "keys/video-1.grant", "keys/session-1.token.key",
                                        "keys/nodes.ini"};
    char *before[N_ELEMENTS(files)];

    standard_keys();
    for (size_t i = 0; i < N_ELEMENTS(files); i++)
        before[i] = read_text(in_folder(files[i]));
    standard_keys();
    assert_int_equal(keys(NULL), 0);
    for (size_t i = 0; i < N_ELEMENTS(files); i++) {
        AUTO(mem_free_p) char *after = read_text(in_folder(files[i]));
        assert_string_equal(before[i], after);
        mem_free(before[i]);
    }
}

static void test_keys_cut_off_run_is_completed_with_the_same_keys(void **state)
{
    (void)state;
    standard_keys();
    AUTO(mem_free_p) char *before = read_text(in_folder("keys/nodes.ini"));
    assert_int_equal(unlink(in_folder("keys/nodes.ini")), 0);
    assert_int_equal(unlink(in_folder("keys/audio-1.grant")), 0);
    standard_keys();
    AUTO(mem_free_p) char *after = read_text(in_folder("keys/nodes.ini"));
    assert_string_equal(before, after);
    assert_int_equal(access(in_folder("keys/audio-1.grant"), F_OK), 0);
}

static void test_keys_adds_nodes_and_changes_addresses(void **state)
{
    (void)state;
    AUTO(svc_nodes_free_p) struct svc_nodes *before = NULL;
    AUTO(svc_nodes_free_p) struct svc_nodes *after = NULL;
    struct err err = ERR_INIT;

    standard_keys();
    assert_int_equal(svc_nodes_load(in_folder("keys/nodes.ini"), &before, &err), STATUS_OK);
    assert_int_equal(KEYS("--node", "video-1:origin:video@tcp://10.0.0.1:7300", "--node",
                          "store-1:store@tcp://10.0.0.2:7300"),
                     0);
    assert_int_equal(svc_nodes_load(in_folder("keys/nodes.ini"), &after, &err), STATUS_OK);
    const struct svc_node *a = svc_nodes_find(before, "video-1"),
                          *b = svc_nodes_find(after, "video-1");
    assert_memory_equal(a->key, b->key, 32);
    assert_string_equal(b->url, "tcp://10.0.0.1:7300");
    assert_string_equal(svc_nodes_find(after, "audio-1")->url,
                        svc_nodes_find(before, "audio-1")->url);
    assert_true(svc_nodes_find(after, "store-1")->has_token_key);
}

static void test_keys_without_the_operator_signs_nothing(void **state)
{
    (void)state;
    standard_keys();
    assert_int_equal(unlink(in_folder("keys/operator.key")), 0);
    assert_int_equal(KEYS("--node", "video-1:origin:video@tcp://10.0.0.1:7300"), 0);
    assert_int_equal(KEYS("--node", "store-1:store@tcp://10.0.0.2:7300"), 1);
    assert_int_equal(access(in_folder("keys/operator.key"), F_OK), -1);
}

static void test_keys_leaves_a_node_whose_secret_moved_away(void **state)
{
    (void)state;
    standard_keys();
    AUTO(mem_free_p) char *before = read_text(in_folder("keys/nodes.ini"));
    assert_int_equal(unlink(in_folder("keys/video-1.key")), 0);
    standard_keys();
    AUTO(mem_free_p) char *after = read_text(in_folder("keys/nodes.ini"));
    assert_string_equal(before, after);
    assert_int_equal(access(in_folder("keys/video-1.key"), F_OK), -1);
}

static void test_keys_renews_grants_that_end_soon(void **state)
{
    (void)state;
    char a[256];

    node_word(a, "video-1:origin:video");
    assert_int_equal(KEYS(a, "--valid=5d"), 0);
    AUTO(mem_free_p) char *before = read_text(in_folder("keys/video-1.grant"));
    assert_int_equal(KEYS(a, "--valid=100d"), 0);
    AUTO(mem_free_p) char *after = read_text(in_folder("keys/video-1.grant"));
    assert_string_not_equal(before, after);
    assert_int_equal(KEYS(a, "--valid=200d"), 0); // good for long enough now
    AUTO(mem_free_p) char *again = read_text(in_folder("keys/video-1.grant"));
    assert_string_equal(after, again);
}

static void test_keys_refuses_bad_words(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "video-1",
        "video-1:origin:video",
        "video-1:origin@tcp://h:1", // an origin without a kind
        "video-1:origin:text@tcp://h:1",
        "s:session:video@tcp://h:1",
        "s:emperor@tcp://h:1",
        ":session@tcp://h:1",
        "operator:session@tcp://h:1",
        "S:session@tcp://h:1",
        "../s:session@tcp://h:1",
        "s:session@h:1",
        "s:session@tcp://",
        "s:session@tcp://h :1",
        "s:session@tcp://h:1\n[x]",
    };
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        if (KEYS("--node", bad[i]) != 1)
            fail_msg("accepted: %s", bad[i]);
    standard_keys();
    assert_int_equal(KEYS("--node", "video-1:store@tcp://h:1"), 1); // exists with another role
}

// ---------------------------------------------------------------- processes

struct process {
    pid_t pid;
    int pidfd;
};

static struct process spawn(const char *const *words)
{
    char *argv[24] = {(char *)(uintptr_t) "cauced"};
    int argc = 1;
    struct process p;
    posix_spawn_file_actions_t fa;

    for (; *words; words++)
        argv[argc++] = (char *)(uintptr_t)*words;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, STDERR_FILENO, in_folder("stderr"),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(posix_spawn(&p.pid, "/proc/self/exe", &fa, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fa);
    p.pidfd = (int)syscall(SYS_pidfd_open, p.pid, 0);
    assert_true(p.pidfd >= 0);
    return p;
}
#define SPAWN(...) spawn((const char *const[]){__VA_ARGS__, NULL})

// Exit status, or -signal.
static int wait_end(struct process *p)
{
    struct pollfd f = {.fd = p->pidfd, .events = POLLIN};
    int status = 0;

    if (poll(&f, 1, PATIENCE_MS) != 1) {
        kill(p->pid, SIGKILL);
        fail_msg("process %ld does not end", (long)p->pid);
    }
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    close(p->pidfd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void assert_says(const char *text)
{
    AUTO(mem_free_p) char *log = read_text(in_folder("stderr"));

    if (!strstr(log, text))
        fail_msg("'%s' is not in: %s", text, log);
}

// Wait until the ready file is there; fails when the process ends before.
static char *wait_ready(int watch, struct process *p)
{
    int64_t deadline = time_mono_ms() + PATIENCE_MS;
    char events[4096];

    while (access(in_folder("ready"), F_OK) != 0) {
        struct pollfd f[2] = {{.fd = watch, .events = POLLIN}, {.fd = p->pidfd, .events = POLLIN}};
        int64_t left = deadline - time_mono_ms();
        if (left <= 0 || poll(f, 2, (int)left) <= 0)
            fail_msg("no ready file");
        if (f[1].revents) {
            AUTO(mem_free_p) char *log = read_text(in_folder("stderr"));
            fail_msg("the process ended: %s", log);
        }
        (void)!read(watch, events, sizeof(events));
    }
    return read_text(in_folder("ready"));
}

static int watch_folder(void)
{
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    assert_true(fd >= 0);
    assert_true(inotify_add_watch(fd, folder, IN_MOVED_TO | IN_CREATE) >= 0);
    return fd;
}

static struct process start_ready(char **ret_text, const char *const *words)
{
    int watch = watch_folder();
    struct process p = spawn(words);
    char *text = wait_ready(watch, &p);

    close(watch);
    if (ret_text)
        *ret_text = text;
    else
        mem_free(text);
    return p;
}
#define START(ret, ...) start_ready(ret, (const char *const[]){__VA_ARGS__, NULL})

static const char *keys_word(void)
{
    static char word[128];

    snprintf(word, sizeof(word), "--keys=%s/keys", folder);
    return word;
}

static const char *ready_word(void)
{
    static char word[128];

    snprintf(word, sizeof(word), "--ready-file=%s/ready", folder);
    return word;
}

static void test_role_says_ready_and_ends_on_sigterm(void **state)
{
    (void)state;
    AUTO(mem_free_p) char *text = NULL;
    AUTO(json_free_p) struct json_value *ready = NULL;
    struct err err = ERR_INIT;
    char url[128];
    int64_t pid = 0;

    standard_keys();
    struct process p = START(&text, "origin", "--kind=audio", keys_word(), ready_word());
    assert_int_equal(json_parse(text, strlen(text), 0, &ready, &err), STATUS_OK);
    assert_string_equal(json_string_or(json_member(ready, "node"), ""), "audio-1");
    assert_string_equal(json_string_or(json_member(ready, "role"), ""), "origin");
    assert_string_equal(json_string_or(json_member(ready, "kind"), ""), "audio");
    assert_string_equal(json_string_or(json_member(ready, "http"), ""), "http://127.0.0.1:1");
    assert_string_equal(json_string_or(json_member(ready, "public"), ""),
                        "cauce://127.0.0.1:2#key");
    assert_true(json_get_i64(json_member(ready, "pid"), &pid));
    assert_int_equal(pid, p.pid);
    snprintf(url, sizeof(url), "ipc://%s/audio-1.sock", folder);
    assert_string_equal(json_string_or(json_element(json_member(ready, "urls"), 0), ""), url);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
    assert_int_equal(access(in_folder("ready"), F_OK), -1);
}

static void test_all_runs_every_node_of_the_file(void **state)
{
    (void)state;
    AUTO(mem_free_p) char *text = NULL;
    AUTO(json_free_p) struct json_value *ready = NULL;
    struct err err = ERR_INIT;

    standard_keys();
    struct process p = START(&text, "all", keys_word(), ready_word());
    assert_int_equal(json_parse(text, strlen(text), 0, &ready, &err), STATUS_OK);
    const struct json_value *nodes = json_member(ready, "nodes");
    assert_int_equal(json_size(nodes), 3);
    assert_string_equal(json_string_or(json_member(json_element(nodes, 1), "node"), ""), "audio-1");
    assert_string_equal(json_string_or(json_member(json_element(nodes, 2), "role"), ""), "session");
    assert_string_equal(json_string_or(json_member(ready, "http"), ""), "http://127.0.0.1:1");
    kill(p.pid, SIGINT);
    assert_int_equal(wait_end(&p), 0);
}

static void test_role_that_cannot_serve_yet_is_waited_for(void **state)
{
    (void)state;
    char word[128];
    int watch;

    standard_keys();
    snprintf(word, sizeof(word), "--ready-when=%s/now", folder);
    watch = watch_folder();
    struct process p = SPAWN("session", keys_word(), ready_word(), word);
    int fd = open(in_folder("now"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    mem_free(wait_ready(watch, &p));
    close(watch);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
}

static void test_stuck_role_is_ended_in_time(void **state)
{
    (void)state;
    standard_keys();
    struct process p = START(NULL, "session", keys_word(), ready_word(), "--stuck", "--drain=0ms");
    int64_t began = time_mono_ms();
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 1);
    assert_true(time_mono_ms() - began < 5000);
    assert_says("did not stop in time");
}

static void test_role_that_cannot_start_says_why(void **state)
{
    (void)state;
    static const struct {
        const char *word;
        int code;
        const char *says;
    } rows[] = {
        {"--fail", 1, "session: as it was told"},
        {"--colour=blue", 2, "no option '--colour'"},
        {"--node=nobody", 1, "nodes.ini has no session 'nobody'"},
        {"--log-level=loud", 1, "--log-level 'loud'"},
        {"--listen=tcp://no.such.host.invalid:1", 1, "listen on tcp://no.such.host.invalid:1"},
    };
    standard_keys();
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct process p = SPAWN("session", keys_word(), rows[i].word);
        assert_int_equal(wait_end(&p), rows[i].code);
        assert_says(rows[i].says);
    }
    struct process p = SPAWN("session");
    assert_int_equal(wait_end(&p), 1);
    assert_says("--keys");
    p = SPAWN("emperor");
    assert_int_equal(wait_end(&p), 2);
    assert_says("no role 'emperor'");
}

static void test_missing_or_foreign_keys_are_named(void **state)
{
    (void)state;
    standard_keys();
    assert_int_equal(rename(in_folder("keys/audio-1.grant"), in_folder("keys/session-1.grant")), 0);
    struct process p = SPAWN("session", keys_word());
    assert_int_equal(wait_end(&p), 1);
    assert_says("another node's");
    assert_int_equal(rename(in_folder("keys/audio-1.key"), in_folder("keys/session-1.key")), 0);
    p = SPAWN("session", keys_word());
    assert_int_equal(wait_end(&p), 1);
    assert_says("is not the key that nodes.ini has");
    assert_int_equal(unlink(in_folder("keys/session-1.key")), 0);
    p = SPAWN("session", keys_word());
    assert_int_equal(wait_end(&p), 1);
    assert_says("our key is missing");
    assert_int_equal(chmod(in_folder("keys/video-1.key"), 0644), 0);
    p = SPAWN("origin", keys_word());
    assert_int_equal(wait_end(&p), 1);
    assert_says("chmod 600");
}

// ---------------------------------------------------------------- calls into a process

struct caller {
    struct chan_identity id;
    struct chan_trust trust;
    struct svc_nodes *nodes;
    struct rpc_client *client;
    char token[2048];
};

// As node session-1, with an administrator's token, to node video-1 by its key, or the one to come.
static void caller_init_by(struct caller *c, bool next_key)
{
    uint8_t secret[64];
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf token = {0};
    struct rpc_user u = {.id = "u",
                         .name = "n",
                         .session = "s",
                         .roles = ROLE_ADMIN,
                         .exp_wall_ms = time_wall_ms() + 600000};

    memset(c, 0, sizeof(*c));
    assert_int_equal(svc_nodes_load(in_folder("keys/nodes.ini"), &c->nodes, &err), STATUS_OK);
    assert_int_equal(crypto_key_load(in_folder("keys/session-1.key"), "cauce-x25519-secret",
                                     c->id.secret, 32, &err),
                     STATUS_OK);
    assert_int_equal(crypto_key_load(in_folder("keys/session-1.grant"), "cauce-grant", c->id.grant,
                                     CHAN_GRANT_SIZE, &err),
                     STATUS_OK);
    assert_int_equal(crypto_key_load(in_folder("keys/session-1.token.key"), "cauce-ed25519-secret",
                                     secret, 64, &err),
                     STATUS_OK);
    c->id.grant_len = CHAN_GRANT_SIZE;
    crypto_dh_public(c->id.public_key, c->id.secret);
    memcpy(c->trust.operator_public, svc_nodes_operator(c->nodes), 32);
    buf_init(&token, sizeof(c->token) - 1);
    assert_int_equal(svc_token_mint_access(secret, &u, &token, &err), STATUS_OK);
    strcpy(c->token, buf_str(&token));
    const struct svc_node *n = svc_nodes_find(c->nodes, "video-1");
    struct rpc_endpoint e = {.url = n->url};
    memcpy(e.key, next_key ? n->next_key : n->key, 32);
    struct rpc_client_opts o = {.identity = &c->id,
                                .trust = &c->trust,
                                .expect_role = ROLE_NODE_ORIGIN,
                                .endpoints = &e,
                                .n_endpoints = 1};
    c->client = rpc_client_new(&o, &err);
    assert_non_null(c->client);
}

static void caller_init(struct caller *c)
{
    caller_init_by(c, false);
}

static void caller_done(struct caller *c)
{
    rpc_client_free(c->client);
    svc_nodes_free(c->nodes);
}

static void test_health_and_info_are_served(void **state)
{
    (void)state;
    struct caller c;
    struct err err = ERR_INIT;
    const Node__CheckRequest check = NODE__CHECK_REQUEST__INIT;
    const Node__InfoRequest info = NODE__INFO_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__CheckReply *health = NULL;
    AUTO(rpc_message_free_p) Node__InfoReply *self = NULL;

    standard_keys();
    struct process p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init(&c);
    assert_int_equal(node_health_check(c.client, NULL, &check, &health, &err), STATUS_OK);
    assert_int_equal(health->status, NODE__SERVING__SERVING);
    assert_int_equal(node_node_info(c.client, NULL, &info, &self, &err), STATUS_OK);
    assert_string_equal(self->node_id, "video-1");
    assert_string_equal(self->role, "origin");
    assert_string_equal(self->kind, "video");
    assert_string_equal(self->version, CAUCE_VERSION);
    assert_true(self->rss_bytes > 0 && self->calls_total >= 2 && self->connections >= 1);
    caller_done(&c);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
}

// What 'cauced keys' and operators do: another file in its place.
static void edit_nodes(const char *after, const char *insert)
{
    AUTO(mem_free_p) char *text = read_text(in_folder("keys/nodes.ini"));
    char *at = strstr(text, after);
    FILE *f = fopen(in_folder("keys/nodes.ini.new"), "we");

    assert_non_null(at);
    assert_non_null(f);
    at += strlen(after);
    assert_true(fprintf(f, "%.*s%s%s", (int)(at - text), text, insert, at) > 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename(in_folder("keys/nodes.ini.new"), in_folder("keys/nodes.ini")), 0);
}

// Ask until the reason is one that has this in it; "" for no reason.
static void wait_reason(struct caller *c, const char *says)
{
    const Node__CheckRequest check = NODE__CHECK_REQUEST__INIT;
    int64_t deadline = time_mono_ms() + PATIENCE_MS;
    struct err err = ERR_INIT;

    for (bool found = false; !found;) {
        AUTO(rpc_message_free_p) Node__CheckReply *health = NULL;
        assert_int_equal(node_health_check(c->client, NULL, &check, &health, &err), STATUS_OK);
        assert_int_equal(health->status, NODE__SERVING__SERVING);
        found = says[0] ? strstr(health->reason, says) != NULL : health->reason[0] == '\0';
        if (!found && time_mono_ms() > deadline)
            fail_msg("the reason is '%s'", health->reason);
    }
}

static void test_grant_that_ends_soon_is_said_and_renewed_without_a_restart(void **state)
{
    (void)state;
    struct caller c;
    char *argv[] = {(char *)(uintptr_t)keys_word(), (char *)(uintptr_t) "video-1", NULL, NULL};
    char brief[] = "--valid=5h";

    standard_keys();
    argv[2] = brief;
    assert_int_equal(cauced_keys_renew(3, argv), 0);
    struct process p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init(&c);
    wait_reason(&c, "our grant ends in 4 h");
    assert_int_equal(cauced_keys_renew(2, argv), 0);
    wait_reason(&c, "");
    caller_done(&c);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
}

static void test_node_with_two_keys_answers_to_both(void **state)
{
    (void)state;
    struct caller old, new;
    char *argv[] = {(char *)(uintptr_t)keys_word(), (char *)(uintptr_t) "video-1", NULL};

    standard_keys();
    assert_int_equal(cauced_keys_rotate(2, argv), 0);
    struct process p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init_by(&old, false);
    caller_init_by(&new, true);
    wait_reason(&old, "");
    wait_reason(&new, "");
    caller_done(&old);
    assert_int_equal(cauced_keys_retire(2, argv), 0);
    kill(p.pid, SIGHUP);
    caller_init_by(&old, false); // by what is the first key now
    wait_reason(&old, "");
    wait_reason(&new, "");
    caller_done(&old);
    caller_done(&new);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
}

static void test_broken_list_changes_nothing_and_health_says_so(void **state)
{
    (void)state;
    struct caller c;

    standard_keys();
    struct process p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init(&c);
    wait_reason(&c, "");
    AUTO(mem_free_p) char *good = read_text(in_folder("keys/nodes.ini"));
    edit_nodes("[operator]\n", "colour = blue\n");
    kill(p.pid, SIGHUP);
    wait_reason(&c, "colour");
    FILE *f = fopen(in_folder("keys/nodes.ini"), "we");
    assert_non_null(f);
    assert_true(fputs(good, f) >= 0);
    assert_int_equal(fclose(f), 0);
    wait_reason(&c, ""); // seen without a signal
    caller_done(&c);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
    assert_says("keys_not_reloaded");
    assert_says("keys_reloaded");
}

struct answer {
    sem_t done;
    enum status status;
};

static void take_answer(void *ud, enum status s, Node__ClusterReply *reply, const struct err *err)
{
    struct answer *a = ud;

    (void)err;
    a->status = s;
    rpc_message_free(reply);
    sem_post(&a->done);
}

static void test_call_under_way_is_answered_before_the_end(void **state)
{
    (void)state;
    struct caller c;
    struct answer a = {.status = STATUS_UNKNOWN};
    struct err err = ERR_INIT;
    const Node__ClusterRequest req = NODE__CLUSTER_REQUEST__INIT;
    const Node__CheckRequest check = NODE__CHECK_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__CheckReply *health = NULL;

    standard_keys();
    sem_init(&a.done, 0, 0);
    struct process p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init(&c);
    struct rpc_opts o = {.token = c.token, .deadline_us = time_deadline_in_ms(PATIENCE_MS)};
    node_node_cluster_async(c.client, &o, &req, take_answer, &a);
    // Its answer, on the same connection and later, says that the call before has arrived.
    assert_int_equal(node_health_check(c.client, NULL, &check, &health, &err), STATUS_OK);
    kill(p.pid, SIGTERM);
    while (sem_wait(&a.done) != 0 && errno == EINTR) {
    }
    assert_int_equal(a.status, STATUS_OK);
    assert_int_equal(wait_end(&p), 0);
    caller_done(&c);
    sem_destroy(&a.done);
}

static void wait_answer(struct answer *a)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_MS / 1000;
    while (sem_timedwait(&a->done, &until) != 0)
        assert_int_equal(errno, EINTR);
}

static void test_revoked_node_loses_its_calls_and_is_not_let_in_again(void **state)
{
    (void)state;
    struct caller c;
    struct answer a = {.status = STATUS_UNKNOWN};
    struct err err = ERR_INIT;
    const Node__ClusterRequest req = NODE__CLUSTER_REQUEST__INIT;
    const Node__CheckRequest check = NODE__CHECK_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__CheckReply *health = NULL;

    standard_keys();
    sem_init(&a.done, 0, 0);
    struct process p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init(&c);
    struct rpc_opts o = {
        .token = c.token, .deadline_us = time_deadline_in_ms(4 * PATIENCE_MS), .max_attempts = 1};
    node_node_cluster_async(c.client, &o, &req, take_answer, &a);
    assert_int_equal(node_health_check(c.client, NULL, &check, &health, &err), STATUS_OK);
    edit_nodes("[operator]\n", "revoked = session-1\n");
    wait_answer(&a);
    assert_true(a.status == STATUS_PERMISSION_DENIED || a.status == STATUS_UNAVAILABLE);
    rpc_message_free(TAKE(health));
    o = (struct rpc_opts){.deadline_us = time_deadline_in_ms(400), .max_attempts = 1};
    assert_int_not_equal(node_health_check(c.client, &o, &check, &health, &err), STATUS_OK);
    caller_done(&c);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
    // Nor after a restart: it is in the file.
    p = START(NULL, "origin:video-1", keys_word(), ready_word());
    caller_init(&c);
    o.deadline_us = time_deadline_in_ms(400);
    assert_int_not_equal(node_health_check(c.client, &o, &check, &health, &err), STATUS_OK);
    caller_done(&c);
    kill(p.pid, SIGTERM);
    assert_int_equal(wait_end(&p), 0);
    sem_destroy(&a.done);
}

static int start(void **state)
{
    (void)state;
    struct err err = ERR_INIT;

    return crypto_init(&err) == STATUS_OK ? 0 : -1;
}

static int stop(void **state)
{
    (void)state;
    rpc_fini();
    return 0;
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, new_folder, drop_folder)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_keys_makes_everything_private),
        IN_FOLDER(test_keys_again_changes_nothing),
        IN_FOLDER(test_keys_cut_off_run_is_completed_with_the_same_keys),
        IN_FOLDER(test_keys_adds_nodes_and_changes_addresses),
        IN_FOLDER(test_keys_without_the_operator_signs_nothing),
        IN_FOLDER(test_keys_leaves_a_node_whose_secret_moved_away),
        IN_FOLDER(test_keys_renews_grants_that_end_soon),
        IN_FOLDER(test_keys_refuses_bad_words),
        IN_FOLDER(test_role_says_ready_and_ends_on_sigterm),
        IN_FOLDER(test_all_runs_every_node_of_the_file),
        IN_FOLDER(test_role_that_cannot_serve_yet_is_waited_for),
        IN_FOLDER(test_stuck_role_is_ended_in_time),
        IN_FOLDER(test_role_that_cannot_start_says_why),
        IN_FOLDER(test_missing_or_foreign_keys_are_named),
        IN_FOLDER(test_health_and_info_are_served),
        IN_FOLDER(test_call_under_way_is_answered_before_the_end),
        IN_FOLDER(test_grant_that_ends_soon_is_said_and_renewed_without_a_restart),
        IN_FOLDER(test_node_with_two_keys_answers_to_both),
        IN_FOLDER(test_broken_list_changes_nothing_and_health_says_so),
        IN_FOLDER(test_revoked_node_loses_its_calls_and_is_not_let_in_again),
    };

    if (argc > 1)
        return svc_main(toys, N_ELEMENTS(toys), argc - 1, argv + 1);
    return cmocka_run_group_tests(tests, start, stop);
}
