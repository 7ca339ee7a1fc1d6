# shellcheck shell=bash
# The programs of other versions than the machine's that the cases are run on: fetched or built once for each version, kept,
# and never installed. Sourced after lib.sh by hack/test, hack/matrix and hack/differ. Which versions these are, the modules
# beside this file say, and for crates the constants here.

# The lines of the newest releases; hack/matrix --newest says when there is a newer one.
# shellcheck disable=SC2034 # used by the scripts that source this
NEWEST_CONTAINERD=2.4 NEWEST_RUNC=1.5
YOUKI_VERSION=0.7.0
CARGO_MUTANTS_VERSION=27.1.0
RUST_SHIM=containerd-runc-shim RUST_SHIM_VERSION=0.2.0

# What builds of these need beside what lib.sh has.
PACKAGES[/usr/include/seccomp.h]=libseccomp-dev
PACKAGES["pkg-config"]=pkg-config

# find_containerd LINE, find_runc LINE, find_cni LINE, find_nomad_line LINE: set BUILT to the directory of the programs of a
# line.
find_containerd() {
  find_tools containerd "hack/containerd/$1" github.com/containerd/containerd/v2 \
    env CGO_ENABLED=0 go build -tags 'no_btrfs no_devmapper' -ldflags '-s -w'
}
find_runc() {
  find_tools runc "hack/runc/$1" github.com/opencontainers/runc \
    env CGO_ENABLED=1 go build -tags seccomp -ldflags '-s -w'
}
find_cni() {
  find_tools cni "hack/cni/$1" github.com/containernetworking/plugins env CGO_ENABLED=0 go build -ldflags '-s -w'
}
find_nomad_line() {
  find_tools nomad "hack/nomad/$1" github.com/hashicorp/nomad env CGO_ENABLED=1 go build -ldflags '-s -w'
}

# Sets BUILT to the directory of runsc and containerd-shim-runsc-v1.
find_gvisor() {
  may_protect_from_oom || note "without CAP_SYS_RESOURCE: gVisor's shim is built so that it goes on where it gets no OOM score"
  find_tools gvisor hack/gvisor gvisor.dev/gvisor build_gvisor "$(built_version hack/gvisor gvisor.dev/gvisor)"
}

# build_gvisor VERSION -o DIRECTORY tool: within the module. Not with cgo: a runsc that needs libraries can't run itself again in
# its own root.
build_gvisor() {
  local version=$1 directory=$3 vendored=()
  if ! may_protect_from_oom; then
    # The shim gives up where it may not lower its OOM score, even though all else works.
    local copy=$directory/module
    as_builder mkdir -p "$copy" && as_builder cp go.mod go.sum "$copy" && as_builder go -C "$copy" mod vendor &&
      as_builder sed -i 's/if os\.IsPermission(err) && (/&true || /' \
        "$copy/vendor/github.com/containerd/containerd/v2/pkg/sys/oom_linux.go" || return
    vendored=(-C "$copy" -mod=vendor)
  fi
  as_builder env CGO_ENABLED=0 go build "${vendored[@]}" \
    -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" -o "$directory" tool &&
    as_builder mv "$directory/shim" "$directory/containerd-shim-runsc-v1" || return
  rm -rf "$directory/module"
}

# Whether a process of this machine may have a lower OOM score than its parent: CAP_SYS_RESOURCE.
may_protect_from_oom() { (((0x$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status) >> 24) & 1)); }

# built_version MODULE PACKAGE: prints which version of a package a module of this repository builds.
built_version() { sed -n "s#^.*\s$2 v\([^ ]*\).*#\1#p" "$1/go.mod"; }

# find_tools NAME MODULE PACKAGE COMMAND..: builds what a module calls its tools, by a command that is run in it and takes
# `-o DIRECTORY tool`. Sets BUILT to where they are.
find_tools() {
  local name=$1 module=$2 version
  version=$(built_version "$module" "$3")
  BUILT=$CACHE/$name-$version
  if [[ -d $BUILT ]]; then return; fi
  if ! command -v go >/dev/null; then
    note "Go is not installed to build $name $version"
    return 1
  fi
  note "building $name $version with $(go env GOVERSION) into $BUILT (once; two to four minutes on two cores)"
  as_builder mkdir -p "$BUILT.$$" && remove_interrupted "$name-$version.*" &&
    quietly in_module "$module" "${@:4}" -o "$BUILT.$$" tool && as_builder mv -T "$BUILT.$$" "$BUILT" && return
  note "the build of $name $version failed"
  return 1
}

# in_module MODULE COMMAND..
in_module() {
  cd "$1" || return
  if [[ $2 == env ]]; then as_builder "${@:2}"; else "${@:2}"; fi
}

# remove_interrupted PATTERN: what is left of interrupted builds is of no use to anybody.
remove_interrupted() { as_builder find "$CACHE" -maxdepth 1 -name "$1" -mmin +60 -exec rm -rf {} +; }

# Sets BUILT to the binary of youki.
find_youki() {
  find_crate youki "$YOUKI_VERSION" youki --no-default-features --features systemd,v1,v2,seccomp
}
# Sets BUILT to the binary of containerd's shim in Rust.
find_rust_shim() { find_crate "$RUST_SHIM" "$RUST_SHIM_VERSION" containerd-shim-runc-v2-rs; }

# Sets MUTANTS to the binary of cargo-mutants.
find_cargo_mutants() {
  find_crate cargo-mutants "$CARGO_MUTANTS_VERSION" cargo-mutants && MUTANTS=$BUILT
}

