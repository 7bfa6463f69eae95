// node health, backend ls, version, completion bash.
#include <inttypes.h>
#include <string.h>

#include "cauce/node.rpc.h"
#include "cauce/orchestrator.rpc.h"
#include "ctl.h"

static const char *serving_name(Node__Serving s)
{
    const ProtobufCEnumValue *v =
        protobuf_c_enum_descriptor_get_value(&node__serving__descriptor, (int)s);
    return v ? v->name : "?";
}

static enum status print_nodes(struct ctl *k, const Node__ClusterReply *r)
{
    static const char *const heads[] = {"NODE", "ROLE", "KIND", "STATUS", "MS", "CALLS", "REASON"};
    struct table t;
    table_init(&t, N_ELEMENTS(heads));
    for (size_t i = 0; i < N_ELEMENTS(heads); i++)
        table_add(&t, "%s", heads[i]);
    for (size_t i = 0; i < r->n_nodes; i++) {
        const Node__NodeStatus *n = r->nodes[i];
        table_add(&t, "%s", n->node_id);
        table_add(&t, "%s", n->role);
        table_add(&t, "%s", n->kind);
        table_add(&t, "%s", serving_name(n->status));
        table_add(&t, "%.1f", (double)n->latency_us / 1000);
        table_add(&t, "%" PRId64, n->info ? n->info->calls_total : 0);
        table_add(&t, "%s", n->reason);
    }
    return table_print(&t, stdout, &k->err);
}

// Succeeds when every node serves, so that scripts can ask.
static enum status cmd_health(struct ctl *k)
{
    Node__ClusterRequest req = NODE__CLUSTER_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__ClusterReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_cluster, NULL, &req, &r);
    if (s == STATUS_OK)
        s = ctl_has(k, OPT_JSON) ? ctl_print_message(k, &r->base) : print_nodes(k, r);
    for (size_t i = 0; s == STATUS_OK && i < r->n_nodes; i++)
        if (r->nodes[i]->status != NODE__SERVING__SERVING)
            s = err_set(&k->err, STATUS_UNAVAILABLE, "node %s does not serve: %s",
                        r->nodes[i]->node_id, r->nodes[i]->reason);
    return s;
}

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
        return err_set(&k->err, STATUS_INVALID_ARGUMENT, "only bash is known");
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
    {"node health", "", 0, 0, 0, CONNECTED, cmd_health, "every node, asked just now (admin)"},
    {"backend ls", "", 0, 0, 0, CONNECTED, cmd_backends,
     "origins as the orchestrator sees them (admin)"},
    {"version", "", 0, 0, 0, ALONE, cmd_version, "version of this program"},
    {"completion", "bash", 1, 1, 0, ALONE, cmd_completion, "shell completion"},
};
const struct command_group misc_commands = {commands, N_ELEMENTS(commands)};
