#!/usr/bin/env bash
# Installs what the tests need, checks style, types and import directions, and runs the tests.
#
#   bash scripts/run_tests.sh                     the default suite
#   bash scripts/run_tests.sh --all               and the tests marked slow and gpu
#   bash scripts/run_tests.sh tests/quant -k dobi any arguments of pytest (the coverage of a part is shown, not judged)
#
# SR_DATA_ROOT=DIR     the sample data; tests that need it are skipped without
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

default_suite=1
judge_coverage=1
pytest_options=(-n 2 --dist loadfile --cov --cov-report=term)
for argument in "$@"; do
  if [[ "$argument" == --all ]]; then
    default_suite=0
  else
    pytest_options+=("$argument")
    judge_coverage=0
  fi
done
if ((default_suite)); then
  pytest_options=(-m "not slow and not gpu" "${pytest_options[@]}")
fi
if ((!judge_coverage)); then
  pytest_options+=(--cov-fail-under=0)
fi

bash scripts/install.sh test
export OMP_NUM_THREADS=1

failed=()
check() {
  echo "run_tests.sh: $*"
  "$@" || failed+=("$1")
}
check ruff check --output-format concise
check mypy
check lint-imports
check pytest "${pytest_options[@]}"

if ((${#failed[@]})); then
  echo "run_tests.sh: failed: ${failed[*]}" >&2
  exit 1
fi
