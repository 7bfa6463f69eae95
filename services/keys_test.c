// What operators do with keys: rotate, retire, renew, revoke; invite machines and let them join.
// This program runs itself as cauced.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauced.h"
#include "crypto/crypto.h"
#include "invitation.h"
#include "json/json.h"

#define PATIENCE_MS 20000
extern char **environ;

// ---------------------------------------------------------------- a folder, commands in it

static char folder[64];

static const char *in_folder(const char *name)
{
    static char paths[8][160];
    static unsigned next;
    char *p = paths[next++ % 8];

    snprintf(p, sizeof(paths[0]), "%s/%s", folder, name);
    return p;
}

static char *read_text(const char *path)
{
    char *text = mem_alloc(65536);
    FILE *f = fopen(path, "re");

    assert_non_null(text);
    if (f) {
        (void)!fread(text, 1, 65535, f);
        (void)fclose(f);
    }
    return text;
}

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
    posix_spawn_file_actions_addopen(&fa, STDIN_FILENO, in_folder("in"), O_RDONLY | O_CREAT, 0600);
    posix_spawn_file_actions_addopen(&fa, STDOUT_FILENO, in_folder("out"),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&fa, STDERR_FILENO,
                                     in_folder(str_eq(argv[1], "enrol") ? "enrol.err" : "err"),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(posix_spawn(&p.pid, "/proc/self/exe", &fa, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fa);
    p.pidfd = (int)syscall(SYS_pidfd_open, p.pid, 0);
    assert_true(p.pidfd >= 0);
    return p;
}

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

static int run(const char *const *words)
{
    struct process p = spawn(words);

    return wait_end(&p);
}
#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

static void assert_file_says(const char *name, const char *text)
{
    AUTO(mem_free_p) char *all = read_text(in_folder(name));

    if (!strstr(all, text))
        fail_msg("'%s' is not in %s: %s", text, name, all);
}

#define ASSERT_FAILS(code, says, ...)                                                              \
    do {                                                                                           \
        assert_int_equal(RUN(__VA_ARGS__), code);                                                  \
        assert_file_says("err", says);                                                             \
    } while (0)

static char keys_word[128];

static int new_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/cauce-keys-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(keys_word, sizeof(keys_word), "--keys=%s/keys", folder);
    char out[128];
    snprintf(out, sizeof(out), "--out=%s/keys", folder);
    assert_int_equal(RUN("keys", out, "--node=session-1:session@ipc:///x/s",
                         "--node=video-1:origin:video@ipc:///x/v",
                         "--node=worker-1:transcode@ipc:///x/w"),
                     0);
    return 0;
}

static int drop_folder(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command); // NOLINT: our own mkdtemp path
}

// ---------------------------------------------------------------- what is in it

static struct svc_nodes *load_nodes(const char *name)
{
    struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;

    if (svc_nodes_load(in_folder(name), &n, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return n;
}

static struct svc_node node_of(const char *id)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *n = load_nodes("keys/nodes.ini");
    const struct svc_node *found = svc_nodes_find(n, id);

    assert_non_null(found);
    return *found;
}

static void public_key_of(const char *name, uint8_t ret[32])
{
    uint8_t secret[32];
    struct err err = ERR_INIT;

    assert_int_equal(crypto_key_load(in_folder(name), "cauce-x25519-secret", secret, 32, &err),
                     STATUS_OK);
    crypto_dh_public(ret, secret);
}

static struct chan_grant grant_of(const char *name)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *n = load_nodes("keys/nodes.ini");
    uint8_t bytes[CHAN_GRANT_SIZE];
    struct chan_grant g;
    struct err err = ERR_INIT;

    assert_int_equal(crypto_key_load(in_folder(name), "cauce-grant", bytes, sizeof(bytes), &err),
                     STATUS_OK);
    assert_int_equal(chan_grant_verify(&g, bytes, sizeof(bytes), svc_nodes_operator(n),
                                       time_wall_ms() / 1000, &err),
                     STATUS_OK);
    return g;
}

static bool is_revoked(const struct chan_grant *g)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *n = load_nodes("keys/nodes.ini");

    return svc_nodes_is_revoked(n, g);
}

static bool is_there(const char *name)
{
    return access(in_folder(name), F_OK) == 0;
}

