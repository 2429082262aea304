#!/usr/bin/env bash
# A Cloud TPU slice of one or many hosts, without Kubernetes: make it, train on all of its workers, delete it.
#
#   launch/tpu_pod.sh create
#   launch/tpu_pod.sh run --config configs/dit_cfg.py:imagenet64        on all workers, in the background
#   launch/tpu_pod.sh logs                                              what worker 0 tells; Ctrl-C leaves it running
#   launch/tpu_pod.sh stop                                              saves, and ends
#   launch/tpu_pod.sh delete                                            costs end here
#   launch/tpu_pod.sh keep --config ...                                 create and run, again after each preemption, to the end;
#                                                                       a slice that is READY it only watches
#
# The commit that is checked out is what runs. Needs gcloud, and a place for checkpoints: an NFS share (Filestore) in the slice's
# network, or a bucket. With a bucket logs and pictures stay on worker 0, and go with the slice.
set -eu

NAME=${NAME:-jaxdiff}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # the runtime that TYPE asks for
SPOT=${SPOT:-1}                         # 1: cheaper, and taken away at any time; 0: not
SHARE=${SHARE:-}                        # HOST:/PATH of the NFS share, mounted at /shared; or gs://BUCKET/FOLDER
case $SHARE in
  gs://*) place=.. kept=("--config.train.checkpoint_dir=$SHARE/$NAME") ;; # place: from jaxdiff/ in a worker's home
  *) place=/shared kept=() ;;
esac
WORKDIR=${WORKDIR:-$place/runs/$NAME}
export NAME ZONE TYPE VERSION SPOT SHARE # for `keep`, which creates by a process of its own
RESTARTS=${RESTARTS:-10}                # of launch/again.sh on the workers
PAUSE=${PAUSE:-60}                      # seconds between two looks of `keep`

tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$@" --zone "$ZONE"
}

on_all() {
  tpu ssh "$NAME" --worker=all --command "$1"
}

create() {
  local archive spot=() needs='-r jaxdiff/requirements-tpu.txt' mount=:
  [ "$SPOT" = 0 ] || spot=(--spot)
  tpu create "$NAME" --accelerator-type "$TYPE" --version "$VERSION" ${spot[@]+"${spot[@]}"}
  archive=$(mktemp -d)/jaxdiff.tar.gz
  git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz -o "$archive" HEAD
  tpu scp "$archive" "$NAME:" --worker=all
  rm -r "$(dirname "$archive")"
  case $SHARE in
    gs://*) needs+=' -r jaxdiff/requirements-gcs.txt' ;;
    *)
      mount="sudo apt-get install -qy nfs-common; sudo mkdir -p /shared
    mountpoint -q /shared || sudo mount -t nfs '$SHARE' /shared"
      ;;
  esac
  on_all "set -e; mkdir -p jaxdiff; tar -xzf jaxdiff.tar.gz -C jaxdiff; python3 -m pip install -q --user uv
    ~/.local/bin/uv venv -q --allow-existing --python 3.12 jaxdiff/.venv
    ~/.local/bin/uv pip install -q --python jaxdiff/.venv/bin/python $needs
    $mount"
}

run() {
  local arguments
  printf -v arguments ' %q' --workdir "$WORKDIR" --requeue_status 75 ${kept[@]+"${kept[@]}"} "$@"
  on_all "cd jaxdiff; rm -f run.status; export RESTARTS=$RESTARTS JAX_COMPILATION_CACHE_DIR=$place/xla_cache
    nohup bash -c 'echo \$\$ > run.pid; launch/again.sh .venv/bin/python -m jaxdiff.main \"\$@\"; echo \$? > run.status' run$arguments \
      > run.log 2>&1 < /dev/null &"
}

keep() {
  local status found
  while :; do
    if ! found=$(state); then
      echo "$0: the slice cannot be asked for; looking again in $PAUSE s." >&2
    elif [ "$found" != READY ]; then
      [ -z "$found" ] || tpu delete "$NAME" --quiet || true
      # A process of its own: within a condition `set -e` would not end it. Half a slice is no slice.
      if ! { "$0" create && run "$@"; }; then
        echo "$0: no slice yet; trying again in $PAUSE s." >&2
        tpu delete "$NAME" --quiet || true
      fi
    fi
    sleep "$PAUSE"
    status=$(tpu ssh "$NAME" --worker=0 --command 'cat jaxdiff/run.status 2>/dev/null' || true)
    case $status in
      '') ;;
      75) # SIGTERM: by a preemption, which takes a moment, or by `stop`
        sleep "$PAUSE"
        found=$(state) || continue
        [ "$found" != READY ] || exit "$status"
        ;;
      *) exit "$status" ;;
    esac
  done
}

# What the slice is in; nothing where there is none. Fails where nobody says.
state() {
  local told
  told=$(mktemp)
  if ! tpu describe "$NAME" --format='value(state)' 2>"$told" && ! grep -qi 'not.found' "$told"; then
    cat "$told" >&2
    rm "$told"
    return 1
  fi
  rm "$told"
}

command=${1:-help}
[ $# = 0 ] || shift
case $command in
  create | keep | run)
    [ -n "$SHARE" ] || { echo "SHARE is not set: HOST:/PATH of an NFS share, or gs://BUCKET/FOLDER, where all workers write." >&2; exit 2; }
    "$command" "$@"
    ;;
  logs) tpu ssh "$NAME" --worker=0 --command 'tail -n 50 -F jaxdiff/run.log' ;;
  stop)
    # shellcheck disable=SC2016 # the workers expand it
    on_all 'pkill -TERM -P "$(cat jaxdiff/run.pid)"' # again.sh, which passes it on
    ;;
  delete) tpu delete "$NAME" --quiet ;;
  *)
    sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
