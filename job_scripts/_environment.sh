# Sourced by the scripts beside it: goes to the project root and puts its environment, .venv, first on PATH.
# EXTRAS, set by the script, names optional dependency groups of pyproject.toml ("test", "test sweep");
# PYTHON, set by the user, names the interpreter to build the environment from.

die() { echo "error: $*" >&2; exit 1; }

supported() { "$1" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

version_of() { "$1" -c 'import sys; print(*sys.version_info[:2], sep=".")'; }

# `command -v` is not enough: version managers leave launchers on PATH that only print an error.
works() { "$@" >/dev/null 2>&1; }

find_uv() {
  local candidate
  for candidate in uv .venv/bin/uv; do
    if works "$candidate" --version; then echo "$candidate"; return; fi
  done
}

make_venv() {
  local uv python
  rm -rf .venv
  if works uv --version; then uv=uv; else uv=; fi
  if [[ -n ${PYTHON:-} ]]; then
    set -- "$PYTHON"
  elif [[ -n $uv ]]; then
    set -- 3.11 3.12  # uv finds these or downloads them
  else
    set -- python3.11 python3.12 python3 python
  fi
  for python in "$@"; do
    if [[ -n $uv ]]; then
      works uv venv --python "$python" .venv || continue
    else
      supported "$python" || continue
      "$python" -m venv .venv || die "$python cannot make a virtual environment (Debian: install python3-venv)."
    fi
    echo "Made .venv with Python $(version_of .venv/bin/python)."
    return
  done
  die "no Python 3.11 or 3.12 found: install one, install uv, or set PYTHON to its path."
}

install_dependencies() {
  local uv extra flags=()
  uv=$(find_uv)
  if [[ -z $uv ]]; then
    works .venv/bin/python -m pip --version || works .venv/bin/python -m ensurepip || die ".venv has no pip: delete .venv and start again."
    # uv installs several times faster than pip; where it cannot be had, pip does the same work.
    if works .venv/bin/python -m pip install uv; then uv=.venv/bin/uv; fi
  fi
  echo "Installing the dependencies with ${uv:-pip} (several GB the first time: PyTorch with CUDA)."
  if [[ -n $uv ]]; then
    for extra in ${EXTRAS:-}; do flags+=(--extra "$extra"); done
    # The first process that imports a file compiles it. Where PYTHONDONTWRITEBYTECODE is set, every process would: the
    # installation then compiles all files, which takes half a minute.
    if [[ ${PYTHONDONTWRITEBYTECODE:-} ]]; then flags+=(--compile-bytecode); fi
    # The 30 seconds that uv waits for a download by default are too short for the largest wheels.
    UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} "$uv" pip install --python .venv/bin/python -c constraints.txt -r pyproject.toml \
      ${flags[@]+"${flags[@]}"}
  else
    extra=${EXTRAS:-}
    .venv/bin/python -m pip install -c constraints.txt -e ".${extra:+[${extra// /,}]}"
  fi
}

CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -n ${PYTHON:-} ]] && ! supported "$PYTHON"; then die "PYTHON=$PYTHON is not a working Python 3.11 or 3.12."; fi
if ! supported .venv/bin/python; then
  make_venv
elif [[ -n ${PYTHON:-} && $(version_of "$PYTHON") != "$(version_of .venv/bin/python)" ]]; then
  echo "PYTHON=$PYTHON differs from the Python of .venv: making .venv anew."
  make_venv
fi

# One stamp per group, so that the scripts do not undo each other's work.
sum=$(cat pyproject.toml constraints.txt | cksum)
for group in base ${EXTRAS:-}; do
  if [[ $(cat ".venv/.installed-$group" 2>/dev/null) != "$sum" ]]; then
    install_dependencies
    for group in base ${EXTRAS:-}; do echo "$sum" >".venv/.installed-$group"; done
    break
  fi
done

export VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:$PATH
unset PYTHONHOME
echo "Environment ready: .venv, Python $(version_of python)."
