#pragma once
// The child's end of the control socket; see media/task.h for what is said on it.
#include <pthread.h>

#include "media/task.h"

struct control {
    int fd;
    pthread_mutex_t lock; // around sending: encoder threads and the demuxer both do
    struct buf packet;    // for sending
    uint8_t *received;    // MEDIA_RECORD_MAX bytes
    struct media_window window;
    int64_t source_size;
    bool lost; // the parent is gone
};

enum status control_init(struct control *c, int fd, struct err *err) MUST_CHECK;
void control_done(struct control *c);
enum status control_send(struct control *c, const struct media_record *r,
                         struct err *err) MUST_CHECK;
// Bytes as DATA records, after the record that announces them.
enum status control_send_bytes(struct control *c, const struct media_record *head, const void *p,
                               size_t n, struct err *err) MUST_CHECK;
// The next record; its data is borrowed until the next call. UNAVAILABLE when the parent is gone.
enum status control_receive(struct control *c, struct media_record *ret,
                            struct err *err) MUST_CHECK;
// The task, with all its bytes (heap, mem_free) that ret points into.
enum status control_receive_task(struct control *c, struct media_task *ret, uint8_t **ret_bytes,
                                 struct err *err) MUST_CHECK;
// codec_source.need: the block that [offset, offset + len) lies in; asks for it when it is not
// there and waits.
bool control_need(void *control, int64_t offset, int64_t len);
