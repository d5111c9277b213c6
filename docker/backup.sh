#!/bin/sh
# Copy a running stack into a folder: sh docker/backup.sh FOLDER
#
# Valkey comes first. A record names only artefacts that are already written, so whatever the
# copied records name is there when the data folder is copied after them.
set -eu
folder=${1:?usage: sh docker/backup.sh FOLDER}
test ! -e "$folder" || { echo "$folder is there already; name a new folder" >&2; exit 1; }
cli() { docker compose exec -T valkey valkey-cli "$@"; }

# A rewrite replaces the files under a copy that is being made.
before=$(cli config get auto-aof-rewrite-percentage | tail -n 1)
trap 'cli config set auto-aof-rewrite-percentage "$before" > /dev/null' EXIT
cli config set auto-aof-rewrite-percentage 0 > /dev/null
while cli info persistence | grep -q '^aof_rewrite_in_progress:1'; do sleep 1; done

mkdir -p "$folder.part"
docker compose exec -T valkey tar -C /data -cf - appendonlydir > "$folder.part/valkey.tar"
# What is downloaded can be downloaded again; what lies in tmp belongs to running attempts.
docker compose exec -T service tar -C /data --exclude=./hub --exclude=./tmp -cf - . \
    > "$folder.part/data.tar"
mv "$folder.part" "$folder"
echo "$folder holds valkey.tar and data.tar; restore with: sh docker/restore.sh $folder"
