// library ls, library download.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cauce/store.rpc.h"
#include "ctl.h"

static enum status cmd_ls(struct ctl *k)
{
    Common__Page page;
    enum status s = ctl_page(k, &page);
    if (s != STATUS_OK)
        return s;
    Store__ListLibraryRequest req = STORE__LIST_LIBRARY_REQUEST__INIT;
    req.page = &page;
    AUTO(rpc_message_free_p) Store__ListLibraryReply *r = NULL;
    s = CTL_CALL(k, store_library_list, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    for (size_t i = 0; s == STATUS_OK && i < r->n_entries; i++) {
        const Store__Item *item = r->entries[i]->item;
        if (item)
            printf("%s  %-5s  %s\n", item->item_id, item->kind, item->title);
    }
    if (s == STATUS_OK)
        ctl_say_more(r->next_page);
    return s;
}

static char *library_folder(const struct ctl *k)
{
    const char *env = getenv("CAUCE_LIBRARY"), *home = getenv("HOME");
    if (ctl_has(k, OPT_TO))
        return mem_strdup(k->opt[OPT_TO]);
    if (env && env[0])
        return mem_strdup(env);
    return mem_printf("%s/Cauce", home && home[0] ? home : ".");
}

static enum status cmd_download(struct ctl *k)
{
    AUTO(mem_free_p) char *folder = library_folder(k);
    if (!folder)
        return err_set(&k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    struct progress p;
    progress_init(&p, k, k->args[0]);
    cauce_download_result r;
    cauce_error e;
    enum status s =
        ctl_status(k, cauce_download(k->c, k->args[0], folder, progress_update, &p, &r, &e), &e);
    progress_end(&p);
    if (s != STATUS_OK)
        return s;
    if (!ctl_has(k, OPT_JSON)) {
        puts(r.path);
        return s;
    }
    struct buf b;
    buf_init(&b, 8192);
    buf_puts(&b, "{\"path\":");
    buf_put_json_string(&b, r.path, strlen(r.path));
    buf_printf(&b, ",\"size\":%" PRId64 ",\"received\":%" PRId64 ",\"verified\":%" PRId64 "}\n",
               r.size, r.received, r.verified);
    fputs(buf_str(&b), stdout);
    buf_done(&b);
    return s;
}

static const struct command commands[] = {
    {"library ls", "", 0, 0, ALLOW_PAGE, CONNECTED, cmd_ls, "what I may keep"},
    {"library download", "ITEM", 1, 1, ALLOW(OPT_TO), CONNECTED, cmd_download,
     "download and verify; the same again continues"},
};
const struct command_group library_commands = {commands, N_ELEMENTS(commands)};
