# shellcheck shell=bash
# What hack/demo and hack/test share: steps that say how long they took, the packages they need, and a Nomad agent.
# Sourced, not run.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NOMAD_VERSION=1.11.3
CONSUL_VERSION=1.14.11
WORKDIR=
STEP=

say() {
  if [[ -t 1 ]]; then printf '\n\033[1m==> %s\033[0m\n' "$*"; else printf '\n==> %s\n' "$*"; fi
}
note() { printf '    %s\n' "$*"; }

# Ends the script with the reason.
fail() {
  printf '\n%s: FAILED%s: %s\n' "$(basename "$0")" "${STEP:+ in \"$STEP\"}" "$*" >&2
  STEP=
  exit 1
}

# step NAME COMMAND...: runs it with its output shown, and says how long it took. A failure ends the script.
step() {
  local name=$1 begun=$SECONDS
  shift
  STEP=$name
  say "$name"
  "$@" || fail "\`$*\` ended with $?"
  note "$name: done in $((SECONDS - begun)) s"
  STEP=
}

# expect_steps FIRST LATER: says what the steps take on two cores, the first time and later.
expect_steps() { note "steps on two cores: the first time $1; later $2"; }

# spawn COMMAND...: starts it in a process group of its own, so that an interrupt reaches this script alone, which then
# ends it in order. CHILD is what to send the end to: the process, or `group` as the first word its whole group.
spawn() {
  local whom=
  if [[ $1 == group ]]; then
    whom=-
    shift
  fi
  set -m
  "$@" </dev/null &
  set +m
  CHILD=$whom$!
}

reap() {
  local status=0
  wait "${CHILD#-}" || status=$?
  CHILD=
  return "$status"
}

# quietly COMMAND...: runs it with its output kept aside, a sign of life every 15 s, and the output's end if it fails.
quietly() {
  local log=$WORKDIR/output begun=$SECONDS next=15 status=0
  spawn group "$@" >"$log" 2>&1
  while kill -0 "${CHILD#-}" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - begun >= next)); then
      note "still running after $((SECONDS - begun)) s"
      next=$((next + 15))
    fi
  done
  reap || status=$?
  if ((status != 0)); then
    tail -n 30 "$log" | sed 's/^/    | /'
  fi
  return "$status"
}

# in_order COMMAND...: runs a program that, told to end, first takes down what it started.
in_order() {
  spawn "$@"
  reap
}

# Called once, at the top: refuses what can't work, and arranges for the end.
begin() {
  [[ $(id -u) == 0 ]] || fail "this starts containers and a Nomad agent: run it as root (sudo $0)"
  begin_as_anyone
}

# In the place of `begin`, by a script that needs no root.
begin_as_anyone() {
  cd "$REPOSITORY" || exit
  [[ $(uname -s) == Linux ]] || fail "this needs Linux"
  WORKDIR=$(mktemp -d -t containerd-driver.XXXXXX)
  CHILD=
  trap 'finish $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  find_builder
}

finish() {
  local status=$1
  trap - EXIT
  trap '' INT TERM
  if [[ -n $CHILD ]]; then
    kill -TERM -- "$CHILD" 2>/dev/null || true
    wait "${CHILD#-}" 2>/dev/null || true
  fi
  if [[ -n $POLICY ]]; then rm -f "$POLICY"; fi
  rm -rf "$WORKDIR"
  if ((status != 0)) && [[ -n $STEP ]]; then
    printf '\n%s: FAILED in "%s" (status %d)\n' "$(basename "$0")" "$STEP" "$status" >&2
  fi
  exit "$status"
}
POLICY=

