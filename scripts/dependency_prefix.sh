#!/usr/bin/env bash
# Gathers what Braid builds against into one folder, for a machine that reaches no package registry.
#
#   scripts/dependency_prefix.sh DIR
#
# Downloads the Debian packages (nothing is installed here, and no root is needed) and unpacks them
# under DIR. On the other machine:
#
#   cmake -B build -G Ninja -DCMAKE_PREFIX_PATH=DIR/usr -DPKG_CONFIG_EXECUTABLE=DIR/bin/pkg-config
set -euo pipefail

if [[ $# -ne 1 || $1 == -* ]]; then
  echo "usage: ${0##*/} DIR" >&2
  exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)
packages=(
  libfmt-dev libfmt9
  libhwy-dev libhwy1
  nlohmann-json3-dev
  libpcre2-dev libpcre2-8-0
  libutf8proc-dev libutf8proc2
  libkissfft-dev libkissfft-float131
  libcli11-dev
  libgtest-dev
  pkgconf-bin libpkgconf3
)

rm -rf "${dir:?}/usr" "${dir:?}/bin"
archives=$(mktemp -d)
trap 'rm -rf "$archives"' EXIT
(cd "$archives" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${packages[@]}")
for archive in "$archives"/*.deb; do
  dpkg-deb -x "$archive" "$dir"
done

# Only what a build reads stays.
rm -rf "$dir"/usr/share/{doc,man,lintian,bug,aclocal,pkgconfig.personality.d,gdb} "$dir"/usr/src
find "$dir/usr/lib" \( -name 'libpcre2-16*' -o -name 'libpcre2-32*' -o -name 'libpcre2-posix*' \
  -o -name 'libhwy_test*' \) -delete
# Packages say where they are relative to themselves, so that the folder can be moved.
find "$dir/usr" -name '*.pc' -exec sed -i 's|^prefix=/usr|prefix=${pcfiledir}/../../..|' {} +
find "$dir/usr/share/pkgconfig" -name '*.pc' -exec sed -i \
  's|^prefix=${pcfiledir}/../../..|prefix=${pcfiledir}/../..|' {} +

mkdir -p "$dir/bin"
cat > "$dir/bin/pkg-config" <<'WRAPPER'
#!/usr/bin/env bash
# pkg-config that knows the packages of this folder alone.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lib=$(dirname "$(find "$root/usr/lib" -name 'libpkgconf.so.*' -print -quit)")
export PKG_CONFIG_LIBDIR=$lib/pkgconfig:$root/usr/share/pkgconfig
export LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$root/usr/bin/pkgconf" "$@"
WRAPPER
chmod +x "$dir/bin/pkg-config"
"$dir/bin/pkg-config" --exists libhwy libpcre2-8 libutf8proc kissfft-float
du -sh "$dir" | cut -f1
