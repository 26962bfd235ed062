#!/usr/bin/env bash
# Make one virtual environment per peer under benchmarks/peers/<name>, so that no peer touches another's packages.
# Usage: benchmarks/setup_peers.sh [nbi] [sbi] [bayesflow] [samplers] [blackjax]   (all without an argument). PYTHON names the interpreter.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$#" -eq 0 ]; then
    set -- nbi sbi bayesflow samplers blackjax
fi

for peer in "$@"; do
    case "$peer" in
        nbi | sbi | bayesflow) packages=("$peer") ;;
        samplers) packages=(dynesty==3.1.0 nautilus-sampler==1.0.6 ultranest==4.6.3 pocomc==1.2.6) ;;
        blackjax) packages=(jax==0.10.2 jaxlib==0.10.2 blackjax==1.7.1) ;;
        *) echo "unknown peer '$peer': known are nbi, sbi, bayesflow, samplers, blackjax" >&2; exit 2 ;;
    esac
    home="benchmarks/peers/$peer"
    "${PYTHON:-python3}" -m venv "$home"
    if [ "$peer" != blackjax ]; then
        # torch goes first, under the pin: what the peers ask for by themselves is the CUDA build.
        packages=(torch "${packages[@]}")
        "$home/bin/python" -m pip install --quiet -c constraints.txt torch
    fi
    "$home/bin/python" -m pip install --quiet -c constraints.txt "${packages[@]}"
    "$home/bin/python" - "${packages[@]%%=*}" <<'PYTHON'
import sys
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in sys.argv[1:]))
PYTHON
done
