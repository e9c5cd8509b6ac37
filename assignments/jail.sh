#!/bin/sh
# Run a command that can see a Python, this book's package and its own notebook, and nothing else.
#
#   jail.sh FOLDER SIZE VISIBLE... -- COMMAND...
#
# FOLDER becomes the root of a new file system in memory; the VISIBLE paths are in it, read-only, and
# HOME, an empty folder of at most SIZE. There is no network, no other process can be seen, and no
# privilege is left. To be started by: unshare --user --map-root-user --mount --pid --net ... (jail.py).
set -eu
new=$1 size=$2
shift 2
mount -t tmpfs -o size=1m,mode=755 tmpfs "$new"
while [ "$1" != -- ]; do
    if [ -L "$1" ]; then  # /bin -> usr/bin
        mkdir -p "$new$(dirname "$1")"
        cp -P "$1" "$new$1"
    elif [ -e "$1" ]; then
        if [ -d "$1" ]; then
            mkdir -p "$new$1"
        else
            mkdir -p "$new$(dirname "$1")"
            : > "$new$1"
        fi
        mount --rbind "$1" "$new$1"
        case $1 in /dev/*) ;; *) mount -o remount,bind,ro "$new$1" ;; esac
    fi
    shift
done
shift
mkdir -p "$new/proc" "$new/tmp" "$new$HOME"
mount -t proc proc "$new/proc" 2> /dev/null || true  # some containers forbid it; Python can do without
mount -t tmpfs -o "size=$size,mode=700" tmpfs "$new$HOME"
mount -o remount,ro "$new"
cd /
exec chroot "$new" setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
