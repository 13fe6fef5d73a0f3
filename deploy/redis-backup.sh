#!/bin/sh
# A copy of the queue, and a new Redis or Valkey from it.
#
#   MLXQ_URL=redis://127.0.0.1:6379/0 REDISCLI_AUTH=PASSWORD redis-backup.sh save mlxq.rdb
#   redis-backup.sh load mlxq.rdb /var/lib/mlxq-redis
#
# `save` asks a running server for all its data, as a replica would, and looks whether the file is whole; work goes on
# meanwhile. The user needs +psync, which is more than mlxq's own roles have. `load` fills an empty folder, which a server
# with deploy/redis.conf then starts from (chown it to that server's user): a file alone is not enough, since a server that
# keeps an append-only file reads that and nothing else. What has happened since the copy was made is gone: requests that
# were answered later are answered again, and those that came later have to be put in the queue again (the same
# `mlxq enqueue --batch-id` completes a batch).
set -eu

fail() {
    echo "redis-backup.sh: $*" >&2
    exit 1
}

# The first of these programs that there is.
program() {
    command -v "redis-$1" || command -v "valkey-$1" || fail "there is neither redis-$1 nor valkey-$1 on the path"
}

save() {
    url=${MLXQ_URL:-redis://127.0.0.1:6379/0}
    case "$url" in
    unix://*)
        path=${url#unix://}
        path=${path#*@}
        "$cli" -s "${path%%\?*}" --rdb "$1.part" >&2
        ;;
    *) "$cli" -u "$url" --rdb "$1.part" >&2 ;;
    esac
    "$check" "$1.part" >&2 || fail "$1.part is broken"
    mv "$1.part" "$1"
}

load() {
    [ -d "$2" ] || fail "$2 is no folder"
    [ -z "$(ls -A "$2")" ] || fail "$2 is not empty: move away what is there"
    cp "$1" "$2/dump.rdb"
    socket="$(mktemp -d)/load.sock"
    "$server" --port 0 --unixsocket "$socket" --dir "$2" --dbfilename dump.rdb --appendonly no --save "" \
        --daemonize yes >/dev/null
    ask() { "$cli" -s "$socket" "$@"; }
    until [ "$(ask PING 2>/dev/null)" = PONG ]; do sleep 0.1; done
    ask CONFIG SET appendonly yes >/dev/null
    while ask INFO persistence | grep -Eq '^aof_rewrite_(in_progress|scheduled):1'; do sleep 0.1; done
    ask INFO persistence | grep -q '^aof_last_bgrewrite_status:ok' || fail "the append-only file could not be written"
    ask SHUTDOWN NOSAVE
    rm -r "$(dirname "$socket")"
}

cli=$(program cli)
case "${1:-} $#" in
"save 2") check=$(program check-rdb) && save "$2" ;;
"load 3") server=$(program server) && load "$2" "$3" ;;
*) fail "usage: save FILE, or load FILE FOLDER" ;;
esac
