# shellcheck shell=bash
# What the scripts here share; sourced with `root` set. Works from the repository's top folder, whatever the caller's.
cd "${root:?set by the script that sources this}" || exit 1
export LC_ALL=C

# One line with the seconds since the script began.
say() { printf '== %4d s  %s\n' "$SECONDS" "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Runs a command with its output in a log, which is shown only when the command fails. usage: quietly LOG COMMAND...
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "failed: $*  (this is $log)" >&2
    return 1
  fi
}

# Makes the build folder, or brings an old one to these options. usage: configure_build DIR MESON_OPTION...
configure_build() {
  local dir=$1
  shift
  if [ -f "$dir/build.ninja" ]; then
    quietly "$dir/meson-logs/configure.txt" meson configure "$dir" "$@"
  else
    quietly "$dir.setup.txt" meson setup "$dir" "$@"
    mv "$dir.setup.txt" "$dir/meson-logs/setup.txt"
  fi
}

# MPICH's own launcher where several MPIs are installed: the build links MPICH.
find_mpiexec() {
  command -v mpiexec.mpich || command -v mpiexec || fail "no mpiexec; tools/setup installs mpich"
}
