#!/usr/bin/env bash
# Everything that needs a GPU, in steps of at most ten minutes: build, test, sanitize, bench, collect.
#
#   bench/gpu_check.sh                 every step that has not succeeded yet (a second start goes on where it stopped)
#   bench/gpu_check.sh test-forward    one step, again
#
# PYTHON names the interpreter (default: python3), which must have a CUDA build of torch; OUT the folder of the logs and
# results (default: build/gpu_check). A step that fails does not keep the others from running.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu_check}
LIMIT=590
mkdir -p "$OUT"

bench() {  # name, then options of the bench
  local name=$1
  shift
  "$PYTHON" -m bench --device cuda --quick --seconds 0.05 --rows --out "$OUT/$name.json" "$@"
}

one_step() {
  case $1 in
    build)
      TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')} \
        CONV_EXT_CUDA=1 "$PYTHON" setup.py build_ext --inplace
      ;;
    test-*) "$PYTHON" -m pytest -q -m gpu tests/test_gpu.py -k "test_against_the_reference and ${1#test-}" ;;
    tests) "$PYTHON" -m pytest -q -m gpu tests --deselect tests/test_gpu.py::test_against_the_reference ;;
    sanitize-*)
      compute-sanitizer --tool "${1#sanitize-}" --error-exitcode 1 "$PYTHON" -m pytest -q -x -m gpu tests/test_gpu.py \
        -k "test_against_the_reference and everything and float32"
      ;;
    bench-ieee) bench "$1" --suite resnet50 vgg16 mobilenet resnext50 --layout nchw --dtype float32 ;;
    bench-tf32) bench "$1" --suite resnet50 vgg16 --layout nchw channels_last --dtype float32 --precision tf32 ;;
    bench-bfloat16) bench "$1" --suite resnet50 vgg16 mobilenet --layout channels_last --dtype bfloat16 ;;
    bench-float64) bench "$1" --suite lenet5 googlenet --layout nchw --dtype float64 ;;
    bench-three) bench "$1" --suite resnet50 --layout nchw --dtype float32 --algorithm three_tf32 ;;
    collect) tar czf "$OUT.tar.gz" -C "$(dirname "$OUT")" "$(basename "$OUT")" ;;
    *) echo "no such step: $1" >&2; return 2 ;;
  esac
}

STEPS="build test-forward test-input_grad test-weight_grad tests sanitize-memcheck sanitize-racecheck sanitize-synccheck
  bench-ieee bench-tf32 bench-bfloat16 bench-float64 bench-three collect"

if [ "${INSIDE:-}" ]; then
  one_step "$1"
  exit
fi
status=0
for step in ${*:-$STEPS}; do
  done_file="$OUT/$step.done"
  [ $# -eq 0 ] && [ -e "$done_file" ] && [ "$step" != collect ] && continue
  rm -f "$done_file"
  echo "== $step"
  INSIDE=1 OUT=$OUT PYTHON=$PYTHON timeout "$LIMIT" "$0" "$step" > "$OUT/$step.log" 2>&1
  result=$?
  tail -n 3 "$OUT/$step.log"
  if [ $result -eq 0 ]; then
    touch "$done_file"
  else
    echo "== $step failed with $result; all of it is in $OUT/$step.log"
    status=1
  fi
done
exit $status
