/* libcauce: upload, play, buy and keep media on a Cauce platform.
 *
 * Every function that can fail returns a cauce_status and, when `err` is not NULL, says in a
 * sentence what happened. Every call has a deadline (cauce_opts.timeout_ms, or its own). One handle
 * may be used by several threads, a stream by one thread at a time. Strings are UTF-8. Nothing here
 * prints, exits or installs a signal handler. Structs that begin with `size` are filled by their
 * _init().
 */
#ifndef CAUCE_CAUCE_H
#define CAUCE_CAUCE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define CAUCE_API __attribute__((visibility("default")))
#else
#define CAUCE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- library and errors ---- */

/* The numbers are gRPC's. */
typedef enum cauce_status {
    CAUCE_OK = 0,
    CAUCE_CANCELLED = 1,
    CAUCE_UNKNOWN = 2,
    CAUCE_INVALID_ARGUMENT = 3,
    CAUCE_DEADLINE_EXCEEDED = 4,
    CAUCE_NOT_FOUND = 5,
    CAUCE_ALREADY_EXISTS = 6,
    CAUCE_PERMISSION_DENIED = 7,
    CAUCE_RESOURCE_EXHAUSTED = 8,
    CAUCE_FAILED_PRECONDITION = 9,
    CAUCE_ABORTED = 10,
    CAUCE_OUT_OF_RANGE = 11,
    CAUCE_UNIMPLEMENTED = 12,
    CAUCE_INTERNAL = 13,
    CAUCE_UNAVAILABLE = 14,
    CAUCE_DATA_LOSS = 15,
    CAUCE_UNAUTHENTICATED = 16
} cauce_status;

typedef struct cauce_error {
    cauce_status status;
    char message[240];
} cauce_error;

CAUCE_API const char *cauce_version(void);                    /* "0.1.0" */
CAUCE_API const char *cauce_status_name(cauce_status status); /* "NOT_FOUND" */

/* ---- connection ---- */

typedef struct cauce cauce;

typedef struct cauce_opts {
    size_t size;
    /* cauce://host:port#key, key: the server's public key in base64url. NULL: the server of the
     * last login in state_dir. */
    const char *server;
    /* Folder for the login, made with mode 0700. NULL: the login lives as long as the handle. */
    const char *state_dir;
    uint32_t timeout_ms;         /* of one call; 0 = 15000 */
    uint32_t connect_timeout_ms; /* 0 = 5000 */
} cauce_opts;

CAUCE_API void cauce_opts_init(cauce_opts *opts);
/* Does not wait for the connection: the first call does. */
CAUCE_API cauce_status cauce_connect(const cauce_opts *opts, cauce **ret, cauce_error *err);
CAUCE_API void cauce_close(cauce *c); /* streams must be closed before; NULL does nothing */
/* Ends everything that runs with CAUCE_CANCELLED, and everything that is started later. Any thread.
 */
CAUCE_API void cauce_cancel(cauce *c);
CAUCE_API const char *cauce_server(const cauce *c); /* borrowed */

/* ---- identity ---- */

typedef struct cauce_user {
    char id[40];
    char name[72];
    char email[256];
    char roles[64]; /* "user,creator" */
} cauce_user;

CAUCE_API cauce_status cauce_register(cauce *c, const char *name, const char *password,
                                      const char *email, cauce_user *ret, cauce_error *err);
CAUCE_API cauce_status cauce_login(cauce *c, const char *name, const char *password,
                                   const char *device, cauce_user *ret, cauce_error *err);
/* Also forgets the login when the server cannot be reached. everywhere: all devices of the user. */
CAUCE_API cauce_status cauce_logout(cauce *c, int everywhere, cauce_error *err);
CAUCE_API cauce_status cauce_whoami(cauce *c, cauce_user *ret, cauce_error *err);

/* ---- catalogue ---- */

typedef struct cauce_item {
    const char *id, *title, *description;
    const char *kind;  /* video, audio */
    const char *state; /* processing, playable, ready, failed */
    const char *reason;
    const char *owner, *owner_name;
    int published, owned;
    int64_t price_minor; /* 0: free */
    const char *currency;
    int64_t duration_us, created_ms, version;
    int32_t width, height;
} cauce_item;