# Under sudo the compilers are often in the caller's home: builds run as the caller, with the caller's caches.
find_builder() {
  BUILDER=()
  local home=$HOME
  if [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    BUILDER=(sudo -u "$SUDO_USER" -H -- env)
  fi
  export PATH="$home/.cargo/bin:/usr/local/go/bin:$PATH"
  if [[ ${#BUILDER[@]} -gt 0 ]]; then
    BUILDER+=("PATH=$PATH" ${CARGO_TARGET_DIR:+"CARGO_TARGET_DIR=$CARGO_TARGET_DIR"})
    CACHE=$home/.cache/containerd-driver
  else
    CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/containerd-driver
  fi
  command -v cargo >/dev/null || fail "no cargo in PATH: install Rust from https://rustup.rs"
  # shellcheck disable=SC2034 # used by the scripts that source this
  TARGET=${CARGO_TARGET_DIR:-$REPOSITORY/target}
}

as_builder() { "${BUILDER[@]}" "$@"; }

# build COMMAND...: runs a compiler, with its output shown.
build() {
  spawn group as_builder "$@"
  reap
}

# What is needed, a file or a command, and the package that has it.
declare -A PACKAGES=(
  [containerd]=containerd
  [containerd-shim-runc-v2]=containerd
  [ctr]=containerd
  [runc]=runc
  [/usr/lib/cni/bridge]=containernetworking-plugins
  [iptables]=iptables
  [docker-registry]=docker-registry
  [busybox]=busybox-static
  [redis-server]=redis-server
  [redis-cli]=redis-tools
  [protoc]=protobuf-compiler
  [/usr/bin/tini-static]=tini
  [/usr/include/google/protobuf/any.proto]=libprotobuf-dev
  [cc]=gcc
  [/usr/share/doc/libc6-dev]=libc6-dev
  [script]=bsdutils
  [mkfs.ext4]=e2fsprogs
  [ip]=iproute2
  [/usr/sbin/rsyslogd]=rsyslog
  [/lib/systemd/systemd-journald]=systemd
  [/etc/ssl/certs/ca-certificates.crt]=ca-certificates
)

# The packages that are missing.
missing_packages() {
  local want
  for want in "${!PACKAGES[@]}"; do
    if [[ $want == /* ]]; then [[ -e $want ]] && continue; else command -v "$want" >/dev/null && continue; fi
    printf '%s\n' "${PACKAGES[$want]}"
  done | sort -u
}

# Installs what is missing. The services that come with the packages are not started: the containerd, the registry and
# the redis used here are private ones.
install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]} == 0)); then
    note "all installed"
    return
  fi
  command -v apt-get >/dev/null || fail "missing: ${missing[*]}, and there is no apt-get to install them"
  note "installing ${missing[*]}"
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    POLICY=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
  fi
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get update || return
  quietly apt-get install -y --no-install-recommends "${missing[@]}" || return
  if [[ -n $POLICY ]]; then rm -f "$POLICY"; fi
  POLICY=
}

# Sets NOMAD to an agent's path, or leaves it empty: the one named by $NOMAD, else from PATH, else built once and kept.
find_nomad() { find_agent nomad "$NOMAD_VERSION" "about five minutes"; }

# The same for CONSUL.
find_consul() { find_agent consul "$CONSUL_VERSION" "about three minutes"; }

# The steps with which hack/test begins: the packages, also those for the guest, and the agents.
set_up_for_test() {
  if ! is_cgroup_v2; then PACKAGES[qemu-system-x86_64]=qemu-system-x86; fi
  step "packages" install_packages
  step "nomad" find_nomad
  step "consul" find_consul
}

# A machine has one version of cgroups in use. Where that is v1, a guest stands in for the other.
is_cgroup_v2() { [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]; }

# find_agent NAME VERSION TIME
find_agent() {
  local -n path=${1^^}
  if [[ -n ${path:-} ]]; then
    [[ -x $path ]] || fail "${1^^}=$path is not a program"
  elif ! path=$(command -v "$1"); then
    find_built "$@" || return 0
    path=$BUILT
  fi
  note "$("$path" version | head -n 1) at $path"
}

# find_built NAME VERSION TIME: sets BUILT to an agent's path that is built here, once, and kept.
find_built() {
  BUILT=$CACHE/$1-$2
  if [[ -x $BUILT ]]; then return; fi
  if ! command -v go >/dev/null; then
    note "no $1 in PATH, and Go is not installed to build it"
    return 1
  fi
  note "building ${1^} $2 with $(go env GOVERSION) into $BUILT (once; $3 on two cores)"
  as_builder mkdir -p "$CACHE"
  if ! quietly build_agent "$1" "$BUILT"; then
    note "the build of ${1^} failed"
    return 1
  fi
}

# build_agent NAME FILE: from the module of its own in hack/NAME.
build_agent() {
  as_builder env CGO_ENABLED=0 go -C "hack/$1" build -ldflags '-s -w' -o "$2.$$" "github.com/hashicorp/$1" &&
    as_builder mv "$2.$$" "$2"
}

# Where this machine has Debian's packages from.
debian_site() {
  local site
  # shellcheck disable=SC2016 # for apt
  site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
  printf '%s\n' "${site:-http://deb.debian.org/debian}"
}

# Sets KERNEL to where Debian's kernel for virtual machines lies, fetched once and kept. It is only unpacked: installed,
# it would be one of this machine's own.
find_guest_kernel() {
  # Not what an interrupt has left half unpacked.
  KERNEL=$(find "$CACHE" -maxdepth 1 -name 'linux-image-*-amd64' 2>/dev/null | sort -V | tail -n 1)
  if [[ -z $KERNEL ]]; then
    local package
    quietly apt-get update || return
    package=$(apt-cache depends --important linux-image-cloud-amd64 | grep -om1 'linux-image-[0-9][^ ]*-amd64')
    [[ -n $package ]] || { note "apt knows no linux-image-cloud-amd64"; return 1; }
    KERNEL=$CACHE/$package
    note "fetching $package into $KERNEL (once)"
    (cd "$WORKDIR" && quietly apt-get download "$package") || return
    # What is left of interrupted runs is of no use to anybody.
    as_builder find "$CACHE" -maxdepth 1 -name 'linux-image-*-amd64.*' -mmin +60 -exec rm -rf {} +
    as_builder mkdir -p "$KERNEL.$$" || return
    dpkg-deb --fsys-tarfile "$WORKDIR/$package"_*.deb |
      as_builder tar -x -C "$KERNEL.$$" --wildcards './boot/vmlinuz-*' '*/kernel/fs/overlayfs/*' || return
    as_builder mv "$KERNEL.$$" "$KERNEL" || return
  fi
  note "$(basename "$KERNEL")"
}

# How to get an agent, for the places that do without one.
how_to_get_nomad() {
  note "To have it run under a real agent, either put nomad $NOMAD_VERSION or newer into PATH"
  note "(https://developer.hashicorp.com/nomad/install), or set NOMAD to its path, or install Go 1.26 or"
  note "newer (https://go.dev/dl), with which it is built here once."
}
