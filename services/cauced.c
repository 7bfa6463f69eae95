// cauced: the one server program. Its first word says what to do: a command, or the roles to run.
#include "cauced.h"

#include <stdio.h>

#include "base/str.h"
#include "service/service.h"

// The roles that were built, one ROLE(name) each; made by CMake.
#define ROLE(name) extern const struct svc_role name##_role;
#include "cauced_roles.inc"
#undef ROLE

static const struct svc_role *const roles[] = {
#define ROLE(name) &name##_role,
#include "cauced_roles.inc"
#undef ROLE
};

static int version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return puts("cauced " CAUCE_VERSION) < 0;
}

static int help(int argc, char **argv);

static const struct {
    const char *name, *args, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"keys", "--out DIR [--node ID:ROLE[:KIND]@URL ...]", "make keys, grants and nodes.ini",
     cauced_keys},
    {"keys show", "--keys DIR", "who has which key, and until when", NULL},
    {"keys renew|rotate|retire|revoke", "--keys DIR NODE...", "change keys and grants; see --help",
     NULL},
    {"invite", "--keys DIR --role ROLE", "a one-time secret with which a machine becomes a node",
     cauced_invite},
    {"enrol", "--keys DIR", "let machines in that have an invitation", cauced_enrol},
    {"join", "INVITATION|- --keys DIR", "become a node of the platform", cauced_join},
    {"migrate", "--database CONNINFO --migrations DIR", "bring the database up to date",
     cauced_migrate},
    {"version", "", "print the version", version},
    {"help", "", "print this", help},
};

static int help(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf(
        "usage: cauced ROLE[:NODE]... [options]   run roles; ROLE --help lists a role's options\n"
        "       cauced all [options]              run every node of nodes.ini\n");
    for (size_t i = 0; i < N_ELEMENTS(commands); i++)
        printf("       cauced %s%s%s\n           %s\n", commands[i].name,
               commands[i].args[0] ? " " : "", commands[i].args, commands[i].help);
    printf("\nroles:");
    for (size_t i = 0; i < N_ELEMENTS(roles); i++)
        printf(" %s", roles[i]->name);
    return puts("") < 0;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "help";

    if (str_eq(word, "--help") || str_eq(word, "-h"))
        word = "help";
    if (str_eq(word, "--version"))
        word = "version";
    for (size_t i = 0; i < N_ELEMENTS(commands); i++)
        if (commands[i].run && str_eq(commands[i].name, word))
            return commands[i].run(argc - 2, argv + 2);
    return svc_main(roles, N_ELEMENTS(roles), argc - 1, argv + 1);
}