typedef struct cauce_items {
    size_t n;
    const cauce_item *item;
    const char *next_page; /* empty: no more */
} cauce_items;

typedef struct cauce_query {
    size_t size;
    const char *text; /* words to search; NULL: list */
    const char *kind; /* NULL: both */
    int mine;         /* list only */
    int32_t page_size;
    const char *page; /* next_page of the page before; NULL: first */
} cauce_query;

CAUCE_API void cauce_query_init(cauce_query *query);
CAUCE_API cauce_status cauce_items_list(cauce *c, const cauce_query *query, cauce_items **ret,
                                        cauce_error *err);
CAUCE_API cauce_status cauce_item_get(cauce *c, const char *item_id, cauce_items **ret,
                                      cauce_error *err); /* one item */
CAUCE_API void cauce_items_free(cauce_items *items);

/* ---- progress ---- */

typedef struct cauce_progress {
    const char *stage; /* hash, send, commit, transcode, download, verify */
    int64_t total;     /* bytes; transcode: 1000 */
    int64_t sent;      /* moved in this run */
    int64_t skipped;   /* were there already */
} cauce_progress;
/* Non-zero cancels. Called on the thread that called the function. */
typedef int (*cauce_progress_fn)(const cauce_progress *progress, void *ud);

/* ---- upload ---- */

typedef struct cauce_upload_opts {
    size_t size;
    const char *title; /* NULL: from the file's name */
    const char *description;
    int64_t price_minor;  /* 0: free */
    const char *currency; /* "EUR" */
    int publish;          /* as soon as it can be played */
    int sync;             /* inputs of at most 10 s: return when finished */
    uint32_t stall_ms;    /* give up after so long without progress; 0 = 60000 */
    const char *preset;   /* NULL or "fast"; "quality": slower to make, smaller */
    /* "hevc,av1,vp9": renditions besides H.264, made when somebody asks; NULL: none */
    const char *video_codecs;
} cauce_upload_opts;

typedef struct cauce_upload_result {
    char upload_id[40], item_id[40], job_id[40];
    char state[24];
    char reason[200];
    char url[128]; /* path of the item's page on the gateway */
    int64_t size, sent;
} cauce_upload_result;

CAUCE_API void cauce_upload_opts_init(cauce_upload_opts *opts);
/* Sends what the server does not have yet: the same file again continues where it ended, in any
 * process. Lost connections and restarts of the server are waited for (stall_ms). */
CAUCE_API cauce_status cauce_upload_file(cauce *c, const char *path, const cauce_upload_opts *opts,
                                         cauce_progress_fn fn, void *ud, cauce_upload_result *ret,
                                         cauce_error *err);

typedef enum cauce_until { CAUCE_UNTIL_PLAYABLE, CAUCE_UNTIL_READY } cauce_until;
/* Waits for events of the item's job. timeout_ms 0: no limit. Fails with FAILED_PRECONDITION and
 * the reason when the job failed. */
CAUCE_API cauce_status cauce_wait_ready(cauce *c, const char *item_id, cauce_until until,
                                        uint32_t timeout_ms, cauce_progress_fn fn, void *ud,
                                        cauce_error *err);

/* ---- playback ---- */

typedef struct cauce_stream cauce_stream;

typedef struct cauce_play_opts {
    size_t size;
    int32_t max_height;      /* 0: no limit */
    int64_t max_bitrate_bps; /* 0: no limit */
    int never_direct;        /* renditions only */
} cauce_play_opts;

typedef struct cauce_stream_info {
    int direct; /* the source's own bytes; else one fragmented MP4 */
    char mime[64];
    char title[256];
    char video_rendition[16], audio_rendition[16];
    char reasons[400]; /* why not direct, one a line */
    int64_t duration_us;
    int64_t size; /* bytes; -1 while not all of it is made */
} cauce_stream_info;

CAUCE_API void cauce_play_opts_init(cauce_play_opts *opts);
CAUCE_API cauce_status cauce_play_open(cauce *c, const char *item_id, const cauce_play_opts *opts,
                                       cauce_stream **ret, cauce_error *err);
