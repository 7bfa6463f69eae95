// What changes on disk while we run: nodes.ini with its revocations and token keys, our key, our
// grant.
//
// The files are looked at from time to time rather than watched: it works on every file system, and
// a change counts only when a second look finds it unchanged, so that a file that is being copied
// over another is not read half. Whatever cannot be read changes nothing: the log and health say
// so, and the next change is tried again.
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "service/internal.h"

#define CHECK_MS 1000

static const char *const suffixes[N_KEY_FILES] = {NULL, ".key", ".grant", ".next.key",
                                                  ".next.grant"};

char *instance_nodes_path(const struct instance *in)
{
    return mem_printf("%s/nodes.ini", instance_options(in)->keys);
}

static void mark(const char *path, struct file_mark *m)
{
    struct stat st;

    memset(m, 0, sizeof(*m));
    if (!path || stat(path, &st) != 0)
        return;
    *m = (struct file_mark){.dev = st.st_dev,
                            .ino = st.st_ino,
                            .size = st.st_size,
                            .changed_ns =
                                (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec};
}

static void mark_all(const struct instance *in, struct file_mark marks[N_KEY_FILES])
{
    for (size_t i = 0; i < N_KEY_FILES; i++) {
        AUTO(mem_free_p)
        char *path = suffixes[i] ? instance_key_path(in, suffixes[i]) : instance_nodes_path(in);
        mark(path, &marks[i]);
    }
}

static bool is_same(const struct file_mark *a, const struct file_mark *b)
{
    for (size_t i = 0; i < N_KEY_FILES; i++)
        if (a[i].dev != b[i].dev || a[i].ino != b[i].ino || a[i].size != b[i].size ||
            a[i].changed_ns != b[i].changed_ns)
            return false;
    return true;
}

void instance_mark_files(struct instance *in)
{
    mark_all(in, in->read);
    memcpy(in->seen, in->read, sizeof(in->seen));
}

void instance_get_shown(struct instance *in, struct chan_identity *ret)
{
    pthread_mutex_lock(&in->lock);
    *ret = in->shown;
    pthread_mutex_unlock(&in->lock);
}

// Where nothing of ours changed, no session notices.
static void show(struct instance *in, const struct identities *ids)
{
    const struct chan_identity *shown = identities_shown(ids);

    rpc_server_set_identity(in->svc.server, shown, identities_other(ids));
    pthread_mutex_lock(&in->lock);
    in->shown = *shown;
    in->shown_until_s = ids->until_s;
    pthread_mutex_unlock(&in->lock);
}

static void tell_shut_out(struct instance *in)
{
    char id[CHAN_NODE_ID_SIZE];

    for (size_t i = 0; svc_nodes_shut_out(in->nodes, i, id); i++) {
        log_warn(in->svc.log, "node_shut_out", F_STR("other", id));
        if (in->role->shut_out && atomic_load(&in->is_started))
            in->role->shut_out(in->self, id);
    }
}

static enum status reload(struct instance *in, struct err *err)
{
    struct identities ids;
    AUTO(mem_free_p) char *path = instance_nodes_path(in);
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = svc_nodes_reload(in->nodes, path, err);
    if (s == STATUS_OK)
        s = svc_tokens_update(in->svc.tokens, in->nodes, err);
    if (s != STATUS_OK)
        return s;
    rpc_server_doubt_tokens(in->svc.server);
    // From here on the list is the new one, whatever becomes of our own files: that others were
    // revoked counts.
    s = instance_load_identities(in, &ids, err);
    if (ids.has_listed || ids.has_next)
        show(in, &ids);
    crypto_wipe(&ids, sizeof(ids));
    svc_clients_update(in->clients);
    rpc_server_check_grants(in->svc.server);
    tell_shut_out(in);
    return s;
}

void instance_set_problem(struct instance *in, const char *text)
{
    pthread_mutex_lock(&in->lock);
    (void)str_copy(in->problem, sizeof(in->problem), text);
    pthread_mutex_unlock(&in->lock);
}

// Grants expire by themselves.
static void check_grants(struct instance *in)
{
    int64_t now_ms = time_mono_ms();

    if (now_ms - in->checked_ms < CHECK_MS)
        return;
    in->checked_ms = now_ms;
    rpc_server_check_grants(in->svc.server);
    svc_clients_check(in->clients);
    if (svc_revoked_tidy(in->revoked, time_wall_ms()))
        rpc_server_check_users(in->svc.server);
}

void instance_look_for_changes(struct instance *in, bool force)
{
    struct file_mark now[N_KEY_FILES];
    struct err err = ERR_INIT;

    check_grants(in);
    mark_all(in, now);
    bool has_rested = is_same(now, in->seen);
    memcpy(in->seen, now, sizeof(in->seen));
    if (!force && (!has_rested || is_same(now, in->read)))
        return;
    memcpy(in->read, now, sizeof(in->read));
    enum status s = reload(in, &err);
    instance_set_problem(in, s == STATUS_OK ? "" : err.msg);
    if (s != STATUS_OK)
        log_error(in->svc.log, "keys_not_reloaded", F_ERR(&err));
    else
        log_info(in->svc.log, "keys_reloaded", F_STR("keys", instance_options(in)->keys));
}
