#pragma once
// libcauce's own parts. Public functions are thin: convert, call a client_ function, convert.
#include <pthread.h>
#include <stdbool.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "call.h"
#include "cauce/cauce.h"
#include "object/object.h"
#include "rpc/rpc.h"
#include "work/work.h"

// The tokens of one login. refresh is empty when nobody is logged in.
struct login {
    char access[CLIENT_MAX_TOKEN];
    char refresh[256];
    int64_t access_exp_ms; // Unix
};

struct cauce {
    struct rpc_client *rpc;
    struct cancel *cancel; // root of everything that runs
    int64_t timeout_ms;
    char *server;
    char *state_dir;      // NULL: nothing is kept
    char login_name[32];  // file in state_dir: one login per server key
    pthread_mutex_t lock; // guards what follows
    pthread_cond_t refreshed;
    bool refreshing; // one thread spends the refresh token, the others wait for it
    struct login login;
};

// ---- errors ----
// Give the caller what e says; returns e's status. ret may be NULL.
cauce_status client_fail(const struct err *e, enum status s, cauce_error *ret);
bool client_is_transient(enum status s); // worth trying again later

// ---- login state (state.c) ----
enum status client_state_load(struct cauce *c, struct login *ret, struct err *err) MUST_CHECK;
enum status client_state_save(struct cauce *c, const struct login *l, struct err *err) MUST_CHECK;
void client_state_forget(struct cauce *c);
// The server of the last login in that folder, a heap string.
enum status client_state_server(const char *dir, char **ret, struct err *err) MUST_CHECK;
// One process at a time may spend the refresh token. Returns a descriptor to close, -1 when there
// is no folder.
enum status client_state_lock(struct cauce *c, int *ret_fd, struct err *err) MUST_CHECK;

// ---- waiting (call.c) ----
// Wait before the n-th new attempt: 100 ms doubling to 2 s, with jitter. CANCELLED at once when the
// token fires.
enum status client_backoff(struct cancel *cancel, unsigned n, struct err *err) MUST_CHECK;

// ---- objects (object.c) ----
struct client_object {
    struct cauce *c;
    struct cancel *cancel; // borrowed
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    char route[128];
    char media_token[CLIENT_MAX_TOKEN];
    bool patient; // keep trying for about ten seconds when the server is away; else fail soon
};
// Leaf digests, verified against the object's digest.
enum status client_object_leaves(const struct client_object *o, struct buf *ret,
                                 struct err *err) MUST_CHECK;
// Append bytes [offset, offset + n) as the server says they are; tries again while the server is
// away.
enum status client_object_read(const struct client_object *o, int64_t offset, int64_t n,
                               struct buf *ret, struct err *err) MUST_CHECK;
// A whole small object, verified.
enum status client_object_get(const struct client_object *o, struct buf *ret,
                              struct err *err) MUST_CHECK;

// ---- what is played (play.c) ----
// One stream of a play: direct or a list of fragments.
struct client_play;
struct client_piece {
    int64_t offset, len;
};
enum status client_play_new(struct cauce *c, const char *item_id, bool download,
                            const cauce_play_opts *o, struct client_play **ret,
                            struct err *err) MUST_CHECK;
void client_play_free(struct client_play *p);
DEFINE_AUTO(struct client_play, client_play_free)
const cauce_stream_info *client_play_info(const struct client_play *p);
// Number of pieces: fragments and, first, the init segment; direct: windows of the source.
size_t client_play_n_pieces(const struct client_play *p);
// Bytes of piece i appended to ret, verified.
enum status client_play_piece(struct client_play *p, size_t i, struct buf *ret,
                              struct err *err) MUST_CHECK;
// Where the pieces are. UNIMPLEMENTED while not all of them are made.
enum status client_play_layout(struct client_play *p, const struct client_piece **ret,
                               struct err *err) MUST_CHECK;
// First fragment that shows that time. UNIMPLEMENTED when direct.
enum status client_play_piece_at(struct client_play *p, int64_t time_us, size_t *ret,
                                 struct err *err) MUST_CHECK;
// For a file to keep (save.c). names: "v720+a128", "a128", "v720", which takes the chosen sound
// along; NULL: as the server chose. INVALID_ARGUMENT when it is direct, NOT_FOUND.
enum status client_play_choose(struct client_play *p, const char *names, int *ret_video,
                               int *ret_audio, struct err *err) MUST_CHECK;
const struct media_plan *client_play_plan(const struct client_play *p); // borrowed
// The object of a segment of one of the chosen renditions; waits until it is made.
enum status client_play_segment(struct client_play *p, uint32_t rendition, uint32_t segment,
                                struct client_object *ret, struct err *err) MUST_CHECK;
const char *client_play_extension(const struct client_play *p); // "mp4": from the MIME type

// ---- streams (stream.c) ----
// Where a stream's bytes come from, piece by piece.
struct stream_source {
    size_t (*n_pieces)(void *ud);
    enum status (*piece)(void *ud, size_t i, struct buf *ret, struct err *err);
    enum status (*layout)(void *ud, const struct client_piece **ret, struct err *err);
    enum status (*piece_at)(void *ud, int64_t time_us, size_t *ret, struct err *err);
    const cauce_stream_info *(*info)(void *ud);
    void (*free)(void *ud);
};
enum status client_stream_new(const struct stream_source *source, void *ud, cauce_stream **ret,
                              struct err *err) MUST_CHECK; // ud consumed always