/* Bytes read, 0 at the end, or a negated cauce_status; cauce_stream_error() then has the sentence.
 * Every byte was verified against the object's digests. */
CAUCE_API int64_t cauce_stream_read(cauce_stream *s, void *buf, size_t n);
/* whence as lseek(); returns the new position or a negated status: UNIMPLEMENTED while parts are
 * still being made. */
CAUCE_API int64_t cauce_stream_seek(cauce_stream *s, int64_t offset, int whence);
/* The next read begins a new MP4 whose first segment shows that time. UNIMPLEMENTED when direct. */
CAUCE_API cauce_status cauce_stream_seek_time(cauce_stream *s, int64_t time_us);
CAUCE_API void cauce_stream_get_info(cauce_stream *s, cauce_stream_info *ret);
CAUCE_API const cauce_error *cauce_stream_error(const cauce_stream *s); /* of the last failure */
CAUCE_API void cauce_stream_close(cauce_stream *s);

/* ---- store ---- */

typedef struct cauce_money {
    int64_t minor;
    char currency[8];
} cauce_money;

typedef struct cauce_quote {
    char id[40];
    cauce_money total;
    int64_t expires_ms; /* Unix */
    size_t n_lines, n_owned;
} cauce_quote;

typedef struct cauce_order {
    char id[40];
    char state[16]; /* paid, refunded */
    cauce_money total;
    int64_t created_ms;
} cauce_order;

CAUCE_API cauce_status cauce_get_quote(cauce *c, const char *const *item_ids, size_t n,
                                       cauce_quote *ret, cauce_error *err);
/* idempotency_key: 1..64 characters of the caller's own; the same key never charges twice. */
CAUCE_API cauce_status cauce_purchase(cauce *c, const char *quote_id, const char *idempotency_key,
                                      cauce_order *ret, cauce_error *err);
/* Up to max balances, one per currency; *ret_n says how many there are. */
CAUCE_API cauce_status cauce_balance(cauce *c, cauce_money *ret, size_t max, size_t *ret_n,
                                     cauce_error *err);
CAUCE_API cauce_status cauce_redeem(cauce *c, const char *voucher, cauce_money *ret, size_t max,
                                    size_t *ret_n, cauce_error *err);

/* ---- library ---- */

/* What the user has bought. */
CAUCE_API cauce_status cauce_library_list(cauce *c, const char *page, cauce_items **ret,
                                          cauce_error *err);

typedef struct cauce_download_result {
    char path[512]; /* the media file */
    int64_t size, received, verified;
} cauce_download_result;
/* Into folder/<item id>/. A download that was cut goes on where it ended; every piece is verified,
 * also those that were there. */
CAUCE_API cauce_status cauce_download(cauce *c, const char *item_id, const char *folder,
                                      cauce_progress_fn fn, void *ud, cauce_download_result *ret,
                                      cauce_error *err);
/* One ordinary MP4 file at path, of renditions and not of the source: "v720+a128", "a128", "v720"
 * with the sound that is chosen, or NULL: what opts (which may be NULL too) come to. Nothing is
 * encoded again for it. Until it is whole it is path.part, with which a save that was cut goes on;
 * every segment that is received is verified. Stages: index, in segments; download. */
CAUCE_API cauce_status cauce_save(cauce *c, const char *item_id, const char *renditions,
                                  const cauce_play_opts *opts, const char *path,
                                  cauce_progress_fn fn, void *ud, cauce_download_result *ret,
                                  cauce_error *err);

/* A library folder needs no server. */
typedef struct cauce_library cauce_library;
CAUCE_API cauce_status cauce_library_open(const char *folder, cauce_library **ret,
                                          cauce_error *err);
CAUCE_API void cauce_library_close(cauce_library *library);
CAUCE_API size_t cauce_library_count(const cauce_library *library);
CAUCE_API const char *cauce_library_item(const cauce_library *library, size_t i); /* its id */
CAUCE_API cauce_status cauce_library_play(cauce_library *library, const char *item_id,
                                          cauce_stream **ret, cauce_error *err);

#ifdef __cplusplus
}
#endif
#endif
