// Access and media tokens: text from anybody, and claims that a service has signed.
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "crypto/crypto.h"
#include "fuzz.h"
#include "fuzz_keys.h"
#include "service/internal.h"

static uint8_t session_secret[64];
static char footer[SVC_KEY_ID_SIZE + 16];
static struct svc_tokens *tokens;

static void start_once(void)
{
    static const uint8_t seed[32] = {5};
    char path[] = "/tmp/cauce-fuzz-XXXXXX", key[64], id[SVC_KEY_ID_SIZE];
    uint8_t public_key[32];
    static struct svc_nodes *nodes; // tokens borrows them
    struct err err = ERR_INIT;
    if (tokens)
        return;
    fuzz_keys_init();
    crypto_ed25519_seed_keypair(public_key, session_secret, seed);
    svc_token_key_id(id, public_key);
    snprintf(footer, sizeof footer, "{\"kid\":\"%s\"}", id);
    str_b64(key, public_key, 32);
    FILE *f = fdopen(mkstemp(path), "we");
    FUZZ_CHECK(f);
    fprintf(f, "[operator]\nkey = %s\n[s]\nrole = session\nurl = ipc:///s\nkey = %s\n", key, key);
    fprintf(f, "token-key = %s\n", key);
    FUZZ_CHECK(fclose(f) == 0 && svc_nodes_load(path, &nodes, &err) == STATUS_OK);
    unlink(path);
    tokens = svc_tokens_new(nodes);
    FUZZ_CHECK(tokens);
}

static void verify(const char *token, size_t n, bool is_signed)
{
    struct rpc_user user;
    struct svc_media_claims claims;
    struct err err = ERR_INIT;
    enum status s = svc_tokens_verify_access(tokens, token, n, &user, &err);
    if (s == STATUS_OK) {
        FUZZ_CHECK(is_signed && user.exp_wall_ms > 0);
        FUZZ_CHECK((user.roles & ~(unsigned)(ROLE_USER | ROLE_CREATOR | ROLE_ADMIN)) == 0);
        FUZZ_CHECK(memchr(user.id, 0, sizeof user.id) && memchr(user.name, 0, sizeof user.name));
    }
    FUZZ_CHECK(svc_tokens_verify_media(tokens, token, &claims, &err) != STATUS_OK); // the store's
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct buf b;
    struct err err = ERR_INIT;
    start_once();
    bool is_signed = fuzz_u8(&in) & 1;
    buf_init(&b, 1 << 20);
    if (is_signed)
        FUZZ_CHECK(crypto_paseto_sign(&b, session_secret, in.n ? in.p : data, in.n, footer,
                                      "cauce-access/1", &err) == STATUS_OK);
    else
        FUZZ_CHECK(buf_append(&b, in.p, in.n));
    size_t n = b.len;
    FUZZ_CHECK(buf_putc(&b, '\0'));
    verify((const char *)b.data, n, is_signed);
    buf_done(&b);
    return 0;
}
