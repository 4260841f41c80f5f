#!/bin/sh
# Builds and runs the kernel self-test without Python, in one of three ways:
#   native/tests/run.sh              for this machine
#   native/tests/run.sh sanitize     with address and undefined-behaviour sanitizers
#   native/tests/run.sh aarch64      cross-compiled for 64-bit ARM and run by qemu as processors with
#                                    and without each extension (Debian: g++-aarch64-linux-gnu
#                                    qemu-user-static); skipped without them
set -eu
cd "$(dirname "$0")/../.."
mode=${1:-native}
build=build/test-$mode
cmake=${CMAKE:-cmake}
options="-DPLIANT_PYTHON=OFF -DPLIANT_TESTS=ON -DCMAKE_BUILD_TYPE=Release"
case $mode in
  native) ;;
  sanitize) options="$options -DPLIANT_SANITIZE=ON" ;;
  aarch64)
    for program in aarch64-linux-gnu-g++ qemu-aarch64-static; do
      if ! command -v $program > /dev/null; then
        echo "skipped: $program is not installed (Debian: g++-aarch64-linux-gnu qemu-user-static)"
        exit 0
      fi
    done
    options="$options -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
             -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static"
    ;;
  *) echo "native, sanitize or aarch64, not $mode" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086  # options are several words
$cmake -S . -B "$build" $options > /dev/null
$cmake --build "$build" --target kernels_test
test "$mode" = aarch64 || exec "$build/kernels_test"

# Runs as the processor $1, which must offer exactly the paths named after it.
emulate() {
  processor=$1
  shift
  echo "as $processor:"
  qemu-aarch64-static -cpu "$processor" "$build/kernels_test" "$@"
}
emulate max i8mm neon asimd asimd_lookup scalar     # every extension
emulate neoverse-n1 neon asimd asimd_lookup scalar  # dot products, no matrix products: most phones before 2022
emulate cortex-a72 asimd asimd_lookup scalar        # neither: Raspberry Pi 4
