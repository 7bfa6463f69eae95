// A library folder without a server: which items are there, and their bytes.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/rand.h"
#include "manifest.h"

struct cauce_library {
    char *folder;
    char (*ids)[UUID_SIZE];
    size_t n, cap;
};

static enum status add_id(cauce_library *l, const char *id, struct err *err)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 16;
        void *more = mem_realloc(l->ids, cap, sizeof(l->ids[0]));
        if (!more)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        l->ids = more;
        l->cap = cap;
    }
    str_copy(l->ids[l->n++], UUID_SIZE, id);
    return STATUS_OK;
}

static enum status scan(cauce_library *l, struct err *err)
{
    DIR *dir = opendir(l->folder);
    if (!dir)
        return err_errno(err, errno, "open %s", l->folder);
    enum status s = STATUS_OK;
    for (struct dirent *e; s == STATUS_OK && (e = readdir(dir));) {
        AUTO(mem_free_p) char *path = NULL;
        if (!uuid_is_valid(e->d_name))
            continue;
        s = manifest_path(l->folder, e->d_name, MANIFEST_NAME, &path, err);
        if (s == STATUS_OK && access(path, R_OK) == 0)
            s = add_id(l, e->d_name, err);
    }
    closedir(dir);
    return s;
}

cauce_status cauce_library_open(const char *folder, cauce_library **ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    enum status s = crypto_init(&e);
    cauce_library *l = s == STATUS_OK ? mem_alloc(sizeof(*l)) : NULL;
    if (l)
        l->folder = mem_strdup(folder);
    if (s == STATUS_OK && (!l || !l->folder))
        s = err_set(&e, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (s == STATUS_OK)
        s = scan(l, &e);
    if (s == STATUS_OK)
        *ret = l;
    else
        cauce_library_close(l);
    return client_fail(&e, s, err);
}

void cauce_library_close(cauce_library *library)
{
    if (!library)
        return;
    mem_free(library->folder);
    mem_free(library->ids);
    mem_free(library);
}

size_t cauce_library_count(const cauce_library *library)
{
    return library->n;
}

const char *cauce_library_item(const cauce_library *library, size_t i)
{
    return i < library->n ? library->ids[i] : NULL;
}

// ---------------------------------------------------------------- a file as a stream

struct local {
    struct manifest m;
    struct client_piece *layout;
    int fd;
};

static size_t local_n_pieces(void *ud)
{
    return ((struct local *)ud)->m.n_pieces;
}
static enum status local_piece(void *ud, size_t i, struct buf *ret, struct err *err)
{
    struct local *f = ud;
    return manifest_read_piece(&f->m, f->fd, i, ret, err);
}
static enum status local_layout(void *ud, const struct client_piece **ret, struct err *err)
{
    (void)err;
    *ret = ((struct local *)ud)->layout;
    return STATUS_OK;
}
static enum status local_piece_at(void *ud, int64_t time_us, size_t *ret, struct err *err)
{
    (void)ud, (void)time_us, (void)ret;
    return err_set(err, STATUS_UNIMPLEMENTED, "a downloaded file seeks by offset");
}
static const cauce_stream_info *local_info(void *ud)
{
    return &((struct local *)ud)->m.info;
}
static void local_free(void *ud)
{
    struct local *f = ud;
    if (f->fd >= 0)
        close(f->fd);
    manifest_done(&f->m);
    mem_free(f->layout);
    mem_free(f);
}

static const struct stream_source local_source = {
    .n_pieces = local_n_pieces,
    .piece = local_piece,
    .layout = local_layout,
    .piece_at = local_piece_at,
    .info = local_info,
    .free = local_free,
};

static enum status open_local(struct local *f, const char *folder, const char *item_id,
                              struct err *err)
{
    AUTO(mem_free_p) char *manifest = NULL;
    AUTO(mem_free_p) char *media = NULL;
    enum status s = manifest_path(folder, item_id, MANIFEST_NAME, &manifest, err);
    if (s == STATUS_OK)
        s = manifest_load(manifest, &f->m, err);
    if (s == STATUS_OK && (!f->m.is_complete || strchr(f->m.file, '/')))
        s = err_set(err, STATUS_DATA_LOSS, "%s is damaged: download the item again", manifest);
    if (s == STATUS_OK)
        s = manifest_path(folder, item_id, f->m.file, &media, err);
    if (s != STATUS_OK)
        return s;
    f->fd = open(media, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0)
        return err_errno(err, errno, "open %s", media);
    f->layout = mem_array(f->m.n_pieces + 1, sizeof(f->layout[0]));
    if (!f->layout)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    for (size_t i = 0; i < f->m.n_pieces; i++)
        f->layout[i] = f->m.pieces[i].at;
    return STATUS_OK;
}

cauce_status cauce_library_play(cauce_library *library, const char *item_id, cauce_stream **ret,
                                cauce_error *err)
{
    struct err e = ERR_INIT;
    struct local *f = mem_alloc(sizeof(*f));
    if (!f)
        return client_fail(&e, err_set(&e, STATUS_RESOURCE_EXHAUSTED, "out of memory"), err);
    f->fd = -1;
    enum status s = open_local(f, library->folder, item_id, &e);
    if (s == STATUS_OK)
        s = client_stream_new(&local_source, f, ret, &e);
    else
        local_free(f);
    return client_fail(&e, s, err);
}
