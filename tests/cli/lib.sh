# Sourced by every script here with BRAID SOURCE_DIR: a scratch directory, and checks that report and
# go on. A script ends with `finish`.
set -u
export LC_ALL=C
braid=$1 golden=$2/tests/golden
work=$(mktemp -d "${TMPDIR:-/tmp}/braid-cli-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
out=$work/.stdout err=$work/.stderr
checks=0 failures=0
exec </dev/null

fail() {
  failures=$((failures + 1))
  echo "FAIL: $*"
}

# same WHAT GOT WANT
same() {
  checks=$((checks + 1))
  [[ "$2" == "$3" ]] || fail "$1: got '${2:0:300}', want '${3:0:300}'"
}

# refuses CODE TEXT ARGS...: braid ARGS ends with CODE and one line on stderr that holds TEXT.
refuses() {
  local code=$1 text=$2 got
  shift 2
  checks=$((checks + 1))
  "$braid" "$@" >"$out" 2>"$err"
  got=$?
  local what="braid ${*:0:12}"
  what=${what:0:200}
  [[ $got == "$code" ]] || fail "$what: exit code $got, want $code: $(head -c 300 "$err")"
  [[ $(wc -l <"$err") == 1 ]] || fail "$what: $(wc -l <"$err") lines on stderr: $(head -c 300 "$err")"
  [[ $(<"$err") == "braid: "* ]] || fail "$what: says '$(head -c 300 "$err")', want 'braid: ...'"
  [[ $(<"$err") == *"$text"* ]] || fail "$what: says '$(head -c 300 "$err")', want '$text'"
  if LC_ALL=C grep -q '[[:cntrl:]]' <<<"$(<"$err")"; then fail "$what: control characters"; fi
}

# works ARGS...: exit code 0 and nothing on stderr; stdout is in $out.
works() {
  local got
  checks=$((checks + 1))
  "$braid" "$@" >"$out" 2>"$err"
  got=$?
  [[ $got == 0 ]] || fail "braid ${*:0:12}: exit code $got: $(head -c 300 "$err")"
  [[ ! -s $err ]] || fail "braid ${*:0:12}: stderr: $(head -c 300 "$err")"
}

# le8 N: eight bytes, little endian.
le8() {
  local n=$1 i text=
  for i in 1 2 3 4 5 6 7 8; do
    text+=$(printf '\\x%02x' $((n & 255)))
    n=$((n >> 8))
  done
  printf "$text"
}

# safetensors HEADER BYTES: a file of that header and so many zeros of data, on stdout.
safetensors() {
  le8 ${#1}
  printf '%s' "$1"
  head -c "$2" /dev/zero
}

# header FILE, data FILE: the JSON header, the bytes after it.
header_length() { od -An -tu8 -N8 "$1" | tr -d ' '; }
header() { tail -c +9 "$1" | head -c "$(header_length "$1")"; }
data() { tail -c +$((9 + $(header_length "$1"))) "$1"; }

# edit_header FILE SED...: rewrites the header and leaves the data as it is.
edit_header() {
  local file=$1 text
  shift
  text=$(header "$file" | sed "$@")
  { le8 ${#text}; printf '%s' "$text"; data "$file"; } >"$file.new"
  cmp -s "$file" "$file.new" && fail "edit_header $*: nothing changed"
  mv "$file.new" "$file"
}

# tensor_offset FILE NAME: where its data begin in the file.
tensor_offset() {
  local start
  start=$(header "$1" | sed -E "s/.*\"$2\":\{[^}]*\"data_offsets\":\[([0-9]+),.*/\1/")
  echo $((8 + $(header_length "$1") + start))
}

# ids FILE NAME COUNT: the int64s of a tensor, separated by commas.
ids() {
  od -An -v -td8 -w8 -j "$(tensor_offset "$1" "$2")" -N $(($3 * 8)) "$1" | tr -d ' ' | paste -sd,
}

# A copy of a golden model that may be changed.
model() {
  rm -rf "$work/model"
  mkdir "$work/model"
  cp "$golden/$1/config.json" "$golden/$1/model.safetensors" "$work/model"
  chmod -R u+w "$work/model"
}

finish() {
  local left
  left=$(find "$work" -name '*.tmp*' -o -name '*.partial*' -o -name '*.new')
  [[ -z $left ]] || fail "left behind: $left"
  echo "$checks checks, $failures failures"
  [[ $failures == 0 ]]
  exit
}
