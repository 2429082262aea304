#!/usr/bin/env bash
# Runs a command, and runs it again for as long as its exit status asks for it.
#
#   launch/again.sh COMMAND [ARGUMENT ...]
#
# It asks with 74 (a step hung, another process was lost), 75 (what the files here give as --requeue_status: stopped by
# SIGTERM, everything saved) or by dying of a signal other than Ctrl-C's. 0, 2 (a mistake in config or data) and others end it.
# SIGTERM and SIGINT are passed on as SIGTERM, and then nothing is started again.
set -u

RESTARTS=${RESTARTS:-10} # at most
PAUSE=${PAUSE:-5}        # seconds before each

child=
is_stopped=
is_interrupted=
is_untold= # stopped while no child was known, the moment of its start included
stop() {
  is_stopped=1
  is_interrupted=1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; else is_untold=1; fi
}
trap stop TERM INT

# The exit status of process $child. A signal that is trapped cuts `wait` short: it then waits once more.
wait_for_child() {
  local status latest
  while :; do
    is_interrupted=
    wait "$child"
    latest=$?
    [ "$latest" = 127 ] || status=$latest # 127: it is gone, and its status was read already
    [ -n "$is_interrupted" ] || break
  done
  child=
  return "${status:-1}"
}

asks_again() {
  [ "$1" = 74 ] || [ "$1" = 75 ] || { [ "$1" -gt 128 ] && [ "$1" != 130 ]; }
}

for ((run = 1; ; run++)); do
  "$@" &
  child=$!
  [ -z "$is_untold" ] || kill -TERM "$child" 2>/dev/null
  wait_for_child
  status=$?
  if [ -n "$is_stopped" ] || ! asks_again "$status" || [ "$run" -gt "$RESTARTS" ]; then
    exit "$status"
  fi
  echo "$0: exit status $status; starting again ($run of $RESTARTS at most)." >&2
  sleep "$PAUSE"
  [ -z "$is_stopped" ] || exit "$status"
done
