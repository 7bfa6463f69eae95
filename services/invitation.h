#pragma once
// Invitations: what a new machine must show to become a node, once.
//
//   DIR/invitations/ID   mode 0600: the secret, what it is good for, until when, who has used it
//
// The string that travels to the machine is URL#KEY#ID#SECRET (base64url): where `cauced enrol`
// listens, by which key it is known, and the secret with its name.
#include <stdbool.h>
#include <stdint.h>

#include "keyring.h"

struct invitation {
    struct chan_join join;
    struct svc_node node;       // id, role, kind; url "" when the machine says it
    int64_t expires_s, valid_s; // Unix seconds; seconds that the grant lasts
    bool is_used, is_done;      // given to a key; and the node was made
    uint8_t used_by[32];        // that key
};

// errors  ALREADY_EXISTS never: ids are random; those of the file system
enum status invitation_save(const char *dir, const struct invitation *i,
                            struct err *err) MUST_CHECK;
// errors  NOT_FOUND; DATA_LOSS: the file is not one of ours
enum status invitation_load(const char *dir, const uint8_t id[CHAN_JOIN_ID_SIZE],
                            struct invitation *ret, struct err *err) MUST_CHECK;
// Those that expired more than a week ago. Until then their holders are told what is wrong.
void invitation_clean(const char *dir);

// All of that node, used or not: it is not to come in again by them.
enum status invitation_withdraw(const char *dir, const char *node_id, struct err *err) MUST_CHECK;

#define INVITATION_TEXT_SIZE (RPC_URL_SIZE + 128)
void invitation_text(char out[INVITATION_TEXT_SIZE], const char *url, const uint8_t key[32],
                     const struct chan_join *join);
// errors  INVALID_ARGUMENT: what is wrong with it, without repeating it
enum status invitation_parse(const char *text, char ret_url[RPC_URL_SIZE], uint8_t ret_key[32],
                             struct chan_join *ret, struct err *err) MUST_CHECK;
// The key that `cauced enrol` is known by, made when it is not there.
enum status invitation_server_key(const char *dir, struct chan_identity *ret,
                                  struct err *err) MUST_CHECK;
