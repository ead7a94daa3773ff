#!/bin/sh
# Installs what the build needs on Debian 12, if anything is missing.
set -eu
packages="g++ cmake ninja-build pkg-config git libfmt-dev nlohmann-json3-dev libcli11-dev libhwy-dev
libpcre2-dev libutf8proc-dev libkissfft-dev libgtest-dev libdnnl-dev libopenmpi-dev openmpi-bin
ccache"
missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
    missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "installing:$missing"
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086  # a list of words
$sudo apt-get install -y -qq --no-install-recommends $missing
