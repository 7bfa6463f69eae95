// backend ls, version, completion bash.
#include <inttypes.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "ctl.h"

static enum status cmd_backends(struct ctl *k)
{
    Orchestrator__ListBackendsRequest req = ORCHESTRATOR__LIST_BACKENDS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Orchestrator__ListBackendsReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_backend_list, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    for (size_t i = 0; s == STATUS_OK && i < r->n_backends; i++) {
        const Orchestrator__BackendInfo *b = r->backends[i];
        printf("%-16s %-6s %-10s %8" PRId64 " calls %6" PRId64 " failed  %.1f GB free\n",
               b->node_id, b->kind, b->state, b->calls, b->failures, (double)b->free_bytes / 1e9);
    }
    return s;
}

static enum status cmd_version(struct ctl *k)
{
    if (ctl_has(k, OPT_JSON))
        printf("{\"version\":\"%s\"}\n", cauce_version());
    else
        printf("mediactl %s\n", cauce_version());
    return STATUS_OK;
}

// ---------------------------------------------------------------- completion

static void print_words(void (*each)(const struct command *c))
{
    for (size_t g = 0; g < n_command_groups; g++)
        for (size_t i = 0; i < command_groups[g]->n; i++)
            each(&command_groups[g]->commands[i]);
}

static void print_name(const struct command *c)
{
    printf("%.*s ", (int)strcspn(c->name, " "), c->name);
}

static void print_case(const struct command *c)
{
    printf("    '%s') words='", c->name);
    for (size_t i = 0; i < N_OPTIONS; i++)
        if ((c->options | ALLOW_COMMON) & ALLOW(i))
            printf("%s ", option_rows[i].name);
    printf("' ;;\n");
}

static void print_second(const struct command *c)
{
    const char *space = strchr(c->name, ' ');
    if (space)
        printf("    '%.*s') second+='%s ' ;;&\n", (int)(space - c->name), c->name, space + 1);
}

static enum status cmd_completion(struct ctl *k)
{
    if (strcmp(k->args[0], "bash") != 0)
        return ctl_misused(k, "completions are written for bash only");
    printf("# source <(mediactl completion bash)\n"
           "_mediactl() {\n"
           "  local word=${COMP_WORDS[COMP_CWORD]} one=${COMP_WORDS[1]} two=${COMP_WORDS[2]} "
           "words= second=\n"
           "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    words='");
    print_words(print_name);
    printf("'\n  else\n    case $one in\n");
    print_words(print_second);
    printf("    *) ;;\n    esac\n"
           "    if [ -n \"$second\" ] && [ \"$COMP_CWORD\" -eq 2 ]; then\n      words=$second\n"
           "    else\n      [ -n \"$second\" ] && one=\"$one $two\"\n      case $one in\n");
    print_words(print_case);
    printf("      esac\n    fi\n  fi\n"
           "  case $word in\n    -*) ;;\n    *) [ \"$COMP_CWORD\" -gt 1 ] && [ -z \"$second\" ] && "
           "COMPREPLY=($(compgen -f -- \"$word\")) && return ;;\n  esac\n"
           "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
           "}\ncomplete -F _mediactl mediactl\n");
    return STATUS_OK;
}

static const struct command commands[] = {
    {"backend ls", "", 0, 0, 0, CONNECTED, cmd_backends,
     "origins as the orchestrator sees them (admin)"},
    {"version", "", 0, 0, 0, ALONE, cmd_version, "version of this program"},
    {"completion", "bash", 1, 1, 0, ALONE, cmd_completion, "shell completion"},
};
const struct command_group misc_commands = {commands, N_ELEMENTS(commands)};
