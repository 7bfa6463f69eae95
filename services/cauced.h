#pragma once
// The commands of cauced that are not roles. argv: the words after the command's own.
int cauced_keys(int argc, char **argv);
int cauced_keys_show(int argc, char **argv);
int cauced_keys_renew(int argc, char **argv);
int cauced_keys_rotate(int argc, char **argv);
int cauced_keys_retire(int argc, char **argv);
int cauced_keys_revoke(int argc, char **argv);
int cauced_invite(int argc, char **argv);
int cauced_enrol(int argc, char **argv);
int cauced_join(int argc, char **argv);
int cauced_migrate(int argc, char **argv);