static void assert_private(const char *name)
{
    struct stat st;

    assert_int_equal(stat(in_folder(name), &st), 0);
    assert_int_equal(st.st_mode & 0077, 0);
}

// ---------------------------------------------------------------- keys

static void test_rotated_node_has_two_keys_until_the_first_is_retired(void **state)
{
    (void)state;
    struct svc_node before = node_of("worker-1");
    struct chan_grant old = grant_of("keys/worker-1.grant");
    uint8_t key[32];

    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    struct svc_node both = node_of("worker-1");
    assert_memory_equal(both.key, before.key, 32);
    assert_true(both.has_next_key);
    assert_private("keys/worker-1.next.key");
    public_key_of("keys/worker-1.next.key", key);
    assert_memory_equal(both.next_key, key, 32);
    struct chan_grant next = grant_of("keys/worker-1.next.grant");
    assert_memory_equal(next.key, key, 32);
    assert_true(next.serial > old.serial);
    assert_false(is_revoked(&old));
    ASSERT_FAILS(1, "has two keys already", "keys", "rotate", keys_word, "worker-1");

    assert_int_equal(RUN("keys", "retire", keys_word, "worker-1"), 0);
    struct svc_node after = node_of("worker-1");
    assert_memory_equal(after.key, key, 32);
    assert_false(after.has_next_key);
    public_key_of("keys/worker-1.key", key);
    assert_memory_equal(after.key, key, 32);
    assert_true(is_revoked(&old));
    assert_false(is_revoked(&next));
    assert_false(is_there("keys/worker-1.next.key"));
    ASSERT_FAILS(1, "has one key only", "keys", "retire", keys_word, "worker-1");
    struct svc_node other = node_of("video-1");
    assert_false(other.has_next_key);
}

static void test_retire_that_was_cut_off_is_completed(void **state)
{
    (void)state;
    uint8_t key[32];

    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    assert_int_equal(RUN("keys", "retire", keys_word, "worker-1"), 0);
    // As it is after nodes.ini was written and before the files had their names.
    assert_int_equal(rename(in_folder("keys/worker-1.key"), in_folder("keys/worker-1.next.key")),
                     0);
    assert_int_equal(
        rename(in_folder("keys/worker-1.grant"), in_folder("keys/worker-1.next.grant")), 0);
    assert_int_equal(RUN("keys", "retire", keys_word, "worker-1"), 0);
    public_key_of("keys/worker-1.key", key);
    struct svc_node now = node_of("worker-1");
    assert_memory_equal(now.key, key, 32);
    assert_false(is_there("keys/worker-1.next.grant"));
}

