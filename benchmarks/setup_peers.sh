#!/usr/bin/env bash
# Make one virtual environment per peer under benchmarks/peers/<name>, so that no peer touches another's packages.
# Usage: benchmarks/setup_peers.sh [nbi] [sbi]   (both without an argument). PYTHON names the interpreter.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$#" -eq 0 ]; then
    set -- nbi sbi
fi

for peer in "$@"; do
    case "$peer" in
        nbi | sbi) ;;
        *) echo "unknown peer '$peer': known are nbi, sbi" >&2; exit 2 ;;
    esac
    home="benchmarks/peers/$peer"
    "${PYTHON:-python3}" -m venv "$home"
    # torch goes first, under the pin: what the peers ask for by themselves is the CUDA build.
    "$home/bin/python" -m pip install --quiet -c constraints.txt torch
    "$home/bin/python" -m pip install --quiet -c constraints.txt "$peer"
    "$home/bin/python" -c "from importlib.metadata import version as v; print('$peer', v('$peer'), 'torch', v('torch'))"
done
