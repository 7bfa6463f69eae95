#!/bin/sh
# PostgreSQL on a unix socket in a volume that only the services with a database mount: no TCP port.
set -eu
data=/var/lib/postgresql/data
bin=$(ls -d /usr/lib/postgresql/*/bin | sort | tail -n 1)
if [ ! -e "$data/PG_VERSION" ]; then
    "$bin/initdb" -D "$data" -U cauce -A peer --auth-local=trust --data-checksums -E UTF8 --locale=C.UTF-8
    echo "CREATE DATABASE cauce" | "$bin/postgres" --single -D "$data" postgres
fi
exec "$bin/postgres" -D "$data" -c listen_addresses= -c unix_socket_directories=/run/cauce-db -c max_connections=200
