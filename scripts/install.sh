#!/usr/bin/env bash
# Installs basicsr_quant into a virtual environment; does nothing if that has been done from the same files.
#
#   bash scripts/install.sh          what training, testing and the quickstart need (core)
#   bash scripts/install.sh all      and diffusion models, IQA metrics, ONNX, numba
#   bash scripts/install.sh test     and the test tools
#
# VENV_DIR=DIR         the environment to use or make (default: the active one, else .venv)
# PYTHON=FILE          the Python to make it with (default: the first of python3.11, python3, … that is 3.11 or 3.12)
# TORCH_INDEX_URL=URL  an extra index for torch and torchvision: the same versions in another build (CUDA, ROCm, CPU)
set -euo pipefail

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

mode="${1:-core}"
case "$mode" in
  core) target="." unlisted="basicsr" satisfied_by="core all test" ;;
  all) target=".[all]" unlisted="basicsr|pyiqa" satisfied_by="all test" ;;
  test) target=".[all,test]" unlisted="basicsr|pyiqa" satisfied_by="test" ;;
  *) fail "'$mode' is none of core, all, test" ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3 python3.12 python}; do
    if is_supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "found no Python 3.11 or 3.12 (tried: ${PYTHON:-python3.11 python3 python3.12 python}); install Python 3.11 or set PYTHON=/path/to/python3.11"
}

python="$VENV_DIR/bin/python"
if ! "$python" -m pip --version >/dev/null 2>&1; then
  base="$(find_python)"
  echo "install.sh: making $VENV_DIR with $("$base" --version)"
  "$base" -m venv "$VENV_DIR" || fail "$base cannot make a virtual environment; on Debian: apt-get install python3-venv"
fi
is_supported "$python" || fail "$VENV_DIR holds $("$python" --version); Python 3.11 or 3.12 is needed: remove it or set VENV_DIR to another folder"

digest="$(
  { cat setup.py pyproject.toml requirements.txt constraints.txt scripts/install.sh; echo "$PWD ${TORCH_INDEX_URL:-}"; } |
    "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
)"
for done_mode in $satisfied_by; do
  stamp="$VENV_DIR/basicsr_quant-$done_mode.sha256"
  if [[ -f "$stamp" && "$(<"$stamp")" == "$digest" ]]; then
    echo "install.sh: $VENV_DIR is up to date ($done_mode)"
    exit 0
  fi
done

install() {
  "$python" -m pip install --disable-pip-version-check --constraint constraints.txt "$@"
}

echo "install.sh: installing '$mode' into $VENV_DIR"
torch=(torch torchvision)
if [[ -n "${TORCH_INDEX_URL:-}" ]]; then
  torch+=(--upgrade --extra-index-url "$TORCH_INDEX_URL")
fi
install "${torch[@]}"
install setuptools wheel cython numpy
install --no-build-isolation --editable "$target"
for requirement in $(sed -nE "s/^# (($unlisted)==[^ ]+)$/\1/p" requirements.txt); do
  install --no-deps --no-build-isolation "$requirement"
done
echo "$digest" > "$VENV_DIR/basicsr_quant-$mode.sha256"
