#pragma once
// The commands of cauced that are not roles. argv: the words after the command's own.
int cauced_keys(int argc, char **argv);
int cauced_migrate(int argc, char **argv);