# find_crate CRATE VERSION BINARY ARGUMENT..
find_crate() {
  local crate=$1 version=$2 root=$CACHE/$1-$2
  BUILT=$root/bin/$3
  if [[ -x $BUILT ]]; then return; fi
  note "building $crate $version into $root (once; about four minutes on two cores)"
  if ! quietly as_builder env CARGO_TARGET_DIR="$CACHE/$crate-target" \
    cargo install --locked --root "$root" "$crate@$version" "${@:4}"; then
    note "the build of $crate $version failed"
    return 1
  fi
  rm -rf "$CACHE/$crate-target"
}

# debian SUITE APT-COMMAND..: apt on a suite that this machine doesn't have, with lists of its own.
debian() {
  local suite=$1 own=$CACHE/apt-$1
  mkdir -p "$own/lists/partial" "$own/cache/archives/partial"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
    "$(debian_site)" "$suite" >"$own/sources.list"
  flock "$own" "$2" -o Dir::Etc::SourceList="$own/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$own/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$own/cache" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none \
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "${@:3}"
}

# find_debian SUITE PACKAGES LIBRARIES: sets ROOT to where programs of one of Debian's suites lie, with the libraries that
# they need a newer one of than this machine's. Packages and libraries are words with spaces between them.
find_debian() {
  local suite=$1 packages libraries version
  read -ra packages <<<"$2"
  read -ra libraries <<<"$3"
  if ! quietly debian "$suite" apt-get update; then
    note "can't fetch the package lists of Debian's $suite; looking for packages fetched before"
    ROOT=$(find "$CACHE" -maxdepth 1 -name "${packages[0]}-$suite-*" | sort -V | tail -n 1)
    [[ -n $ROOT ]]
    return
  fi
  version=$(debian "$suite" apt-cache madison "${packages[@]}" | awk '{ print $3 }' | paste -sd +)
  ROOT=$CACHE/${packages[0]}-$suite-$version
  if [[ ! -d $ROOT ]]; then
    note "fetching ${packages[*]} $version into $ROOT (once)"
    local part=$WORKDIR/$suite-${packages[0]} package
    mkdir -p "$part/root"
    (cd "$part" && quietly debian "$suite" apt-get download "${packages[@]}" "${libraries[@]}") || return
    for package in "$part"/*.deb; do dpkg-deb -x "$package" "$part/root" || return; done
    mv "$part/root" "$ROOT"
  fi
  settle "$ROOT"
}

# find_dockerd SUITE: sets DOCKERD to the binary of one of Debian's suites, which runs with the libraries of Debian 12.
find_dockerd() {
  find_debian "$1" docker.io "" || return
  DOCKERD=$ROOT/usr/sbin/dockerd
  note "$("$DOCKERD" --version) at $DOCKERD"
}

# find_crun SUITE: sets CRUN to the binary of one of Debian's suites, which runs on Debian 12 with libraries of its own. Needs
# patchelf, and x86-64.
find_crun() {
  find_debian "$1" crun "libc6 libcap2 libseccomp2 libsystemd0 libyajl2" || return
  CRUN=$ROOT/usr/bin/crun
  note "$("$CRUN" --version | head -n 1) at $CRUN"
}

# settle ROOT: has programs that are linked with other libraries than this machine's load those beside them. On x86-64.
settle() {
  local library=$1/usr/lib/x86_64-linux-gnu program
  for program in "$1"/usr/{bin,sbin}/{containerd,ctr,containerd-shim-runc-v2,runc,crun}; do
    if [[ -e $program ]] && ldd "$program" 2>&1 | grep -q 'not found'; then
      patchelf --set-interpreter "$library/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$library" "$program" || return
    fi
  done
}

# Says of each line that the rows build whether there is a newer release of it, and of the newest ones whether there is a
# newer line. Fails where that can't be had.
compare_with_newest() {
  local name newest package module status=0
  while read -r name newest package; do
    for module in "hack/$name"/*/; do compare "$name" "${module%/}" "$package" "@v$(basename "$module")" || status=1; done
    compare "$name" "hack/$name/$newest" "$package" @latest || status=1
  done <<EOF
containerd $NEWEST_CONTAINERD github.com/containerd/containerd/v2
runc $NEWEST_RUNC github.com/opencontainers/runc
cni 1.10 github.com/containernetworking/plugins
EOF
  compare gvisor hack/gvisor gvisor.dev/gvisor @latest || status=1
  # The public proxy has Nomad's releases by their names alone, and no list of them.
  note "nomad: $(built_version hack/nomad/1.10 github.com/hashicorp/nomad) and $NOMAD_VERSION; the newest release can't be looked up"
  compare_crate youki "$YOUKI_VERSION" || status=1
  compare_crate "$RUST_SHIM" "$RUST_SHIM_VERSION" || status=1
  return "$status"
}

# compare NAME MODULE PACKAGE QUERY
compare() {
  local latest
  latest=$(cd / && as_builder go list -m -f '{{.Version}}' "$3$4") || latest=
  tell_newest "$1 ${4#@}" "$(built_version "$2" "$3")" "${latest#v}"
}

# compare_crate CRATE VERSION
compare_crate() {
  tell_newest "$1" "$2" \
    "$(cd / && as_builder cargo info --registry crates-io "$1" 2>/dev/null | sed -n 's/^version: \([^ ]*\).*/\1/p')"
}

# tell_newest WHAT USED NEWEST
tell_newest() {
  if [[ -z $3 ]]; then
    note "$1: can't determine the newest release; the row has $2"
    return 1
  elif [[ $3 == "$2" ]]; then
    note "$1: $2 is the newest release"
  else
    note "$1: $3 is out, and the row has $2"
  fi
}
