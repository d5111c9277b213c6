#!/bin/sh
# Fill the empty volumes of a stack that does not run: sh docker/restore.sh FOLDER
#
# Jobs that ran when the copy was made are queued again by the reaper, once their leases are
# seen to have run out.
set -eu
folder=${1:?usage: sh docker/restore.sh FOLDER}
for part in valkey data; do
    test -s "$folder/$part.tar" || { echo "$folder/$part.tar is missing" >&2; exit 1; }
done
test -z "$(docker compose ps --quiet --status running)" \
    || { echo "the stack runs; docker compose down comes first" >&2; exit 1; }
into() { # service, the folder that must be empty: unpack what comes by standard input
    docker compose run --rm --no-deps --interactive=true -T --entrypoint sh "$1" -c '
        test -z "$(ls -A "$0" 2> /dev/null)" || { echo "$0 is not empty" >&2; exit 1; }
        tar -C /data -xf -' "$2"
}
into valkey /data < "$folder/valkey.tar"
into service /data < "$folder/data.tar"
echo "restored; start with: docker compose up --detach --wait"
