#!/usr/bin/env bash
# Install what the tests marked `lab` need and a plain machine lacks: as root, on Debian or a relative. Run it as often
# as you like: what is there already is left alone. PYTHON names the interpreter for the virtual environments in .lab/.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
packages=(catatonit dbus docker.io dumb-init gcc iproute2 libc6-dev munge nftables podman polkitd procps python3-pip runc slurm-wlm systemd tini util-linux)

say() { echo "lab: $*"; }

fail() {
  echo "lab: $*" >&2
  exit 1
}

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  if [ ${#missing[@]} = 0 ]; then
    say "packages are there: ${packages[*]}"
    return
  fi
  say "installing packages: ${missing[*]}"
  apt-get update -qq
  without_starting_daemons env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# munge, SLURM and docker come with services; the tests start daemons of their own. A policy that is there already stays.
without_starting_daemons() {
  local policy=/usr/sbin/policy-rc.d
  if [ -e "$policy" ]; then
    "$@"
    return
  fi
  trap "rm -f $policy" EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  "$@"
  rm -f "$policy"
  trap - EXIT
}

# environment NAME REQUIREMENT...: .lab/NAME, made anew when the requirements change.
environment() {
  local venv=.lab/$1 wanted="${*:2}"
  if [ "$(cat "$venv/requirements" 2>/dev/null)" = "$wanted" ]; then
    say "$venv is there: $wanted"
    return
  fi
  if [ -L "$venv" ]; then
    say "$venv is a link to an environment of your own: left alone"
    return
  fi
  say "installing into $venv: $wanted"
  rm -rf "$venv"
  .ci/venv "$python" "$venv"
  # With preemptd, as a user would have it in the environment of the training.
  "$venv/bin/python" -m pip install -qq "${@:2}" --editable .
  echo "$wanted" >"$venv/requirements"
}

# What container images are made of: wheels for Debian's own Python, since no image is fetched from anywhere.
wheels() {
  local wanted
  wanted=$(cat pyproject.toml)
  if [ "$(cat .lab/wheels/made-for 2>/dev/null)" = "$wanted" ]; then
    say ".lab/wheels are there"
    return
  fi
  say "fetching wheels for container images into .lab/wheels"
  rm -rf .lab/wheels
  /usr/bin/python3 -m pip wheel -qq --disable-pip-version-check --wheel-dir .lab/wheels hatchling .
  rm .lab/wheels/preemptd-*.whl # the tests build it anew
  echo "$wanted" >.lab/wheels/made-for
}

[ "$(id -u)" = 0 ] || fail "run this as root: it installs packages, and the tests make network namespaces"
command -v apt-get >/dev/null || fail "no apt-get here: install by hand ${packages[*]}"
mkdir -p .lab
install_packages
# Exactly these: where a CPU build of torch is offered (2.13.0+cpu), an exact version takes it, and no test needs a GPU.
environment torch torch==2.13.0 accelerate==1.15.0 transformers==5.23.0 lightning==2.6.6 "jax[cpu]" numpy uv wandb==0.31.0
environment sync s3fs "moto[server]" gcsfs gcp-storage-emulator tqdm
environment wandb-0.22.3 wandb==0.22.3
environment wandb-0.19.11 wandb==0.19.11
wheels
unshare --net true || fail "this machine does not allow network namespaces (in a container: run it privileged)"
say "complete: PREEMPTD_REQUIRE_LAB=1 make test"
