#!/usr/bin/env bash
# Everything that needs a GPU, in steps of at most ten minutes, the most telling first: build, smoke, test, bench,
# sanitize, collect.
#
#   bench/gpu_check.sh                 every step that has not succeeded yet (a second start goes on where it stopped)
#   BUDGET=580 bench/gpu_check.sh      the same, but no step is started that may end later than so many seconds from now
#   bench/gpu_check.sh smoke table     these steps, again
#
# PYTHON names the interpreter (default: python3), which must have a CUDA build of torch, setuptools, ninja and pytest;
# OUT the folder of the logs and results (default: build/gpu_check). Nothing is downloaded. A step that fails does not
# keep the others from running, only a failed build does; the exit status is 1 where one failed, 3 where time was short.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
SCRIPT=$PWD/bench/gpu_check.sh
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu_check}
BUDGET=${BUDGET:-1000000}
mkdir -p "$OUT"
command -v nvcc > /dev/null || PATH=$PATH:/usr/local/cuda/bin

STEPS="build info smoke test-forward test-input_grad test-weight_grad test-kernels test-layer
  bench-ieee bench-bfloat16 bench-tf32 table test-wgmma bench-wgmma bench-wgmma-nchw
  sanitize-memcheck sanitize-racecheck sanitize-synccheck sanitize-initcheck
  test-python bench-depthwise bench-float64 bench-one-image bench-three_tf32 network network-nchw collect table"

limit_of() {  # seconds that a step may take
  case $1 in
    build) echo 570 ;;
    info | collect | table) echo 60 ;;
    smoke | sanitize-* | bench-*) echo 300 ;;
    *) echo 420 ;;
  esac
}

bench() {  # name, then options of the bench
  local name=$1
  shift
  "$PYTHON" -m bench --device cuda --quick --seconds 0.03 --rows --out "$OUT/$name.json" "$@"
}

tests() {  # on several processes where pytest-xdist is there: the references are computed by the CPU
  local parallel=()
  "$PYTHON" -c 'import xdist' 2> /dev/null && parallel=(-n 6)
  "$PYTHON" -m pytest -q -m gpu "${parallel[@]}" "$@"
}

one_step() {
  case $1 in
    build)
      TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c '
import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + ("a" if major >= 9 else ""))')} \
        CONV_EXT_CUDA=1 "$PYTHON" setup.py build_ext --inplace
      ;;
    info) nvidia-smi || true; "$PYTHON" -m conv_ext info ;;
    smoke) "$PYTHON" -m bench.gpu_smoke ;;
    test-forward | test-input_grad | test-weight_grad)
      tests tests/test_gpu.py -k "test_against_the_reference and ${1#test-}" ;;
    test-kernels) tests tests/test_gpu.py -k "not test_against_the_reference" ;;
    test-wgmma) tests tests/test_gpu_wgmma.py ;;
    test-layer) tests tests/test_gpu_layer.py ;;
    test-python) tests tests --ignore tests/test_gpu.py --ignore tests/test_gpu_layer.py \
      --ignore tests/test_gpu_wgmma.py ;;
    sanitize-*)
      compute-sanitizer --tool "${1#sanitize-}" --error-exitcode 1 "$PYTHON" -m pytest -q -x -m gpu tests/test_gpu.py \
        -k "test_against_the_reference and everything and (float32 or bfloat16)"
      ;;
    bench-ieee) bench "$1" --suite resnet50 vgg16 googlenet resnext50 --dtype float32 ;;
    bench-bfloat16) bench "$1" --suite resnet50 vgg16 resnext50 --layout channels_last --dtype bfloat16 ;;
    bench-tf32) bench "$1" --suite resnet50 vgg16 --layout nchw channels_last --dtype float32 --precision tf32 ;;
    bench-wgmma) bench "$1" --suite resnet50 vgg16 --layout channels_last --dtype bfloat16 --algorithm wgmma ;;
    bench-wgmma-nchw) bench "$1" --suite resnet50 vgg16 --layout nchw --dtype bfloat16 float32 --algorithm wgmma ;;
    bench-depthwise) bench "$1" --suite mobilenet depthwise --layout nchw channels_last --dtype float32 bfloat16 ;;
    bench-float64) bench "$1" --suite resnet50 alexnet --dtype float64 ;;
    bench-one-image) bench "$1" --suite resnet50 vgg16 mobilenet --dtype float32 bfloat16 --batch 1 ;;
    bench-three_tf32) bench "$1" --suite resnet50 --dtype float32 --algorithm three_tf32 ;;
    network) "$PYTHON" -m bench network --device cuda --quick --layout channels_last --out "$OUT/network.json" ;;
    network-nchw)
      "$PYTHON" -m bench network --device cuda --quick --layout nchw --what step forward --out "$OUT/network-nchw.json" ;;
    collect) tar czf "$OUT.tar.gz" -C "$(dirname "$OUT")" "$(basename "$OUT")" ;;
    table)
      local found=()
      for file in "$OUT"/bench-*.json "$OUT"/network*.json; do [ -e "$file" ] && found+=("$file"); done
      [ ${#found[@]} -gt 0 ] && "$PYTHON" -m bench report --aims "${found[@]}"
      ;;
    *) echo "no such step: $1" >&2; return 2 ;;
  esac
}

if [ "${INSIDE:-}" ]; then
  one_step "$1"
  exit
fi
status=0
for step in ${*:-$STEPS}; do
  done_file="$OUT/$step.done"
  [ $# -eq 0 ] && [ -e "$done_file" ] && [ "$step" != collect ] && [ "$step" != table ] && continue
  limit=$(limit_of "$step")
  if [ $((SECONDS + limit)) -gt "$BUDGET" ]; then
    echo "== $step may take $limit s, and $((BUDGET - SECONDS)) are left: start again"
    [ $status -eq 0 ] && status=3
    [ "$step" = build ] && break
    continue
  fi
  rm -f "$done_file"
  echo "== $step"
  began=$SECONDS
  INSIDE=1 OUT=$OUT PYTHON=$PYTHON timeout -k 10 "$limit" bash "$SCRIPT" "$step" > "$OUT/$step.log" 2>&1
  result=$?
  case $step in
    info | table) cat "$OUT/$step.log" ;;
    smoke) grep -v '^ok ' "$OUT/$step.log" | tail -n 20 ;;
    *) tail -n 3 "$OUT/$step.log" ;;
  esac
  if [ $result -eq 0 ]; then
    touch "$done_file"
    echo "== $step done in $((SECONDS - began)) s"
  else
    echo "== $step FAILED with $result after $((SECONDS - began)) s; all of it is in $OUT/$step.log"
    status=1
    [ "$step" = build ] && break
  fi
done
exit $status
