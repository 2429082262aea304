#!/usr/bin/env bash
# N processes on this machine as one run, which find each other over the loopback. When one fails all end, and start again where
# the exit status asks for it (launch/again.sh). SIGTERM and Ctrl-C are passed on: they save, and end.
#
#   launch/local.sh N [ARGUMENT of jaxdiff.main ...]
#   launch/local.sh 2 --config configs/dit_cfg.py --workdir checkpoints/two
set -u

GPUS_EACH=${GPUS_EACH:-0} # NVIDIA GPUs of a process, in their order; 0: each sees all (on a machine without one: leave it)
GRACE=${GRACE:-60}        # seconds that the others have to end when one has failed; then they are killed
export RESTARTS=${RESTARTS:-10} PAUSE=${PAUSE:-5} # of launch/again.sh

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
if [ -z "${JAXDIFF_SUPERVISED:-}" ]; then
  JAXDIFF_SUPERVISED=1 PYTHON=$PYTHON exec launch/again.sh launch/local.sh "$@"
fi

count=${1:-}
case $count in
  '' | *[!0-9]* | 0)
    echo "usage: launch/local.sh N [ARGUMENT of jaxdiff.main ...]; N is a number of processes, not '$count'." >&2
    exit 2
    ;;
esac
shift
port=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit 1
if [ "$GPUS_EACH" -gt 0 ]; then
  export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}
fi

running=()
tell() {
  local pid
  for pid in ${running[@]+"${running[@]}"}; do kill "-$1" "$pid" 2>/dev/null; done
}
is_stopped=
trap 'is_stopped=1' TERM INT # until all have started

for ((i = 0; i < count; i++)); do
  if [ "$GPUS_EACH" -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=$(seq -s, $((i * GPUS_EACH)) $(((i + 1) * GPUS_EACH - 1)))
    export CUDA_VISIBLE_DEVICES
  fi
  "$PYTHON" -m jaxdiff.main --requeue_status 75 "$@" \
    --coordinator "127.0.0.1:$port" --num_processes "$count" --process_id "$i" &
  running+=($!)
done
trap 'tell TERM' TERM INT
[ -z "$is_stopped" ] || tell TERM

failed=0 # the exit status of the first that has failed
deadline=
while [ ${#running[@]} -gt 0 ]; do
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    wait "$pid"
    status=$?
    [ "$failed" != 0 ] || failed=$status
  done
  running=(${left[@]+"${left[@]}"})
  if [ "$failed" != 0 ]; then
    if [ -z "$deadline" ]; then
      deadline=$((SECONDS + GRACE))
      tell TERM
    elif [ "$SECONDS" -ge "$deadline" ]; then
      tell KILL
    fi
  fi
  sleep 0.2
done
exit "$failed"