static void write_text(const char *name, const char *before, const char *text)
{
    FILE *f = fopen(in_folder(name), "we");

    assert_non_null(f);
    assert_true(fputs(before, f) >= 0 && fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void test_rotation_that_was_cut_off_is_completed_before_it_is_retired(void **state)
{
    (void)state;
    AUTO(mem_free_p) char *before = read_text(in_folder("keys/nodes.ini"));
    uint8_t key[32], still[32];

    public_key_of("keys/worker-1.key", key);
    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    write_text("keys/nodes.ini", "", before); // as it is before the last step
    ASSERT_FAILS(1, "was cut off", "keys", "retire", keys_word, "worker-1");
    public_key_of("keys/worker-1.key", still);
    assert_memory_equal(key, still, 32);
    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    assert_int_equal(RUN("keys", "retire", keys_word, "worker-1"), 0);
}

// Every grant so far is refused, and serial numbers are ahead of the clock.
static int64_t raise_floor(void)
{
    AUTO(mem_free_p) char *text = read_text(in_folder("keys/nodes.ini"));
    char *key = strstr(text, "[operator]\n") + strlen("[operator]\n");
    AUTO(mem_free_p) char *rest = mem_strdup(key);
    int64_t floor = time_wall_ms() / 1000 + 100000;
    char line[64];

    snprintf(line, sizeof(line), "[operator]\nserial-floor = %lld\n", (long long)floor);
    write_text("keys/nodes.ini", line, rest);
    return floor;
}

static void test_making_keys_again_renews_both_grants_of_a_rotation(void **state)
{
    (void)state;
    char out[128];

    snprintf(out, sizeof(out), "--out=%s/keys", folder);
    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    (void)raise_floor();
    assert_int_equal(RUN("keys", out), 0);
    struct chan_grant first = grant_of("keys/worker-1.grant");
    struct chan_grant next = grant_of("keys/worker-1.next.grant");
    assert_false(is_revoked(&first));
    assert_false(is_revoked(&next));
    assert_int_equal(RUN("keys", "retire", keys_word, "worker-1"), 0);
    assert_true(is_revoked(&first));
    assert_false(is_revoked(&next));
}

static void test_making_keys_again_keeps_rotations_and_revocations(void **state)
{
    (void)state;
    char out[128];

    snprintf(out, sizeof(out), "--out=%s/keys", folder);
    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    assert_int_equal(RUN("keys", "revoke", keys_word, "video-1"), 0);
    AUTO(mem_free_p) char *before = read_text(in_folder("keys/nodes.ini"));
    assert_int_equal(RUN("keys", out), 0);
    AUTO(mem_free_p) char *after = read_text(in_folder("keys/nodes.ini"));
    assert_string_equal(before, after);
}

static void test_renewed_grant_is_a_newer_one_of_the_same_key(void **state)
{
    (void)state;
    struct chan_grant old = grant_of("keys/worker-1.grant");

    assert_int_equal(RUN("keys", "renew", keys_word, "worker-1", "--valid=9d"), 0);
    struct chan_grant new = grant_of("keys/worker-1.grant");
    assert_true(new.serial > old.serial);
    assert_true(new.not_after_s < old.not_after_s);
    assert_memory_equal(new.key, old.key, 32);
    assert_int_equal(RUN("keys", "renew", keys_word, "--all"), 0);
    assert_true(grant_of("keys/worker-1.grant").serial > new.serial);
}

static void test_revoked_node_is_gone_and_its_id_may_come_again(void **state)
{
    (void)state;
    struct chan_grant old = grant_of("keys/worker-1.grant");
    char out[128];

    snprintf(out, sizeof(out), "--out=%s/keys", folder);
    assert_int_equal(RUN("keys", "revoke", keys_word, "worker-1"), 0);
    AUTO(svc_nodes_free_p) struct svc_nodes *n = load_nodes("keys/nodes.ini");
    assert_null(svc_nodes_find(n, "worker-1"));
    assert_non_null(svc_nodes_find(n, "video-1"));
    assert_true(is_revoked(&old));
    assert_false(is_there("keys/worker-1.key"));
    assert_false(is_there("keys/worker-1.grant"));
    assert_int_equal(RUN("keys", out, "--node=worker-1:transcode@ipc:///x/w"), 0);
    struct chan_grant new = grant_of("keys/worker-1.grant");
    assert_false(is_revoked(&new));
    assert_true(is_revoked(&old));
}

static void test_key_commands_say_what_is_wrong(void **state)
{
    (void)state;
    ASSERT_FAILS(1, "no node 'nobody'", "keys", "rotate", keys_word, "nobody");
    ASSERT_FAILS(1, "no node 'nobody'", "keys", "revoke", keys_word, "nobody");
    ASSERT_FAILS(1, "no node id", "keys", "revoke", keys_word, "../x", "--unlisted");
    assert_int_equal(RUN("keys", "revoke", keys_word, "nobody", "--unlisted"), 0);
    ASSERT_FAILS(2, "are needed", "keys", "revoke", keys_word);
    ASSERT_FAILS(2, "are needed", "keys", "renew", keys_word, "worker-1", "--all");
    ASSERT_FAILS(2, "is needed", "keys", "show");
    ASSERT_FAILS(2, "is needed", "keys");
    ASSERT_FAILS(1, "nowhere", "keys", "show", "--keys=/nowhere");
    assert_int_equal(unlink(in_folder("keys/operator.key")), 0);
    ASSERT_FAILS(1, "operator.key is not in", "keys", "rotate", keys_word, "worker-1");
    ASSERT_FAILS(1, "operator.key is not in", "invite", keys_word);
}

static void test_show_tells_everything_but_secrets(void **state)
{
    (void)state;
    AUTO(json_free_p) struct json_value *all = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(RUN("keys", "rotate", keys_word, "worker-1"), 0);
    assert_int_equal(RUN("keys", "revoke", keys_word, "video-1"), 0);
    assert_int_equal(RUN("keys", "show", keys_word), 0);
    assert_file_says("out", "both are accepted");
    assert_file_says("out", "revoked: video-1");
    assert_int_equal(RUN("keys", "show", keys_word, "--json"), 0);
    AUTO(mem_free_p) char *text = read_text(in_folder("out"));
    assert_int_equal(json_parse(text, strlen(text), 8, &all, &err), STATUS_OK);
    const struct json_value *nodes = json_member(all, "nodes");
    assert_int_equal(json_size(nodes), 2);
    const struct json_value *worker = json_element(nodes, 1);
    assert_string_equal(json_string_or(json_member(worker, "node"), ""), "worker-1");
    assert_string_equal(json_string_or(json_member(worker, "grant"), ""), "good");
    assert_int_equal(strlen(json_string_or(json_member(worker, "nextKey"), "")),
                     KEYRING_FINGERPRINT_SIZE - 1);
}

// ---------------------------------------------------------------- invitations

static struct process start_enrol(void)
{
    char ready[128];

    snprintf(ready, sizeof(ready), "--ready-file=%s/ready", folder);
    struct process p =
        spawn((const char *const[]){"enrol", keys_word, "--listen=tcp://127.0.0.1:0", ready, NULL});
    int64_t deadline = time_mono_ms() + PATIENCE_MS;
    while (!is_there("ready")) {
        struct pollfd f = {.fd = p.pidfd, .events = POLLIN};
        if (poll(&f, 1, 5) != 0 || time_mono_ms() > deadline) {
            AUTO(mem_free_p) char *log = read_text(in_folder("enrol.err"));
            fail_msg("it does not listen: %s", log);
        }
    }
    return p;
}

static void stop(struct process *p)
{
    kill(p->pid, SIGTERM);
    assert_int_equal(wait_end(p), 0);
}

// The line; freed by the caller.
static char *invite(const char *name, const char *ttl)
{
    assert_int_equal(RUN("invite", keys_word, name, ttl, "--url=tcp://127.0.0.1:7311"), 0);
    char *line = read_text(in_folder("out"));
    line[strcspn(line, "\n")] = '\0';
    return line;
}

static int join(const char *invitation, const char *dir, const char *more)
{
    char keys[128];

    snprintf(keys, sizeof(keys), "--keys=%s/%s", folder, dir);
    return RUN("join", invitation, keys, more ? more : "--timeout=15s");
}

static void put_stdin(const char *text)
{
    FILE *f = fopen(in_folder("in"), "we");

    assert_non_null(f);
    assert_true(fprintf(f, "%s\n", text) > 0);
    assert_int_equal(fclose(f), 0);
}

static void test_machine_joins_with_an_invitation(void **state)
{
    (void)state;
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *text = invite("--name=worker-2", "--ttl=1h");
    uint8_t key[32];

    put_stdin(text); // as those should who share their machine
    assert_int_equal(join("-", "machine", NULL), 0);
    assert_private("machine");
    assert_private("machine/worker-2.key");
    assert_private("machine/worker-2.grant");
    assert_false(is_there("machine/joining.key"));
    public_key_of("machine/worker-2.key", key);
    struct svc_node n = node_of("worker-2"); // in the operator's list
    assert_memory_equal(n.key, key, 32);
    assert_int_equal(n.role, ROLE_NODE_TRANSCODE);
    assert_string_equal(n.url, "tcp://127.0.0.1:7311");
    AUTO(svc_nodes_free_p) struct svc_nodes *theirs = load_nodes("machine/nodes.ini");
    assert_non_null(svc_nodes_find(theirs, "worker-2"));
    struct chan_grant g = grant_of("machine/worker-2.grant");
    assert_memory_equal(g.key, key, 32);
    assert_string_equal(g.node_id, "worker-2");
    assert_false(is_there("keys/worker-2.key")); // it never left
    stop(&enrol);
    AUTO(mem_free_p) char *log = read_text(in_folder("enrol.err"));
    assert_null(strstr(log, strrchr(text, '#') + 1));
    assert_non_null(strstr(log, "node_joined"));
}

static void test_machine_that_joined_is_revoked_whatever_the_clock_says(void **state)
{
    (void)state;
    int64_t floor = raise_floor();
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *text = invite("--name=worker-2", "--ttl=1h");

    assert_int_equal(join(text, "machine", NULL), 0);
    struct chan_grant g = grant_of("machine/worker-2.grant");
    assert_int_equal(g.serial, floor); // as if it had been given while the clock was ahead
    assert_false(is_revoked(&g));
    assert_int_equal(grant_of("keys/worker-2.grant").serial, g.serial);
    assert_int_equal(RUN("keys", "revoke", keys_word, "worker-2"), 0);
    assert_true(is_revoked(&g));
    stop(&enrol);
}

static void test_invitation_is_good_once(void **state)
{
    (void)state;
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *text = invite("--name=worker-2", "--ttl=1h");

    assert_int_equal(join(text, "machine", NULL), 0);
    assert_int_equal(join(text, "thief", NULL), 1);
    assert_file_says("err", "was used already");
    assert_false(is_there("thief/nodes.ini"));
    assert_int_equal(join(text, "machine", NULL), 1); // whose key has its name by now
    stop(&enrol);
}

static void test_machine_whose_answer_was_lost_asks_again(void **state)
{
    (void)state;
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *text = invite("--name=worker-2", "--ttl=1h");

    assert_int_equal(join(text, "machine", NULL), 0);
    struct svc_node before = node_of("worker-2");
    assert_int_equal(rename(in_folder("machine/worker-2.key"), in_folder("machine/joining.key")),
                     0);
    assert_int_equal(join(text, "machine", NULL), 0);
    struct svc_node after = node_of("worker-2");
    assert_memory_equal(before.key, after.key, 32);
    stop(&enrol);
}

static void remove_section(const char *id)
{
    AUTO(mem_free_p) char *text = read_text(in_folder("keys/nodes.ini"));
    char section[80];
    FILE *f = fopen(in_folder("keys/nodes.ini"), "we");

    snprintf(section, sizeof(section), "[%s]", id);
    char *from = strstr(text, section);
    assert_non_null(f);
    assert_non_null(from);
    *from = '\0'; // it is the last
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void test_machine_that_was_put_out_does_not_come_in_again(void **state)
{
    (void)state;
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *first = invite("--name=worker-2", "--ttl=1h");

    assert_int_equal(join(first, "machine", NULL), 0);
    assert_int_equal(rename(in_folder("machine/worker-2.key"), in_folder("machine/joining.key")),
                     0);
    remove_section("worker-2"); // by hand
    assert_int_equal(join(first, "machine", NULL), 1);
    assert_file_says("err", "was removed since");
    AUTO(mem_free_p) char *second = invite("--name=worker-2", "--ttl=1h");
    assert_int_equal(join(second, "machine", NULL), 0);
    assert_int_equal(rename(in_folder("machine/worker-2.key"), in_folder("machine/joining.key")),
                     0);
    assert_int_equal(RUN("keys", "revoke", keys_word, "worker-2"), 0);
    assert_int_equal(join(second, "machine", "--timeout=300ms"), 1);
    assert_file_says("err", "does not answer"); // the invitation went with its node
    stop(&enrol);
}

// One character of that part of the invitation, counted from 0, is another.
static char *spoiled(const char *text, unsigned part)
{
    char *copy = mem_strdup(text), *at = copy;

    assert_non_null(copy);
    for (; part > 0; part--)
        at = strchr(at, '#') + 1;
    at[3] = at[3] == 'A' ? 'B' : 'A';
    return copy;
}

static void test_wrong_secret_id_or_key_is_met_with_silence(void **state)
{
    (void)state;
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *text = invite("--name=worker-2", "--ttl=1h");

    for (unsigned part = 1; part <= 3; part++) {
        AUTO(mem_free_p) char *wrong = spoiled(text, part);
        assert_int_equal(join(wrong, "machine", "--timeout=300ms"), 1);
        assert_file_says("err", "does not answer");
        AUTO(mem_free_p) char *said = read_text(in_folder("err"));
        assert_null(strstr(said, strrchr(wrong, '#') + 1));
    }
    assert_int_equal(join(text, "machine", NULL), 0); // it is not used up by that
    stop(&enrol);
}

static void test_expired_invitation_is_refused(void **state)
{
    (void)state;
    struct process enrol = start_enrol();
    AUTO(mem_free_p) char *text = invite("--name=worker-2", "--ttl=1ms");

    assert_int_equal(join(text, "machine", NULL), 1);
    assert_file_says("err", "expired at");
    stop(&enrol);
}

static void test_invitation_is_kept_private_and_asked_for_sensibly(void **state)
{
    (void)state;
    char url[RPC_URL_SIZE];
    uint8_t key[32];
    struct chan_join j;
    struct err err = ERR_INIT;
    char hex[2 * CHAN_JOIN_ID_SIZE + 1], name[128];

    ASSERT_FAILS(1, "--address", "invite", keys_word); // nobody listens, nothing was said
    ASSERT_FAILS(2, "no such role", "invite", keys_word, "--role=emperor");
    ASSERT_FAILS(2, "sign tokens", "invite", keys_word, "--role=session");
    ASSERT_FAILS(2, "video or audio", "invite", keys_word, "--role=origin");
    ASSERT_FAILS(1, "there is a node", "invite", keys_word, "--name=worker-1",
                 "--address=tcp://h:1");
    ASSERT_FAILS(1, "--address", "invite", keys_word, "--address=tcp://0.0.0.0:7390");
    ASSERT_FAILS(2, "--address", "invite", keys_word, "--address=tcp://\"h\":1");
    assert_int_equal(RUN("invite", keys_word, "--role=worker", "--address=tcp://h:1"), 0);
    AUTO(mem_free_p) char *text = read_text(in_folder("out"));
    text[strcspn(text, "\n")] = '\0';
    assert_int_equal(invitation_parse(text, url, key, &j, &err), STATUS_OK);
    assert_string_equal(url, "tcp://h:1");
    str_hex(hex, j.id, sizeof(j.id));
    snprintf(name, sizeof(name), "keys/invitations/%s", hex);
    assert_private("keys/invitations");
    assert_private(name);
    AUTO(mem_free_p) char *said = read_text(in_folder("err"));
    assert_null(strstr(said, strrchr(text, '#') + 1));
}

static void test_broken_invitation_is_said_to_be_so(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "hello",
        "tcp://h:1",
        "tcp://h:1#",
        "http://h:1#AAAA#AAAA#AAAA",
        "tcp://h:1#AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE#AAAA#AAAA",
        "tcp://h:1#AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE#AQEBAQEBAQEBAQEBAQEBAQ#"
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ",
        "tcp://h:1#AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE#AQEBAQEBAQEBAQEBAQEBAQ#"
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE#more",
    };
    char url[RPC_URL_SIZE];
    uint8_t key[32];
    struct chan_join j;

    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_int_equal(invitation_parse(bad[i], url, key, &j, NULL), STATUS_INVALID_ARGUMENT);
    ASSERT_FAILS(2, "no invitation", "join", "hello", keys_word);
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"keys", cauced_keys},
    {"invite", cauced_invite},
    {"enrol", cauced_enrol},
    {"join", cauced_join},
};

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, new_folder, drop_folder)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_rotated_node_has_two_keys_until_the_first_is_retired),
        IN_FOLDER(test_retire_that_was_cut_off_is_completed),
        IN_FOLDER(test_rotation_that_was_cut_off_is_completed_before_it_is_retired),
        IN_FOLDER(test_making_keys_again_keeps_rotations_and_revocations),
        IN_FOLDER(test_making_keys_again_renews_both_grants_of_a_rotation),
        IN_FOLDER(test_renewed_grant_is_a_newer_one_of_the_same_key),
        IN_FOLDER(test_revoked_node_is_gone_and_its_id_may_come_again),
        IN_FOLDER(test_key_commands_say_what_is_wrong),
        IN_FOLDER(test_show_tells_everything_but_secrets),
        IN_FOLDER(test_machine_joins_with_an_invitation),
        IN_FOLDER(test_machine_that_joined_is_revoked_whatever_the_clock_says),
        IN_FOLDER(test_invitation_is_good_once),
        IN_FOLDER(test_machine_whose_answer_was_lost_asks_again),
        IN_FOLDER(test_machine_that_was_put_out_does_not_come_in_again),
        IN_FOLDER(test_wrong_secret_id_or_key_is_met_with_silence),
        IN_FOLDER(test_expired_invitation_is_refused),
        IN_FOLDER(test_invitation_is_kept_private_and_asked_for_sensibly),
        IN_FOLDER(test_broken_invitation_is_said_to_be_so),
    };

    for (size_t i = 0; argc > 1 && i < N_ELEMENTS(commands); i++)
        if (str_eq(argv[1], commands[i].name))
            return commands[i].run(argc - 2, argv + 2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
