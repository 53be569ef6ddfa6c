# Sourced by every scripts/run_*.sh: moves to the checkout, makes .venv, installs MLX with the backend of this machine
# and starts things. `run_config FILE [ARGUMENTS]` trains a config, `run_on_modal` does so on Modal, `install EXTRAS` only
# installs. Runs on bash 3.2.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV_PYTHON=.venv/bin/python

fail() {
  echo "error: $*" >&2
  exit 2
}

# The first Python that runs here and is new enough; a name on the path may be a stub that does not start.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
  fail "no Python 3.11 or newer found (tried python3.13, python3.12, python3.11, python3); install one and start again"
}

# Debian ships Python without ensurepip; a pip outside the environment can stand in for it.
make_environment() {
  local python
  python=$(find_python)
  echo "Making .venv with $("$python" --version)"
  if "$python" -c 'import ensurepip' > /dev/null 2>&1; then
    "$python" -m venv --clear .venv || fail "'$python -m venv .venv' failed, see above"
  elif "$python" -m pip --python "$python" --version > /dev/null 2>&1; then
    "$python" -m venv --clear --without-pip .venv || fail "'$python -m venv .venv' failed, see above"
    "$python" -m pip --python $VENV_PYTHON install --quiet pip || fail "cannot install pip into .venv, see above"
  else
    fail "$python has neither ensurepip nor pip to make .venv with; on Debian and Ubuntu: apt install python3-venv"
  fi
}

check_environment() {
  if ! $VENV_PYTHON -c '' > /dev/null 2>&1; then
    make_environment
  elif ! $VENV_PYTHON -m pip --version > /dev/null 2>&1; then
    $VENV_PYTHON -m ensurepip > /dev/null 2>&1 || make_environment
  fi
  $VENV_PYTHON -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail ".venv holds $($VENV_PYTHON --version), 3.11 or newer is needed; remove .venv and start again"
  if [ "$(uname)" = Darwin ] && [ "$($VENV_PYTHON -c 'import platform; print(platform.machine())')" != arm64 ]; then
    fail "MLX needs Apple silicon and a Python built for arm64, this one is for Intel; install an arm64 Python"
  fi
}

# The extra of pyproject.toml that brings MLX's backend: none on a Mac, where mlx brings Metal itself.
choose_backend() {
  local driver
  if [ "$(uname)" = Darwin ]; then
    return
  fi
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null) || driver=""
  driver=${driver%%$'\n'*} # One line for each GPU.
  case "$driver" in
    [0-9]*) ;;
    *) driver=0 ;;
  esac
  if [ "${driver%%.*}" -ge 580 ]; then
    echo cuda13
  elif [ "$(printf '%s\n' 550.54.14 "$driver" | sort -V | head -n 1)" = 550.54.14 ]; then
    echo cuda12
  else
    [ "$driver" = 0 ] || echo "warning: NVIDIA driver $driver is older than 550.54.14, so the CPU is used" >&2
    echo cpu
  fi
}

# Installs this checkout with the backend and the extra given ("dev"). Done once for each state of the lock file, so
# later starts need no network; the stamp also names the folder, because a moved checkout has to be installed again.
install() {
  local backend extras state stamp=.venv/pippin-installed
  check_environment
  backend=$(choose_backend)
  extras=${backend:+$backend${1:+,}}${1:-}
  state="$(cat pyproject.toml requirements-lock.txt | cksum) $(pwd -P)"
  if grep -qxF "$state [$extras]" $stamp 2> /dev/null; then
    return
  fi
  echo "Installing into .venv${extras:+ [$extras]}; this takes some minutes the first time"
  grep -F "$state [" $stamp > $stamp.new 2> /dev/null || true
  mv $stamp.new $stamp
  $VENV_PYTHON -m pip install --quiet --disable-pip-version-check -c requirements-lock.txt -e ".${extras:+[$extras]}" ||
    fail "the installation failed, see above; start again to continue it"
  printf '%s [%s]\n' "$state" "$backend" "$state" "$extras" >> $stamp
}

# Trains a config; a Mac is kept from falling asleep.
run_config() {
  install
  if [ "$(uname)" = Darwin ]; then
    exec caffeinate -i $VENV_PYTHON -m core.training --config "$@"
  fi
  exec $VENV_PYTHON -m core.training --config "$@"
}

# Sends a run to Modal. `--detach`, when it comes first, is Modal's own: the run then survives this terminal.
run_on_modal() {
  local detach=""
  install modal
  if [ "${1:-}" = --detach ]; then
    detach=--detach
    shift
  fi
  exec .venv/bin/modal run $detach modal/modal_deploy.py "$@"
}
