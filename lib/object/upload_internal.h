#pragma once
// Uploads on the disk, three files each under uploads/:
//
//   ID.state  one line: "cauce-upload 1 STATE OWNER ITEM SIZE DIGEST\n", replaced as a whole;
//             STATE is open, held (the object was here), prove (see below), done (the object was
//             made)
//   ID.data   the staged object: bytes at their place, leaf digests, footer (written by finish)
//   ID.have   8 bytes, the first one 1 once the leaf digests are in place; then one bit per leaf,
//             set only after the leaf was synced (so a torn or lost write only forgets)
//
// The state file is written last and deleted first: data without a state is litter of a crash.
//
//   CREATING --> OPEN --> FINISHING --> DONE
//                 ^-----------'
// Each may go to DROPPING, which ends it. While CREATING, FINISHING or DROPPING the upload belongs
// to one thread, and others wait for it to settle.
//
// An upload in state `prove` is one whose owner has to show that the bytes are there: the object
// under the same name does not end the sending. If the object was here from the start there are no
// other files: `have` is in memory, all set but for a few leaves chosen at random, which are
// checked against the object's own digests and not kept. A restart chooses others. Once it was
// pinned for the upload's item the proof is done.
//
// A failed sync loses every write since the last good one, also of other connections whose pages
// went along with it: `epoch` moves, and what was written in an older epoch never counts.
#include "base/rand.h"
#include "object/internal.h"

#define HAVE_HEAD 8
#define UPLOAD_PATH_SIZE 64

enum upload_state { UPLOAD_CREATING, UPLOAD_OPEN, UPLOAD_FINISHING, UPLOAD_DONE, UPLOAD_DROPPING };

struct upload {
    struct hnode node;
    char id[UUID_SIZE], owner[UUID_SIZE], item[UUID_SIZE];
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size, n_leaves;
    enum upload_state state;
    struct entry *held; // the object is here, kept for finish
    bool prove;         // the object being here does not make it complete
    bool proving;       // the object is held, `have` says which leaves were not shown yet
    bool reserved;      // quota is taken: stored_bytes(size)
    bool has_leaves;    // the leaf digests are in place
    uint8_t *have;      // one bit per leaf
    int64_t n_have, have_bytes;
    int64_t touched_wall_ms;
    unsigned n_users;        // connections
    unsigned n_writing;      // of them inside a write to the data file
    uint64_t epoch;          // see above
    uint64_t leaves_gen;     // the newest connection that sends leaf digests
    pthread_mutex_t disk_mu; // one sync, opening or leaf list at a time; taken before store.mu
    int fd, have_fd;         // open while n_users > 0
};

static inline bool upload_bit(const uint8_t *bits, int64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

// upload_table.c; the store's mutex is held by callers of all but the last group
struct upload *upload_new(const struct object_upload_spec *spec);
void upload_free(struct upload *u);
struct upload *upload_find(const struct object_store *s, const char *id);
// The upload once no thread is changing its state; NULL with OK when unknown.
enum status upload_find_settled(struct object_store *s, const char *id, struct upload **ret,
                                struct err *err) MUST_CHECK;
// The object may have come by another way since: from then on nothing need be sent.
void upload_notice_object(struct object_store *s, struct upload *u);
// A new upload with `prove`, or one whose data are gone: if the object is here, ask for a proof.
void upload_ask_for_proof(struct object_store *s, struct upload *u);
// Nothing need be sent, whatever was.
bool upload_is_whole(const struct upload *u);
// All leaves were sent, or the few that were asked for.
bool upload_is_complete(const struct upload *u);
// Is the object that it found here still here? Only scrub can have taken it away.
bool upload_is_held(const struct upload *u);
void upload_release_hold(struct object_store *s, struct upload *u);
void upload_release_quota(struct object_store *s, struct upload *u);
void upload_get_info(const struct upload *u, struct object_upload_info *ret);
// A user goes. The last one closes the files, and frees an upload that was dropped meanwhile.
void upload_leave(struct object_store *s, struct upload *u);

enum status upload_check_spec(const struct object_upload_spec *spec, struct err *err) MUST_CHECK;
size_t upload_have_size(const struct upload *u);
void upload_path(char dst[UPLOAD_PATH_SIZE], const char *id, const char *kind);
enum status upload_open_files(struct object_store *s, struct upload *u,
                              struct err *err) MUST_CHECK; // disk_mu held
void upload_close_files(struct upload *u);
enum status upload_write_state(struct object_store *s, const struct upload *u, const char *state,
                               struct err *err) MUST_CHECK;
// Whoever calls the next three owns the upload (its state says so), or nobody else can see it.
// OK once the upload is forgotten for good; its data may stay until the next start.
enum status upload_delete_files(struct object_store *s, const char *id, struct err *err) MUST_CHECK;
void upload_discard_files(struct object_store *s, const char *id); // as far as the disk lets us
void upload_discard_parts(struct object_store *s, const char *id); // all but the state
