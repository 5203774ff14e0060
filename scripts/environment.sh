# Sourced by the other scripts: goes to the root of the checkout and puts the virtual environment first on PATH.
# The environment is $VENV_DIR if set, else the active one, else .venv in the checkout.

VENV_DIR="${VENV_DIR:-${VIRTUAL_ENV:-}}"
if [[ -n "$VENV_DIR" && "$VENV_DIR" != /* ]]; then
  VENV_DIR="$PWD/$VENV_DIR"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VENV_DIR="${VENV_DIR:-$PWD/.venv}"
export PATH="$VENV_DIR/bin:$PATH"
