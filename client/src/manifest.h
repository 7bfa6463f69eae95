#pragma once
// A library folder: <folder>/<item id>/manifest and the media file that it describes.
//
// A manifest is text: "cauce-library 1", then "name value" lines, then one
// "piece <offset> <bytes> <digest>" line for each piece of the file in order, then "end". While a
// download runs both files have the suffix .part, and the manifest grows by a line whenever a piece
// has been written; so the last lines of both may be torn, which verification finds.
#include "internal.h"

#define MANIFEST_NAME "manifest"
#define MANIFEST_PART "manifest.part"
#define MEDIA_PART "media.part"
#define MANIFEST_MAX_BYTES (64U << 20)
#define MANIFEST_MAX_PIECE_BYTES (65 << 20)

struct manifest_piece {
    struct client_piece at;
    uint8_t digest[OBJECT_DIGEST_SIZE];
};
struct manifest {
    char item[40], key[96], file[32];
    cauce_stream_info info; // title, mime, renditions, duration, direct
    struct manifest_piece *pieces;
    size_t n_pieces, cap;
    bool is_complete; // has its "end"
};

void manifest_done(struct manifest *m);
// errors  NOT_FOUND; DATA_LOSS when its head is not a manifest's. A torn line ends the pieces.
enum status manifest_load(const char *path, struct manifest *ret, struct err *err) MUST_CHECK;
void manifest_put_head(const struct manifest *m, struct buf *ret);
void manifest_put_piece(const struct manifest_piece *p, struct buf *ret);
enum status manifest_add(struct manifest *m, const struct manifest_piece *p,
                         struct err *err) MUST_CHECK;
// Read piece i of the media file and check it; its bytes are appended to ret.
enum status manifest_read_piece(const struct manifest *m, int fd, size_t i, struct buf *ret,
                                struct err *err) MUST_CHECK;
// <folder>/<item id>/<name>, heap; the id must be a UUID, so that it is one folder name.
enum status manifest_path(const char *folder, const char *item_id, const char *name, char **ret,
                          struct err *err) MUST_CHECK;
